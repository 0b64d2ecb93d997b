"""The content of audit.json: everything that an audit found, without pictures."""

from dataclasses import asdict
from typing import Any

from data_pipelines.audit.audit import Audit

MOST_UNKNOWN = 200


def audit_content(audit: Audit) -> dict[str, Any]:
    """Return checks and figures as JSON."""
    content: dict[str, Any] = {
        "is_passed": not audit.failed,
        "checks": [asdict(check) for check in audit.checks],
        "data_sets": [asdict(each) for each in audit.data_sets],
    }
    for name in ("rows", "captions", "codes"):
        found = getattr(audit, name)
        content[name] = None if found is None else asdict(found)
    content["text"] = None
    if (tokens := audit.tokens) is not None:
        lengths = tokens.counts.caption_lengths
        content["text"] = {
            "caption_lengths": {str(length): lengths[length] for length in sorted(lengths)},
            "num_ids": tokens.num_ids,
            "num_byte_ids": tokens.num_byte_ids,
            "num_captions_with_bytes": tokens.num_captions_with_bytes,
            "unknown_characters": dict(tokens.unknown_characters.most_common(MOST_UNKNOWN)),
        }
    content["reconstructions"] = None
    if (recoded := audit.recoded) is not None:
        content["reconstructions"] = {
            "num_pictures": recoded.num_pictures,
            "mean_psnr": recoded.mean_psnr,
            "num_codes": recoded.num_codes,
            "num_equal": recoded.num_equal,
            "worst": [{"key": each.key, "psnr": each.psnr} for each in recoded.worst],
        }
    return content
