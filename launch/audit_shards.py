"""Check finished shards, and write a report that shows what is in them."""

import shlex
import sys
import time
from dataclasses import fields

from data_pipelines.outputs import output_folder
from ernie_vilg.config.audit import AuditShardsConfig
from ernie_vilg.config.exit_codes import ExitCode
from ernie_vilg.storage.files import write_bytes, write_json
from ernie_vilg.storage.locations import check_folders
from launch.support.program import program

AUDIT_FILE, REPORT_FILE = "audit.json", "report.html"

_INPUTS = ("image_shards", "token_shards", "text_tokenizer_dir", "image_tokenizer_dir")


@program("audit_shards", AuditShardsConfig)
def main(config: AuditShardsConfig) -> None:
    """Audit the shards; the exit code is 1 if a check failed."""
    # Imported here so that a bad setting is reported before torch is loaded.
    from data_pipelines.audit.audit import audit_shards
    from data_pipelines.audit.audit_file import audit_content
    from ernie_vilg.evaluation.audit_page import AuditHeading, audit_html, verdict_of

    start = time.monotonic()
    inputs = {name: getattr(config, name) for name in _INPUTS if getattr(config, name) is not None}
    check_folders(inputs)
    with output_folder(
        config.output_dir, overwrite=config.overwrite, marker=AUDIT_FILE, inputs=inputs
    ) as folder:
        audit = audit_shards(config, folder)
        heading = AuditHeading(
            command=_command(config),
            seconds=time.monotonic() - start,
            text_length=config.text_length,
        )
        write_json(folder / AUDIT_FILE, audit_content(audit))
        write_bytes(folder / REPORT_FILE, audit_html(audit, heading).encode())
    for check in audit.failed:
        print(f"failed: {check.claim}: {check.num_problems} problems")
    print(verdict_of(audit)[1])
    print(f"{config.output_dir}/{REPORT_FILE}: open it in a browser")
    if audit.failed:
        sys.exit(ExitCode.FAILED)


def _command(config: AuditShardsConfig) -> str:
    """Return the command line that repeats the audit."""
    changed = [
        shlex.quote(f"{field.name}={getattr(config, field.name)}")
        for field in fields(config)
        if getattr(config, field.name) != field.default
    ]
    return " ".join(["python launch/audit_shards.py", *changed])


if __name__ == "__main__":
    main()
