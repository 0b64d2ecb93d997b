"""The report of an audit: one page from which a person trusts the data, or knows why not."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data_pipelines.audit.audit import Audit
from data_pipelines.audit.checks import Outcome
from data_pipelines.audit.examples import Example
from data_pipelines.audit.recoding import RecodedPicture
from data_pipelines.audit.statistics import RowStatistics, SourceCounts
from data_pipelines.audit.tokens import TokenFindings
from ernie_vilg.evaluation.audit_charts import (
    caption_charts,
    code_charts,
    is_constant,
    measure_charts,
)
from ernie_vilg.evaluation.page import render
from ernie_vilg.storage.caption_lengths import num_longer
from ernie_vilg.system.progress import duration

_MOST_CHARACTERS = 40
_MOST_PAIRS = 8
_OF_SHARDS = {"image_files", "image_members", "token_files", "token_members"}
"""Checks that leave a shard out of all others if they fail."""
_MARKS = {
    Outcome.FAILED: "wrong",
    Outcome.LOOK: "look",
    Outcome.PASSED: "right",
    Outcome.NOT_CHECKED: "skipped",
}
"""Style of every outcome, in the order in which the page lists the checks."""


@dataclass(frozen=True, kw_only=True)
class AuditHeading:
    """Figures of the audit itself, for the page."""

    command: str
    """Command that repeats it."""
    seconds: float
    """Time that it took."""
    text_length: int | None
    """Text slots of the model that will train on the data."""


def audit_html(audit: Audit, heading: AuditHeading) -> str:
    """Return the whole page."""
    return render(
        "ernie_vilg.evaluation",
        "audit.html",
        title="Audit of shards",
        heading=heading,
        took=duration(heading.seconds),
        audit=audit,
        verdict=verdict_of(audit),
        is_partial=any(check.name in _OF_SHARDS for check in audit.failed),
        marks=_MARKS,
        checks=sorted(
            (check for check in audit.checks if check.outcome != Outcome.NOT_CHECKED),
            key=lambda check: list(_MARKS).index(check.outcome),
        ),
        not_made=_not_made(audit),
        figures=_figures(audit, heading),
        table=_table(audit.rows.sources) if audit.rows is not None else None,
        rejected=_rejected(audit),
        charts=caption_charts(audit.captions, audit.tokens, heading.text_length),
        code_charts=code_charts(audit.codes),
        measures=measure_charts(audit.rows),
        constants=_constants(audit.rows),
        unknown=_unknown_characters(audit.tokens),
        cut=_cut(audit.tokens, heading.text_length),
        groups=_reconstructions(audit),
        percent=_percent,
    )


def verdict_of(audit: Audit) -> tuple[str, str]:
    """Return the class and the sentence of the verdict."""
    by_outcome = {
        outcome: [check for check in audit.checks if check.outcome == outcome]
        for outcome in Outcome
    }
    passed, failed = len(by_outcome[Outcome.PASSED]), len(by_outcome[Outcome.FAILED])
    rest = "".join(
        f", {len(by_outcome[outcome])} {words}"
        for outcome, words in ((Outcome.LOOK, "worth a look"), (Outcome.NOT_CHECKED, "not made"))
        if by_outcome[outcome]
    )
    if failed:
        return "failed", f"{failed} of {len(audit.checks)} checks failed, {passed} passed{rest}"
    return "passed", f"{passed} of {len(audit.checks)} checks passed, none failed{rest}"


def _not_made(audit: Audit) -> dict[str, list[str]]:
    """Return the claims that were not checked, by the reason."""
    claims: dict[str, list[str]] = {}
    for check in audit.checks:
        if check.outcome == Outcome.NOT_CHECKED:
            claims.setdefault(check.detail, []).append(check.claim)
    return claims


def _figures(audit: Audit, heading: AuditHeading) -> list[tuple[str, str, str]]:
    """Return the cards: name, figure and meaning of each."""
    cards = [
        (
            each.name.capitalize(),
            f"{each.num_samples:,}",
            f"in {each.num_shards:,} shards, {_bytes(each.num_bytes)}",
        )
        for each in audit.data_sets
    ]
    if audit.rows is not None:
        read = sum(each.read for each in audit.rows.sources)
        kept = sum(each.kept for each in audit.rows.sources)
        cards.append(("Kept", _percent(kept / max(1, read)), f"of {read:,} rows that were read"))
    if (codes := audit.codes) is not None:
        used = _percent(codes.num_used / codes.codebook_size)
        dead = codes.codebook_size - codes.num_used
        cards.append(("Codebook", used, f"in use; {dead:,} of {codes.codebook_size:,} codes never"))
        if codes.from_card is not None:
            what = "bits of 1 from the codes on the tokenizer's card"
            cards.append(("Drift of codes", f"{codes.from_card:.3f}", what))
    if (recoded := audit.recoded) is not None:
        what = f"PSNR of {recoded.num_pictures:,} sampled pictures"
        cards.append(("Reconstruction", f"{recoded.mean_psnr:.1f} dB", what))
    if (cut := _cut(audit.tokens, heading.text_length)) is not None:
        cards.append(("Cut captions", _percent(cut[1]), f"longer than {heading.text_length} ids"))
    return cards


def _table(sources: Sequence[SourceCounts]) -> dict[str, Any]:
    """Return the rows of the table of counts: read = kept + rejected, by source."""
    reasons: dict[str, int] = {}
    for each in sources:
        for reason, count in each.rejected.items():
            reasons[reason] = reasons.get(reason, 0) + count
    order = sorted(reasons, key=lambda reason: (-reasons[reason], reason))
    return {
        "sources": [each.source for each in sources],
        "read": [each.read for each in sources],
        "rejected": [
            (reason, [each.rejected.get(reason, 0) for each in sources]) for reason in order
        ],
        "kept": [each.kept for each in sources],
        "held_out": [each.held_out for each in sources],
        "enlarged": [each.enlarged for each in sources],
        "adds_up": all(each.read == each.kept + sum(each.rejected.values()) for each in sources),
    }


def _rejected(audit: Audit) -> list[tuple[str, int, Sequence[Example]]]:
    """Return the examples of rejected rows with their reason and its count, most frequent first."""
    counts: Counter[str] = Counter()
    for each in audit.rows.sources if audit.rows is not None else ():
        counts.update(each.rejected)
    found = [(reason, counts[reason], rows) for reason, rows in audit.examples.rejected.items()]
    return sorted(found, key=lambda group: (-group[1], group[0]))


def _constants(rows: RowStatistics | None) -> list[tuple[str, str]]:
    """Return the measures that are the same in all rows, with the value."""
    histograms = rows.histograms if rows is not None else ()
    return [(each.name, f"{each.low:g}") for each in histograms if is_constant(each)]


def _unknown_characters(tokens: TokenFindings | None) -> list[tuple[str, int]]:
    """Return the most frequent characters without a piece, with their counts."""
    return tokens.unknown_characters.most_common(_MOST_CHARACTERS) if tokens is not None else []


def _cut(tokens: TokenFindings | None, text_length: int | None) -> tuple[int, float] | None:
    """Return the number and the fraction of captions that are longer than the text slots."""
    if tokens is None or text_length is None or not tokens.counts.caption_lengths:
        return None
    cut = num_longer(tokens.counts.caption_lengths, text_length)
    return cut, cut / sum(tokens.counts.caption_lengths.values())


def _reconstructions(audit: Audit) -> list[tuple[str, Sequence[RecodedPicture]]]:
    if audit.recoded is None:
        return []
    return [
        ("Worst", audit.recoded.worst[:_MOST_PAIRS]),
        ("Chosen by a hash", audit.recoded.typical[:_MOST_PAIRS]),
        ("Best", audit.recoded.best[:_MOST_PAIRS]),
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _bytes(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1000:.1f} kB"
