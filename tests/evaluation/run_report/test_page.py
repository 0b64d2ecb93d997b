"""The page of runs: facts, the settings that differ, losses, charts and pictures of each."""

import html
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ernie_vilg.errors import InputError
from ernie_vilg.evaluation.run_report.page import runs_html
from ernie_vilg.evaluation.run_report.runs import read_runs, rollbacks
from ernie_vilg.runs.run_folder import RunFolder
from tests.evaluation.run_report.recorded_runs import (
    LINES,
    MODEL,
    log_line,
    settings,
    write_checkpoint,
    write_run_folder,
    write_samples,
)


def page(*folders: Path, sample_steps: int = 8) -> str:
    return runs_html([str(each) for each in folders], title=None, sample_steps=sample_steps)


def rows_of(content: str, heading: str) -> dict[str, list[str]]:
    """Return the cells of a section's table by the name of their row."""
    section = content.split(f"<h2>{heading}</h2>")[1].split("</section>")[0]
    rows = {}
    for row in re.findall(r"<tr><th scope=\"row\">(.*?)</tr>", section):
        name, _, cells = row.partition("</th>")
        values = re.findall(r"<td>(?:<code>)?(.*?)(?:</code>)?</td>", cells)
        rows[name] = [html.unescape(value) for value in values]
    return rows


def test_nothing_is_fetched_and_every_picture_has_a_text(tmp_path: Path) -> None:
    run = write_run_folder(tmp_path / "run")
    write_samples(run, 0, "red")

    content = page(run)

    assert "<script" not in content
    assert "url(" not in content
    addresses = re.findall(r'(?:src|href)="([^"]*)"', content)
    assert all(address.startswith("data:image/") for address in addresses)
    texts = re.findall(r'<img [^>]*?alt="([^"]*)"', content)
    assert len(texts) == len(addresses) == 3 + 2 + 2 + 3 + 2
    assert "Loss, text to image over steps: " in texts[1]
    assert "ends at 0.5 (step 100)" in texts[1]


def test_facts_of_a_run_stand_on_its_page(tmp_path: Path) -> None:
    run = write_run_folder(tmp_path / "outputs/run")
    start = {"folder": "/models/first", "sha256": "e" * 64, "step": 300}
    write_checkpoint(run, start=start)

    content = page(run)

    assert "<h1>outputs/run</h1>" in content
    facts = {name: cells[0] for name, cells in rows_of(content, "Facts").items()}
    assert facts["Experiment"] == "tiny"
    assert facts["Model"] == "2 layers of 16, 2 heads"
    assert facts["Layout"] == "tensor 1 x pipeline 1 x data 4, ZeRO 1"
    assert facts["Precision"] == "bfloat16"  # of the checkpoint, where the setting is auto
    assert facts["Global batch"] == "8 pairs"
    assert facts["Steps"] == "100 of 100"
    assert facts["Seen"] == "800 pairs, 1 epochs"
    assert facts["Data, SHA-256"] == "main dddddddd"
    assert facts["Text tokenizer, SHA-256"] == "77777777"
    assert facts["First weights"] == "/models/first, step 300 (eeeeeeee)"
    assert facts["Time"] == "5m00s"
    assert facts["Speed, median"] == "40.0 pairs per second"
    assert facts["Versions"] == "ernie-vilg 0.1.0"
    assert "Settings that differ" not in content


def test_losses_have_their_last_and_best_value_and_the_gap(tmp_path: Path) -> None:
    lines = [log_line(10, 2.0), log_line(20, 0.5), log_line(30, 1.0), *LINES[-2:]]

    losses = rows_of(page(write_run_folder(tmp_path / "run", lines)), "Losses, last and best")

    assert losses["text to image"] == ["1.0000 (lowest: 0.5000 at step 20)"]
    assert losses["held out (held_out), text to image"] == ["0.7500, the lowest"]
    assert losses["gap (held_out), text to image"] == ["-0.2500"]


def test_only_settings_that_differ_are_compared(tmp_path: Path) -> None:
    first = write_run_folder(tmp_path / "first/run")
    base = settings(tmp_path)
    second = write_run_folder(
        tmp_path / "second/run",
        optimizer=replace(base.optimizer, learning_rate=3e-4),
        model=replace(MODEL, attention="sparse"),
        tracking=replace(base.tracking, project="another"),
    )

    content = page(first, second)

    assert rows_of(content, "Settings that differ") == {
        "model.attention": ['"full"', '"sparse"'],
        "optimizer.learning_rate": ["0.01", "0.0003"],
    }
    assert re.findall(r'class="swatch".*?</span>(\w+)<', content) == ["first", "second"]


def test_runs_of_the_same_settings_say_so(tmp_path: Path) -> None:
    runs = [write_run_folder(tmp_path / name) for name in ("a", "b")]

    assert "None: the settings of these runs are the same." in page(*runs)


def test_pictures_stand_from_the_first_step_on(tmp_path: Path) -> None:
    run = write_run_folder(tmp_path / "run")
    for step in range(0, 101, 10):
        write_samples(run, step, "red")

    content = page(run, sample_steps=3)

    assert re.findall(r'class="step">(.*?)<', content) == [
        "data set",
        "step 0",
        "step 50",
        "step 100",
    ]


def test_a_run_that_is_still_training_has_a_page(tmp_path: Path) -> None:
    run = write_run_folder(tmp_path / "run", LINES[:3])
    with RunFolder(run).metrics.open("a") as file:
        file.write('{"step": 30, "lo')  # a line that is being written

    facts = rows_of(page(run), "Facts")

    assert facts["Steps"] == ["20 of 100"]
    assert "Layout" not in facts  # known from the first checkpoint on
    assert facts["First weights"] == ["fresh"]


def test_skipped_updates_and_rollbacks_are_marked(tmp_path: Path) -> None:
    run = write_run_folder(tmp_path / "run")
    ledger = RunFolder(run).ledger
    ledger.mkdir()
    skip: dict[str, Any] = {
        "reason": "nan", "loss": None, "limit": None, "gradient_norm": None, "ranks": [],
        "first_position": 0, "num_positions": 8, "samples": [],
    }  # fmt: skip
    steps = (20, 41, 42, 43, 44)  # guards.max_skips is 3
    lines = [json.dumps({"step": step, **skip}) + "\n" for step in steps]
    (ledger / "skips-0.jsonl").write_text("".join(lines))

    (read,) = read_runs([run])

    assert read.log.skipped == steps
    assert read.log.rolled_back == (44,)
    assert rows_of(page(run), "Facts")["Updates skipped"] == ["5; rollbacks: 1"]


def test_only_more_skips_in_a_row_than_the_limit_are_a_rollback() -> None:
    assert rollbacks([3, 4, 6, 7], max_skips=2) == ()
    assert rollbacks([3, 4, 5, 6, 7, 8], max_skips=2) == (5, 8)
    assert rollbacks([3], max_skips=0) == (3,)


def test_a_run_without_a_log_line_is_refused(tmp_path: Path) -> None:
    run = write_run_folder(tmp_path / "run", LINES[:1])

    with pytest.raises(InputError, match=r"has no metrics yet: .* after training\.log_every=10"):
        page(run)


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    run = write_run_folder(tmp_path / "run")
    path = RunFolder(run).metrics
    path.write_text(path.read_text().replace('{"step": 20,', "{step: 20,"))

    with pytest.raises(InputError, match=r"metrics\.jsonl line 3 is not valid JSON"):
        page(run)


def test_runs_of_two_programs_are_refused(tmp_path: Path) -> None:
    first, second = (write_run_folder(tmp_path / name) for name in ("a", "b"))
    record = json.loads((second / "run.json").read_text())
    (second / "run.json").write_text(json.dumps({**record, "program": "train_image_tokenizer"}))

    with pytest.raises(InputError, match=r"one of launch/train_image_tokenizer\.py: make a page"):
        page(first, second)
