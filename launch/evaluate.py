"""Evaluate exported weights on held-out pairs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ernie_vilg.config.evaluation import EvaluateConfig
from launch.support.program import program

if TYPE_CHECKING:  # torch is loaded after the settings are checked
    from ernie_vilg.evaluation.pairs import Pair
    from ernie_vilg.generation.pipeline import ErnieVilg


@program("evaluate", EvaluateConfig)
def main(config: EvaluateConfig) -> None:
    """Draw captions, caption pictures, judge both, and write all of it to `output_dir`."""
    # Imported here so that a bad setting is reported before torch is loaded.
    from data_pipelines.outputs import output_folder
    from ernie_vilg.evaluation.harder_sets import log_table, table_of
    from ernie_vilg.evaluation.pairs import EVALUATION_FILE, evaluate, mean_picture, read_pairs
    from ernie_vilg.generation.pipeline import ErnieVilg
    from ernie_vilg.storage.files import write_json

    names = ("weights", "pairs", "training_pairs", "unseen_pairs")
    inputs = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    with output_folder(
        config.output_dir, overwrite=config.overwrite, marker=EVALUATION_FILE, inputs=inputs
    ) as folder:
        model = ErnieVilg.from_pretrained(Path(config.weights), config.device, config.precision)
        tokenizer = model.image_tokenizer.config
        size, baseline = tokenizer.image_size, None
        pairs = read_pairs(Path(config.pairs), count=config.count, image_size=size)
        if config.training_pairs is not None:
            baseline = mean_picture(Path(config.training_pairs), image_size=size)
        scores = evaluate(
            model,
            pairs,
            folder,
            codebook_size=tokenizer.codebook_size,
            judge=config.judge,
            drawings=config.drawings,
            temperature=config.temperature,
            batch_size=config.batch_size,
            candidates=config.retrieval.candidates,
            baseline=baseline,
            comparable=model.text_tokenizer.comparable,
        )
        scores |= _of_harder_sets(config, model, pairs, folder)
        write_json(folder / EVALUATION_FILE, scores)
    if table := table_of(scores):
        log_table(table)
    print(json.dumps(scores, indent=2))


def _of_harder_sets(
    config: EvaluateConfig, model: "ErnieVilg", pairs: Sequence["Pair"], folder: Path
) -> dict[str, Any]:
    """Return the figures of the harder sets that the settings ask for."""
    from ernie_vilg.evaluation.harder_sets import (
        DISTURBED,
        UNSEEN_PAIRS,
        disturbed_sets,
        unseen_pairs,
    )
    from ernie_vilg.evaluation.pairs import read_pairs

    scores: dict[str, Any] = {}
    if config.disturbed:
        scores[DISTURBED] = disturbed_sets(model, pairs, folder, batch_size=config.batch_size)
    if config.unseen_pairs is not None:
        size = model.image_tokenizer.config.image_size
        scores[UNSEEN_PAIRS] = unseen_pairs(
            model,
            read_pairs(Path(config.unseen_pairs), count=config.count, image_size=size),
            folder,
            batch_size=config.batch_size,
            drawings=config.drawings,
            temperature=config.temperature,
        )
    return scores


if __name__ == "__main__":
    main()
