"""Reading of verdicts."""

from data_pipelines.curation.verdicts import Verdict
from data_pipelines.rejections import Reason


def reason_and_detail(verdict: Verdict) -> tuple[Reason, str] | None:
    if verdict.rejection is None:
        return None
    return verdict.rejection.reason, verdict.rejection.detail
