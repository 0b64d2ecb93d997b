"""Image shards are built from raw pairs, with good lines and bad ones."""

import io
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image
from webdataset.tariterators import group_by_keys, tar_file_expander

from data_pipelines.building.build import build_image_shards, inspect_share
from data_pipelines.sources.listed import ListedSource
from data_pipelines.sources.rows import Part
from ernie_vilg.config.curation import CurationConfig, DeduplicationConfig
from ernie_vilg.config.shards import BuildShardsConfig
from ernie_vilg.data.shards.open_shards import Sample, read_shard
from ernie_vilg.errors import InputError
from ernie_vilg.storage.shard_manifest import read_manifest

NUM_PAIRS = 20
EMOJI = Path(__file__).parents[4] / "shared" / "data" / "noto-emoji"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return 20 pairs: image n is grey of value n, and its caption names n."""
    folder = tmp_path / "source"
    (folder / "images").mkdir(parents=True)
    lines = []
    for number in range(NUM_PAIRS):
        name = f"images/{number}.png"
        Image.new("RGB", (8, 8), (number,) * 3).save(folder / name)
        lines.append({"image": name, "caption": f"第{number}张", "number": number})
    write_lines(folder, [json.dumps(line) for line in lines])
    return folder


def read_lines(source: Path) -> list[str]:
    return (source / "captions.jsonl").read_text().splitlines()


def write_lines(source: Path, lines: list[str]) -> None:
    (source / "captions.jsonl").write_text("".join(f"{line}\n" for line in lines))


def config(source: Path, name: str = "shards", **settings: Any) -> BuildShardsConfig:
    defaults: dict[str, Any] = {"image_size": 4, "samples_per_shard": 6}
    return BuildShardsConfig(
        source=str(source), output_dir=str(source.parent / name), **{**defaults, **settings}
    )


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def rejected_rows(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]


def samples_of(folder: Path) -> list[Sample]:
    manifest = read_manifest(folder, "image")
    return [sample for shard in manifest.shards for sample in read_shard(folder, shard)]


def test_every_pair_becomes_a_sample(source: Path) -> None:
    report = build_image_shards(config(source))

    folder = source.parent / "shards"
    manifest = read_manifest(folder, "image")
    assert manifest == report.manifest
    assert [shard.samples for shard in manifest.shards] == [6, 6, 6, 2]
    assert dict(manifest.settings) == {
        "image_size": 4,
        "crop": "center",
        "resample": "lanczos",
        "background": "white",
        "image_format": "png",
        "captions": "all",
        "enlarged_pictures": 0,
    }
    samples = [sample for shard in manifest.shards for sample in read_shard(folder, shard)]
    for number, sample in enumerate(samples):
        assert sample["__key__"] == f"{number:08d}".encode()
        assert sample["txt"].decode() == f"第{number}张"
        assert json.loads(sample["json"]) == {
            "image": f"images/{number}.png",
            "caption": f"第{number}张",
            "number": number,
            "origin": {
                "source": "source",
                "place": f"captions.jsonl line {number + 1}",
                "picture": f"images/{number}.png",
            },
        }
        pixels = np.asarray(Image.open(io.BytesIO(sample["png"])))
        assert np.array_equal(pixels, np.full((4, 4, 3), number))


def test_webdataset_reads_the_shards(source: Path) -> None:
    build_image_shards(config(source, image_format="jpeg"))

    samples = []
    for path in sorted((source.parent / "shards").glob("*.tar")):
        with path.open("rb") as stream:  # WebDataset itself leaves files open, which warns
            members = tar_file_expander([{"url": str(path), "stream": stream}])
            samples += list(webdataset.decode("pil")(group_by_keys(members)))

    assert [sample["json"]["number"] for sample in samples] == list(range(NUM_PAIRS))
    assert [sample["txt"] for sample in samples] == [f"第{n}张" for n in range(NUM_PAIRS)]
    assert all(sample["jpg"].size == (4, 4) for sample in samples)


def test_the_bytes_do_not_depend_on_the_number_of_processes(source: Path) -> None:
    build_image_shards(config(source, "in_process", num_workers=0, rows_per_part=7))
    build_image_shards(config(source, "two_processes", num_workers=2, rows_per_part=7))

    assert files(source.parent / "in_process") == files(source.parent / "two_processes")


def test_bad_lines_are_counted_listed_and_left_out(source: Path) -> None:
    lines = read_lines(source)
    lines[1] = "no JSON"
    lines[3] = lines[2]
    lines[8] = json.dumps({"image": "images/8.png", "caption": " "})
    (source / "images" / "10.png").write_bytes(b"no image")
    (source / "images" / "12.png").unlink()
    write_lines(source, lines)

    report = build_image_shards(config(source, max_faulty_fraction=0.25))

    folder = source.parent / "shards"
    assert report.rejected == {
        "not_json": 1,
        "duplicate_key": 1,
        "empty_caption": 1,
        "unreadable_image": 1,
        "missing_image": 1,
    }
    assert [(row["place"], row["reason"]) for row in rejected_rows(folder)] == [
        ("captions.jsonl line 2", "not_json"),
        ("captions.jsonl line 4", "duplicate_key"),
        ("captions.jsonl line 9", "empty_caption"),
        ("captions.jsonl line 11", "unreadable_image"),
        ("captions.jsonl line 13", "missing_image"),
    ]
    assert all(row["detail"] for row in rejected_rows(folder))
    kept = [json.loads(sample["json"])["number"] for sample in samples_of(folder)]
    assert kept == [n for n in range(NUM_PAIRS) if n not in {1, 3, 8, 10, 12}]
    # Every row is in the table, and every column of it adds up.
    assert report.table().splitlines()[:3] == [
        "                  source",
        "rows                  20",
        "kept                  15",
    ]
    assert (report.counts.rows, report.counts.kept) == (20, 15)


def test_a_missing_evaluation_set_is_refused_before_any_row_is_read(source: Path) -> None:
    curation = CurationConfig(
        deduplication=DeduplicationConfig(against=(str(source / "missing.txt"),))
    )

    for part in ({}, {"num_parts": 2, "part_index": 0}):
        settings = config(source, curation=curation, **part)
        with pytest.raises(InputError, match=r"there is no file or folder .*missing\.txt"):
            inspect_share(settings) if part else build_image_shards(settings)

    assert [path.name for path in source.parent.iterdir()] == ["source"]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_too_many_bad_lines_stop_with_the_counts(source: Path, num_workers: int) -> None:
    lines = read_lines(source)
    write_lines(source, ["no JSON", "{", *lines[2:]])

    with pytest.raises(
        InputError,
        match=r"2 of the first 8 rows are faulty \(not_json: 2\), where max_faulty_fraction=0.05"
        r".* not_json, first: captions\.jsonl line 1: ",
    ):
        build_image_shards(config(source, num_workers=num_workers, rows_per_part=8))

    # No shards and no manifest: the list of rejected rows, and the work that a restart can use.
    assert {path.name for path in source.parent.iterdir()} == {
        "source",
        "shards.rejected.jsonl",
        ".building-shards",
    }
    listed = (source.parent / "shards.rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["place"] for line in listed] == [
        "captions.jsonl line 1",
        "captions.jsonl line 2",
    ]


def test_lines_are_kept_rejected_or_blank(source: Path) -> None:
    lines = read_lines(source)
    lines[3] = json.dumps({"image": "images/3.png", "caption": None})
    lines[5] = lines[5].replace("}", ', "score": 1e999}')
    lines[4:4] = ["", "  "]
    (source / "captions.jsonl").write_text("\ufeff" + "\n".join(lines) + "\n\n")

    report = build_image_shards(config(source, max_faulty_fraction=0.1))

    assert report.rejected == {"missing_field": 1, "not_json": 1}
    assert report.manifest.num_samples == NUM_PAIRS - 2
    folder = source.parent / "shards"
    assert [row["place"] for row in rejected_rows(folder)] == [
        "captions.jsonl line 4",
        "captions.jsonl line 8",
    ]
    assert b"Infinity" not in b"".join(sample["json"] for sample in samples_of(folder))


def test_blank_lines_count_as_nothing_in_the_allowed_fraction(source: Path) -> None:
    write_lines(source, ["no JSON", *read_lines(source)[1:], *[""] * 100])

    report = build_image_shards(config(source))  # 1 of 20 is 5 %

    assert report.rejected == {"not_json": 1}


def test_captions_that_change_meanwhile_are_refused(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parts_of_longer_file(self: ListedSource) -> Iterator[Part]:
        for part in self.table.parts(self.name):
            yield replace(part, rows=NUM_PAIRS + 1)

    monkeypatch.setattr(ListedSource, "parts", parts_of_longer_file)

    with pytest.raises(InputError, match=r"had 21 rows from 0 on and then 20: it was changed"):
        build_image_shards(config(source))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_enlarged_pictures_are_counted_and_told(
    source: Path, caplog: pytest.LogCaptureFixture, num_workers: int
) -> None:
    for number, size in ((2, (16, 4)), (7, (3, 9)), (19, (9, 9))):
        Image.new("RGB", size).save(source / "images" / f"{number}.png")
    (source / "images" / "11.png").write_bytes(b"no image")

    report = build_image_shards(config(source, image_size=9, num_workers=num_workers))

    # All but 11, which is none, and 19.
    assert "18 of 19 pictures are smaller than image_size=9 and were enlarged" in caplog.text
    assert report.manifest.settings["enlarged_pictures"] == report.num_enlarged == 18


def test_exactly_the_allowed_fraction_goes_on(source: Path) -> None:
    write_lines(source, ["no JSON", *read_lines(source)[1:]])  # 1 of 20 is 5 %

    assert build_image_shards(config(source)).manifest.num_samples == 19


def test_every_shard_but_the_last_is_full(source: Path) -> None:
    for number in range(5, 12):
        (source / "images" / f"{number}.png").write_bytes(b"no image")

    report = build_image_shards(config(source, max_faulty_fraction=0.5))

    assert [(shard.file, shard.samples) for shard in report.manifest.shards] == [
        ("images-00000.tar", 6),
        ("images-00001.tar", 6),
        ("images-00002.tar", 1),
    ]


def test_no_sample_left_is_an_error(source: Path) -> None:
    write_lines(source, ["no JSON"])

    with pytest.raises(ValueError, match=r"1 of 1 rows are rejected .* where one sample left is"):
        build_image_shards(config(source, max_faulty_fraction=1.0))


def test_an_empty_source_is_an_error(source: Path) -> None:
    write_lines(source, [])

    with pytest.raises(ValueError, match="it is empty; add rows to it"):
        build_image_shards(config(source))


def test_earlier_shards_are_replaced_only_when_asked(source: Path) -> None:
    build_image_shards(config(source))
    with pytest.raises(ValueError, match="already exists: set overwrite=true"):
        build_image_shards(config(source, image_size=2))

    report = build_image_shards(config(source, image_size=2, overwrite=True))

    assert report.manifest.settings["image_size"] == 2
    assert read_manifest(source.parent / "shards", "image") == report.manifest


@pytest.mark.skipif(not EMOJI.is_dir(), reason=f"the emoji data set is not at {EMOJI}")
def test_real_pairs_go_through(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "images").mkdir(parents=True)
    lines = (EMOJI / "captions.jsonl").read_text(encoding="utf-8").splitlines()[::33]
    for line in lines:
        shutil.copy(EMOJI / json.loads(line)["image"], source / "images")
    write_lines(source, lines)

    report = build_image_shards(config(source, image_size=64, samples_per_shard=4096))

    assert report.rejected == {}
    assert report.manifest.num_samples == len(lines) == 101
    (shard,) = report.manifest.shards
    sample = read_shard(tmp_path / "shards", shard)[0]
    with Image.open(io.BytesIO(sample["png"])) as image:
        assert (image.size, image.mode) == ((64, 64), "RGB")
        assert image.getpixel((0, 0)) == (255, 255, 255)  # transparent in the source


def test_a_name_that_is_not_utf_8_is_one_rejected_line(source: Path) -> None:
    gbk = os.fsdecode("红.png".encode("gbk"))
    (source / "images" / gbk).write_bytes(b"no picture")
    (source / "images" / "link.png").symlink_to(gbk)
    (source.parent / gbk).write_bytes(b"no picture")
    (source / "escaping.png").symlink_to(source.parent / gbk)
    lines = [
        json.dumps({"image": f"images/{gbk}", "caption": "a"}).encode(),
        json.dumps({"image": "images/红.png", "caption": "a"}, ensure_ascii=False).encode("gbk"),
        b'{"image": "images/link.png", "caption": "a"}',
        b'{"image": "escaping.png", "caption": "a"}',
    ]
    captions = source / "captions.jsonl"
    captions.write_bytes(b"".join(line + b"\n" for line in lines) + captions.read_bytes())

    report = build_image_shards(config(source, max_faulty_fraction=0.5, num_workers=2))

    assert report.manifest.num_samples == NUM_PAIRS
    assert [row["reason"] for row in rejected_rows(source.parent / "shards")] == [
        "not_json", "not_json", "unreadable_image", "unsafe_path"
    ]  # fmt: skip
