"""Held-out pictures are variants of bases that are trained on."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_pipelines.emoji_names import base_of_emoji
from data_pipelines.hold_out import HoldOutReport, choose_held_out, digest_of, hold_out_variants
from ernie_vilg.config.hold_out import HoldOutVariantsConfig
from ernie_vilg.errors import InputError

TONES = ["1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"]


@pytest.mark.parametrize(
    ("name", "base"),
    [
        pytest.param("emoji_u1f44d_1f3fd.png", "1f44d", id="skin tone"),
        pytest.param("emoji_u1f3c3_1f3fb_200d_2640_200d_27a1.png", "1f3c3", id="all three"),
        pytest.param("emoji_u1f468_1f3fe_200d_1f9b0.png", "1f9d1_1f9b0", id="hair stays"),
        pytest.param("emoji_u1f9d1_200d_1f9b0.png", "1f9d1_1f9b0", id="a person is neither"),
        pytest.param(
            "images/emoji_u1f469_1f3fb_200d_2764_200d_1f468_1f3fd.png",
            "1f9d1_2764_1f9d1",
            id="a couple",
        ),
        pytest.param("emoji_u1f467.png", "1f9d2", id="a girl is a child"),
        pytest.param("emoji_u1f475_1f3ff.png", "1f9d3", id="an old woman"),
        pytest.param("emoji_u2640.png", "2640", id="the sign itself"),
        pytest.param("emoji_u27a1.png", "27a1", id="the arrow itself"),
        pytest.param("emoji_u1f336.png", "1f336", id="no variant"),
    ],
)
def test_a_base_has_no_tone_gender_or_direction(name: str, base: str) -> None:
    assert base_of_emoji(name) == base


@pytest.mark.parametrize("name", ["cat.png", "emoji_u.png", "emoji_uxyz.png", "emoji_u1f44d"])
def test_a_file_that_names_no_emoji_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"'{name}' does not name an emoji.*set base_key"):
        base_of_emoji(name)


def test_a_variant_is_held_out_if_its_hash_lies_below_the_fraction() -> None:
    bases = {f"{base}{variant}": base for base in "abcdefgh" for variant in range(20)}

    held_out = choose_held_out(bases, fraction=0.25, seed=7)

    assert held_out == {name for name in bases if digest_of(name, 7) < 2**254}
    assert 20 < len(held_out) < 60  # a quarter of 160


def test_a_base_keeps_the_variant_with_the_highest_hash() -> None:
    held_out = choose_held_out({"a": "x", "b": "x", "c": "x"}, fraction=0.999999, seed=0)

    assert {"a", "b", "c"} - held_out == {max("abc", key=lambda name: digest_of(name, 0))}


def test_a_base_of_one_variant_is_never_held_out() -> None:
    alone = {str(number): str(number) for number in range(100)}

    assert choose_held_out(alone, fraction=0.999999, seed=0) == set()


def test_other_bases_change_nothing() -> None:
    some = {f"{number}": f"{number % 10}" for number in range(50)}
    more = {f"new {number}": "new" for number in range(50)}

    few = choose_held_out(some, fraction=0.3, seed=0)

    assert choose_held_out(some | more, fraction=0.3, seed=0) & some.keys() == few


def test_the_digest_is_the_sha_256_of_seed_and_name() -> None:
    """`printf '0 a' | sha256sum` begins so."""
    assert f"{digest_of('a', 0):064x}".startswith("cf6d9263cf71ceca")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Return four bases of six pictures, and two of one picture, of one colour each."""
    names = [
        f"emoji_u1f44{base}{tone}" for base in "6789" for tone in ["", *map("_{}".format, TONES)]
    ]
    names += ["emoji_u1f336", "emoji_u2640"]
    write_raw(
        tmp_path / "raw",
        [{"image": f"images/{name}.png", "caption": name, "keywords": ["手"]} for name in names],
    )
    return tmp_path / "raw"


def write_raw(folder: Path, records: list[dict[str, Any]]) -> None:
    (folder / "images").mkdir(parents=True)
    for index, record in enumerate(records):
        Image.new("RGB", (4, 4), (index, 0, 0)).save(folder / record["image"])
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def split(raw: Path, **settings: Any) -> tuple[HoldOutReport, dict[str, list[dict[str, Any]]]]:
    output = raw.parent / "split"
    config = HoldOutVariantsConfig(source=str(raw), output_dir=str(output), **settings)
    report = hold_out_variants(config)
    return report, {name: records_of(output / name) for name in ("train", "held_out")}


def records_of(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "captions.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_every_pair_lies_on_one_side_with_its_record_and_its_picture(raw: Path) -> None:
    report, sides = split(raw, fraction=0.3)

    assert dict(report.num_pairs) == {name: len(records) for name, records in sides.items()}
    given = records_of(raw)
    assert sorted(str(record) for records in sides.values() for record in records) == sorted(
        map(str, given)
    )
    assert [record for record in given if record in sides["train"]] == sides["train"]
    for name, records in sides.items():
        for record in records:
            copied = raw.parent / "split" / name / record["image"]
            assert copied.read_bytes() == (raw / record["image"]).read_bytes()
        pictures = list((raw.parent / "split" / name / "images").iterdir())
        assert len(pictures) == len(records)


def test_held_out_pairs_are_variants_of_training_bases_in_the_order_of_their_hashes(
    raw: Path,
) -> None:
    report, sides = split(raw, fraction=0.5, seed=3)

    trained = {base_of_emoji(record["image"]) for record in sides["train"]}
    names = [record["image"] for record in sides["held_out"]]
    assert {base_of_emoji(name) for name in names} <= trained
    assert names == sorted(names, key=lambda name: digest_of(name, 3))
    assert len(names) > 5
    assert (report.num_bases, report.num_bases_with_variants) == (6, 4)
    assert report.num_held_out_captions == len(names)
    assert report.num_captions_on_both_sides == 0


def test_a_key_names_the_base_and_captions_on_both_sides_are_counted(tmp_path: Path) -> None:
    records = [
        {"image": f"images/{index}.png", "caption": f"杯子{index % 2}", "product": index // 10}
        for index in range(20)
    ]
    write_raw(tmp_path / "raw", records)

    report, sides = split(tmp_path / "raw", fraction=0.4, base_key="product")

    both = {record["caption"] for record in sides["train"]} & {
        record["caption"] for record in sides["held_out"]
    }
    assert report.num_bases == 2
    assert report.num_captions_on_both_sides == len(both) > 0


def test_a_pair_without_a_base_is_refused(raw: Path) -> None:
    with pytest.raises(InputError, match=r"base_key=product: captions.jsonl line 1 has None there"):
        split(raw, base_key="product")

    assert not (raw.parent / "split").exists()


def test_two_captions_of_a_picture_stay_together(tmp_path: Path) -> None:
    records = [
        {"image": f"images/{index // 2}.png", "caption": f"第{index}个", "kind": "a"}
        for index in range(40)
    ]
    write_raw(tmp_path / "raw", records)

    _, sides = split(tmp_path / "raw", fraction=0.5, base_key="kind")

    pictures = [{record["image"] for record in records} for records in sides.values()]
    assert not pictures[0] & pictures[1]
    assert sum(map(len, sides.values())) == 40


def test_unreadable_pictures_are_counted_and_no_base_relies_on_them(
    raw: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """All pictures of a base but one are damaged: the last one must be trained on."""
    for path in sorted((raw / "images").glob("emoji_u1f446*"))[1:]:
        path.write_bytes(b"no picture")

    report, sides = split(raw, fraction=0.999999)

    assert dict(report.rejected) == {"unreadable_image": 5}
    assert "rows that give no pair: 5 (unreadable_image: 5)" in caplog.text
    trained = [record["image"] for record in sides["train"] if "1f446" in record["image"]]
    assert len(trained) == 1
    assert not any("1f446" in record["image"] for record in sides["held_out"])


def test_a_folder_without_a_usable_pair_is_refused(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/captions.jsonl").write_text("[]\n", encoding="utf-8")

    with pytest.raises(InputError, match=r"holds no usable pair: .*not_json: 1"):
        split(tmp_path / "raw")
