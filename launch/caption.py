"""Write a caption for each picture."""

import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING

from ernie_vilg.config.generation import CaptionConfig
from ernie_vilg.errors import InputError
from launch.support.program import program
from launch.support.record_output import RecordOutput, record_output

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)


@program("caption", CaptionConfig)
def main(config: CaptionConfig) -> None:
    """Write one JSON object per picture: image, caption, log_probability, seed."""
    files = find_pictures(config.images)
    with record_output(Path(config.output), f"output={config.output}") as output:
        failures = _caption(config, files, output)
        logger.info("%s: %d captions", config.output, output.num_records)
    if failures:
        raise InputError(
            f"{len(failures)} of {len(files)} pictures have no caption in {config.output}, such as "
            f"{failures[0]}: repair them or leave them out; the others have captions"
        )


def _caption(config: CaptionConfig, files: Sequence[str], output: RecordOutput) -> list[str]:
    """Caption pictures batch by batch; return the names and problems of unreadable ones."""
    # Imported here so that a bad setting is reported before torch is loaded.
    from data_pipelines.images import load_image
    from data_pipelines.rejections import RejectedError
    from ernie_vilg.generation.pipeline import ErnieVilg

    model = ErnieVilg.from_pretrained(Path(config.weights), config.device, config.precision)
    output.clear()
    failures: list[str] = []
    opened: deque[str] = deque()

    def images() -> Iterator["Image.Image"]:
        for name in files:
            try:
                image = load_image(Path(name), max_pixels=config.max_pixels)
            except RejectedError as error:
                failures.append(f"{_shown(name)} ({error.reason}: {error.detail})")
                logger.warning("not captioned: %s", failures[-1])
                continue
            opened.append(name)
            yield image

    written = model.write(
        images(), temperature=config.temperature, seed=config.seed, batch_size=config.batch_size
    )
    for result in written:
        record = {"image": _shown(opened.popleft()), **asdict(result)}
        output.add(record)
    return failures


def find_pictures(images: str) -> list[str]:
    """Return the file of this name, or the files that match it as a pattern, sorted.

    Raises:
        InputError: no file matches.
    """
    if os.path.isfile(images):
        return [images]
    files = sorted(name for name in glob(images, recursive=True) if not os.path.isdir(name))
    if not files:
        raise InputError(f"images={images} matches no file: quote the pattern, check it")
    return files


def _shown(name: str) -> str:
    """Return a file's name as text, in which invalid UTF-8 becomes U+FFFD."""
    return os.fsencode(name).decode(errors="replace")


if __name__ == "__main__":
    main()
