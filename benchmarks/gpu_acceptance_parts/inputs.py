"""Inputs of the acceptance run, made on any machine and carried to the one with a GPU.

The folder .gpu_acceptance/ holds wheels/ (packages that a bare machine with torch lacks) and
quickstart.tar.gz (token shards, both tokenizers, held-out pairs). Git ignores it; a tool that
copies the working tree must be told its name.
"""

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.support.results import ROOT

CARRIED = ROOT / ".gpu_acceptance"
WHEELS, ARCHIVE = CARRIED / "wheels", CARRIED / "quickstart.tar.gz"
MOST_BYTES = 48 * 2**20
"""Largest size of the carried folder; a copy of the working tree may have 64 MiB in all."""

PYTHON_OF_THE_CARD = "3.12"
PACKAGES = (
    "megatron-core", "hydra-core", "omegaconf", "webdataset", "braceexpand", "pydantic",
    "pydantic_core", "annotated-types", "typing-inspection", "hjson", "msgpack",
)  # fmt: skip
"""Packages that come as wheels. The machine has torch, numpy, einops, psutil, sentencepiece,
Pillow, matplotlib, Jinja2, safetensors, fsspec, filelock, tqdm and pytest; W&B is not needed."""
SOURCE_PACKAGES = ("deepspeed", "antlr4-python3-runtime")
"""Packages that come as source; their wheels are pure Python."""
PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 24, 17)),
    "manylinux2014_x86_64",
    "manylinux1_x86_64",
)
"""Platforms of wheels that the machine accepts; pip takes each name exactly."""

STAGES = (
    "draw_shapes", "hold_out", "build_shards", "train_text_tokenizer", "train_image_tokenizer",
    "encode_shards",
)  # fmt: skip
"""Stages of the main job that make the inputs."""
PARTS = ("token_shards", "text_tokenizer", "image_tokenizer/weights", "held_out")
"""Folders of the main job's output that are carried."""
TOY_OPTIONS = {
    "draw_shapes": ["train_scenes=128", "held_out_scenes=4", "unseen_pair_scenes=4"],
    "train_image_tokenizer": [
        "training.steps=10",
        "training.save_every=10",
        "training.num_evaluation_images=8",
        "optimizer.warmup_steps=2",
    ],
}
"""Options by stage of the inputs of a rehearsal."""


def pins(names: Sequence[str], constraints: str) -> list[str]:
    """Return `name==version` of packages, from the text of constraints.txt.

    Raises:
        KeyError: a package is not in it.
    """
    lines = [line.split("#")[0].strip() for line in constraints.splitlines()]
    versions = dict(line.split("==") for line in lines if "==" in line)
    return [f"{name}=={versions[name]}" for name in names]


def collect_wheels() -> None:
    """Download or build the wheels; needs the network."""
    shutil.rmtree(WHEELS, ignore_errors=True)
    WHEELS.mkdir(parents=True)
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pip = [sys.executable, "-m", "pip"]
    target = ["--python-version", PYTHON_OF_THE_CARD, "--implementation", "cp"]
    target += [word for platform in PLATFORMS for word in ("--platform", platform)]
    download = [*pip, "download", "-q", "--no-deps", "--only-binary=:all:", *target]
    subprocess.run([*download, "-d", str(WHEELS), *pins(PACKAGES, constraints)], check=True)
    build = [*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(WHEELS)]
    subprocess.run(
        [*build, *pins(SOURCE_PACKAGES, constraints)],
        env={**os.environ, "DS_BUILD_OPS": "0"},
        check=True,
    )


def make_inputs(folder: Path, *, is_toy: bool) -> None:
    """Run the quickstart's stages up to the token shards; stages with all outputs are skipped.

    Args:
        folder: the job's output.
        is_toy: whether to make a few pictures only, for a rehearsal.
    """
    from omegaconf import OmegaConf

    job = OmegaConf.create({"job": OmegaConf.load(ROOT / "conf/job/quickstart.yaml")})
    job.job.output_dir = str(folder)
    resolved: Any = OmegaConf.to_container(job, resolve=True)
    stages = {stage["name"]: stage for stage in resolved["job"]["stages"]}
    folder.mkdir(parents=True, exist_ok=True)
    for name in STAGES:
        stage = stages[name]
        if all(Path(path).exists() for path in stage["outputs"]):
            continue
        print(f"  inputs: {name}", flush=True)
        words = [*stage["command"], *(TOY_OPTIONS.get(name, []) if is_toy else [])]
        _run_stage(words, stage.get("environment", {}))


def _run_stage(words: list[str], environment: dict[str, str]) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    done = subprocess.run(
        words,
        cwd=ROOT,
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(words[:3])} failed:\n{done.stdout}{done.stderr}")


def pack(folder: Path, archive: Path) -> None:
    """Write the carried folders of a main job's output into an archive."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz") as file:
        for part in PARTS:
            file.add(folder / part, part)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack the inputs, unless they are there."""
    if all((folder / part).exists() for part in PARTS):
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")


def carry() -> None:
    """Make the carried folder and print its size.

    The quickstart's own output is used where it exists.

    Raises:
        RuntimeError: the folder is too large to be carried.
    """
    quickstart = ROOT / "outputs/quickstart"
    made = ROOT / "outputs/gpu_acceptance_inputs"
    has_all = all((quickstart / part).exists() for part in PARTS)
    source = quickstart if has_all else made
    if not has_all:
        print("no outputs/quickstart: its stages up to the token shards run now, 3 to 6 minutes")
        make_inputs(made, is_toy=False)
    pack(source, ARCHIVE)
    print("collecting wheels", flush=True)
    collect_wheels()
    sizes = {path: path.stat().st_size for path in CARRIED.rglob("*") if path.is_file()}
    total = sum(sizes.values())
    size = f"{total / 2**20:.1f} MiB in {len(sizes)} files"
    print(f"{CARRIED.name}/: {size}, inputs of {source.relative_to(ROOT)}")
    if total > MOST_BYTES:
        raise RuntimeError(f"{CARRIED.name}/ is larger than {MOST_BYTES / 2**20:.0f} MiB")


def install_wheels(site: Path) -> None:
    """Install the carried wheels into a folder of their own, unless that is done."""
    if site.exists() or not WHEELS.exists():
        return
    temporary = site.with_name(f".{site.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    wheels = [str(path) for path in sorted(WHEELS.glob("*.whl"))]
    options = ["-q", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, "--target", str(temporary), *wheels],
        check=True,
    )
    temporary.rename(site)
