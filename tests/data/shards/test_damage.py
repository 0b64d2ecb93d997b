"""Damage is found before any of it reaches a model, and accounted for to the sample.

Rows 24 to 28, 32 and 35 of the fault list in the project's reliability notes.
"""

import io
import json
import random
import tarfile
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ernie_vilg.config.batch_sizes import BatchSizes
from ernie_vilg.config.loader import LoaderConfig
from ernie_vilg.data.batches.npy import parse_npy
from ernie_vilg.data.batches.step_samples import StepSamples
from ernie_vilg.data.sequence.order import ReplicaSlice
from ernie_vilg.data.sequence.quarantine import Quarantine, QuarantineEntry
from ernie_vilg.data.shards.damage import DamageError
from ernie_vilg.data.shards.tar_index import describe_shard
from ernie_vilg.errors import InputError
from ernie_vilg.storage.shard_manifest import Manifest
from tests.data.epochs import GLOBAL_BATCH, MODEL, NUM_SAMPLES, SIZES, SKIP, STEPS, read_epoch
from tests.data.token_shards import MEMBERS, npy, sequence_of, write_token_shards


def cut_at(offset: int) -> Callable[[bytearray], bytes]:
    return lambda content: bytes(content[:offset])


def flip(offset: int) -> Callable[[bytearray], bytes]:
    def change(content: bytearray) -> bytes:
        content[offset] ^= 1
        return bytes(content)

    return change


def zero_block(offset: int) -> Callable[[bytearray], bytes]:
    def change(content: bytearray) -> bytes:
        content[offset : offset + 512] = bytes(512)
        return bytes(content)

    return change


def header_of(path: Path, name: str) -> int:
    with tarfile.open(path) as archive:
        return archive.getmember(name).offset_data - 512


Breakage = Callable[[Path], Callable[[bytearray], bytes]]

BREAKAGES = [
    pytest.param(lambda path: cut_at(header_of(path, "00000030.json") + 700), id="cut in data"),
    pytest.param(lambda path: cut_at(header_of(path, "00000030.json") + 100), id="cut in header"),
    pytest.param(lambda path: cut_at(header_of(path, "00000030.codes.npy")), id="cut on boundary"),
    pytest.param(lambda path: cut_at(header_of(path, "00000030.json")), id="cut between members"),
    pytest.param(lambda path: flip(header_of(path, "00000030.json") + 3), id="bit in header"),
    pytest.param(lambda path: flip(header_of(path, "00000030.json") + 515), id="bit in data"),
    pytest.param(lambda path: zero_block(header_of(path, "00000030.json")), id="zeroed header"),
    pytest.param(lambda path: zero_block(header_of(path, "00000030.json") + 512), id="zeroed data"),
    pytest.param(lambda path: cut_at(0), id="empty"),
]


def write_broken_shards(folder: Path, breakage: Breakage) -> Manifest:
    """Write shards and break the second one."""
    manifest = write_token_shards(folder, SIZES)
    path = folder / manifest.shards[1].file
    path.write_bytes(breakage(path)(bytearray(path.read_bytes())))
    return manifest


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_damaged_shard_is_lost_whole_and_counted_exactly(
    tmp_path: Path, breakage: Breakage
) -> None:
    manifest = write_broken_shards(tmp_path, breakage)

    epoch = read_epoch(tmp_path, manifest)

    damaged = set(range(20, 40))
    assert epoch.num_damaged == 20
    assert not damaged & set(epoch.numbers)
    # Consumed = manifest - reported, each once; every other position has a replacement.
    assert sorted(epoch.own) == sorted(set(range(NUM_SAMPLES)) - damaged)
    assert len(epoch.numbers) == NUM_SAMPLES
    assert epoch.captions == epoch.numbers  # no sample is made of two


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_damaged_shard_stops_a_run_by_default(tmp_path: Path, breakage: Breakage) -> None:
    manifest = write_broken_shards(tmp_path, breakage)

    with pytest.raises(DamageError, match=manifest.shards[1].file):
        read_epoch(tmp_path, manifest, loader=LoaderConfig(num_workers=0))


def test_no_sample_is_made_of_two_shards(tmp_path: Path) -> None:
    """A shard cut within a sample, then one that begins with the key it was cut in."""
    manifest = write_token_shards(tmp_path, SIZES)
    first, second = (tmp_path / manifest.shards[index].file for index in (1, 2))
    members: list[tuple[str, bytes]] = []
    for number in range(40, 60):
        members += members_of("00000039" if number == 40 else f"{number:08d}", token_sample(number))
    write_crafted(second, members)
    described = describe_shard(second, samples=20, members=MEMBERS)
    first.write_bytes(first.read_bytes()[: header_of(first, "00000039.json")])
    shards = (manifest.shards[0], manifest.shards[1], described, manifest.shards[3])

    epoch = read_epoch(tmp_path, replace(manifest, shards=shards))

    assert epoch.captions == epoch.numbers
    assert epoch.num_damaged == 20
    assert 40 in epoch.numbers


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param("swap", "sha256", id="swapped with another"),
        pytest.param("remove", "missing", id="missing"),
        pytest.param("duplicate", "sha256", id="another's copy"),
        pytest.param("longer", "size", id="something appended"),
    ],
)
def test_a_shard_that_is_not_the_manifests_is_found(
    tmp_path: Path, change: str, reason: str
) -> None:
    manifest = write_token_shards(tmp_path, SIZES)
    first, second = (tmp_path / manifest.shards[index].file for index in (1, 2))
    damaged = {1}
    if change == "swap":
        first_bytes, second_bytes = first.read_bytes(), second.read_bytes()
        first.write_bytes(second_bytes)
        second.write_bytes(first_bytes)
        damaged = {1, 2}
    elif change == "remove":
        first.unlink()
    elif change == "duplicate":
        first.write_bytes(second.read_bytes())
    else:
        first.write_bytes(first.read_bytes() + bytes(512))

    epoch = read_epoch(tmp_path, manifest)

    assert {finding.reason for finding in epoch.findings.values()} == {reason}
    assert {finding.shard for finding in epoch.findings.values()} == {
        manifest.shards[index].file for index in damaged
    }
    assert sorted(epoch.own) == [
        number for number in range(NUM_SAMPLES) if number // 20 not in damaged
    ]


def test_a_shard_that_the_manifest_does_not_know_is_not_read(tmp_path: Path) -> None:
    manifest = write_token_shards(tmp_path, SIZES)
    (tmp_path / "tokens-00009.tar").write_bytes((tmp_path / "tokens-00000.tar").read_bytes())

    epoch = read_epoch(tmp_path, manifest)

    assert sorted(epoch.numbers) == list(range(NUM_SAMPLES))


def token_sample(number: int, **changes: Any) -> dict[str, bytes]:
    return {
        "codes.npy": npy(np.full((2, 2), number, np.uint16)),
        "json": json.dumps({"caption": str(number)}).encode(),
        "text.npy": npy(np.array([number + 4], np.int32)),
        **changes,
    }


def write_crafted(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))


def changed(old: bytes, new: bytes) -> bytes:
    """Return codes as numpy writes them, but for some bytes of the header."""
    content = npy(np.full((2, 2), 33, np.uint16))
    assert old in content
    assert len(old) == len(new)
    return content.replace(old, new)


def members_of(key: str, sample: dict[str, bytes]) -> list[tuple[str, bytes]]:
    return [(f"{key}.{name}", content) for name, content in sample.items()]


def test_samples_that_were_written_wrongly_are_counted_by_reason(tmp_path: Path) -> None:
    manifest = write_token_shards(tmp_path, SIZES)
    members: list[tuple[str, bytes]] = []
    for number in range(20, 40):
        members += members_of(f"{number:08d}", token_sample(number))
    by_name = dict(members)
    del by_name["00000021.text.npy"]  # a member is missing
    moved = by_name.pop("00000022.json")  # not adjacent: at the end
    crafted = [
        ("../../25.json" if name == "00000025.json" else name, content)
        for name, content in by_name.items()
    ]
    crafted = [
        (name.replace("00000024", "00000023"), content) for name, content in crafted
    ]  # two of one key
    crafted.append(("00000022.json", moved))
    path = tmp_path / manifest.shards[1].file
    write_crafted(path, crafted)
    shard = describe_shard(path, samples=21, members=MEMBERS)  # the stray member is a sample too
    shards = (manifest.shards[0], shard, *manifest.shards[2:])

    epoch = read_epoch(tmp_path, replace(manifest, shards=shards), loader=SKIP)

    reasons = Counter(
        finding.reason for finding in epoch.findings.values() if finding.shard == path.name
    )
    # "../../25.json" is a sample of its own, without a key, between the other members of 25.
    assert reasons == {"members": 1, "not_adjacent": 2, "duplicate_key": 1, "key": 1}
    assert not {21, 22, 24, 25} & set(epoch.numbers)
    assert epoch.captions == epoch.numbers


@pytest.mark.parametrize(
    ("member", "content", "reason"),
    [
        pytest.param("codes.npy", npy(np.full((2, 2), 200, np.uint16)), "code_range", id="code"),
        pytest.param("codes.npy", npy(np.full((2, 2), -1, np.int64)), "code_range", id="negative"),
        pytest.param("codes.npy", npy(np.full((2, 3), 1, np.uint16)), "codes_shape", id="grid"),
        pytest.param("codes.npy", npy(np.full((2, 2), 0.5)), "codes_shape", id="floats"),
        pytest.param("codes.npy", b"", "array", id="no codes"),
        pytest.param("text.npy", npy(np.array([256], np.int32)), "text_range", id="id"),
        pytest.param("text.npy", npy(np.array([0], np.int32)), "text_range", id="padding"),
        pytest.param("text.npy", npy(np.array([5, 3], np.int32)), "text_range", id="end of text"),
        pytest.param("text.npy", npy(np.array([-5], np.int32)), "text_range", id="below zero"),
        pytest.param("text.npy", npy(np.array([[5]], np.int32)), "text_shape", id="a table"),
        pytest.param("text.npy", b"\x80\x04\x95garbage", "array", id="a pickle"),
        pytest.param("codes.npy", changed(b"(2, 2)", b"(2, 2\n"), "array", id="an open bracket"),
        pytest.param("codes.npy", changed(b"\x93NUM", b"PK\x03\x04"), "array", id="a zip's mark"),
        pytest.param("codes.npy", changed(b"(2, 2)", b"(2e999"), "array", id="endless"),
        pytest.param("codes.npy", changed(b"'<u2'", b"'<u',"), "array", id="no size"),
        pytest.param("codes.npy", changed(b"'<u2'", b"[[3]]"), "array", id="fields of nothing"),
        pytest.param("codes.npy", changed(b"(2, 2), }   ", b"(99999999,)}"), "array", id="huge"),
    ],
)
def test_a_sample_out_of_range_is_lost_alone(
    tmp_path: Path, member: str, content: bytes, reason: str
) -> None:
    manifest = write_token_shards(tmp_path, SIZES)
    members: list[tuple[str, bytes]] = []
    for number in range(20, 40):
        change = {member: content} if number == 33 else {}
        members += members_of(f"{number:08d}", token_sample(number, **change))
    path = tmp_path / manifest.shards[1].file
    write_crafted(path, members)
    shard = describe_shard(path, samples=20, members=MEMBERS)
    manifest = replace(manifest, shards=(manifest.shards[0], shard, *manifest.shards[2:]))

    epoch = read_epoch(tmp_path, manifest)

    (finding,) = epoch.findings.values()
    assert (finding.reason, finding.key, finding.index, finding.num_samples) == (
        reason,
        "00000033",
        13,
        1,
    )
    assert sorted(epoch.own) == [number for number in range(NUM_SAMPLES) if number != 33]
    with pytest.raises(DamageError, match="00000033"):
        read_epoch(tmp_path, manifest, loader=LoaderConfig(num_workers=0))


def test_no_mutation_of_a_header_makes_anything_but_an_array_or_a_refusal() -> None:
    draws = random.Random(7)
    arrays = [np.full((2, 2), 3, np.uint16), np.arange(5, dtype=np.int32), np.array(1.5)]
    num_read = 0
    for _ in range(3000):
        content = bytearray(npy(draws.choice(arrays)))
        for _ in range(draws.randint(1, 2)):
            content[draws.randrange(80)] = draws.choice([draws.randrange(256), *b"09,(' "])
        try:
            array = parse_npy(bytes(content))
        except InputError:
            continue
        num_read += 1
        reference = np.load(io.BytesIO(content))
        assert (array.dtype, array.shape) == (reference.dtype, reference.shape)
        assert array.tobytes() == reference.tobytes()

    assert num_read


def test_arrays_written_in_another_way_are_read_all_the_same(tmp_path: Path) -> None:
    manifest = write_token_shards(tmp_path, SIZES)
    members: list[tuple[str, bytes]] = []
    for number in range(20, 40):
        sample = token_sample(number)
        sample["codes.npy"] = npy(np.asfortranarray(np.full((2, 2), number, np.int64)))
        sample["text.npy"] = npy(np.array([number + 4], np.uint8))
        members += members_of(f"{number:08d}", sample)
    path = tmp_path / manifest.shards[1].file
    write_crafted(path, members)
    shard = describe_shard(path, samples=20, members=MEMBERS)

    epoch = read_epoch(
        tmp_path, replace(manifest, shards=(manifest.shards[0], shard, *manifest.shards[2:]))
    )

    assert sorted(epoch.numbers) == list(range(NUM_SAMPLES))
    assert epoch.captions == epoch.numbers
    assert not epoch.findings


def test_replacements_do_not_depend_on_layout_or_workers(tmp_path: Path) -> None:
    manifest = write_token_shards(tmp_path, SIZES)
    (tmp_path / manifest.shards[2].file).unlink()

    def steps(replicas: int, workers: int) -> list[list[int]]:
        loader = replace(SKIP, num_workers=workers)
        sequence = sequence_of(tmp_path, manifest, MODEL, loader=loader)
        seen: list[list[int]] = [[] for _ in range(STEPS)]
        for rank in range(replicas):
            replica = ReplicaSlice(
                batch_sizes=BatchSizes(full=GLOBAL_BATCH), data_rank=rank, data_size=replicas
            )
            with closing(StepSamples(sequence, replica)) as batches:
                for step, numbers in enumerate(seen, start=1):
                    numbers += batches.at(step).content.codes[:, 0].tolist()
        return seen

    assert steps(1, 0) == steps(2, 0) == steps(4, 1) == steps(2, 2)


def test_a_sample_in_quarantine_leaves_all_other_positions_as_they_were(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = write_token_shards(tmp_path, SIZES)
    quarantine = Quarantine(
        entries=(
            QuarantineEntry(key="00000033"),
            QuarantineEntry(key="00000007", shard=manifest.shards[0].file, data_set="main"),
            QuarantineEntry(key="00000008", shard=manifest.shards[1].file),  # not its shard
            QuarantineEntry(key="00000009", data_set="other"),
        )
    )

    plain = read_epoch(tmp_path, manifest, replicas=1)
    epoch = read_epoch(tmp_path, manifest, replicas=1, quarantine=quarantine)

    changed = [
        number for number, now in zip(plain.numbers, epoch.numbers, strict=True) if number != now
    ]
    assert sorted(changed) == [7, 33]
    assert not {7, 33} & set(epoch.numbers)
    assert not epoch.findings  # left out is not damaged
    (idle,) = caplog.messages
    assert "line of shard 'tokens-00001.tar', key '00000008'" in idle
    assert "has no such key" in idle
