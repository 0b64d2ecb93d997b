"""Settings of the split of pairs that come in variants."""

from dataclasses import dataclass

from ernie_vilg.config.schema import FractionBelowOne, LocalInput, LocalOutput, NaturalInt, Settings


@dataclass(frozen=True, kw_only=True)
class HoldOutVariantsConfig(Settings):
    """Settings of launch/hold_out_variants.py."""

    source: LocalInput
    """Folder of raw pairs: `captions.jsonl` and images."""
    output_dir: LocalOutput
    """Folder for `train/` and `held_out/`, each a folder of raw pairs."""
    base_key: str | None = None
    """Key in `captions.jsonl` whose value names the base of a picture, such as a product's number;
    null takes the base from the code points in the file name of an emoji."""
    fraction: FractionBelowOne = 0.16
    """Fraction of the variants that is held out, each chosen by the hash of its name. A base always
    keeps one variant for training, so a base of one variant is never held out."""
    seed: NaturalInt = 0
    """Seed of the hash."""
    overwrite: bool = False
    """Whether a split already in `output_dir` is replaced."""
