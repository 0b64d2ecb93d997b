"""Train the text tokenizer on the captions of image shards."""

from dataclasses import asdict
from pathlib import Path

from data_pipelines.outputs import output_folder
from ernie_vilg.config.text_tokenizer import TrainTextTokenizerConfig
from ernie_vilg.storage.shard_manifest import read_manifest
from launch.support.program import program


@program("train_text_tokenizer", TrainTextTokenizerConfig)
def main(config: TrainTextTokenizerConfig) -> None:
    """Train on the captions of `shards` and write the tokenizer to `output_dir`."""
    # Imported here so that a bad setting is reported at once.
    from data_pipelines.captions import read_captions
    from ernie_vilg.text_tokenizer import (
        DESCRIPTION_FILE,
        train_text_tokenizer,
        write_text_tokenizer,
    )

    shards = Path(config.shards)
    manifest = read_manifest(shards, "image")
    with output_folder(
        config.output_dir,
        overwrite=config.overwrite,
        marker=DESCRIPTION_FILE,
        inputs={"shards": config.shards},
    ) as folder:
        captions = read_captions(shards, manifest, max_captions=config.max_captions)
        model = train_text_tokenizer(captions, config)
        made_from = {"image_shards": manifest.digest(), "settings": asdict(config)}
        tokenizer = write_text_tokenizer(folder, model, made_from)
    fewer = tokenizer.vocab_size < config.vocab_size
    asked = f" (vocab_size={config.vocab_size}: these captions give no more)" if fewer else ""
    print(f"{config.output_dir}: {tokenizer.vocab_size} ids{asked}, SHA-256 {tokenizer.sha256}")


if __name__ == "__main__":
    main()
