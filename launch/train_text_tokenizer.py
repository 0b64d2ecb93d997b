"""Train the text tokenizer on the captions of image shards."""

from dataclasses import asdict
from pathlib import Path

from data_pipelines.outputs import output_folder
from ernie_vilg.config.text_tokenizer import TrainTextTokenizerConfig
from ernie_vilg.storage.shard_manifest import read_manifest
from launch.support.program import program


@program("train_text_tokenizer", TrainTextTokenizerConfig)
def main(config: TrainTextTokenizerConfig) -> None:
    """Train on a sample of the captions of `shards`, measure, and write to `output_dir`."""
    # Imported here so that a bad setting is reported at once.
    from data_pipelines.caption_sample import draw_captions
    from data_pipelines.captions import read_captions
    from ernie_vilg.text_tokenizer import (
        DESCRIPTION_FILE,
        TextTokenizer,
        train_text_tokenizer,
        write_text_tokenizer,
    )
    from ernie_vilg.text_tokenizer.card import figure_lines
    from ernie_vilg.text_tokenizer.figures import measure_text_tokenizer

    shards = Path(config.shards)
    manifest = read_manifest(shards, "image")
    with output_folder(
        config.output_dir,
        overwrite=config.overwrite,
        marker=DESCRIPTION_FILE,
        inputs={"shards": config.shards},
    ) as folder:
        sample = draw_captions(read_captions(shards, manifest), config)
        model = train_text_tokenizer(sample.training, config)
        figures = measure_text_tokenizer(TextTokenizer(model, ""), sample.measured)
        made_from = {
            "image_shards": manifest.digest(),
            "captions": sample.counts(),
            "versions": versions(),
            "settings": asdict(config),
        }
        tokenizer = write_text_tokenizer(folder, model, made_from, figures=figures)
    fewer = tokenizer.vocab_size < config.vocab_size
    asked = f" (vocab_size={config.vocab_size}: these captions give no more)" if fewer else ""
    print(f"{config.output_dir}: {tokenizer.vocab_size} ids{asked}, SHA-256 {tokenizer.sha256}")
    print(f"captions: {', '.join(f'{count} {name}' for name, count in sample.counts().items())}")
    for line in figure_lines(figures):
        print(line)


def versions() -> dict[str, str]:
    """Return the versions of the packages that decide about the vocabulary."""
    import sentencepiece

    from ernie_vilg import __version__

    return {"ernie_vilg": __version__, "sentencepiece": sentencepiece.__version__}


if __name__ == "__main__":
    main()
