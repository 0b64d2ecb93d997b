"""Records of skipped updates can be read again, whatever happened since."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ernie_vilg.data.records.skipped_updates import (
    MAX_SAMPLES,
    RecentOrigins,
    SampleName,
    Skip,
    SkipLog,
    finite,
    name_samples,
    read_skips,
)
from ernie_vilg.data.sequence.sample_reader import Origins
from tests.data.token_shards import MODEL, sequence_of, write_token_shards

SKIP = Skip(
    step=3,
    reason="nan",
    loss=None,
    limit=9.5,
    gradient_norm=None,
    ranks=(1, 4),
    first_position=16,
    num_positions=4,
    samples=(SampleName(data_set="main", shard="tokens-00000.tar", index=7, key="00000007"),),
)


def places_of(shard_index: list[int], index: list[int]) -> Origins:
    count = len(index)
    return Origins(
        data_set=np.zeros(count, np.int64),
        epoch=np.zeros(count, np.int64),
        shard_index=np.array(shard_index),
        index=np.array(index),
        is_replaced=np.zeros(count, bool),
        is_damaged=np.zeros(count, bool),
    )


def test_what_replicas_wrote_comes_back_in_the_order_of_steps(tmp_path: Path) -> None:
    second = replace(SKIP, first_position=20)
    later = replace(SKIP, step=5, first_position=32)
    logs = [SkipLog(tmp_path, data_rank) for data_rank in (0, 1)]
    logs[0].write(later)
    logs[1].write(second)
    logs[0].write(SKIP)

    assert read_skips(tmp_path) == (SKIP, second, later)


def test_a_line_that_was_cut_off_harms_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = SkipLog(tmp_path, data_rank=0)
    log.write(SKIP)
    content = log.path.read_bytes()
    log.path.write_bytes(content + content[: len(content) // 2])

    SkipLog(tmp_path, data_rank=0).write(replace(SKIP, step=4))

    assert [skip.step for skip in read_skips(tmp_path)] == [3, 4]
    assert "skips-0.jsonl line 2 is not valid JSON" in caplog.text


@pytest.mark.parametrize("line", ["null", "[1]", "[" * 100_000, '{"samples": [5], "ranks": 1}'])
def test_a_line_that_is_no_skip_is_passed_over_and_named(
    tmp_path: Path, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    log = SkipLog(tmp_path, data_rank=0)
    log.path.write_text(f"{line}\n")
    log.write(SKIP)

    assert read_skips(tmp_path) == (SKIP,)
    assert "skips-0.jsonl line 1" in caplog.text


def test_lines_are_json_that_any_reader_takes(tmp_path: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    log = SkipLog(tmp_path, data_rank=0)
    log.write(replace(SKIP, loss=finite(float("nan")), limit=finite(float("inf"))))

    content = json.loads(log.path.read_text(), parse_constant=refuse)
    assert (content["loss"], content["limit"]) == (None, None)


def test_samples_are_named_as_the_quarantine_names_them(tmp_path: Path) -> None:
    sequence = sequence_of(tmp_path, write_token_shards(tmp_path, [5, 5]), MODEL)

    names = name_samples(sequence, places_of([1, 0], [2, 4]))

    assert names == (
        SampleName(data_set="main", shard="tokens-00001.tar", index=2, key="00000007"),
        SampleName(data_set="main", shard="tokens-00000.tar", index=4, key="00000004"),
    )


def test_a_sample_whose_shard_is_gone_keeps_its_place(tmp_path: Path) -> None:
    sequence = sequence_of(tmp_path, write_token_shards(tmp_path, [5, 5]), MODEL)
    (tmp_path / "tokens-00001.tar").unlink()

    names = name_samples(sequence, places_of([1, 0], [2, 4]))

    assert names[0] == SampleName(data_set="main", shard="tokens-00001.tar", index=2, key="")
    assert names[1].key == "00000004"


def test_a_line_names_a_bounded_number_of_samples(tmp_path: Path) -> None:
    sequence = sequence_of(tmp_path, write_token_shards(tmp_path, [5]), MODEL)
    count = MAX_SAMPLES + 1

    assert len(name_samples(sequence, places_of([0] * count, [0] * count))) == MAX_SAMPLES


def test_places_of_the_last_steps_are_remembered() -> None:
    recent = RecentOrigins()
    for step in range(20):
        recent.remember(step, places_of([0], [step]))

    found = recent.at(19)
    assert found is not None
    assert found.index.tolist() == [19]
    assert recent.at(3) is None
