"""End-to-end training of generator and reconstructor: the paper's Table 7 on the built-in shapes.

    python benchmarks/reconstructor.py

For each seed the programs in launch/ train an image tokenizer, encode the pictures, and train
generators on them: one two-stage, one end to end, and one more for the other reading of
`hidden_position`. All start from the same weights where they have the same parameters
and see the same pairs in the same order. Each row of the table draws the same unseen captions.
The image tokenizer is lossy on purpose, which leaves the reconstructor something to gain: a code
stands for 16 x 16 pixels, and 128 codes for the 257 different such squares of the data.

The figures of a row, all against the true pictures of the captions:

- `objects_correct`: see `ernie_vilg.shapes.judge`.
- `psnr`: dB over all pixels. A caption determines its picture, so drawn pictures have one too.
- `frechet`: the Frechet distance between normal distributions fitted to 80 numbers per picture.
  These are, for each of 4 x 4 cells, the means of red, green and blue and the root mean squares
  of the grey value's horizontal and vertical differences; each number is divided by its standard
  deviation over the true pictures. It is not FID: no learned feature takes part, and no figure of
  another data set compares with it.

What is finished is skipped, so a stopped run goes on when the command is typed again. Prints
the tables of docs/reconstructor.md; figures.json, table.md and pictures.png stay in the output
folder.

Source: ERNIE-ViLG (arXiv:2112.15283, table 7); the distance is that of Heusel et al. 2017
(arXiv:1706.08500) without the network.
"""

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.optim import AdamW

from ernie_vilg.config.loader import LoaderConfig
from ernie_vilg.config.optimizer import OptimizerConfig
from ernie_vilg.data.batches.token_batches import Share, TokenBatches
from ernie_vilg.data.batches.token_reader import TokenSequence
from ernie_vilg.data.sequence.mixture import MixturePhase
from ernie_vilg.data.sequence.quarantine import Quarantine
from ernie_vilg.data.sequence.sample_reader import DataSource
from ernie_vilg.evaluation.grid import picture_grid
from ernie_vilg.evaluation.pairs import Pair, read_pairs
from ernie_vilg.evaluation.reconstruction import psnr_of_pictures
from ernie_vilg.generation.pipeline import ErnieVilg
from ernie_vilg.model.weights import load_weights, read_model_config
from ernie_vilg.parallel.engine.precision import machine_precision
from ernie_vilg.runs.schedule import learning_rate_at
from ernie_vilg.shapes.judge import required_scenes, score_pictures
from ernie_vilg.shapes.scenes import IMAGE_SIZE
from ernie_vilg.storage.files import write_bytes, write_json
from ernie_vilg.storage.json_files import read_json
from ernie_vilg.storage.shard_manifest import read_manifest
from ernie_vilg.vocabulary import text_slots
from ernie_vilg.vqgan.autoencoder import VQGAN
from ernie_vilg.vqgan.loss import reconstruction_loss
from ernie_vilg.vqgan.pixels import from_bytes, to_pictures
from ernie_vilg.vqgan.weights import load_image_tokenizer

ROOT = Path(__file__).resolve().parent.parent
SETTINGS_FILE, FIGURES_FILE, TABLE_FILE = "settings.json", "figures.json", "table.md"
PICTURES_FILE = "pictures.png"
CELLS = 4  # a side, of the Frechet distance
SHOWN_CAPTIONS = 6
BATCH_SIZE = 100

Pictures = list[Image.Image]
Figures = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured; a folder holds one such measurement."""

    seeds: int
    """Seeds 0 to `seeds` - 1; each names weights and order of one tokenizer and its generators."""
    prediction_seeds: int
    """The first of them that also get the second reading of `hidden_position`."""
    steps: int
    """Of each generator, of 32 pairs."""
    tokenizer_steps: int
    """Of each image tokenizer, of 32 pictures."""
    codebook_size: int
    """Image codes."""
    patch_size: int
    """Pixels a side that a code stands for."""
    train_scenes: int
    """Pairs to train on."""
    held_out_scenes: int
    """Unseen pairs to draw."""


LONGER = "two_stage_longer"
PREDICTION = "end_to_end_prediction"
LEARNING_RATE = 1.5e-3
WARMUP_STEPS = 50
BATCH_PAIRS = 32
GENERATORS: Mapping[str, Sequence[str]] = {
    "two_stage": ["model.reconstructor.kind=two_stage"],
    "end_to_end": [
        "model.reconstructor.kind=end_to_end",
        "model.reconstructor.hidden_position=input",
    ],
    PREDICTION: [
        "model.reconstructor.kind=end_to_end",
        "model.reconstructor.hidden_position=prediction",
    ],
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the table."""

    codes: str
    """Whose codes: a generator, or gold."""
    reconstructor: str
    """What makes pictures: two_stage, the frozen tokenizer; two_stage_longer, its decoder after
    `train_decoder_longer`; otherwise the model of that name."""

    @property
    def name(self) -> str:
        """Such as `two_stage / two_stage`."""
        return f"{self.codes} / {self.reconstructor}"

    @property
    def is_shown(self) -> bool:
        """Whether the row is a column of the picture: not those of the other reading."""
        return PREDICTION not in (self.codes, self.reconstructor)


ROWS = (
    Row(codes="two_stage", reconstructor="two_stage"),
    Row(codes="end_to_end", reconstructor="two_stage"),
    Row(codes="end_to_end", reconstructor="end_to_end"),
    Row(codes="gold", reconstructor="two_stage"),
    Row(codes="gold", reconstructor="end_to_end"),
    Row(codes="two_stage", reconstructor=LONGER),
    Row(codes="gold", reconstructor=LONGER),
    Row(codes=PREDICTION, reconstructor="two_stage"),
    Row(codes=PREDICTION, reconstructor=PREDICTION),
    Row(codes="gold", reconstructor=PREDICTION),
)

DIFFERENCES = (
    ("generator alone", ROWS[1], ROWS[0]),
    ("reconstructor alone", ROWS[2], ROWS[1]),
    ("both", ROWS[2], ROWS[0]),
    ("gold codes", ROWS[4], ROWS[3]),
    ("gold codes, decoder trained as long", ROWS[4], ROWS[6]),
)
"""Title, row, and the row that is subtracted from it, seed by seed."""


def main() -> None:
    """Make what is missing, measure it, and print the tables."""
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
    write_json(folder / FIGURES_FILE, {"seeds": figures, "frechet_of_other_captions": reference})
    report = f"{tables(figures)}\nFréchet of as many true training pictures: {reference:.2f}\n"
    write_bytes(folder / TABLE_FILE, report.encode())
    print(report)


def generators_of(seed: int, settings: Settings) -> list[str]:
    """Return the generators that are trained for a seed."""
    return [name for name in GENERATORS if name != PREDICTION or seed < settings.prediction_seeds]


def train_all(folder: Path, settings: Settings) -> None:
    """Train every tokenizer and generator, two programs of one rank and one thread at a time."""
    seeds = range(settings.seeds)
    with ThreadPoolExecutor(max_workers=2) as pool:
        tokens = [pool.submit(make_tokens, folder, seed, settings) for seed in seeds]

        def generator_of(seed: int, name: str) -> None:
            tokens[seed].result()  # it was started before
            train_generator(folder, seed, name, settings)

        jobs = [
            pool.submit(generator_of, seed, name)
            for seed in seeds
            for name in generators_of(seed, settings)
        ]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def make_data(folder: Path, settings: Settings) -> None:
    """Draw the scenes, build image shards, train the text tokenizer."""
    shapes, shards = folder / "shapes", folder / "image_shards"
    text_tokenizer = folder / "text_tokenizer"
    run(
        "launch/draw_shapes.py",
        f"output_dir={shapes}",
        f"train_scenes={settings.train_scenes}",
        f"held_out_scenes={settings.held_out_scenes}",
        "num_workers=2",
        output=shapes,
        logs=folder,
    )
    run(
        "launch/build_shards.py",
        f"source={shapes}/train",
        f"output_dir={shards}",
        f"image_size={IMAGE_SIZE}",
        "num_workers=2",
        output=shards,
        logs=folder,
    )
    run(
        "launch/train_text_tokenizer.py",
        f"shards={shards}",
        f"output_dir={text_tokenizer}",
        "model_type=bpe",
        "vocab_size=315",
        "max_piece_length=6",
        output=text_tokenizer,
        logs=folder,
    )


def make_tokens(folder: Path, seed: int, settings: Settings) -> None:
    """Train a seed's image tokenizer and encode the pictures with it."""
    home = folder / f"seed_{seed}"
    weights, token_shards = home / "image_tokenizer/weights", home / "token_shards"
    run(
        "launch/train_image_tokenizer.py",
        "image_tokenizer=quickstart",
        f"shards={folder}/image_shards",
        f"run_dir={weights.parent}",
        f"image_tokenizer.codebook_size={settings.codebook_size}",
        f"image_tokenizer.patch_size={settings.patch_size}",
        f"training.steps={settings.tokenizer_steps}",
        f"training.seed={seed}",
        output=weights,
        logs=home,
    )
    run(
        "launch/encode_shards.py",
        f"shards={folder}/image_shards",
        f"text_tokenizer_dir={folder}/text_tokenizer",
        f"image_tokenizer_dir={weights}",
        f"output_dir={token_shards}",
        "keep_pixels=true",
        output=token_shards,
        logs=home,
    )


def train_generator(folder: Path, seed: int, generator: str, settings: Settings) -> None:
    """Train one generator of a seed and export it."""
    tokens = folder / f"seed_{seed}"
    home = tokens / generator
    run_dir, weights = home / "run", home / "weights"
    run(
        "launch/pretrain.py",
        "experiment=quickstart",
        f"run_dir={run_dir}",
        f"data.token_shards={tokens}/token_shards",
        f"data.text_tokenizer={folder}/text_tokenizer",
        f"data.image_tokenizer={tokens}/image_tokenizer/weights",
        f"data.seed={seed}",
        f"model.codebook_size={settings.codebook_size}",
        f"model.image_grid_size={IMAGE_SIZE // settings.patch_size}",
        *GENERATORS[generator],
        f"parallelism.micro_batch_size={BATCH_PAIRS}",
        f"parallelism.global_batch_size={BATCH_PAIRS}",
        f"optimizer.learning_rate={LEARNING_RATE}",
        f"optimizer.warmup_steps={WARMUP_STEPS}",
        f"training.seed={seed}",
        f"training.steps={settings.steps}",
        "checkpoint.every=100",
        "training.log_every=10",
        "samples.every=0",
        "tracking.wandb_mode=disabled",
        output=weights,  # a finished run that is not exported yet only says that it is finished
        logs=home,
    )
    run(
        "launch/export.py",
        f"run={run_dir}",
        f"output_dir={weights}",
        output=weights,
        logs=home,
    )


def run(program: str, *overrides: str, output: Path, logs: Path) -> None:
    """Run a program on one thread unless its output is there; its own words go to a log.

    Raises:
        RuntimeError: it failed; the message ends in the end of its log.
    """
    if output.exists():
        return
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"{Path(program).stem}.log"
    print(f"{program} {' '.join(overrides)}", flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with log.open("ab") as file:
        done = subprocess.run(
            [sys.executable, program, *overrides],
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        tail = log.read_text(errors="replace")[-3000:]
        raise RuntimeError(f"{program} ended with {done.returncode}, see {log}:\n{tail}")


def measured(
    folder: Path, seed: int, settings: Settings, pairs: Sequence[Pair]
) -> dict[str, Figures]:
    """Return the figures of each row for one seed, kept in its folder once they are known."""
    path = folder / f"seed_{seed}" / FIGURES_FILE
    if not path.exists():
        pictures = draw_rows(folder, seed, settings, pairs)
        if seed == 0:
            _write_grid(folder / PICTURES_FILE, pairs, pictures)
        write_json(path, {name: figures_of(drawn, pairs) for name, drawn in pictures.items()})
    figures: dict[str, Figures] = read_json(path)
    return figures


def draw_rows(
    folder: Path, seed: int, settings: Settings, pairs: Sequence[Pair]
) -> dict[str, Pictures]:
    """Return each row's pictures for the same captions, by the row's name."""
    home = folder / f"seed_{seed}"
    captions = [pair.caption for pair in pairs]
    originals = [pair.image for pair in pairs]
    drawn: dict[str, Pictures] = {}
    for generator in generators_of(seed, settings):
        weights = home / generator / "weights"
        model = ErnieVilg.from_pretrained(weights)
        gold = torch.cat([model.encode_images(part) for part in _parts(originals)])
        results = model.generate(captions, batch_size=BATCH_SIZE)
        codes = torch.stack([result.codes for result in results])
        drawn[f"{generator} / two_stage"] = _in_batches(model.decode_images, codes)
        if generator == "two_stage":
            drawn["gold / two_stage"] = _in_batches(model.decode_images, gold)
            model.image_tokenizer = train_decoder_longer(home, seed, settings)
            drawn[f"two_stage / {LONGER}"] = _in_batches(model.decode_images, codes)
            drawn[f"gold / {LONGER}"] = _in_batches(model.decode_images, gold)
        else:
            drawn[f"{generator} / {generator}"] = [result.image for result in results]
            drawn[f"gold / {generator}"] = teacher_forced(weights, model, captions, gold)
    return {row.name: drawn[row.name] for row in ROWS if row.name in drawn}


def train_decoder_longer(home: Path, seed: int, settings: Settings) -> VQGAN:
    """Return the image tokenizer after its decoder, alone, has seen what the generators see.

    An end-to-end decoder starts at the tokenizer's and is trained for the generator's steps. This
    control takes the same steps on the same pictures, at the same learning rates and under the
    same loss, from the codebook's vectors: what it lacks is the hidden states.
    """
    tokenizer, _ = load_image_tokenizer(home / "image_tokenizer/weights")
    manifest = read_manifest(home / "token_shards", "token")
    folder = home / "token_shards"
    batches = TokenBatches(
        TokenSequence(
            sources=(DataSource(name="main", location=str(folder), manifest=manifest),),
            phases=(MixturePhase(first_position=0, weights=(1.0,)),),
            seed=seed,
            shuffle_block_shards=16,
            quarantine=Quarantine(),
            loader=LoaderConfig(num_workers=0),
            model=read_model_config(home / "two_stage/weights"),
            with_pixels=True,
        ),
        Share(global_batch_size=BATCH_PAIRS, data_rank=0, data_size=1),
        micro_batch_size=BATCH_PAIRS,
    )
    precision = machine_precision("auto", torch.device("cpu"))  # the generators'
    schedule = OptimizerConfig(learning_rate=LEARNING_RATE, warmup_steps=WARMUP_STEPS)
    decoder = tokenizer.decoder.train().requires_grad_(True)
    optimizer = AdamW(
        decoder.parameters(), betas=(schedule.beta1, schedule.beta2), weight_decay=0.0
    )
    for step in range(settings.steps):
        (batch,) = batches.at(step)
        assert batch.pixels is not None
        grids = batch.codes.unflatten(1, (tokenizer.config.grid_size, -1))
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            drawn = decoder(tokenizer.quantizer.lookup(grids))
        loss = reconstruction_loss(
            drawn, from_bytes(batch.pixels), absolute_weight=1.0, squared_weight=1.0
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), schedule.gradient_clipping)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, settings.steps, schedule)
        optimizer.step()
    return tokenizer.eval()


@torch.inference_mode()
def teacher_forced(
    weights: Path, pipeline: ErnieVilg, captions: Sequence[str], codes: Tensor
) -> Pictures:
    """Return what the reconstructor makes of the hidden states under the given codes.

    Args:
        weights: an end-to-end model.
        pipeline: the same, for its text tokenizer.
        captions: the texts.
        codes: the pictures' own, int64 [batch, grid, grid].
    """
    _, model = load_weights(weights)
    slots = [
        text_slots(pipeline.text_tokenizer.encode(caption), pipeline.config.text_length)
        for caption in captions
    ]
    text = torch.tensor(slots)
    pictures: Pictures = []
    for start in range(0, len(text), BATCH_SIZE):
        part = slice(start, start + BATCH_SIZE)
        pixels = model((text[part], codes[part].flatten(1))).pixels
        pictures += to_pictures(pixels)
    return pictures


def figures_of(drawn: Pictures, pairs: Sequence[Pair]) -> Figures:
    """Return a row's figures; the module's text defines them."""
    originals = [pair.image for pair in pairs]
    scenes = required_scenes([pair.caption for pair in pairs])
    return {
        "objects_correct": score_pictures(scenes, drawn).objects_correct,
        "psnr": psnr_of_pictures(originals, drawn),
        "frechet": frechet(drawn, originals),
    }


def frechet(pictures: Pictures, true_pictures: Pictures) -> float:
    """Return the Frechet distance of pictures to true ones; the module's text defines it."""
    true = features(true_pictures)
    scale = true.std(axis=0)
    mean, covariance = _moments(features(pictures) / scale)
    true_mean, true_covariance = _moments(true / scale)
    root = _square_root(true_covariance)
    cross = _square_root(root @ covariance @ root)
    distance = np.square(mean - true_mean).sum() + np.trace(
        covariance + true_covariance - 2 * cross
    )
    return float(distance)


def features(pictures: Pictures) -> NDArray[np.float64]:
    """Return the 80 numbers of each picture, float64 [batch, 80]."""
    pixels = np.stack([np.asarray(picture, np.float64) / 255 for picture in pictures])
    grey = pixels.mean(axis=3)
    across = np.diff(grey, axis=2, append=grey[:, :, -1:])
    down = np.diff(grey, axis=1, append=grey[:, -1:, :])
    edges = np.sqrt(_cell_means(np.stack([across**2, down**2], axis=3)))
    return np.concatenate([_cell_means(pixels), edges], axis=2).reshape(len(pictures), -1)


def _cell_means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return [batch, cells, channels] of [batch, height, width, channels]."""
    batch, height, width, channels = values.shape
    cells = values.reshape(batch, CELLS, height // CELLS, CELLS, width // CELLS, channels)
    return cells.mean(axis=(2, 4)).reshape(batch, CELLS**2, channels)


def _moments(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return values.mean(axis=0), np.cov(values, rowvar=False)


def _square_root(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the root of a symmetric matrix without negative eigenvalues."""
    eigenvalues, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(eigenvalues.clip(min=0))) @ vectors.T


def tables(figures: Sequence[Mapping[str, Figures]]) -> str:
    """Return the tables as Markdown: mean ± standard deviation over the seeds."""

    def cells(values_of: Callable[[Mapping[str, Figures], str], float], row: Row, sign: str) -> str:
        seeds = [seed for seed in figures if row.name in seed]
        formats = {"objects_correct": f"{sign}.1f", "psnr": f"{sign}.2f", "frechet": f"{sign}.2f"}
        scales = {"objects_correct": 100.0, "psnr": 1.0, "frechet": 1.0}
        return " | ".join(
            _spread([scales[key] * values_of(seed, key) for seed in seeds], form)
            for key, form in formats.items()
        )

    heading = "| {} | objects right, % | PSNR, dB | Fréchet |\n|---|---|---|---|\n"
    lines = [heading.format("codes / reconstructor")]
    for row in ROWS:
        values = cells(lambda seed, key, row=row: seed[row.name][key], row, "")  # type: ignore[misc]
        lines.append(f"| {row.name} | {values} |\n")
    lines.append("\n" + heading.format("difference, seed by seed"))
    for title, row, base in DIFFERENCES:
        values = cells(
            lambda seed, key, row=row, base=base: seed[row.name][key] - seed[base.name][key],  # type: ignore[misc]
            row,
            "+",
        )
        lines.append(f"| {title} | {values} |\n")
    return "".join(lines)


def _spread(values: Sequence[float], form: str) -> str:
    spread = f" ± {statistics.stdev(values):{form.lstrip('+')}}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{form}}{spread}"


def _write_grid(path: Path, pairs: Sequence[Pair], drawn: Mapping[str, Pictures]) -> None:
    """Write the first captions' pictures: the true one, then one column per row of the table."""
    rows = [row.name for row in ROWS if row.is_shown]
    columns = [[pair.image for pair in pairs], *(drawn[name] for name in rows)]
    size = (112, 112)
    shown = [
        column[index].resize(size, Image.Resampling.NEAREST)
        for index in range(SHOWN_CAPTIONS)
        for column in columns
    ]
    grid = picture_grid(shown, columns=len(columns))
    labelled = Image.new("RGB", (grid.width, grid.height + 28), "white")
    labelled.paste(grid, (0, 28))
    draw = ImageDraw.Draw(labelled)
    for index, name in enumerate(["true picture", *rows]):
        draw.text((6 + index * (size[0] + 4), 2), name.replace(" / ", " /\n"), fill="black")
    labelled.save(path, optimize=True)


def _parts(items: Sequence) -> list[Sequence]:  # type: ignore[type-arg]
    return [items[start : start + BATCH_SIZE] for start in range(0, len(items), BATCH_SIZE)]


def _in_batches(decode: Callable[[Tensor], Pictures], codes: Tensor) -> Pictures:
    return [picture for part in codes.split(BATCH_SIZE) for picture in decode(part)]


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
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/benchmarks/reconstructor"))
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
