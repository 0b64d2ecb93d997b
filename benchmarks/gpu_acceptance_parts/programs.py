"""The real programs: train, kill, resume, export, draw, judge."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.gpu_acceptance_parts.context import Context
from benchmarks.gpu_acceptance_parts.stages import CutError, StageError, figure
from benchmarks.support.measurer import Result
from benchmarks.support.results import ROOT
from ernie_vilg.evaluation.pairs import EVALUATION_FILE
from ernie_vilg.storage.json_files import read_json
from ernie_vilg.system.ports import free_port

INPUTS = "quickstart"
"""Folder of the inputs in the working folder: token shards, both tokenizers, held-out pairs."""
CACHE = "inductor_programs"
"""Inductor's cache of the programs in the working folder; empty before the cold start."""
WHOLE, KILLED = "runs/whole", "runs/killed"
WEIGHTS = "runs/weights"
_POLL_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True)
class Size:
    """Length of the runs."""

    steps: int
    """Steps of a run."""
    kill_after: int
    """Step after which the run is killed; a checkpoint is older by a few steps."""
    settings: tuple[str, ...]
    """Further options of launch/pretrain.py."""


FULL = Size(
    steps=400,
    kill_after=70,
    settings=(
        "parallelism.micro_batch_size=32",
        "checkpoint.every=50",
        "samples.every=100",
    ),
)
TOY = Size(
    steps=12,
    kill_after=6,
    settings=(
        "model.hidden_size=64",
        "model.num_layers=2",
        "parallelism.micro_batch_size=4",
        "parallelism.global_batch_size=8",
        "optimizer.warmup_steps=2",
        "checkpoint.every=4",
        "samples.every=6",
        "samples.count=2",
    ),
)


def size_of(context: Context) -> Size:
    """Return the length of the runs on this machine."""
    return FULL if context.has_gpu else TOY


def pretrain_command(context: Context, run: str) -> list[str]:
    """Return the command that trains the quickstart on one rank, under DeepSpeed's launcher."""
    inputs, size = context.work / INPUTS, size_of(context)
    cluster = ["cluster=one_gpu"] if context.has_gpu else ["cluster=local_cpu"]
    if context.preset is not None:
        cluster.append(f"gpu={context.preset}")
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus=1"]
    return [
        *launcher,
        f"--master_port={free_port()}",
        "launch/pretrain.py",
        "experiment=quickstart",
        *cluster,
        f"data.token_shards={inputs}/token_shards",
        f"data.text_tokenizer={inputs}/text_tokenizer",
        f"data.image_tokenizer={inputs}/image_tokenizer/weights",
        f"samples.pairs={inputs}/held_out",
        "tracking.wandb_mode=disabled",
        f"run_dir={context.work / run}",
        f"training.steps={size.steps}",
        "training.log_every=1",  # every loss is compared, and the first step's end is known
        *size.settings,
    ]


def run_program(
    context: Context,
    name: str,
    command: Sequence[str],
    limit_seconds: float,
    *,
    is_enough: Callable[[], bool] = lambda: False,
) -> float:
    """Run a command as `run_command` does; return its start in Unix time.

    Raises:
        StageError: the command failed.
        CutError: the command reached its limit.
    """
    started = time.time()
    code = run_command(context, name, command, limit_seconds, is_enough=is_enough)
    if code:
        raise StageError(f"{name} ended with {code}: {last_error(context.log(name))}")
    return started


def run_command(
    context: Context,
    name: str,
    command: Sequence[str],
    limit_seconds: float,
    *,
    is_enough: Callable[[], bool] = lambda: False,
) -> int:
    """Run a command in the repository's root, its output in a log; return its exit status.

    Args:
        context: the folders.
        name: name of the log.
        command: the command.
        limit_seconds: time limit.
        is_enough: asked all the time; true kills the command and everything that it has started,
            and the exit status is 0.

    Raises:
        CutError: the command reached its limit; it and everything it has started are killed.
    """
    deadline = time.monotonic() + limit_seconds
    log = context.log(name)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(context, command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    killed = False
    try:
        while process.poll() is None and time.monotonic() < deadline and not killed:
            time.sleep(_POLL_SECONDS)
            killed = is_enough()
        is_late = process.poll() is None and not killed
    finally:
        kill_family(process)
    if is_late:
        raise CutError(f"not done after {limit_seconds:.0f} s: {log.name}")
    return 0 if killed else process.returncode


def environment(context: Context, command: Sequence[str]) -> dict[str, str]:
    """Return the variables of a program: this Python's programs first, and a cache of its own."""
    cache = str(context.work / CACHE)
    path = f"{Path(command[0]).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    python_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    own: Mapping[str, str] = {
        "PATH": path,
        "PYTHONPATH": python_path,
        "PYTHONUNBUFFERED": "1",
        "TORCHINDUCTOR_CACHE_DIR": cache,
        "TRITON_CACHE_DIR": f"{cache}/triton",
    }
    if not context.has_gpu:
        own = {**own, "OMP_NUM_THREADS": "1"}
    return {**os.environ, **own}


def kill_family(process: "subprocess.Popen[bytes]") -> None:
    """Kill a process, everything it has started, and its session."""
    if process.poll() is None:
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    child.kill()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def last_error(log: Path) -> str:
    """Return the last line of a log that names an error, else its last line."""
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line or "error:" in line]
    return (named or lines or ["no output"])[-1]


def metrics_of(run_dir: Path) -> dict[int, dict[str, Any]]:
    """Return the metrics of a run by step; a line that is being written counts as none."""
    path, found = run_dir / "metrics.jsonl", {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with suppress(json.JSONDecodeError):
            row = json.loads(line)
            if "loss" in row:
                found[int(row["step"])] = row
    return found


def train(context: Context, limit: float) -> list[Result]:
    """Train with an empty Inductor cache, from nothing to the last step."""
    _remove(context, WHOLE, CACHE)
    run_dir = context.work / WHOLE
    started = run_program(context, "train", pretrain_command(context, WHOLE), limit)
    metrics = metrics_of(run_dir)
    steps = size_of(context).steps
    if sorted(metrics) != list(range(1, steps + 1)):
        raise StageError(f"{len(metrics)} of {steps} steps are in metrics.jsonl")
    last = metrics[steps]
    rates = sorted(row["tokens_per_second"] for row in metrics.values())
    return [
        figure("first step, cold", metrics[1]["unix_seconds"] - started, "s"),
        figure("quickstart, tokens per second", rates[len(rates) // 2], "tokens/s"),
        figure("quickstart, last loss", last["loss"], "nats"),
    ]


def kill(context: Context, limit: float) -> list[Result]:
    """Train with a warm cache, and kill everything in the middle."""
    _remove(context, KILLED)
    run_dir, size = context.work / KILLED, size_of(context)

    def is_enough() -> bool:
        return max(metrics_of(run_dir), default=0) >= size.kill_after

    command = pretrain_command(context, KILLED)
    started = run_program(context, "kill", command, limit, is_enough=is_enough)
    metrics = metrics_of(run_dir)
    if max(metrics, default=0) >= size.steps:
        raise StageError("the run was done before it could be killed")
    return [
        figure("first step, warm", metrics[1]["unix_seconds"] - started, "s"),
        figure("killed after step", max(metrics), "steps"),
    ]


def resume(context: Context, limit: float) -> list[Result]:
    """Type the same command again, and compare all losses with those of the whole run."""
    command = pretrain_command(context, KILLED)
    run_program(context, "resume", command, limit)
    whole, resumed = metrics_of(context.work / WHOLE), metrics_of(context.work / KILLED)
    steps = size_of(context).steps
    differences = [abs(whole[step]["loss"] - resumed[step]["loss"]) for step in sorted(resumed)]
    equal = sum(difference == 0 for difference in differences)
    rows = [
        figure("losses equal after kill and resume", equal / steps, ""),
        figure("largest difference of a loss", max(differences, default=0.0), "nats"),
    ]
    if len(differences) != steps:
        raise StageError(f"{len(differences)} of {steps} steps are in metrics.jsonl", rows)
    return rows


def export(context: Context, limit: float) -> list[Result]:
    """Export the trained weights."""
    words = [f"run={context.work / WHOLE}", f"output_dir={context.work / WEIGHTS}"]
    return _timed(context, "export", [*words, "overwrite=true"], limit)


def draw(context: Context, limit: float) -> list[Result]:
    """Draw the held-out captions."""
    words = [
        f"weights={context.work / WEIGHTS}",
        f"prompts_file={context.work / INPUTS}/held_out/captions.jsonl",
        f"output_dir={context.work}/runs/drawn",
        "batch_size=200",
    ]
    return _timed(context, "generate", words, limit)


def judge(context: Context, limit: float) -> list[Result]:
    """Draw and caption the held-out pairs, and count what is right."""
    folder = context.work / "runs/evaluation"
    captions = context.work / INPUTS / "held_out/captions.jsonl"
    num_pairs = len(captions.read_text(encoding="utf-8").splitlines())
    words = [
        f"weights={context.work / WEIGHTS}",
        f"pairs={context.work / INPUTS}/held_out",
        f"output_dir={folder}",
        f"count={num_pairs}",
    ]
    rows = _timed(context, "evaluate", words, limit)
    found = read_json(folder / EVALUATION_FILE)
    return [
        figure("objects drawn right", found["text_to_image"]["objects_correct"], ""),
        figure("captions right", found["image_to_text"]["captions_correct"], ""),
        *rows,
    ]


def _timed(context: Context, program: str, words: list[str], limit: float) -> list[Result]:
    started = time.monotonic()
    run_program(context, program, [sys.executable, f"launch/{program}.py", *words], limit)
    return [figure(f"launch/{program}.py", time.monotonic() - started, "s")]


def _remove(context: Context, *names: str) -> None:
    for name in names:
        shutil.rmtree(context.work / name, ignore_errors=True)
