"""Targets of the fuzzer among data: shards, arrays, pictures, captions, manifests."""

import hashlib
import io
import json
import random
import tarfile
import tempfile
import unicodedata
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.building.build import build_image_shards
from data_pipelines.captions import read_captions
from data_pipelines.images import crop_and_resize, load_image
from data_pipelines.rejections import RejectedError
from ernie_vilg.config.loader import LoaderConfig
from ernie_vilg.config.shards import BuildShardsConfig
from ernie_vilg.data.batches.token_batches import Batch
from ernie_vilg.data.sequence.sample_reader import DecodedSamples, SampleReader
from ernie_vilg.data.shards.open_shards import read_shard
from ernie_vilg.data.shards.tar_index import describe_shard
from ernie_vilg.errors import InputError
from ernie_vilg.storage.shard_manifest import Manifest, read_manifest
from tests.data.image_shards import images_of, numbered_png, write_image_shards
from tests.data.token_shards import MEMBERS, MODEL, sequence_of, write_token_shards
from tests.fuzz.mutate_bytes import mutate_bytes, mutate_json, mutate_lines
from tests.fuzz.mutate_media import (
    mutate_jpeg,
    mutate_npy,
    mutate_png,
    mutate_tar,
    mutate_webp,
    npy_bytes,
    odd_exif,
)
from tests.fuzz.target import Files, Outcome, Target, files_below, require

STOP = LoaderConfig(num_workers=0, damage="stop")
SKIP = replace(STOP, damage="skip", max_damaged_fraction=1.0)
_SIZES = [6, 4]
_SIDE = 8


def token_shards() -> dict[str, bytes]:
    """Return two token shards and their manifest."""
    with tempfile.TemporaryDirectory() as folder:
        write_token_shards(Path(folder), _SIZES)
        return files_below(Path(folder))


def image_shards() -> dict[str, bytes]:
    """Return one image shard with captions and its manifest."""
    with tempfile.TemporaryDirectory() as folder:
        place_pairs(Path(folder) / "raw")
        build_image_shards(_build_config(Path(folder)))
        return files_below(Path(folder) / "out")


def describe_again(rng: random.Random, files: Files) -> Files:
    """Put sizes and hashes of damaged files into the manifest, four times of five.

    A manifest without indexes lets the damaged shard be searched for its samples.
    """
    if rng.random() < 0.2:
        return files
    has_index = rng.random() < 0.5
    raw = files["manifest.json"]
    assert isinstance(raw, bytes)
    content = json.loads(raw)
    for entry in content["shards"]:
        for described in (entry, entry["index"]):
            stored = files[described["file"]]
            if isinstance(stored, bytes) and stored:
                described.update(bytes=len(stored), sha256=hashlib.sha256(stored).hexdigest())
        if not has_index:
            del entry["index"]
    content["format_version"] = 2 if has_index else 1
    return {**files, "manifest.json": json.dumps(content).encode()}


def _mutate_index(rng: random.Random, content: bytes) -> bytes:
    """Return a shard's index with a fault in its head, or in its bytes."""
    head, _, columns = content.partition(b"\n")
    if rng.random() < 0.5:
        return mutate_json(rng, head) + b"\n" + columns
    return head + b"\n" + mutate_bytes(rng, columns)


def _rows(folder: Path, manifest: Manifest, loader: LoaderConfig) -> DecodedSamples[Batch]:
    sequence = sequence_of(folder, manifest, MODEL, loader=loader)
    with closing(SampleReader(sequence)) as reader:
        return reader.read(np.arange(min(manifest.num_samples, sum(_SIZES))))


def _check_rows(rows: DecodedSamples[Batch], is_damaged: Callable[[int, int], bool]) -> None:
    """Let every sample that is not damaged be itself, and the others fit the model."""
    places = zip(rows.origins.shard_index.tolist(), rows.origins.index.tolist(), strict=True)
    for row, (shard, index) in enumerate(places):
        number = sum(_SIZES[:shard]) + index
        codes, text = rows.content.codes[row].numpy(), rows.content.text[row].numpy()
        require(bool((codes >= 0).all() and (codes < MODEL.codebook_size).all()), f"codes {codes}")
        require(bool((text >= 0).all() and (text < MODEL.text_vocab_size).all()), f"text {text}")
        if not is_damaged(shard, index):
            is_right = (codes == number).all() and text[0] == number + 4
            require(bool(is_right), f"sample {number} has codes {codes} and text {text}")


def read_tokens(folder: Path, files: Files, is_damaged: Callable[[int, int], bool]) -> Outcome:
    """Read token shards with both policies of damage, which must agree."""
    manifest = read_manifest(folder, "token")
    rows = _rows(folder, manifest, SKIP)
    _check_rows(rows, is_damaged)
    try:
        strict = _rows(folder, manifest, STOP)
    except (InputError, OSError) as error:
        require(bool(rows.findings), f"damage=stop finds what damage=skip does not: {error}")
    else:
        require(not rows.findings, f"damage=stop reads what damage=skip loses: {rows.findings}")
        is_same = strict.content.codes.equal(rows.content.codes)
        require(is_same, "the two policies read other codes")
    return Outcome.COUNTED if rows.findings else Outcome.VALID


def _read_tar(folder: Path, files: Files) -> Outcome:
    return read_tokens(folder, files, lambda shard, index: shard == 0)


def _read_manifest(folder: Path, files: Files) -> Outcome:
    manifest = read_manifest(folder, "token")
    require(len(manifest.digest()) == 64, "no digest")
    sequence = sequence_of(folder, manifest, MODEL, loader=SKIP)
    with closing(SampleReader(sequence)) as reader:
        rows = reader.read(np.arange(min(manifest.num_samples, 3)))
    return Outcome.COUNTED if rows.findings else Outcome.VALID


def _arrays() -> dict[str, bytes]:
    return {
        "2.codes.npy": npy_bytes(np.full((2, 2), 2, np.uint16)),
        "2.text.npy": npy_bytes(np.array([6], np.int32)),
    }


def _read_arrays(folder: Path, files: Files) -> Outcome:
    """Put the arrays into the third of six samples."""
    shards = folder / "shards"
    write_token_shards(shards, [1, 4])  # the second shard stays; the first is written below
    with tarfile.open(shards / "tokens-00000.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
        for number in range(_SIZES[0]):
            members: dict[str, Any] = {
                "codes.npy": npy_bytes(np.full((2, 2), number, np.uint16)),
                "json": b"{}",
                "text.npy": npy_bytes(np.array([number + 4], np.int32)),
            }
            for name in members:
                content = files.get(f"{number}.{name}", members[name])
                entry = tarfile.TarInfo(f"{number:08d}.{name}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    shard = describe_shard(shards / "tokens-00000.tar", samples=_SIZES[0], members=MEMBERS)
    manifest = read_manifest(shards, "token")
    manifest = replace(manifest, shards=(shard,))
    rows = _rows(shards, manifest, SKIP)
    _check_rows(rows, lambda shard, index: index == 2)
    lost = {(finding.index, finding.num_samples) for finding in rows.findings}
    require(lost <= {(2, 1)}, f"one damaged array costs {lost}")
    try:
        _rows(shards, manifest, STOP)
    except InputError as error:
        require(bool(rows.findings), f"damage=stop finds what damage=skip does not: {error}")
        require("00000002" in str(error), f"the message does not name the sample: {error}")
    else:
        require(not rows.findings, "damage=stop reads what damage=skip loses")
    return Outcome.COUNTED if rows.findings else Outcome.VALID


def picture(form: str, **options: Any) -> bytes:
    """Return a picture of 8 x 8 pixels with EXIF."""
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(io.BytesIO(numbered_png(100, _SIDE)))
    image.save(buffer, form, exif=exif, **options)
    return buffer.getvalue()


def _read_picture(folder: Path, files: Files) -> Outcome:
    """Read a picture as build_shards and caption do, and as training does; both must agree."""
    (name,) = files
    content = files[name]
    outcome, built = Outcome.REFUSED, None
    try:
        built = load_image(folder / name, max_pixels=1_000_000)
        require(built.mode == "RGB" and min(built.size) > 0, f"{built.mode} {built.size}")
        require(crop_and_resize(built, 4).size == (4, 4), "it cannot be resized")
        outcome = Outcome.VALID
    except (RejectedError, InputError, OSError):
        pass
    if not isinstance(content, bytes) or not content:
        return outcome
    extension = name.rpartition(".")[2]
    good = picture({"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}[extension])
    manifest = write_image_shards(
        folder / "shards", [[content, good]], image_size=_SIDE, extension=extension
    )
    sequence = images_of(folder / "shards", manifest, loader=SKIP, for_training=False)
    with closing(SampleReader(sequence)) as reader:
        rows = reader.read(np.arange(2))
    lost = [finding.index for finding in rows.findings]
    require(lost in ([], [0]), f"one damaged picture costs {lost}")
    is_usable = built is not None and built.size == (_SIDE, _SIDE)
    require(bool(lost) != is_usable, f"build and training disagree: {built}, {rows.findings}")
    return Outcome.COUNTED if lost else outcome


def place_pairs(source: Path) -> None:
    """Write five raw pairs."""
    (source / "images").mkdir(parents=True)
    lines = []
    for number in range(5):
        kind = ("png", "jpg", "webp")[number % 3]
        form = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}[kind]
        (source / "images" / f"{number}.{kind}").write_bytes(picture(form))
        record = {"image": f"images/{number}.{kind}", "caption": f"a red \u5706 {number}", "n": 1}
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    (source / "captions.jsonl").write_text("".join(lines), encoding="utf-8")


def _pairs() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        place_pairs(Path(folder) / "raw")
        return files_below(Path(folder))


def _build_config(folder: Path) -> BuildShardsConfig:
    return BuildShardsConfig(
        source=str(folder / "raw"),
        output_dir=str(folder / "out"),
        image_size=_SIDE,
        samples_per_shard=3,
        max_faulty_fraction=1.0,
        num_workers=0,
    )


def _read_pairs(folder: Path, files: Files) -> Outcome:
    report = build_image_shards(_build_config(folder))
    out = folder / "out"
    samples = [sample for shard in report.manifest.shards for sample in read_shard(out, shard)]
    require(len(samples) == report.manifest.num_samples, "samples are missing")
    for sample in samples:
        caption = sample["txt"].decode()
        record = json.loads(sample["json"], parse_constant=_refuse)
        require(record["caption"] == caption != "", f"{record} beside {caption!r}")
        require(not any(map(_is_control, caption)), f"{caption!r} is not clean")
    return Outcome.COUNTED if report.rejected else Outcome.VALID


def _refuse(name: str) -> None:
    require(False, f"a shard's JSON holds {name}")


def _is_control(character: str) -> bool:
    is_joiner = character in "\u200c\u200d"
    return unicodedata.category(character) in ("Cc", "Cf", "Cs") and not is_joiner


def _read_captions(folder: Path, files: Files) -> Outcome:
    manifest = read_manifest(folder, "image")
    for caption in read_captions(folder, manifest):
        require(isinstance(caption, str), f"{caption!r}")
        caption.encode()
    return Outcome.VALID


def _exif_picture(form: str) -> Callable[[random.Random, bytes], bytes]:
    """Let Pillow write a picture with odd EXIF."""

    def mutate(rng: random.Random, content: bytes) -> bytes:
        buffer = io.BytesIO()
        image = Image.open(io.BytesIO(content))
        image.load()
        image.info.pop("exif", None)
        image.save(buffer, form, exif=b"Exif\0\0" + odd_exif(rng))
        return buffer.getvalue()

    return mutate


def _either(*ways: Callable[[random.Random, bytes], bytes]) -> Callable[..., bytes]:
    return lambda rng, content: rng.choice(ways)(rng, content)


_PICTURES = {
    "png": _either(mutate_png, mutate_png, _exif_picture("PNG")),
    "jpg": _either(mutate_jpeg, mutate_jpeg, _exif_picture("JPEG")),
    "webp": _either(mutate_webp, _exif_picture("WEBP")),
}

TARGETS = [
    Target(
        name="tar shards",
        quick=40,
        files=token_shards,
        mutate={"00000.tar": mutate_tar, "00000.tar.index": _mutate_index},
        repair=describe_again,
        read=_read_tar,
    ),
    Target(name="npy members",
        quick=40, files=_arrays, mutate={".npy": mutate_npy}, read=_read_arrays,
           specials=0),
    Target(name="png",
        quick=40, files=lambda: {"a.png": picture("PNG")}, mutate=_PICTURES,
           read=_read_picture),
    Target(name="jpeg",
        quick=40, files=lambda: {"a.jpg": picture("JPEG")}, mutate=_PICTURES,
           read=_read_picture),
    Target(name="webp",
        quick=40, files=lambda: {"a.webp": picture("WEBP")}, mutate=_PICTURES,
           read=_read_picture),
    Target(name="captions and folders", files=_pairs, read=_read_pairs,
           mutate={"captions.jsonl": mutate_lines, **_PICTURES}),
    Target(name="captions of shards", files=image_shards, read=_read_captions,
           repair=describe_again, mutate={".tar": _either(mutate_tar, mutate_bytes)}),
    Target(name="shard manifests", files=token_shards, read=_read_manifest,
           mutate={"manifest.json": mutate_json}),
]  # fmt: skip
