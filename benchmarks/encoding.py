"""Throughput of encoding image shards, beside that of the encoder alone.

    python benchmarks/encoding.py           # two minutes on a quiet machine
    python benchmarks/encoding.py --quick   # shows that it works; too short for the requirements

The encoder alone gets tensors that lie ready. The whole encoding of the same pictures reads and
checks image shards, decodes, encodes, and writes, hashes and checks token shards. Both take turns
in one process with the same threads, so that other load on the machine hits both. Two shapes: the
quickstart's tokenizer at 64 pixels, and the public f8 tokenizer's layers at 256 pixels with few
channels. Reading, decoding and writing take a quarter of a millisecond of a core per small
picture and 4 per large one, so the cheaper the encoder, the smaller its share: the quickstart's
takes 0.3 ms.

Prints the rates and writes outputs/benchmarks/encoding.json.
"""

import argparse
import logging
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this folder is not installed

from benchmarks.loader_parts.data_sets import image_sample, noise_picture
from benchmarks.support.results import (
    OUTPUTS,
    Requirement,
    print_requirements,
    write_results,
)
from data_pipelines.encoding.encode import encode_image_shards
from data_pipelines.images import image_bytes, image_settings
from data_pipelines.shard_writer import shard_name, write_shard
from ernie_vilg.config.image_tokenizer import ImageTokenizerConfig
from ernie_vilg.config.shards import EncodeShardsConfig
from ernie_vilg.config.text_tokenizer import TrainTextTokenizerConfig
from ernie_vilg.data.shards.open_shards import KEY, Sample
from ernie_vilg.storage.shard_manifest import Manifest, write_manifest
from ernie_vilg.text_tokenizer import train_text_tokenizer, write_text_tokenizer
from ernie_vilg.vqgan.autoencoder import VQGAN
from ernie_vilg.vqgan.pixels import from_bytes
from ernie_vilg.vqgan.weights import load_image_tokenizer, save_image_tokenizer

BATCH_SIZE = 16
LEAST_SHARE = 0.9
SHAPES = {
    "quickstart": ImageTokenizerConfig(
        image_size=64,
        codebook_size=512,
        embedding_size=32,
        base_channels=128,
        channel_multipliers=(1,),
        num_residual_blocks=0,
        patch_size=8,
        encoder_kernel_size=1,
        normalization="channel",
    ),
    "vqgan_f8": ImageTokenizerConfig(
        image_size=256,
        codebook_size=8192,
        embedding_size=256,
        base_channels=32,
        attention_resolutions=(32,),
        normalization="group",
    ),
}
NUM_PICTURES = {"quickstart": 512, "vqgan_f8": 48}


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Pictures per second of one shape, per repeat."""

    alone: list[float]
    whole: list[float]

    @property
    def share(self) -> float:
        """Median of the whole encoding's share of the encoder's rate."""
        return statistics.median(
            whole / alone for whole, alone in zip(self.whole, self.alone, strict=True)
        )


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few pictures, one repeat")
    parser.add_argument("--repeats", type=int, default=3, help="turns of both sides")
    parser.add_argument("--threads", type=int, default=None, help="threads of torch")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    results = {}
    for name in SHAPES:
        count = BATCH_SIZE if options.quick else NUM_PICTURES[name]
        folder = OUTPUTS / "encoding" / name
        pixels = make_inputs(folder, SHAPES[name], count)
        results[name] = measure(folder, pixels, 1 if options.quick else options.repeats)
        rates = results[name]
        print(
            f"{name}: encoder alone {statistics.median(rates.alone):.1f} pictures/s, whole "
            f"encoding {statistics.median(rates.whole):.1f}, share {rates.share:.3f}"
        )
    reached = [
        Requirement(
            what=f"{name}: whole encoding / encoder alone",
            value=rates.share,
            bound=LEAST_SHARE,
            unit="",
            spread=[b / a for a, b in zip(rates.alone, rates.whole, strict=True)],
        )
        for name, rates in results.items()
    ]
    print_requirements(reached, quick=options.quick)
    figures = {name: vars(rates) | {"share": rates.share} for name, rates in results.items()}
    write_results("encoding", figures, quick=options.quick)


def make_inputs(folder: Path, config: ImageTokenizerConfig, count: int) -> np.ndarray:
    """Write image shards and both tokenizers.

    Returns:
        the pictures, uint8 [count, height, width, 3].
    """
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "images").mkdir(parents=True)
    torch.manual_seed(0)
    save_image_tokenizer(VQGAN(config), folder / "vqgan")
    (folder / "text").mkdir()
    settings = TrainTextTokenizerConfig(shards="unused", output_dir="unused", vocab_size=300)
    captions = ["一只橘色的猫坐在洒满阳光的窗台上, 看着外面的街道"] * 50
    write_text_tokenizer(folder / "text", train_text_tokenizer(captions, settings), {})
    random = np.random.default_rng(0)
    field = noise_picture(random, 1024)
    pixels = np.empty((count, config.image_size, config.image_size, 3), np.uint8)
    samples = []
    for number in range(count):
        sample, pixels[number] = picture_sample(random, number, field, config.image_size)
        samples.append(sample)
    shards = []
    per_shard = max(BATCH_SIZE, count // 4)
    for index, first in enumerate(range(0, count, per_shard)):
        path = folder / "images" / shard_name("images", index)
        part = iter(samples[first : first + per_shard])
        shards.append(write_shard(path, part, members=("json", "png", "txt")))
    manifest = Manifest(
        kind="image",
        shards=tuple(shard for shard in shards if shard is not None),
        settings=image_settings(image_size=config.image_size, image_format="png"),
        lineage={},
    )
    write_manifest(folder / "images", manifest)
    return pixels


def picture_sample(
    random: np.random.Generator, number: int, field: np.ndarray, size: int
) -> tuple[Sample, np.ndarray]:
    """Return a sample with a picture of `size` pixels per side, and its pixels."""
    top, left = random.integers(0, len(field) - size, 2)
    pixels = field[top : top + size, left : left + size]
    sample = image_sample(random, number, field, "png")
    sample["png"] = image_bytes(Image.fromarray(pixels), "png")
    return {KEY: sample[KEY], **sample}, pixels


def measure(folder: Path, pixels: np.ndarray, repeats: int) -> Rates:
    """Let both sides take turns."""
    tokenizer, _ = load_image_tokenizer(folder / "vqgan")
    batches = [
        from_bytes(part.permute(0, 3, 1, 2)) for part in torch.from_numpy(pixels).split(BATCH_SIZE)
    ]
    config = EncodeShardsConfig(
        shards=str(folder / "images"),
        text_tokenizer_dir=str(folder / "text"),
        image_tokenizer_dir=str(folder / "vqgan"),
        output_dir=str(folder / "tokens"),
        batch_size=BATCH_SIZE,
        device="cpu",
        overwrite=True,
    )

    def alone() -> None:
        with torch.inference_mode():
            for batch in batches:
                tokenizer.encode(batch)

    def whole() -> None:
        encode_image_shards(config)

    rates = Rates(alone=[], whole=[])
    for side in (alone, whole):  # not counted: the first turn loads code and tunes
        seconds(side)
    for _ in range(repeats):
        rates.alone.append(len(pixels) / seconds(alone))
        rates.whole.append(len(pixels) / seconds(whole))
    return rates


def seconds(work: Callable[[], None]) -> float:
    """Return the wall-clock time of some work."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
