"""Draw pictures for prompts."""

import json
import logging
import time
from pathlib import Path

from ernie_vilg.config.generation import GenerateConfig
from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import write_bytes
from launch.program import program

logger = logging.getLogger(__name__)


@program("generate", GenerateConfig)
def main(config: GenerateConfig) -> None:
    """Write `<prompt index>_<candidate>.png` and generations.jsonl."""
    prompts = read_prompts(config)
    # Imported here so that a bad setting is reported before torch is loaded.
    from ernie_vilg.generation.pipeline import ErnieVilg, choose_device

    model = ErnieVilg.from_pretrained(Path(config.weights), choose_device(config.device))
    started = time.monotonic()
    results = model.generate(
        prompts,
        images_per_prompt=config.images_per_prompt,
        temperature=config.resolved_temperature,
        top_k=config.top_k,
        seed=config.seed,
        batch_size=config.batch_size,
    )
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for result in results:
        name = f"{result.prompt_index}_{result.candidate}.png"
        result.image.save(folder / name)
        line = {
            "prompt": result.prompt,
            "file": name,
            "seed": result.seed,
            "log_probability": result.log_probability,
        }
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    write_bytes(folder / "generations.jsonl", "".join(lines).encode())
    logger.info("%s: %d pictures in %.1f s", folder, len(lines), time.monotonic() - started)


def read_prompts(config: GenerateConfig) -> list[str]:
    """Return the prompts of the settings or of their file.

    A line of the file is a prompt, or a JSON object with the key `caption`.

    Raises:
        InputError: the file is missing or holds no prompt.
    """
    if config.prompts_file is None:
        return list(config.prompts)
    path = Path(config.prompts_file)
    if not path.is_file():
        raise InputError(f"prompts_file={path} is not a file: name one with a prompt per line")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    prompts = [_prompt_of(line) for line in lines if line]
    if not prompts:
        raise InputError(f"prompts_file={path} is empty: write a prompt per line")
    return prompts


def _prompt_of(line: str) -> str:
    if not line.startswith("{"):
        return line
    try:
        return str(json.loads(line)["caption"])
    except (json.JSONDecodeError, KeyError) as error:
        raise InputError(
            f"the line {line[:80]!r} starts like JSON but has no caption: write "
            '{"caption": "..."} or plain text'
        ) from error


if __name__ == "__main__":
    main()
