"""The page "Your own data in ten commands" works, in its order, on a folder of a person's own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from launch.support.program import CONF_FOLDER
from tests.test_documented_commands import commands_of

ROOT = CONF_FOLDER.parent
PAGE = (ROOT / "docs/your_data.md").read_text(encoding="utf-8")
SHORTER = {
    "train_image_tokenizer.py": " training.steps=3",
    "pretrain.py": " training.steps=2 tracking.wandb_mode=disabled",
    "export.py": "",
}
"""Overrides that only shorten a program, appended to its command."""


def write_pictures(folder: Path) -> None:
    """Write 48 different pictures of several formats, each beside a text of the same name."""
    (folder / "sub").mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(48):
        width, height = random.integers(70, 200, 2)
        coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), np.uint8))
        picture = coarse.resize((int(width), int(height)))
        suffix = ("jpg", "png", "webp")[number % 3]
        path = folder / ("sub" if number % 2 else "") / f"picture-{number}.{suffix}"
        picture.save(path)
        caption = f"第{number}张照片" if number % 4 else f"photograph number {number}"
        path.with_suffix(".txt").write_text(caption + "\n", encoding="utf-8")


def with_overrides(command: str) -> str:
    return " && ".join(
        part + next((more for program, more in SHORTER.items() if program in part), "")
        for part in command.split(" && ")
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_commands_of_the_page_work_in_their_order(tmp_path: Path) -> None:
    pairs = tmp_path / "my pairs"
    write_pictures(pairs)
    own = tmp_path / "own"

    def placed(text: str) -> str:
        return text.replace("outputs/own", str(own))

    (snippet,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    subprocess.run(
        [sys.executable, "-c", snippet.replace("/data/pairs", str(pairs))], check=True, timeout=60
    )
    commands = list(commands_of(PAGE))
    assert len(commands) == 10
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command in commands:
        line = placed(with_overrides(command)).replace("source=/data/pairs", f"'source={pairs}'")
        run = subprocess.run(
            ["bash", "-c", line],
            cwd=ROOT,
            env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert run.returncode == 0, f"{line}\n{run.stdout[-3000:]}\n{run.stderr[-3000:]}"
    assert len(list((own / "pictures").glob("**/*.png"))) == 1
