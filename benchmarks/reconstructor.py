"""End-to-end training of generator and reconstructor: the paper's Table 7 on the built-in shapes.

    python benchmarks/reconstructor.py

For each seed the programs in launch/ train an image tokenizer, encode the pictures, and train
generators on them: one two-stage, one end to end, and one more for the other reading of
`hidden_position`. All start from the same weights where they have the same parameters
and see the same pairs in the same order. Each row of the table draws the same unseen captions.
The image tokenizer is lossy on purpose, so that a reconstructor can improve on it: a code stands
for 16 x 16 pixels, and 128 codes for the 257 different such squares of the data.

The figures of a row, all against the true pictures of the captions:

- `objects_correct`: see `ernie_vilg.shapes.scores`.
- `psnr`: dB over all pixels. A caption determines its picture, so drawn pictures have one too.
- `frechet`: the Frechet distance between normal distributions fitted to 80 numbers per picture.
  These are, for each of 4 x 4 cells, the means of red, green and blue and the root mean squares
  of the grey value's horizontal and vertical differences; each number is divided by its standard
  deviation over the true pictures. It is not FID: no learned feature takes part, and no figure of
  another data set compares with it.

The same command continues a stopped run: finished parts are skipped. Prints the tables of
docs/reconstructor.md; figures.json, table.md and pictures.png stay in the output folder.

Source: ERNIE-ViLG (arXiv:2112.15283, table 7); the distance is that of Heusel et al. 2017
(arXiv:1706.08500) without the network.
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this folder is not installed

from benchmarks.reconstructor_parts.drawing import FIGURES_FILE, measured
from benchmarks.reconstructor_parts.figures import frechet, report_of
from benchmarks.reconstructor_parts.rows import Settings
from benchmarks.reconstructor_parts.training import make_data, train_all
from benchmarks.support.results import OUTPUTS, commit, hardware
from ernie_vilg.evaluation.pairs import read_pairs
from ernie_vilg.shapes.scenes import IMAGE_SIZE
from ernie_vilg.storage.files import write_bytes, write_json
from ernie_vilg.storage.json_files import read_json

SETTINGS_FILE, TABLE_FILE = "settings.json", "table.md"


def main() -> None:
    """Make missing parts, measure them, and print the tables."""
    folder, settings = _arguments()
    _keep_settings(folder, settings)
    make_data(folder, settings)
    train_all(folder, settings)
    pairs = read_pairs(
        folder / "shapes/held_out", count=settings.held_out_scenes, image_size=IMAGE_SIZE
    )
    figures = [measured(folder, seed, settings, pairs) for seed in range(settings.seeds)]
    other = read_pairs(
        folder / "shapes/train", count=settings.held_out_scenes, image_size=IMAGE_SIZE
    )
    reference = frechet([pair.image for pair in other], [pair.image for pair in pairs])
    write_json(
        folder / FIGURES_FILE,
        {
            "commit": commit(),
            "hardware": hardware(),
            "seeds": figures,
            "frechet_of_other_captions": reference,
        },
    )
    report = f"{report_of(figures)}\nFréchet of as many true training pictures: {reference:.2f}\n"
    write_bytes(folder / TABLE_FILE, report.encode())
    print(report)


def _keep_settings(folder: Path, settings: Settings) -> None:
    path = folder / SETTINGS_FILE
    if path.exists() and read_json(path) != asdict(settings):
        raise SystemExit(
            f"{folder} holds a measurement with other settings, {read_json(path)}: give them "
            "again to go on, or name another --output-dir"
        )
    write_json(path, asdict(settings))


def _arguments() -> tuple[Path, Settings]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output-dir", type=Path, default=OUTPUTS / "reconstructor")
    for name, default in {
        "seeds": 3,
        "prediction-seeds": 3,
        "steps": 250,
        "tokenizer-steps": 1000,
        "codebook-size": 128,
        "patch-size": 16,
        "train-scenes": 8192,
        "held-out-scenes": 1000,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    values = vars(parser.parse_args())
    folder = values.pop("output_dir").resolve()
    return folder, Settings(**values)


if __name__ == "__main__":
    main()
