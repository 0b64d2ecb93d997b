"""Evaluate exported weights on held-out pairs."""

import json
from pathlib import Path

from ernie_vilg.config.evaluation import EvaluateConfig
from launch.support.program import program


@program("evaluate", EvaluateConfig)
def main(config: EvaluateConfig) -> None:
    """Draw captions, caption pictures, judge both, and write all of it to `output_dir`."""
    # Imported here so that a bad setting is reported before torch is loaded.
    from data_pipelines.outputs import output_folder
    from ernie_vilg.evaluation.harder_sets import (
        DISTURBED,
        UNSEEN_PAIRS,
        disturbed_sets,
        log_table,
        table_of,
        unseen_pairs,
    )
    from ernie_vilg.evaluation.pairs import EVALUATION_FILE, evaluate, read_pairs
    from ernie_vilg.generation.pipeline import ErnieVilg
    from ernie_vilg.storage.files import write_json

    inputs = {"weights": config.weights, "pairs": config.pairs}
    if config.unseen_pairs is not None:
        inputs["unseen_pairs"] = config.unseen_pairs
    with output_folder(
        config.output_dir, overwrite=config.overwrite, marker=EVALUATION_FILE, inputs=inputs
    ) as folder:
        model = ErnieVilg.from_pretrained(Path(config.weights), config.device, config.precision)
        tokenizer = model.image_tokenizer.config
        pairs = read_pairs(Path(config.pairs), count=config.count, image_size=tokenizer.image_size)
        scores = evaluate(
            model,
            pairs,
            folder,
            codebook_size=tokenizer.codebook_size,
            judge=config.judge,
            temperature=config.temperature,
            batch_size=config.batch_size,
        )
        if config.disturbed:
            scores[DISTURBED] = disturbed_sets(model, pairs, folder, batch_size=config.batch_size)
        if config.unseen_pairs is not None:
            scores[UNSEEN_PAIRS] = unseen_pairs(
                model,
                read_pairs(
                    Path(config.unseen_pairs), count=config.count, image_size=tokenizer.image_size
                ),
                folder,
                batch_size=config.batch_size,
                temperature=config.temperature,
            )
        write_json(folder / EVALUATION_FILE, scores)
    if table := table_of(scores):
        log_table(table)
    print(json.dumps(scores, indent=2))


if __name__ == "__main__":
    main()
