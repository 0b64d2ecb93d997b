"""Write a caption for each picture."""

import json
import logging
import time
from glob import glob
from pathlib import Path

from ernie_vilg.config.generation import CaptionConfig
from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import write_bytes
from launch.program import program

logger = logging.getLogger(__name__)


@program("caption", CaptionConfig)
def main(config: CaptionConfig) -> None:
    """Write one JSON object per picture: image, caption, log_probability."""
    files = sorted(glob(config.images, recursive=True))
    if not files:
        raise InputError(f"images={config.images} matches no file: quote the pattern, check it")
    # Imported here so that a bad setting is reported before torch is loaded.
    from data_pipelines.images import load_image
    from data_pipelines.sources import RejectedError
    from ernie_vilg.generation.pipeline import ErnieVilg, choose_device

    model = ErnieVilg.from_pretrained(Path(config.weights), choose_device(config.device))
    started = time.monotonic()
    lines = []
    for start in range(0, len(files), config.batch_size):
        names = files[start : start + config.batch_size]
        try:
            images = [load_image(Path(name), max_pixels=config.max_pixels) for name in names]
        except RejectedError as error:
            raise InputError(f"{error}: remove it, or name other images") from error
        captions = model.caption(
            images, temperature=config.temperature, batch_size=config.batch_size
        )
        for name, result in zip(names, captions, strict=True):
            line = {
                "image": name,
                "caption": result.caption,
                "log_probability": result.log_probability,
            }
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    write_bytes(Path(config.output), "".join(lines).encode())
    logger.info("%s: %d captions in %.1f s", config.output, len(lines), time.monotonic() - started)


if __name__ == "__main__":
    main()
