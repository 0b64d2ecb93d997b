"""Image shards written by Ray while a worker, a node and the program itself are killed."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from data_pipelines.building.build import build_image_shards
from ernie_vilg.config.shards import BuildShardsConfig
from launch.support.program import CONF_FOLDER
from tests.data_pipelines.ray_nodes import RayNodes, content_of, ray_nodes

pytestmark = pytest.mark.slow

NUM_PARTS = 24
ROWS_PER_PART = 4
_WAIT_SECONDS = 120.0


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    with ray_nodes() as nodes:
        yield nodes


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return pairs whose pictures take about a tenth of a second each."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(256, size=(1200, 1200, 3), dtype=np.uint8)
    lines = []
    for number in range(NUM_PARTS * ROWS_PER_PART):
        picture = np.roll(noise, number, axis=0)
        Image.fromarray(picture).save(folder / f"{number}.png", compress_level=1)
        lines.append(f'{{"image": "{number}.png", "caption": "第{number}张"}}\n')
    (folder / "captions.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def settings(source: Path, output: Path) -> dict[str, str | int]:
    return {
        "source": str(source),
        "output_dir": str(output),
        "image_size": 32,
        "samples_per_shard": 10,
        "rows_per_part": ROWS_PER_PART,
    }


def start_program(source: Path, output: Path, nodes: RayNodes) -> "subprocess.Popen[str]":
    words = [f"{name}={value}" for name, value in settings(source, output).items()]
    ray = ["executor=ray", f"ray_address={nodes.address}", "num_workers=3"]
    return subprocess.Popen(
        [sys.executable, "launch/build_shards.py", *words, *ray],
        cwd=CONF_FOLDER.parent,
        env=os.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def records(output: Path) -> dict[str, int]:
    """Return when each inspected part was recorded, in ns, by its name."""
    found = output.parent.glob(f".building-{output.name}/records/part-*.json")
    return {path.name: path.stat().st_mtime_ns for path in found}


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + _WAIT_SECONDS
    while not condition():
        assert time.monotonic() < end, "it never became true"
        time.sleep(0.01)


def tasks_at_work() -> list[psutil.Process]:
    """Return the workers of Ray that inspect a part."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if "inspect_part" in " ".join(process.info["cmdline"] or ())
    ]


def test_a_killed_worker_node_and_program_change_no_byte_and_repeat_no_finished_part(
    source: Path, tmp_path: Path, nodes: RayNodes
) -> None:
    build_image_shards(BuildShardsConfig(**settings(source, tmp_path / "processes")))
    output = tmp_path / "ray"
    third = nodes.add()

    program = start_program(source, output, nodes)
    wait_until(lambda: records(output) and tasks_at_work())
    tasks_at_work()[0].kill()
    wait_until(lambda: len(records(output)) >= 4)
    nodes.kill(third)
    wait_until(lambda: len(records(output)) >= 8)
    assert program.poll() is None
    program.kill()
    program.communicate()
    wait_until(lambda: not tasks_at_work())
    done = records(output)
    assert 8 <= len(done) < NUM_PARTS

    restarted = start_program(source, output, nodes)
    wait_until(lambda: len(records(output)) > len(done))
    assert records(output).items() >= done.items()
    text, _ = restarted.communicate()

    assert restarted.returncode == 0, text
    assert content_of(output) == content_of(tmp_path / "processes")
