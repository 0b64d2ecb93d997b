"""Evaluate an image tokenizer on held-out pictures."""

import json

from ernie_vilg.config.evaluate_image_tokenizer import EvaluateImageTokenizerConfig
from launch.support.program import program


@program("evaluate_image_tokenizer", EvaluateImageTokenizerConfig)
def main(config: EvaluateImageTokenizerConfig) -> None:
    """Measure reconstructions and codes, and show the best, the worst and every kind of code."""
    # Imported here so that a bad setting is reported before torch is loaded.
    from data_pipelines.outputs import output_folder
    from ernie_vilg.evaluation.image_tokenizer.evaluate import (
        FIGURES_FILE,
        evaluate_image_tokenizer,
    )

    with output_folder(
        config.output_dir,
        overwrite=config.overwrite,
        marker=FIGURES_FILE,
        inputs={"weights": config.weights, "shards": config.shards},
    ) as folder:
        content = evaluate_image_tokenizer(config, folder)
    shown = {name: value for name, value in content.items() if name != "code_counts"}
    print(json.dumps(shown, indent=2))


if __name__ == "__main__":
    main()
