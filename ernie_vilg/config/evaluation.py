"""Settings of the evaluation on held-out pairs, and of the report.

Source: ours.
"""

from dataclasses import dataclass
from typing import Literal

from ernie_vilg.config.schema import LocalInput, LocalOutput, NaturalFloat, PositiveInt, Settings


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Settings):
    """What `launch/evaluate.py` judges, and where to."""

    weights: LocalInput
    """Folder written by launch/export.py."""
    pairs: LocalInput
    """Folder of raw pairs that were not trained on: `captions.jsonl` and images."""
    output_dir: LocalOutput
    """Folder to write: `evaluation.json`, the pictures and the captions."""
    count: PositiveInt = 200
    """Pairs judged, from the first."""
    judge: Literal["shapes", "none"] = "shapes"
    """"shapes" reads the objects of the built-in data from the pixels; "none", for other data,
    draws, captions and reconstructs without judging what a picture shows."""
    temperature: NaturalFloat = 0.0
    """Of the drawn pictures: 0 takes the likeliest code at every slot, 1 samples from the model.
    Captions are greedy always."""
    batch_size: PositiveInt = 50
    """Pictures drawn, captioned or reconstructed at once."""
    overwrite: bool = False
    """Whether an evaluation already in `output_dir` is replaced."""


@dataclass(frozen=True, kw_only=True)
class ReportConfig(Settings):
    """What `launch/report.py` reads and writes."""

    title: str
    """The report's heading."""
    pretrain_run: LocalInput
    """Run folder of launch/pretrain.py: loss curves and sample grids."""
    tokenizer_run: LocalInput
    """Run folder of launch/train_image_tokenizer.py: its curves."""
    evaluation: LocalInput
    """Folder written by launch/evaluate.py."""
    stages: LocalInput
    """Folder of the main job's stage states: seconds and memory."""
    output: LocalOutput
    """The HTML file to write."""
    command: str
    """The command that reproduces everything, shown in the report."""
    trained_on: bool = False
    """Whether the evaluated pairs were trained on: the page then says so instead of "unseen"."""
    examples: PositiveInt = 12
    """Pictures and captions shown of each direction."""
