"""Settings of the evaluation on held-out pairs, and of reports."""

from dataclasses import dataclass, field, fields
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
    """Settings of launch/report.py: the page of training runs, or that of a main job."""

    output: LocalOutput
    """HTML file to write."""
    runs: tuple[LocalInput, ...] = ()
    """Run folders of launch/pretrain.py, or of launch/train_image_tokenizer.py, whose page is
    written, and patterns of them, such as `outputs/rates/*`; several stand side by side. Empty: the
    page is a main job's."""
    title: str | None = None
    """Heading of the page; null: the names of the runs. A main job's page needs one."""
    sample_steps: PositiveInt = 8
    """Largest number of steps whose pictures the page shows of each run."""
    pretrain_run: LocalInput | None = None
    """Main job: run folder of launch/pretrain.py, for loss curves and sample grids."""
    tokenizer_run: LocalInput | None = None
    """Main job: run folder of launch/train_image_tokenizer.py, for its curves."""
    evaluation: LocalInput | None = None
    """Main job: folder written by launch/evaluate.py."""
    stages: LocalInput | None = None
    """Main job: folder of the job's stage states, for seconds and memory."""
    command: str | None = None
    """Main job: command that reproduces everything, for the page."""
    trained_on: bool = False
    """Main job: whether the evaluated pairs were trained on; the page then does not call them
    "unseen"."""
    examples: PositiveInt = 12
    """Main job: number of pictures and captions per direction on the page."""

    def __post_init__(self) -> None:
        super().__post_init__()
        names = ("pretrain_run", "tokenizer_run", "evaluation", "stages", "command")
        if self.runs:
            self._check_runs(names)
            return
        if missing := [name for name in ("title", *names) if getattr(self, name) is None]:
            raise InputError(
                f"runs is empty, and {', '.join(missing)} not set: name the run folders of a page "
                "of runs, as in runs=[outputs/quickstart/pretrain], or set all that a main job's "
                f"page needs: {', '.join(('title', *names))}"
            )

    def _check_runs(self, of_a_main_job: tuple[str, ...]) -> None:
        """Refuse settings of the other page."""
        defaults = {each.name: each.default for each in fields(self)}
        others = (*of_a_main_job, "trained_on", "examples")
        if named := [name for name in others if getattr(self, name) != defaults[name]]:
            raise InputError(
                f"runs={list(self.runs)} with {', '.join(named)}: these are of a main job's page, "
                "leave them out, or leave runs out"
            )
