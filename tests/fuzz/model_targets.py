"""Targets of the fuzzer around a model: weights folders, prompts, pictures to caption, settings."""

import hashlib
import json
import math
import random
import struct
import tempfile
from functools import cache
from inspect import unwrap
from pathlib import Path
from typing import Any

import torch

from ernie_vilg.config.generation import CaptionConfig, GenerateConfig
from ernie_vilg.config.text_tokenizer import TrainTextTokenizerConfig
from ernie_vilg.errors import InputError
from ernie_vilg.generation.pipeline import ErnieVilg
from ernie_vilg.model.weights import save_weights
from ernie_vilg.storage.files import sha256_of_json
from ernie_vilg.storage.json_files import parse_json
from ernie_vilg.text_tokenizer import train_text_tokenizer, write_text_tokenizer
from ernie_vilg.vqgan.autoencoder import VQGAN
from ernie_vilg.vqgan.weights import save_image_tokenizer
from launch import caption, generate
from launch.support.composition import compose_program
from tests.fuzz.data_targets import picture
from tests.fuzz.mutate_bytes import mutate_bytes, mutate_json, mutate_value, write_json
from tests.fuzz.mutate_media import mutate_png
from tests.fuzz.run_targets import made
from tests.fuzz.target import Content, Files, Outcome, Target, place, require
from tests.model.tiny import DECODER, tiny_config, tiny_model

_CONFIG = tiny_config(text_vocab_size=320)
_PROMPTS = ("a red circle", "\u4e00\u4e2a\u7ea2\u8272\u7684\u5706", '{"caption": "a blue square"}')


def _write_weights(folder: Path) -> None:
    torch.manual_seed(0)
    save_weights(folder, _CONFIG, tiny_model(_CONFIG).state_dict(), {"step": 3})
    save_image_tokenizer(VQGAN(DECODER), folder / "image_tokenizer")
    config = TrainTextTokenizerConfig(shards="x", output_dir="y", vocab_size=300)
    model = train_text_tokenizer(["a red circle", "a blue square", *_PROMPTS] * 20, config)
    write_text_tokenizer(folder / "text_tokenizer", model, {})


def _mutate_safetensors(rng: random.Random, content: bytes) -> bytes:
    """Return a file of tensors with faults in its header, whose length is right, or in bytes."""
    if rng.random() < 0.4:
        return mutate_bytes(rng, content)
    (size,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + size])
    if rng.random() < 0.3:
        name = rng.choice([name for name in header if name != "__metadata__"])
        header[name]["dtype"] = rng.choice(("BF16", "I64", "F64", "U8", "X"))
    else:
        header = mutate_value(rng, header)
    text = write_json(header)
    data = content[8 + size :]
    if rng.random() < 0.3:
        at = rng.randrange(len(data) - 4)
        data = (
            data[:at] + struct.pack("<f", rng.choice((math.nan, math.inf, 1e38))) + data[at + 4 :]
        )
    return struct.pack("<Q", len(text)) + text + data


def _hash_of(content: Content) -> str | None:
    return hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else None


_DESCRIBED = {
    "image_tokenizer/image_tokenizer.json": "image_tokenizer/image_tokenizer.safetensors",
    "text_tokenizer/text_tokenizer.json": "text_tokenizer/text_tokenizer.model",
}


def _repair_weights(rng: random.Random, files: Files) -> Files:
    """Put the hashes of damaged files right, three times of four."""
    if rng.random() < 0.25:
        return files
    files = dict(files)
    for name, hashed in _DESCRIBED.items():
        described, sha256 = _object_of(files[name]), _hash_of(files[hashed])
        if described.get("sha256", sha256) != sha256:
            files[name] = write_json({**described, "sha256": sha256})
    config = _object_of(files["config.json"])
    if isinstance(config.get("files"), dict):
        known = config["files"].keys() & files.keys()
        config["files"].update({name: _hash_of(files[name]) for name in known})
        config.pop("sha256", None)
        files["config.json"] = write_json({**config, "sha256": sha256_of_json(config)})
    return files


def _object_of(content: Content) -> dict[str, Any]:
    try:
        value = parse_json(content, "") if isinstance(content, bytes) else {}
    except InputError:
        return {}
    return value if isinstance(value, dict) else {}


def _read_weights(folder: Path, files: Files) -> Outcome:
    model = ErnieVilg.from_pretrained(folder)
    require(model.config == _CONFIG, f"another model: {model.config}")
    (drawn,) = model.generate(["a red circle"])
    require(math.isfinite(drawn.log_probability), f"log-probability {drawn.log_probability}")
    return Outcome.VALID


@cache
def _weights_folder() -> str:
    """Return a folder with the undamaged model; of this process, whose end removes it."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-weights-"))
    place(folder, dict(WEIGHTS.originals))
    return str(folder)


def _start_captions() -> None:
    _weights_folder()


def _read_captioned(folder: Path, files: Files) -> Outcome:
    """Caption a folder of pictures, one of them damaged, as the program does."""
    output = folder / "captions.jsonl"
    config = CaptionConfig(
        weights=_weights_folder(), images=f"{folder}/*.png", output=str(output), device="cpu"
    )
    try:
        unwrap(caption.main)(config)
    finally:
        if output.exists():
            lines = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
            require(all(isinstance(line["caption"], (str, type(None))) for line in lines), "odd")
    return Outcome.VALID


def _prompts() -> dict[str, bytes]:
    return {"prompts.txt": "".join(f"{prompt}\n" for prompt in _PROMPTS).encode()}


def _mutate_prompts(rng: random.Random, content: bytes) -> bytes:
    lines = content.splitlines()
    at = rng.randrange(len(lines))
    choice = rng.randrange(5)
    if choice == 0:
        return mutate_bytes(rng, content)
    if choice < 3:
        lines[at] = mutate_json(rng, lines[2])
    elif choice == 3:
        lines.insert(
            at,
            rng.choice(
                (
                    b"\xef\xbb\xbf",
                    b"",
                    b"{}",
                    b"[]",
                    b"\xff\xfe",
                    b"\xe2\x80\x8b",
                    b"\x1b[31m",
                    b'{"caption": null}',
                    b'{"caption": 5}',
                    b'{"caption": ["x"]}',
                    b'{"caption": "\\ud800"}',
                )
            ),
        )
    else:
        lines[at] = rng.choice((b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\xc2\x85")) + lines[at]
    return b"\n".join(lines)


def _read_prompts(folder: Path, files: Files) -> Outcome:
    config = GenerateConfig(
        weights="x", prompts_file=str(folder / "prompts.txt"), output_dir="y", device="cpu"
    )
    prompts = generate.read_prompts(config)
    require(bool(prompts), "no prompt")
    content = files["prompts.txt"]
    lines = content.split(b"\n") if isinstance(content, bytes) else []
    mark = b"\xef\xbb\xbf"
    is_text = any(mark + b'"' in line or b'"' + mark in line or mark * 2 in line for line in lines)
    for prompt in prompts:
        require(isinstance(prompt, str), f"{prompt!r}")
        require(all(ord(c) < 0xD800 or ord(c) > 0xDFFF for c in prompt), f"surrogate: {prompt!r}")
        require(is_text or not prompt.startswith("\ufeff"), f"byte order mark: {prompt!r}")
        is_written = prompt.encode("utf-8", "replace") in lines
        require(prompt not in ("None", "5", "['x']") or is_written, f"nobody wrote it: {prompt!r}")
    return Outcome.VALID


_WORDS: dict[str, list[str]] = {
    "generate": [
        "weights=w",
        "output_dir=o",
        "prompts=[a red circle]",
        "temperature=1.0",
        "top_k=3",
        "seed=0",
        "images_per_prompt=2",
        "batch_size=4",
    ],
    "caption": ["weights=w", "images=p/*.png", "output=o.jsonl", "temperature=0.5"],
    "build_shards": [
        "source=raw",
        "output_dir=o",
        "image_size=64",
        "max_faulty_fraction=0.1",
        "num_workers=2",
        "image_format=png",
    ],
    "export": ["run=r", "output_dir=o", "average=true"],
    "pretrain": [
        "experiment=quickstart",
        "training.steps=8",
        "run_dir=out/run",
        "optimizer.learning_rate=1e-4",
        "data.loader.num_workers=0",
    ],
}
_ODD_WORDS = (
    "nan",
    "inf",
    "-inf",
    "1e999",
    "null",
    "true",
    "-1",
    "0",
    "1_000",
    "1e-4",
    "[a, b]",
    "{a: 1}",
    "[",
    "]",
    "'",
    '"',
    "${x}",
    "${oc.env:HOME}",
    "${",
    "=",
    "a=b",
    "",
    " ",
    "\\",
    "#",
    "a,b",
    "9" * 5000,
    "[" * 200,
    "\u4e2d\u6587",
    "a\nb",
    "\x00",
    "50% red (circle)",
    "???",
    "!!python/x",
    "out/run[1]",
    "0x10",
    "1.5",
    "..",
    "~",
    "@",
    "\ud800",
    "s3://x/y",
    "&a",
    "*a",
    "%d",
)


def _settings() -> dict[str, bytes]:
    return {f"{name}.json": json.dumps(words).encode() for name, words in _WORDS.items()}


def _mutate_words(rng: random.Random, content: bytes) -> bytes:
    words: list[str] = json.loads(content)
    at = rng.randrange(len(words))
    key, _, value = words[at].partition("=")
    odd = rng.choice(_ODD_WORDS)
    words[at] = rng.choice(
        (
            f"{key}={odd}",
            f"{key}={odd}",
            f"{key}={value}{odd}",
            odd,
            f"+{words[at]}",
            f"~{key}",
            f"{key}",
            f"++{key}.x={odd}",
            f"{key}@x={value}",
            f"{odd}={value}",
            f"{key}.{odd}={value}",
            f"+extra.key={odd}",
            f"{key}={value}={value}",
            f"hydra.{key}={odd}",
            "--multirun",
            f"{key}=[{odd}]",
            f"{key}={{{odd}}}",
            f"{key}='{odd}'",
            f"~{odd}",
            words[at - 1],
        )
    )
    return json.dumps(words).encode()


def _read_words(folder: Path, files: Files) -> Outcome:
    for name, content in files.items():
        words = json.loads(content) if isinstance(content, bytes) else []
        program = name.removesuffix(".json")
        if words != _WORDS[program]:
            config: Any = compose_program(program, words)
            for value in vars(config).values():
                is_number = isinstance(value, float)
                require(not is_number or math.isfinite(value), f"{value} is taken for a number")
    return Outcome.VALID


def _pictures() -> dict[str, bytes]:
    return {"a.png": picture("PNG"), "b.png": picture("PNG"), "c.png": picture("PNG")}


WEIGHTS = Target(
    name="weights folders",
    quick=30,
    files=made(_write_weights),
    read=_read_weights,
    repair=_repair_weights,
    mutate={".json": mutate_json, ".safetensors": _mutate_safetensors, ".model": mutate_bytes},
)
TARGETS = [
    WEIGHTS,
    Target(
        name="pictures to caption",
        quick=40,
        files=_pictures,
        read=_read_captioned,
        mutate={"b.png": mutate_png},
        start=_start_captions,
    ),
    Target(
        name="prompts files", files=_prompts, mutate={".txt": _mutate_prompts}, read=_read_prompts
    ),
    Target(
        name="command lines",
        quick=40,
        files=_settings,
        mutate={".json": _mutate_words},
        read=_read_words,
        specials=0,
        named=(InputError,),
    ),
]
