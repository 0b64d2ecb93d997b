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
    from ernie_vilg.evaluation.pairs import EVALUATION_FILE, evaluate, mean_picture, read_pairs
    from ernie_vilg.generation.pipeline import ErnieVilg

    with output_folder(
        config.output_dir,
        overwrite=config.overwrite,
        marker=EVALUATION_FILE,
        inputs={
            "weights": config.weights,
            "pairs": config.pairs,
            "training_pairs": config.training_pairs,
        },
    ) as folder:
        model = ErnieVilg.from_pretrained(Path(config.weights), config.device, config.precision)
        tokenizer = model.image_tokenizer.config
        pairs = read_pairs(Path(config.pairs), count=config.count, image_size=tokenizer.image_size)
        baseline = None
        if config.training_pairs is not None:
            baseline = mean_picture(Path(config.training_pairs), image_size=tokenizer.image_size)
        scores = evaluate(
            model,
            pairs,
            folder,
            codebook_size=tokenizer.codebook_size,
            judge=config.judge,
            temperature=config.temperature,
            batch_size=config.batch_size,
            candidates=config.retrieval.candidates,
            baseline=baseline,
        )
    print(json.dumps(scores, indent=2))


if __name__ == "__main__":
    main()
