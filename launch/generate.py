"""Draw pictures for prompts."""

import io
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

from ernie_vilg.config.generation import GenerateConfig
from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import write_bytes
from ernie_vilg.storage.json_files import object_of, parse_json
from ernie_vilg.storage.jsonl import read_raw_lines
from launch.support.program import program
from launch.support.record_output import RecordOutput, record_output

RECORDS_FILE = "generations.jsonl"
_PICTURE = re.compile(r"\d+_\d+\.png")
_MOST_LINE_BYTES = 1 << 20

logger = logging.getLogger(__name__)


@program("generate", GenerateConfig)
def main(config: GenerateConfig) -> None:
    """Write `<prompt index>_<candidate>.png` and generations.jsonl."""
    prompts = read_prompts(config)
    folder = Path(config.output_dir)
    with record_output(folder / RECORDS_FILE, f"output_dir={folder}") as output:
        if not os.access(folder, os.W_OK):
            raise InputError(f"output_dir={folder} cannot be written: name another folder")
        _draw(config, prompts, folder, output)
        logger.info("%s: %d pictures", folder, output.num_records)


def _draw(
    config: GenerateConfig, prompts: Sequence[str], folder: Path, output: RecordOutput
) -> None:
    """Draw the prompts, and write pictures and records batch by batch."""
    # Imported here so that a bad setting is reported before torch is loaded.
    from ernie_vilg.generation.pipeline import ErnieVilg, clean_prompt

    for index, prompt in enumerate(prompts):
        clean_prompt(prompt, f"prompt {index}")  # before the weights are read
    model = ErnieVilg.from_pretrained(Path(config.weights), config.device, config.precision)
    output.clear()
    _remove_old_pictures(folder)
    how = {"temperature": config.resolved_temperature, "top_k": config.top_k}
    results = model.draw(
        prompts,
        images_per_prompt=config.images_per_prompt,
        seed=config.seed,
        batch_size=config.batch_size,
        temperature=config.resolved_temperature,
        top_k=config.top_k,
    )
    for result in results:
        name = f"{result.prompt_index}_{result.candidate}.png"
        content = io.BytesIO()
        result.image.save(content, format="png")
        write_bytes(folder / name, content.getvalue())
        record = {
            "prompt": result.prompt,
            "drawn_prompt": result.drawn_prompt,
            "file": name,
            "seed": result.seed,
            **how,
            "log_probability": result.log_probability,
        }
        output.add(record)


def _remove_old_pictures(folder: Path) -> None:
    """Remove the pictures of an earlier call."""
    old = [path for path in folder.iterdir() if _PICTURE.fullmatch(path.name) and path.is_file()]
    for path in old:
        path.unlink()
    if old:
        logger.warning("%s: removed %d pictures of an earlier call", folder, len(old))


def read_prompts(config: GenerateConfig) -> list[str]:
    """Return the prompts of the settings or of their file.

    A line of the file is a prompt, or a JSON object with the key `caption`.

    Raises:
        InputError: the file is missing or empty, or a line is not UTF-8, too long, or JSON without
            a caption.
    """
    if config.prompts_file is None:
        return list(config.prompts)
    path = Path(config.prompts_file)
    if not path.is_file():
        raise InputError(f"prompts_file={path} is not a file: name one with a prompt per line")
    prompts = [
        _prompt_of(text, f"prompts_file={path} line {number}")
        for number, text, _ in read_raw_lines(path, most_bytes=_MOST_LINE_BYTES)
        if text.strip()
    ]
    if not prompts:
        raise InputError(f"prompts_file={path} is empty: write a prompt per line")
    return prompts


def _prompt_of(text: bytes, name: str) -> str:
    if len(text) > _MOST_LINE_BYTES:
        raise InputError(f"{name} has more than {_MOST_LINE_BYTES:,} bytes: shorten it")
    if text.lstrip().startswith(b"{"):
        caption = object_of(parse_json(text, name), name).get("caption")
        if not isinstance(caption, str):
            raise InputError(
                f'{name} starts like JSON but its caption is no text: write {{"caption": "..."}} '
                "or plain text"
            )
        return caption
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name} is not UTF-8 (byte {error.start}): save the file as UTF-8"
        ) from error


if __name__ == "__main__":
    main()
