"""Settings of the evaluation on held-out pairs, and of the report.

Source: ours.
"""

from dataclasses import dataclass

from ernie_vilg.errors import InputError
from ernie_vilg.locations import check_local_input, check_local_output

JUDGES = ("shapes", "none")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What `launch/evaluate.py` judges, and where to."""

    weights: str
    """Folder written by launch/export.py."""
    pairs: str
    """Folder of raw pairs that were not trained on: `captions.jsonl` and images."""
    output_dir: str
    """Folder to write: `evaluation.json`, the pictures and the captions."""
    count: int = 200
    """Pairs judged, from the first."""
    judge: str = "shapes"
    """"shapes" reads the objects of the built-in data from the pixels; "none", for other data,
    draws, captions and reconstructs without judging what a picture shows."""
    temperature: float = 0.0
    """Of the drawn pictures: 0 takes the likeliest code at every slot, 1 samples from the model.
    Captions are greedy always."""
    batch_size: int = 50
    """Pictures drawn, captioned or reconstructed at once."""
    overwrite: bool = False
    """Whether an evaluation already in `output_dir` is replaced."""

    def __post_init__(self) -> None:
        check_local_input(weights=self.weights, pairs=self.pairs)
        check_local_output(output_dir=self.output_dir)
        for name in ("count", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}: set at least 1")
        if self.temperature < 0:
            raise InputError(f"temperature={self.temperature}: must be 0 (greedy) or above")
        if self.judge not in JUDGES:
            raise InputError(f"judge={self.judge}: choose one of {', '.join(JUDGES)}")


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What `launch/report.py` reads and writes."""

    title: str
    """The report's heading."""
    pretrain_run: str
    """Run folder of launch/pretrain.py: loss curves and sample grids."""
    tokenizer_run: str
    """Run folder of launch/train_image_tokenizer.py: its curves."""
    evaluation: str
    """Folder written by launch/evaluate.py."""
    stages: str
    """Folder of the main job's stage states: seconds and memory."""
    output: str
    """The HTML file to write."""
    command: str
    """The command that reproduces everything, shown in the report."""
    trained_on: bool = False
    """Whether the evaluated pairs were trained on: the page then says so instead of "unseen"."""
    examples: int = 12
    """Pictures and captions shown of each direction."""

    def __post_init__(self) -> None:
        check_local_input(
            pretrain_run=self.pretrain_run,
            tokenizer_run=self.tokenizer_run,
            evaluation=self.evaluation,
            stages=self.stages,
        )
        check_local_output(output=self.output)
        if self.examples < 1:
            raise InputError(f"examples={self.examples}: set at least 1")
