"""Turn the WordPiece vocabulary of BERT or ERNIE into a text tokenizer's folder."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipelines.outputs import output_folder
from ernie_vilg import __version__
from ernie_vilg.config.text_tokenizer import ImportTextTokenizerConfig
from ernie_vilg.storage.files import require_sha256
from ernie_vilg.storage.shard_manifest import read_manifest
from launch.support.program import program

if TYPE_CHECKING:
    from ernie_vilg.text_tokenizer.vocabulary_file import Vocabulary


@program("import_text_tokenizer", ImportTextTokenizerConfig)
def main(config: ImportTextTokenizerConfig) -> None:
    """Import `vocabulary`; with `shards`, measure it on their captions."""
    # Imported here so that a bad setting is reported at once.
    from ernie_vilg.text_tokenizer import DESCRIPTION_FILE, TextTokenizer, write_text_tokenizer
    from ernie_vilg.text_tokenizer.card import figure_lines
    from ernie_vilg.text_tokenizer.figures import measure_text_tokenizer
    from ernie_vilg.text_tokenizer.vocabulary_file import read_vocabulary
    from ernie_vilg.text_tokenizer.word_piece import word_piece_model

    vocabulary = read_vocabulary(Path(config.vocabulary))
    strip_accents = config.lower_case if config.strip_accents is None else config.strip_accents
    model = word_piece_model(
        vocabulary.pieces, lower_case=config.lower_case, strip_accents=strip_accents
    )
    made_from = origin(config, vocabulary)
    with output_folder(
        config.output_dir,
        overwrite=config.overwrite,
        marker=DESCRIPTION_FILE,
        inputs={"vocabulary": config.vocabulary, "shards": config.shards},
    ) as folder:
        captions, counts = measured_captions(config)
        figures = measure_text_tokenizer(TextTokenizer(model, "", "wordpiece"), captions)
        tokenizer = write_text_tokenizer(
            folder, model, {**made_from, **counts}, figures=figures, kind="wordpiece"
        )
    print(
        f"{config.output_dir}: {tokenizer.vocab_size} ids: 4 special, 256 bytes, and "
        f"{len(vocabulary.pieces)} pieces ({vocabulary.num_unused} of them unused), SHA-256 "
        f"{tokenizer.sha256}"
    )
    for line in figure_lines(figures):
        print(line)


def origin(config: ImportTextTokenizerConfig, vocabulary: "Vocabulary") -> dict[str, Any]:
    """Return what the folder records about the vocabulary.

    Raises:
        InputError: the vocabulary's hash is not the expected one.
    """
    path = Path(config.vocabulary)
    return {
        "vocabulary": {
            "file": path.name,
            "sha256": require_sha256("vocabulary", path, config.vocabulary_sha256),
            "entries": len(vocabulary.pieces) + len(vocabulary.special),
            "special_entries": list(vocabulary.special),
            "unused_entries": vocabulary.num_unused,
        },
        "versions": {"ernie_vilg": __version__},
        "settings": asdict(config),
    }


def measured_captions(config: ImportTextTokenizerConfig) -> tuple[list[str], dict[str, Any]]:
    """Return a sample of the captions of `shards`, and what the folder records about them.

    Raises:
        InputError: a shard differs from the manifest, or a sample has no caption.
    """
    from data_pipelines.caption_sample import MOST_MEASURED, Reservoir
    from data_pipelines.captions import read_captions

    if config.shards is None:
        return [], {}
    manifest = read_manifest(Path(config.shards), "image")
    sample = Reservoir(MOST_MEASURED, "measured")
    for caption in read_captions(Path(config.shards), manifest):
        sample.add(caption)
    counts = {"read": sample.num_added, "measured": len(sample.captions)}
    return sample.captions, {"image_shards": manifest.digest(), "captions": counts}


if __name__ == "__main__":
    main()
