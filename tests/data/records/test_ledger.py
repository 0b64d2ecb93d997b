"""The ledger says of every step what it trained on, whatever happened to the run since."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ernie_vilg.config.batch_sizes import BatchSizes
from ernie_vilg.config.loader import LoaderConfig
from ernie_vilg.data.batches.token_batches import TokenSequence
from ernie_vilg.data.records.ledger import (
    Ledger,
    StepRecord,
    read_ledger,
    read_past_quarantine,
    read_step,
)
from ernie_vilg.data.sequence.mixture import MixtureSegment
from ernie_vilg.data.sequence.order import first_position
from ernie_vilg.data.sequence.quarantine import Quarantine, QuarantineEntry
from ernie_vilg.data.sequence.sample_sequence import DataSource
from ernie_vilg.storage.shard_manifest import Manifest
from tests.data.token_shards import MODEL

SEQUENCE = TokenSequence(
    sources=(
        DataSource(
            name="main",
            location="shards",
            manifest=Manifest(kind="token", shards=(), settings={}, lineage={}),
        ),
    ),
    mixture=(MixtureSegment(first_position=0, weights=(1.0,)),),
    seed=3,
    shuffle_block_shards=2,
    quarantine=Quarantine(),
    loader=LoaderConfig(),
    model=MODEL,
    with_pixels=False,
)


def open_ledger(folder: Path, quarantine: Quarantine | None = None) -> Ledger:
    return Ledger(
        folder,
        replace(SEQUENCE, quarantine=quarantine or Quarantine()),
        data_parallel_size=2,
        micro_batch_size=4,
    )


def write_steps(folder: Path, *steps: int, batch: int = 8) -> None:
    """Append some steps, as one launch does."""
    ledger = open_ledger(folder)
    for step in steps:
        ledger.append(step, first_position(step, BatchSizes(full=batch)), batch)
    ledger.close()


def lines_of(folder: Path) -> list[str]:
    return (folder / "steps.jsonl").read_text().splitlines()


def spans(folder: Path) -> list[tuple[int, int]]:
    return [(line.first_step, line.last_step) for line in read_ledger(folder)[0]]


def positions(record: StepRecord) -> tuple[int, int]:
    return record.first_position, record.num_positions


def test_a_launch_is_one_line_that_says_what_every_step_held(tmp_path: Path) -> None:
    before = time.time()
    write_steps(tmp_path, *range(1, 1201))

    assert len(lines_of(tmp_path)) == 1
    for step in (1, 2, 9, 10, 1200):
        record = read_step(tmp_path, step).record
        assert (record.first_step, record.last_step) == (step, step)
        assert positions(record) == (8 * step - 8, 8)
    assert (record.launch, record.data_parallel_size, record.micro_batch_size) == (1, 2, 4)
    assert (record.seed, record.shuffle_block_shards) == (3, 2)
    assert record.mixture == SEQUENCE.mixture
    assert before <= record.unix_seconds <= time.time()


def test_a_killed_process_loses_no_step(tmp_path: Path) -> None:
    program = (
        "import os, signal; from pathlib import Path\n"
        "from tests.data.records.test_ledger import *\n"
        f"ledger = open_ledger(Path({str(tmp_path)!r}))\n"
        "for step in range(1, 13): ledger.append(step, 8 * (step - 1), 8)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )

    done = subprocess.run([sys.executable, "-c", program], check=False)

    assert done.returncode == -signal.SIGKILL
    assert spans(tmp_path) == [(1, 12)]


def test_a_line_that_a_killed_process_left_torn_costs_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_steps(tmp_path, 1, 2, 3)
    write_steps(tmp_path, 3)
    path = tmp_path / "steps.jsonl"
    os.truncate(path, path.stat().st_size - 30)

    write_steps(tmp_path, 3, 4)

    assert spans(tmp_path) == [(1, 3), (3, 4)]
    assert read_step(tmp_path, 4).num_unreadable_lines == 1
    assert "steps.jsonl line 2 is not valid JSON" in caplog.text


def test_a_step_made_twice_has_two_records_of_which_the_last_counts(tmp_path: Path) -> None:
    write_steps(tmp_path, 1, 2, 3)
    write_steps(tmp_path, 2, 3)

    history = read_step(tmp_path, 3)

    assert history.record.launch == 2
    assert [record.launch for record in history.earlier] == [1]
    assert positions(history.record) == positions(history.earlier[0]) == (16, 8)
    assert history.is_in_effect


def test_steps_made_again_by_the_same_launch_have_two_records(tmp_path: Path) -> None:
    write_steps(tmp_path, 1, 2, 3, 4, 3, 4, 5)

    assert spans(tmp_path) == [(1, 4), (3, 5)]
    assert len(read_step(tmp_path, 4).earlier) == 1
    assert read_step(tmp_path, 2).earlier == read_step(tmp_path, 5).earlier == ()
    assert {read_step(tmp_path, step).record.launch for step in range(1, 6)} == {1}


def test_a_step_that_was_rolled_back_and_not_made_again_is_not_in_effect(tmp_path: Path) -> None:
    write_steps(tmp_path, 1, 2, 3)
    write_steps(tmp_path, 2)

    assert not read_step(tmp_path, 3).is_in_effect
    assert read_step(tmp_path, 1).is_in_effect
    assert read_step(tmp_path, 2).is_in_effect


def test_another_global_batch_begins_another_line(tmp_path: Path) -> None:
    write_steps(tmp_path, 1, 2, 3)
    write_steps(tmp_path, 3, 4, batch=16)
    ledger = open_ledger(tmp_path)
    for step, first, size in ((5, 64, 16), (6, 80, 16), (7, 96, 8), (8, 104, 8)):
        ledger.append(step, first, size)
    ledger.close()

    records = [read_step(tmp_path, step).record for step in range(1, 9)]

    assert [positions(record) for record in records] == [
        (0, 8), (8, 8), (32, 16), (48, 16), (64, 16), (80, 16), (96, 8), (104, 8),
    ]  # fmt: skip
    assert len(lines_of(tmp_path)) == 4


def test_steps_that_a_power_failure_took_from_a_line_are_known_by_the_next(tmp_path: Path) -> None:
    write_steps(tmp_path, 1, 2)
    write_steps(tmp_path, 7)

    assert spans(tmp_path) == [(1, 6), (7, 7)]
    assert positions(read_step(tmp_path, 6).record) == (40, 8)


def test_a_missing_step_names_those_there_are(tmp_path: Path) -> None:
    write_steps(tmp_path, 5, 6)

    with pytest.raises(ValueError, match=r"step=7 is not in the ledger .* steps 5 to 6: choose"):
        read_step(tmp_path, 7)


def test_a_run_without_a_step_is_told_to_wait(tmp_path: Path) -> None:
    open_ledger(tmp_path).close()

    with pytest.raises(ValueError, match=r"has no step yet: wait for the run's first$"):
        read_step(tmp_path, 1)


def test_a_run_without_a_ledger_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no steps\.jsonl: name the run_dir of"):
        read_ledger(tmp_path)


def test_the_ledger_of_an_older_version_is_named_and_a_resumed_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / "steps.bin").write_bytes(bytes(640))
    with pytest.raises(
        ValueError, match=r"the steps in steps\.bin can be explained by the version"
    ):
        read_step(tmp_path, 3)

    write_steps(tmp_path, 11, 12)

    assert positions(read_step(tmp_path, 12).record) == (88, 8)
    with pytest.raises(ValueError, match=r"steps 11 to 12: choose .*; the steps in steps\.bin"):
        read_step(tmp_path, 3)


@pytest.mark.parametrize(
    ("field", "value"),
    [("first_step", 0), ("num_positions", "8"), ("quarantine", "../../run"), ("mixture", [5])],
)
def test_a_line_that_is_no_record_is_passed_over_and_counted(
    tmp_path: Path, field: str, value: object
) -> None:
    write_steps(tmp_path, 1, 2)
    path = tmp_path / "steps.jsonl"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}) + "\n")

    write_steps(tmp_path, 3)

    assert spans(tmp_path) == [(3, 3)]
    assert read_step(tmp_path, 3).num_unreadable_lines == 1


def test_a_quarantine_is_written_once_per_content(tmp_path: Path) -> None:
    entry = QuarantineEntry(key="7", shard="a.tar", reason="\u6c34\u5370\u2028")
    for quarantine in (Quarantine(), Quarantine(entries=(entry,)), Quarantine()):
        ledger = open_ledger(tmp_path, quarantine)
        ledger.append(1, 0, 8)
        ledger.close()

    files = sorted(path.name.split("-")[0] for path in tmp_path.iterdir())
    assert files == ["quarantine", "quarantine", "steps.jsonl"]
    first, second = read_step(tmp_path, 1).earlier
    assert read_past_quarantine(tmp_path, first.quarantine).entries == ()
    assert read_past_quarantine(tmp_path, second.quarantine).entries == (entry,)


def test_a_quarantine_cannot_be_edited_unnoticed(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path, Quarantine(entries=(QuarantineEntry(key="7"),)))
    ledger.append(1, 0, 8)
    ledger.close()
    digest = read_step(tmp_path, 1).record.quarantine
    path = tmp_path / f"quarantine-{digest}.jsonl"
    path.write_text(path.read_text().replace('"7"', '"8"'))

    with pytest.raises(ValueError, match=r"quarantine-.*\.jsonl was changed"):
        read_past_quarantine(tmp_path, digest)


def test_data_sets_are_recorded_without_the_secrets_of_a_url(tmp_path: Path) -> None:
    manifest = SEQUENCE.sources[0].manifest
    sequence = replace(
        SEQUENCE,
        sources=tuple(
            DataSource(name=name, location=location, manifest=manifest)
            for name, location in (("a", "https://me:canary@host/x?token=canary"), ("b", "b"))
        ),
        mixture=(MixtureSegment(first_position=0, weights=(1.0, 1 / 3)),),
    )
    ledger = Ledger(tmp_path, sequence, data_parallel_size=1, micro_batch_size=8)
    ledger.append(1, 0, 8)
    ledger.close()

    record = read_step(tmp_path, 1).record

    assert [data_set.location for data_set in record.data_sets] == [
        "https://host/x", str(Path("b").resolve()),
    ]  # fmt: skip
    assert {data_set.manifest for data_set in record.data_sets} == {manifest.digest()}
    assert record.mixture == sequence.mixture
    assert "canary" not in (tmp_path / "steps.jsonl").read_text()
