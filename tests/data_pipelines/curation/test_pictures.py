"""Pictures as crawls have them, and what the rules for pictures say about each."""

import pytest
from PIL import Image

from data_pipelines.curation.pictures import (
    LoadedPicture,
    check_animation,
    check_aspect_ratio,
    check_contrast,
    check_side,
    contrast,
)
from data_pipelines.rejections import Reason
from tests.data_pipelines.curation.verdicts import reason_and_detail


def picture(width: int, height: int, *, is_animated: bool = False) -> LoadedPicture:
    image = Image.new("RGB", (width, height), (255, 255, 255))
    return LoadedPicture(image=image, is_animated=is_animated)


def test_an_animation_is_refused_and_a_still_kept() -> None:
    assert reason_and_detail(check_animation(picture(9, 9))) is None
    assert reason_and_detail(check_animation(picture(9, 9, is_animated=True))) == (
        Reason.ANIMATED,
        "the file has several frames",
    )


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((64, 640), None),
        ((640, 63), (Reason.TOO_SMALL, "640 x 63 pixels, at least 64 a side")),
        ((1, 1), (Reason.TOO_SMALL, "1 x 1 pixels, at least 64 a side")),
    ],
    ids=["enough", "thin banner", "tracking pixel"],
)
def test_both_sides_need_enough_pixels(
    size: tuple[int, int], expected: tuple[Reason, str] | None
) -> None:
    assert reason_and_detail(check_side(picture(*size), at_least=64)) == expected


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((300, 100), None),
        ((100, 300), None),
        ((728, 90), (Reason.ASPECT_RATIO, "728 x 90 pixels, ratio 8.09, at most 3")),
        ((100, 301), (Reason.ASPECT_RATIO, "100 x 301 pixels, ratio 3.01, at most 3")),
    ],
    ids=["wide", "tall", "banner", "slightly too tall"],
)
def test_wide_and_tall_pictures_are_refused(
    size: tuple[int, int], expected: tuple[Reason, str] | None
) -> None:
    assert reason_and_detail(check_aspect_ratio(picture(*size), at_most=3)) == expected


def test_contrast_is_the_standard_deviation_of_grey_values() -> None:
    half_black = Image.new("RGB", (10, 10), (255, 255, 255))
    half_black.paste((0, 0, 0), (0, 0, 10, 5))
    # Mean (3 * 0 + 200) / 4 = 50; squares 200 * 200 / 4 = 10,000; 10,000 - 2,500 = 86.6025...^2
    quarter = Image.new("RGB", (2, 2))
    quarter.putpixel((1, 1), (200, 200, 200))

    assert contrast(half_black) == 127.5
    assert contrast(quarter) == pytest.approx(86.60254)
    assert contrast(Image.new("RGB", (300, 200), (31, 119, 180))) == 0


def test_a_placeholder_of_one_colour_is_refused_and_a_faint_gradient_kept() -> None:
    grey = Image.new("RGB", (200, 200), (238, 238, 238))
    nearly = grey.copy()
    nearly.paste((236, 236, 236), (0, 0, 20, 20))  # JPEG noise
    gradient = Image.merge("RGB", [Image.linear_gradient("L")] * 3)

    def judged(image: Image.Image) -> tuple[Reason, str] | None:
        loaded = LoadedPicture(image=image, is_animated=False)
        return reason_and_detail(check_contrast(loaded, at_least=2))

    assert judged(grey) == (
        Reason.SINGLE_COLOUR,
        "standard deviation 0.00 of the grey values, at least 2",
    )
    assert judged(nearly) == (
        Reason.SINGLE_COLOUR,
        "standard deviation 0.20 of the grey values, at least 2",
    )
    assert judged(gradient) is None


def test_a_large_picture_is_sampled_over_its_whole_area() -> None:
    large = Image.new("RGB", (2048, 1024), (255, 255, 255))
    large.paste((0, 0, 0), (1024, 0, 2048, 1024))

    assert contrast(large) == 127.5
