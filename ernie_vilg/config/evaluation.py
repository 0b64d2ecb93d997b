"""Settings of the evaluation on held-out pairs, and of the report."""

from dataclasses import dataclass, field
from typing import Literal

from ernie_vilg.config.generation import Device, DrawingPrecision
from ernie_vilg.config.schema import (
    LocalInput,
    LocalOutput,
    NaturalFloat,
    NaturalInt,
    PositiveInt,
    Settings,
)
from ernie_vilg.errors import InputError


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig(Settings, section="retrieval"):
    """Retrieval by the model's own likelihood, for pairs of any data set."""

    candidates: NaturalInt = 0
    """Number of pairs whose captions and pictures are ranked against each other, the first ones
    with different captions; 0 ranks none. Its square is the number of pairs to score."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Settings):
    """Settings of launch/evaluate.py."""

    weights: LocalInput
    """Folder written by launch/export.py."""
    pairs: LocalInput
    """Folder of held-out raw pairs: `captions.jsonl` and images."""
    output_dir: LocalOutput
    """Folder for `evaluation.json`, the pictures and the captions."""
    count: PositiveInt = 200
    """Number of pairs, the first of the file."""
    judge: Literal["shapes", "none"] = "shapes"
    """Judge of pictures: "shapes" reads the objects of the built-in data from the pixels; "none",
    for other data, draws, captions and reconstructs without judging pictures."""
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    """Retrieval of true captions and pictures among others."""
    training_pairs: LocalInput | None = None
    """Folder of the raw pairs that were trained on. The PSNR of their mean picture is the baseline
    of drawn pictures; null gives none."""
    disturbed: bool = False
    """Whether captions are also written for the pairs' pictures as the second renderer draws them,
    shifted by 1 and by 2 pixels, and through JPEG of quality 80. For judge=shapes; the pairs must
    come from launch/draw_shapes.py, whose lines hold the looks of the pictures."""
    unseen_pairs: LocalInput | None = None
    """Folder of raw pairs with a pair of shape and colour that was never trained on, such as
    `unseen_pairs/` of launch/draw_shapes.py: its first `count` are drawn and captioned too. For
    judge=shapes. null leaves them out."""
    temperature: NaturalFloat = 0.0
    """Temperature of drawing: 0 takes the most likely code at every slot, 1 samples from the model.
    Captions are always greedy."""
    drawings: PositiveInt = 1
    """Number of pictures drawn per caption. Of several the model keeps the one with the smallest
    loss in both directions, its own caption for it included; temperature must then be above 0."""
    batch_size: PositiveInt = 50
    """Number of pictures drawn, captioned or reconstructed at once."""
    device: Device = "auto"
    """Device: cpu, cuda, cuda:1 for the second GPU, or auto: a GPU if there is one."""
    precision: DrawingPrecision = "auto"
    """Number format of the transformer: fp32, bf16, or auto: bf16 on a GPU that has it, fp32
    elsewhere. The image tokenizer always computes in fp32."""
    overwrite: bool = False
    """Whether an evaluation already in `output_dir` is replaced."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.drawings > 1 and self.temperature == 0:
            raise InputError(
                f"drawings={self.drawings} with temperature=0: all pictures of a caption would be "
                "equal; set a temperature above 0, such as 0.3, or drawings=1"
            )
        candidates = self.retrieval.candidates
        if candidates == 1 or candidates > self.count:
            raise InputError(
                f"retrieval.candidates={candidates} with count={self.count}: set it from 2 to "
                "count, or to 0 for no retrieval"
            )
        if self.judge == "none" and (self.disturbed or self.unseen_pairs is not None):
            asked = "disturbed=true" if self.disturbed else f"unseen_pairs={self.unseen_pairs}"
            raise InputError(
                f"{asked} with judge=none: only scenes of the built-in data can be disturbed and "
                "judged, so set judge=shapes, or leave both settings out"
            )


@dataclass(frozen=True, kw_only=True)
class ReportConfig(Settings):
    """Settings of launch/report.py."""

    title: str
    """Heading of the report."""
    pretrain_run: LocalInput
    """Run folder of launch/pretrain.py, for loss curves and sample grids."""
    tokenizer_run: LocalInput
    """Run folder of launch/train_image_tokenizer.py, for its curves."""
    evaluation: LocalInput
    """Folder written by launch/evaluate.py."""
    stages: LocalInput
    """Folder of the main job's stage states, for seconds and memory."""
    output: LocalOutput
    """HTML file to write."""
    command: str
    """Command that reproduces everything, for the report."""
    trained_on: bool = False
    """Whether the evaluated pairs were trained on; the page then does not call them "unseen"."""
    examples: PositiveInt = 12
    """Number of pictures and captions per direction in the report."""
