"""What a step trained on is written down for good, and damage of the ledger is found."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ernie_vilg.config.loader import LoaderConfig
from ernie_vilg.data.records.damage_log import LossCount, LossLog, read_losses
from ernie_vilg.data.records.ledger import (
    Ledger,
    describe_sequence,
    ledger_folder,
    read_past_quarantine,
    read_sequence,
    read_step,
    read_steps,
)
from ernie_vilg.data.sequence.mixture import MixturePhase
from ernie_vilg.data.sequence.quarantine import Quarantine, QuarantineEntry
from ernie_vilg.data.sequence.sample_reader import DataSource, SampleSequence
from ernie_vilg.data.shards.damage import Loss
from ernie_vilg.errors import InputError
from ernie_vilg.storage.shard_manifest import Manifest

RECORD_BYTES = 64
SEQUENCE = {"seed": 3, "data_sets": [{"name": "main", "manifest": "ab" * 32}]}


def open_ledger(run_dir: Path, quarantine: Quarantine | None = None) -> Ledger:
    return Ledger(
        run_dir,
        sequence=SEQUENCE,
        quarantine=quarantine or Quarantine(),
        data_parallel_size=2,
        micro_batch_size=4,
    )


def write_steps(run_dir: Path, *steps: int) -> None:
    """Append steps of 8 positions, as one launch does."""
    ledger = open_ledger(run_dir)
    for step in steps:
        ledger.append(step, (step - 1) * 8, 8)
    ledger.close()


def steps_file(run_dir: Path) -> Path:
    return ledger_folder(run_dir) / "steps.bin"


def flip_bit(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def numbers(run_dir: Path) -> list[int]:
    steps: list[int] = read_steps(run_dir).records["step"].tolist()
    return steps


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    before = time.time()
    write_steps(tmp_path, 1, 2)

    record = read_step(tmp_path, 2).record

    assert steps_file(tmp_path).stat().st_size == 2 * RECORD_BYTES
    assert (record.step, record.first_position, record.num_positions) == (2, 8, 8)
    assert (record.launch, record.data_parallel_size, record.micro_batch_size) == (1, 2, 4)
    assert before <= record.unix_seconds <= time.time()


def test_a_killed_process_loses_no_record(tmp_path: Path) -> None:
    program = (
        "import os, signal; from pathlib import Path\n"
        "from tests.data.records.test_ledger import *\n"
        f"ledger = open_ledger(Path({str(tmp_path)!r}))\n"
        "for step in (1, 2, 3): ledger.append(step, (step - 1) * 8, 8)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )

    done = subprocess.run([sys.executable, "-c", program], check=False)

    assert done.returncode == -signal.SIGKILL
    assert numbers(tmp_path) == [1, 2, 3]


@pytest.mark.parametrize("torn_bytes", [1, 63])
def test_a_torn_record_is_cut_away_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, torn_bytes: int
) -> None:
    write_steps(tmp_path, 1, 2, 3)
    os.truncate(steps_file(tmp_path), 2 * RECORD_BYTES + torn_bytes)
    assert read_steps(tmp_path).torn_bytes == torn_bytes
    assert numbers(tmp_path) == [1, 2]

    write_steps(tmp_path, 3)

    assert f"ended in {torn_bytes} bytes that are no whole record" in caplog.text
    assert numbers(tmp_path) == [1, 2, 3]
    assert read_steps(tmp_path).torn_bytes == 0
    assert (ledger_folder(tmp_path) / "steps-cut.bin").stat().st_size == torn_bytes


def test_zeros_of_a_power_loss_are_cut_away(tmp_path: Path) -> None:
    write_steps(tmp_path, 1)
    with steps_file(tmp_path).open("ab") as file:
        file.write(bytes(2 * RECORD_BYTES))

    write_steps(tmp_path, 2)

    assert numbers(tmp_path) == [1, 2]
    assert read_steps(tmp_path).damaged == ()


@pytest.mark.parametrize("offset", [0, 9, 33, 47, 55, 63], ids=lambda byte: f"byte {byte}")
def test_a_flipped_bit_costs_one_record_and_is_said(tmp_path: Path, offset: int) -> None:
    write_steps(tmp_path, 1, 2, 3)
    flip_bit(steps_file(tmp_path), RECORD_BYTES + offset)

    assert numbers(tmp_path) == [1, 3]
    assert read_steps(tmp_path).damaged == (1,)
    with pytest.raises(ValueError, match=r"step=2 .* steps 1 to 3 and 1 damaged records"):
        read_step(tmp_path, 2)


def test_a_disk_full_of_zeros_in_the_place_of_records_is_refused(tmp_path: Path) -> None:
    write_steps(tmp_path, 1)
    os.truncate(steps_file(tmp_path), 4 << 30)

    with pytest.raises(InputError, match=r"steps\.bin has more than 1,073,741,824 bytes"):
        read_steps(tmp_path)
    with pytest.raises(InputError, match=r"steps\.bin has more than 1,073,741,824 bytes"):
        open_ledger(tmp_path)


def test_a_damaged_record_in_the_middle_stays_where_it_is(tmp_path: Path) -> None:
    write_steps(tmp_path, 1, 2, 3)
    flip_bit(steps_file(tmp_path), RECORD_BYTES + 9)

    write_steps(tmp_path, 4)

    assert numbers(tmp_path) == [1, 3, 4]
    assert read_steps(tmp_path).damaged == (1,)


def test_of_a_step_made_twice_the_last_time_counts(tmp_path: Path) -> None:
    write_steps(tmp_path, 1, 2, 3)
    write_steps(tmp_path, 2, 3)

    history = read_step(tmp_path, 3)

    assert history.record.launch == 2
    assert [record.launch for record in history.earlier] == [1]
    assert history.is_in_effect


def test_a_step_that_was_rolled_back_and_not_made_again_is_not_in_effect(tmp_path: Path) -> None:
    write_steps(tmp_path, 1, 2, 3)
    write_steps(tmp_path, 2)

    assert not read_step(tmp_path, 3).is_in_effect
    assert read_step(tmp_path, 1).is_in_effect


def test_a_missing_step_names_those_there_are(tmp_path: Path) -> None:
    write_steps(tmp_path, 5, 6)

    with pytest.raises(ValueError, match=r"step=7 is not in the ledger .* steps 5 to 6: choose"):
        read_step(tmp_path, 7)


def test_a_run_without_a_ledger_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no ledger \(ledger/steps.bin\)"):
        read_steps(tmp_path)


def test_the_paper_s_whole_training_is_read_in_no_time(tmp_path: Path) -> None:
    write_steps(tmp_path, *range(1, 101))
    steps_file(tmp_path).write_bytes(steps_file(tmp_path).read_bytes() * 1416)

    seconds = []
    for _ in range(3):
        started = time.process_time()
        steps = read_steps(tmp_path)
        seconds.append(time.process_time() - started)

    assert len(steps.records) == 141_600
    assert min(seconds) < 0.5  # 0.06 on one slow core


def test_what_the_records_refer_to_is_written_once_per_content(tmp_path: Path) -> None:
    entry = QuarantineEntry(key="7", shard="a.tar", reason="\u6c34\u5370\u2028")
    for quarantine in (Quarantine(), Quarantine(entries=(entry,)), Quarantine()):
        ledger = open_ledger(tmp_path, quarantine)
        ledger.append(1, 0, 8)
        ledger.close()

    files = sorted(path.name for path in ledger_folder(tmp_path).iterdir())
    assert [name.split("-")[0] for name in files] == [
        "quarantine", "quarantine", "sequence", "steps.bin",
    ]  # fmt: skip
    first, second = read_step(tmp_path, 1).earlier
    assert read_past_quarantine(tmp_path, first.quarantine).entries == ()
    assert read_past_quarantine(tmp_path, second.quarantine).entries == (entry,)
    assert read_sequence(tmp_path, first.sequence) == SEQUENCE


def test_what_the_records_refer_to_cannot_be_edited_unnoticed(tmp_path: Path) -> None:
    write_steps(tmp_path, 1)
    digest = read_step(tmp_path, 1).record.sequence
    path = ledger_folder(tmp_path) / f"sequence-{digest}.json"
    path.write_text(path.read_text().replace('"seed": 3', '"seed": 4'))

    with pytest.raises(ValueError, match=r"sequence-.*\.json was changed"):
        read_sequence(tmp_path, digest)


def test_a_sequence_is_described_without_the_secrets_of_a_url() -> None:
    manifest = Manifest(kind="token", shards=(), settings={}, lineage={})
    sequence = SampleSequence(
        sources=tuple(
            DataSource(name=name, location=location, manifest=manifest)
            for name, location in (("a", "https://me:canary@host/x?token=canary"), ("b", "b"))
        ),
        phases=(MixturePhase(first_position=0, weights=(1.0, 0.5)),),
        seed=3,
        shuffle_block_shards=2,
        quarantine=Quarantine(),
        loader=LoaderConfig(),
    )

    description = describe_sequence(sequence, 8)

    assert [data_set["location"] for data_set in description["data_sets"]] == [
        "https://host/x", str(Path("b").resolve()),
    ]  # fmt: skip
    assert description["mixture"] == [{"first_position": 0, "weights": [1.0, 0.5]}]
    assert "canary" not in json.dumps(description)


def loss(shard: str, index: int | None, position: int, *, reason: str = "sha256") -> Loss:
    return Loss(
        data_set="main",
        shard=shard,
        index=index,
        key="" if index is None else str(index),
        num_samples=10 if index is None else 1,
        reason=reason,
        detail="found",
        position=position,
    )


def test_a_finding_is_written_once_over_all_launches(tmp_path: Path) -> None:
    found = [loss("a.tar", None, 5), loss("b.tar", 3, 6, reason="members")]

    assert LossLog(tmp_path, 0).write(found) == 2
    assert LossLog(tmp_path, 0).write([*found, loss("b.tar", 4, 9)]) == 1

    assert read_losses(tmp_path).losses == (*found, loss("b.tar", 4, 9))


def test_samples_lost_are_counted_once_over_all_ranks(tmp_path: Path) -> None:
    LossLog(tmp_path, 0).write([loss("a.tar", 3, 40, reason="members"), loss("b.tar", 1, 41)])
    LossLog(tmp_path, 1).write([loss("b.tar", 1, 33), loss("a.tar", None, 50)])

    summary = read_losses(tmp_path)

    # a.tar is lost whole, its sample 3 with it; b.tar's was met by rank 1 first.
    assert [found.position for found in summary.losses] == [33, 40, 50]
    assert summary.num_samples == 11
    assert summary.num_samples_by_reason == {"sha256": 11}


def test_the_count_follows_what_ranks_write(tmp_path: Path) -> None:
    count = LossCount(tmp_path)
    counts = [count.num_samples()]
    for rank, found in ((0, loss("b.tar", 1, 33)), (1, loss("b.tar", 1, 7)), (1, loss("c", 2, 9))):
        LossLog(tmp_path, rank).write([found])
        counts.append(count.num_samples())

    assert counts == [0, 1, 1, 2]


def test_a_torn_line_of_findings_is_counted_and_harms_no_other(tmp_path: Path) -> None:
    LossLog(tmp_path, 0).write([loss("a.tar", 1, 1)])
    with (ledger_folder(tmp_path) / "losses-0.jsonl").open("a") as file:
        file.write('{"data_set": "ma')

    LossLog(tmp_path, 0).write([loss("a.tar", 2, 2)])

    summary = read_losses(tmp_path)
    assert summary.losses == (loss("a.tar", 1, 1), loss("a.tar", 2, 2))
    assert summary.num_damaged_lines == 1


@pytest.mark.parametrize("line", ["null", "5", "[1]", "{}", "[" * 100_000, '{"shard": "\\ud83d"}'])
def test_a_line_that_is_no_finding_ends_no_start(
    tmp_path: Path, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    LossLog(tmp_path, 0).write([loss("a.tar", 1, 1)])
    path = ledger_folder(tmp_path) / "losses-0.jsonl"
    path.write_text(f"{line}\n{path.read_text()}")

    assert LossLog(tmp_path, 0).write([loss("a.tar", 1, 1), loss("b.tar", 2, 2)]) == 1

    summary = read_losses(tmp_path)
    assert summary.losses == (loss("a.tar", 1, 1), loss("b.tar", 2, 2))
    assert summary.num_damaged_lines == 1
    assert f"{path} line 1" in caplog.text


def test_a_finding_with_a_number_where_a_text_belongs_is_none(tmp_path: Path) -> None:
    LossLog(tmp_path, 0).write([loss("a.tar", 1, 1)])
    path = ledger_folder(tmp_path) / "losses-0.jsonl"
    path.write_text(path.read_text().replace('"shard": "a.tar"', '"shard": [5]'))

    assert (read_losses(tmp_path).losses, read_losses(tmp_path).num_damaged_lines) == ((), 1)
