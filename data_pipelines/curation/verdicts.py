"""What the rules say about a caption, a picture, or a pair."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from data_pipelines.rejections import RejectedError


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was measured, and the first rule that was broken."""

    measures: Mapping[str, Any] = field(default_factory=dict)
    """Measured values by their column in the metadata (`data_pipelines.metadata.COLUMNS`)."""
    rejection: RejectedError | None = None
    """The broken rule; None if all hold."""


@dataclass(frozen=True, kw_only=True)
class CaptionVerdict(Verdict):
    """The same for a caption, which the rules may also transform."""

    caption: str
    """Caption after the transforms."""
    transforms: tuple[str, ...] = ()
    """Names of the transforms that changed it, such as "traditional_to_simplified"."""
