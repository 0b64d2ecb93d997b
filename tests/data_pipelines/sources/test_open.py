"""A source is recognised by its files, or the error says what was found and what fits."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.metadata import write_rows
from data_pipelines.shapes_data_set import write_shapes
from data_pipelines.sources import csv_table
from data_pipelines.sources.open import open_sources
from data_pipelines.sources.rows import RawPair
from ernie_vilg.config.shapes import DrawShapesConfig
from ernie_vilg.config.shards import BuildShardsConfig, SourceConfig
from tests.data_pipelines.layouts import LAYOUTS
from tests.data_pipelines.sources.reading import captions_of, open_source, read, rows_of

_PAIR = {"image": "VARCHAR", "caption": "VARCHAR"}


def fill(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text('{"a": 1, "b": 2}\n')
    return folder


@pytest.mark.parametrize(
    ("names", "message"),
    [
        pytest.param([], "found it is empty|no known layout: .*it is empty", id="empty"),
        pytest.param(
            ["images/a.png", "x.json", "y.json"],
            r"found images/, x\.json, y\.json; x\.json begins with the keys a, b.*captions\.jsonl",
            id="two unknown files",
        ),
        pytest.param(["x.txt"], r"x\.txt begins with the keys a, b", id="a text"),
        pytest.param(["x.zip"], r"found x\.zip\. Name a folder with", id="an archive"),
        pytest.param(
            ["captions.jsonl", "metadata.jsonl"],
            "fits the layouts captions, image_folder: set layout",
            id="two layouts",
        ),
        pytest.param(
            ["metadata.csv", "metadata.jsonl"],
            r"several files of layout=image_folder, such as metadata\.csv",
            id="two files of one layout",
        ),
    ],
)
def test_what_was_found_is_told(tmp_path: Path, names: list[str], message: str) -> None:
    folder = fill(tmp_path / "raw", *names)

    with pytest.raises(ValueError, match=message):
        open_source(folder, tmp_path / "work")


@pytest.mark.parametrize(
    ("names", "named", "message"),
    [
        pytest.param(
            ["train/metadata.jsonl", "other/a.png"], "", "In it, .*raw/train may be", id="a split"
        ),
        pytest.param(
            ["annotations/captions_val.json", "annotations/instances_val.json", "val/a.jpg"],
            "",
            r"In it, [^ ]*raw/annotations/captions_val\.json may be meant",
            id="the folder of COCO",
        ),
        pytest.param(["a.csv", "b.csv"], "", r"a\.csv, .*b\.csv may be meant", id="tables"),
        pytest.param(["a.jpg", "a.txt"], "", r"lines that write captions\.jsonl", id="a text each"),
        pytest.param(["a.jpg"], "", "There are pictures, and no list", id="pictures alone"),
        pytest.param(["pairs.zip"], "pairs.zip", "Unpack it, and name what", id="an archive"),
    ],
)
def test_what_may_be_meant_is_told(
    tmp_path: Path, names: list[str], named: str, message: str
) -> None:
    folder = fill(tmp_path / "raw", *names)

    with pytest.raises(ValueError, match=message):
        open_source(folder / named, tmp_path / "work")


def test_a_source_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"does not exist: .* has no 'no': name a folder, a file"):
        open_source(tmp_path / "no", tmp_path / "work")


def test_a_source_that_may_not_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fill(tmp_path / "raw", "pairs.csv")

    def refuse(path: Path) -> None:  # permissions do not bind root, who may run this
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(csv_table, "open_regular", refuse)

    with pytest.raises(ValueError, match=r"may not be read .*pairs\.csv.*: change its permissions"):
        open_source(folder / "pairs.csv", tmp_path / "work")


def test_another_layout_than_the_files_have_is_refused(tmp_path: Path) -> None:
    folder = fill(tmp_path / "raw", "captions.jsonl")

    with pytest.raises(ValueError, match="no file of this layout: set layout=captions"):
        open_source(folder, tmp_path / "work", layout="img2dataset")


@pytest.mark.parametrize(
    ("layout", "settings"),
    [
        ("img2dataset", {"image_key": "x"}),
        ("img2dataset", {"images_root": "/"}),
        ("coco", {"caption_key": "x"}),
        ("image_shards", {"caption_key": "x"}),
        ("scenes", {"images_root": "/"}),
        ("coco", {"split": "train"}),
        ("caption_lists", {"question_key": "x"}),
        ("question_answers", {"caption_key": "x"}),
    ],
)
def test_a_setting_that_would_do_nothing_is_refused(
    tmp_path: Path, layout: str, settings: dict[str, str]
) -> None:
    fill(tmp_path / "raw", "a.tar", "a.json", "manifest.json")
    location = "scenes" if layout == "scenes" else str(tmp_path / "raw")

    with pytest.raises(ValueError, match=f"has no meaning for layout={layout}"):
        open_source(location, tmp_path / "work", layout=layout, **settings)


def test_an_images_root_that_is_not_there_is_refused(tmp_path: Path) -> None:
    folder = fill(tmp_path / "raw", "captions.jsonl")

    with pytest.raises(ValueError, match=r"images_root=.*no is not a folder"):
        open_source(folder, tmp_path / "work", images_root=str(tmp_path / "no"))


@pytest.mark.parametrize("name", ["captions", "csv", "coco", "caption_list", "image_folder"])
def test_every_layout_is_recognised(tmp_path: Path, name: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.png").write_bytes(b"a")
    location = LAYOUTS[name](source, [{"image": "a.png", "caption": "x"}], tmp_path / "raw")

    assert captions_of(read(location, tmp_path / "work")) == ["x"]
    if name != "coco":  # whose file lies beside the folder of pictures
        assert captions_of(read(tmp_path / "raw", tmp_path / "again")) == ["x"]


def test_the_scenes_are_those_of_draw_shapes(tmp_path: Path) -> None:
    config = DrawShapesConfig(
        output_dir=str(tmp_path / "raw"), train_scenes=40, held_out_scenes=1, unseen_pair_scenes=1
    )
    write_shapes(config)
    drawn = read(Path(config.output_dir, "train"), tmp_path)
    source = open_source("scenes", Path("work"), rows_per_part=20)

    parts = list(source.parts())
    rows = rows_of(source, parts[1])

    assert sum(part.rows or 0 for part in parts) == 22_000
    assert captions_of(rows) == captions_of(drawn)[20:]
    assert isinstance(rows[0], RawPair)
    assert isinstance(drawn[20], RawPair)
    assert rows[0].picture.read() == drawn[20].picture.read()


def test_a_folder_called_scenes_is_not_mistaken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "scenes", "captions.jsonl")

    with pytest.raises(ValueError, match=r"there is such a file or folder: set layout=scenes, or"):
        open_source("scenes", tmp_path / "work")
    assert len(read("./scenes", tmp_path / "work")) == 1


def test_sources_keep_their_order_and_their_listings_apart(tmp_path: Path) -> None:
    sources: dict[str, Any] = {}
    for name in ("web", "books"):
        folder = fill(tmp_path / name)
        line = {"image": "a.png", "caption": name}
        (folder / "captions.jsonl").write_text(json.dumps(line))
        (folder / "a.png").write_bytes(b"a")
        sources[name] = SourceConfig(location=str(folder))
    config = BuildShardsConfig(sources=sources, output_dir=str(tmp_path / "out"), image_size=8)

    opened = open_sources(config, tmp_path / "work")

    rows = {
        source.name: captions_of([row for part in source.parts() for row in source.rows(part)])
        for source in opened
    }
    assert rows == {"web": ["web"], "books": ["books"]}
    assert list(rows) == ["web", "books"]


@pytest.mark.parametrize("ending", ["tar", "parquet"])
def test_a_task_does_not_grow_with_the_number_of_files(tmp_path: Path, ending: str) -> None:
    sizes = set()
    for count in (2, 200):
        folder = tmp_path / f"{count:03d}"
        folder.mkdir()
        for number in range(count):
            path = folder / f"{number:05d}.{ending}"
            if ending == "tar":
                path.touch()
            else:
                write_rows(path, [{"image": "a.png", "caption": "a"}], _PAIR)
        work = tmp_path / f"work-{count:03d}"
        work.mkdir()
        source = open_source(folder, work)
        sizes |= {len(pickle.dumps(source.of_part(part))) for part in source.parts()}

    assert len(sizes) == 1
