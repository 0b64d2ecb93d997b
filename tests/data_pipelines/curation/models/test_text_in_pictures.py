"""Text in pictures, by the real detector; one file, because its import takes a second."""

import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from data_pipelines.curation.models import text_in_pictures
from data_pipelines.curation.models.rules import check_text
from data_pipelines.curation.models.text_in_pictures import TextDetector, text_detector_sha256
from data_pipelines.curation.pictures import LoadedPicture
from data_pipelines.rejections import Reason
from ernie_vilg.errors import InputError

FONT = Path(mpl.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")


@pytest.fixture(scope="module")
def detector() -> TextDetector:
    return TextDetector()


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    """Matplotlib's photograph of Grace Hopper, without the name on her badge."""
    image = Image.open(Path(mpl.get_data_path(), "sample_data", "grace_hopper.jpg"))
    return image.convert("RGB").crop((0, 0, 512, 400))


def with_text(image: Image.Image, text: str, size: int, opacity: int = 200) -> Image.Image:
    layer = Image.new("RGBA", image.size)
    font = ImageFont.truetype(str(FONT), size)
    place = (image.width // 2, image.height - size)
    ImageDraw.Draw(layer).text(place, text, font=font, fill=(255, 255, 255, opacity), anchor="mm")
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


def test_photograph_has_no_text(detector: TextDetector, photograph: Image.Image) -> None:
    assert detector.area(photograph) == 0


@pytest.mark.parametrize(
    ("size", "opacity", "low", "high"),
    [
        # The lines are 8.5 letters' heights wide; boxes leave a margin around them.
        pytest.param(14, 200, 0.004, 0.02, id="small"),
        pytest.param(40, 200, 0.05, 0.12, id="large"),
        pytest.param(40, 90, 0.05, 0.12, id="pale"),
    ],
)
def test_watermark_is_found(
    detector: TextDetector,
    photograph: Image.Image,
    size: int,
    opacity: int,
    low: float,
    high: float,
) -> None:
    area = detector.area(with_text(photograph, "www.example.com", size, opacity))
    assert low < area < high


def test_pictogram_is_no_text(detector: TextDetector) -> None:
    image = Image.new("RGB", (128, 128), "white")
    ImageDraw.Draw(image).ellipse((20, 20, 108, 108), fill="black")
    ImageDraw.Draw(image).ellipse((45, 45, 83, 83), fill="white")  # a ring, like a letter O
    assert detector.area(image) == 0


def test_lines_beyond_those_read_count_in_proportion(
    detector: TextDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Image.new("RGB", (400, 400))
    for line in range(8):
        page.paste(with_text(Image.new("RGB", (400, 50)), "some words", 24), (0, 50 * line))
    whole = detector.area(page)
    monkeypatch.setattr(text_in_pictures, "_MOST_READ", 2)
    assert detector.area(page) == pytest.approx(whole)
    assert whole > 0.2


def test_rule_rejects_a_picture_with_much_text(
    detector: TextDetector, photograph: Image.Image
) -> None:
    picture = LoadedPicture(image=with_text(photograph, "PHOTO", 60), is_animated=False)
    verdict = check_text(picture, detector=detector, at_most=0.01)
    assert verdict.rejection is not None
    assert verdict.rejection.reason == Reason.TEXT_IN_PICTURE
    assert verdict.measures["text_area"] > 0.01
    assert check_text(picture, detector=detector, at_most=0.9).rejection is None


def test_area_is_the_same_again(detector: TextDetector, photograph: Image.Image) -> None:
    picture = with_text(photograph, "www.example.com", 24)
    areas = {detector.area(picture) for picture in (picture, picture.copy(), picture)}
    assert len(areas) == 1


def test_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_in_pictures, "_WEIGHTS", {"Det": "models/none.onnx"})
    for call in (TextDetector, text_detector_sha256):
        with pytest.raises(InputError, match=r"rapidocr has no models/none.onnx"):
            call()


def test_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"max_text_area needs.*'ernie-vilg\[ocr\]'"):
        TextDetector()


def test_picture_of_one_pixel_has_no_text(detector: TextDetector) -> None:
    assert detector.area(Image.fromarray(np.zeros((1, 1, 3), np.uint8))) == 0
    assert detector.area(Image.new("RGB", (3, 900))) == 0
