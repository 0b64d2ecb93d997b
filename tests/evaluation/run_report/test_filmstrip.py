"""A strip shows the true pictures once, and the drawings of evenly chosen steps."""

import io
from pathlib import Path

import pytest
from PIL import Image

from ernie_vilg.errors import InputError
from ernie_vilg.evaluation.run_report.filmstrip import evenly_chosen, filmstrip
from ernie_vilg.runs.run_folder import RunFolder
from tests.evaluation.run_report.recorded_runs import write_samples

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def opened(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png)).convert("RGB")


@pytest.mark.parametrize("num_pairs", [3, 11])
def test_the_drawings_of_each_step_stand_below_the_true_pictures(
    tmp_path: Path, num_pairs: int
) -> None:
    write_samples(tmp_path, 0, "red", num_pairs=num_pairs)
    write_samples(tmp_path, 300, "blue", num_pairs=num_pairs)

    strip = filmstrip(RunFolder(tmp_path).all_samples(), 8)

    assert strip is not None
    assert strip.truth is not None
    assert opened(strip.truth).getpixel((10, 10)) == WHITE
    assert [step for step, _ in strip.rows] == [0, 300]
    columns = min(num_pairs, 8)
    for (_, png), colour in zip(strip.rows, (RED, BLUE), strict=True):
        picture = opened(png)
        assert picture.size == (columns * 16 + 4, 16 + 4)
        assert picture.getpixel((10, 10)) == colour
    assert len(strip.captions) == columns
    assert strip.captions[0] == ("true 0", "blue 0")


@pytest.mark.parametrize(
    ("count", "chosen"),
    [(1, [9]), (2, [0, 9]), (4, [0, 3, 6, 9]), (10, list(range(10))), (99, list(range(10)))],
)
def test_steps_are_chosen_evenly_with_the_first_and_the_last(count: int, chosen: list[int]) -> None:
    paths = [Path(str(index)) for index in range(10)]

    assert evenly_chosen(paths, count) == [paths[index] for index in chosen]


def test_another_grid_is_shown_whole_and_not_too_wide(tmp_path: Path) -> None:
    path = RunFolder(tmp_path).reconstructions(20)
    path.parent.mkdir()
    Image.new("RGB", (2112, 100), "red").save(path)

    strip = filmstrip(RunFolder(tmp_path).all_reconstructions(), 8)

    assert strip is not None
    assert strip.truth is None
    assert opened(strip.rows[0][1]).size == (1056, 50)
    assert strip.captions == ()


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    write_samples(tmp_path, 10, "red")
    RunFolder(tmp_path).samples(10).write_bytes(b"no picture")

    with pytest.raises(InputError, match=r"step_00000010\.png is no readable picture"):
        filmstrip(RunFolder(tmp_path).all_samples(), 8)


def test_a_run_without_pictures_has_no_strip(tmp_path: Path) -> None:
    assert filmstrip(RunFolder(tmp_path).all_samples(), 8) is None
