"""Share of a picture that text covers: watermarks, captions on screen, posters.

A detector finds boxes that may hold lines of text in any script. Alone it takes hands, faces and
badges for characters, so a recognizer reads each box, and those count in which it reads at least
two letters or digits with confidence. Both are models of PP-OCR, whose weights are in the package
rapidocr.

Source: DBNet (Liao et al. 2020, arXiv:1911.08947) and SVTR (Du et al. 2022, arXiv:2205.00159), as
PP-OCR trains them (Du et al. 2020, arXiv:2009.09941); the confirmation is ours.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from data_pipelines.curation.extras import import_extra
from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import sha256_of_file, sha256_of_json

_EXTRA = "ocr"
_SETTING = "max_text_area"
_WEIGHTS = {
    "Det": "models/PP-OCRv6_det_small.onnx",
    "Rec": "models/PP-OCRv6_rec_small.onnx",
}
_LONGEST_SIDE = 640
"""Pixels to which the detector reduces larger pictures; its cost grows with the square."""
_MIN_CONFIDENCE = 0.85
_MIN_LETTERS = 2
_MOST_READ = 16
"""Most boxes that are read, the largest ones; the others count in the same proportion."""


class TextDetector:
    """Finds lines of text in a picture, on one thread."""

    def __init__(self) -> None:
        """Load detector and recognizer.

        Raises:
            InputError: rapidocr or onnxruntime is not installed, or has no weights within.
        """
        settings = _settings()
        load = {"extra": _EXTRA, "setting": _SETTING}
        self._detector = import_extra("rapidocr.ch_ppocr_det", **load).TextDetector(settings.Det)
        recognition = import_extra("rapidocr.ch_ppocr_rec", **load)
        self._recognizer = recognition.TextRecognizer(settings.Rec)
        self._recognizer_input = recognition.TextRecInput
        self._cut = import_extra("rapidocr.utils.process_img", **load).get_rotate_crop_image

    def area(self, image: Image.Image) -> float:
        """Return the share of a picture that lies within lines of text, 0 to 1.

        Args:
            image: RGB, any size.
        """
        pixels = np.ascontiguousarray(np.asarray(image)[:, :, ::-1])  # the models take BGR
        boxes = self._detector(pixels).boxes  # [boxes, 4 corners, 2]
        if boxes is None or len(boxes) == 0:
            return 0.0
        found = sorted(boxes.astype(np.float32), key=_size, reverse=True)
        read = found[:_MOST_READ]
        confirmed = [box for box, is_text in zip(read, self._is_text(pixels, read), strict=True)
                     if is_text]  # fmt: skip
        if len(found) == len(read) or not confirmed:
            return _covered(confirmed, image.size)
        proportion = _covered(confirmed, image.size) / _covered(read, image.size)
        return proportion * _covered(found, image.size)

    def _is_text(self, pixels: NDArray[np.uint8], boxes: Sequence[Any]) -> list[bool]:
        cuts = [self._cut(pixels, box.copy()) for box in boxes]
        answer = self._recognizer(self._recognizer_input(img=cuts))
        return [
            score >= _MIN_CONFIDENCE and sum(map(str.isalnum, text)) >= _MIN_LETTERS
            for text, score in zip(answer.txts, answer.scores, strict=True)
        ]


def text_detector_sha256() -> str:
    """Return the hash of the weights of detector and recognizer.

    Raises:
        InputError: rapidocr is not installed, or has no weights within.
    """
    return sha256_of_json({kind: sha256_of_file(_weights(kind)) for kind in _WEIGHTS})


def _weights(kind: str) -> Path:
    package = import_extra("rapidocr", extra=_EXTRA, setting=_SETTING)
    path = Path(package.__file__).parent / _WEIGHTS[kind]
    if not path.is_file():  # the package would download others
        raise InputError(
            f"the installed rapidocr has no {_WEIGHTS[kind]}, which {_SETTING} needs: install the "
            f"version that constraints.txt names, pip install 'ernie-vilg[{_EXTRA}]'"
        )
    return path


def _settings() -> Any:
    """Return rapidocr's own settings, but for weights, size and threads."""
    for module in ("onnxruntime", "cv2"):
        import_extra(module, extra=_EXTRA, setting=_SETTING)
    package = import_extra("rapidocr.main", extra=_EXTRA, setting=_SETTING)
    package.cv2.setNumThreads(1)  # processes share the cores
    package.logger.setLevel("ERROR")
    settings = package.ParseParams.load(package.DEFAULT_CFG_PATH)
    engine = settings.EngineConfig.onnxruntime
    engine.intra_op_num_threads = engine.inter_op_num_threads = 1
    for kind in _WEIGHTS:
        settings[kind].model_path = str(_weights(kind))
        settings[kind].engine_cfg = engine
    settings.Det.limit_side_len, settings.Det.limit_type = _LONGEST_SIDE, "max"
    settings.Rec.font_path = None
    return settings


def _size(box: NDArray[np.float32]) -> float:
    """Return the area of a box by the shoelace formula, square pixels."""
    x, y = box[:, 0], box[:, 1]
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


def _covered(boxes: Sequence[NDArray[np.float32]], size: tuple[int, int]) -> float:
    """Return the share of a picture that lies within any of the boxes."""
    covered = Image.new("1", size)
    drawing = ImageDraw.Draw(covered)
    for box in boxes:
        drawing.polygon([(float(x), float(y)) for x, y in box], fill=1)
    return float(np.asarray(covered).mean())
