"""What a run folder says of itself.

Source: ours.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.files import read_json, write_json

_NAME = "run.json"


def write_run(config: PretrainConfig) -> None:
    """Record a run's settings, and where its tokenizers are."""
    run_dir = Path(config.run_dir)
    write_json(
        run_dir / _NAME,
        {
            "text_tokenizer": str(Path(config.data.text_tokenizer).resolve()),
            "image_tokenizer": str(Path(config.data.image_tokenizer).resolve()),
            "settings": asdict(config),
        },
    )


def read_run(run_dir: Path) -> dict[str, Any]:
    """Read what `write_run` recorded.

    Raises:
        ValueError: the folder is no run folder.
    """
    path = run_dir / _NAME
    if not path.is_file():
        raise ValueError(f"{run_dir} has no {_NAME}: name the run_dir of a launch/pretrain.py run")
    content: dict[str, Any] = read_json(path)
    return content
