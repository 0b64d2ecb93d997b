"""Settings that follow from other ones, filled in before the dataclass is made.

All code after that sees plain numbers, and so do a run's records: a resume compares numbers.
"""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from ernie_vilg.config.model import ModelConfig
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.config.schema import declared, source_of


def follow_tokenizers(composed: DictConfig, schema: type) -> list[str]:
    """Fill in the sizes of the model that are null, in place, from the tokenizers.

    Args:
        composed: the settings of a command line.
        schema: dataclass of the program's settings; only those of a pretraining run have sizes.

    Returns:
        a sentence for each size that was filled in.

    Raises:
        InputError: a size is null, and its tokenizer cannot be read.
    """
    if not issubclass(schema, PretrainConfig):
        return []
    sentences = []
    for name, hint in declared(ModelConfig).items():
        source = source_of(hint)
        if source is None or OmegaConf.select(composed, f"model.{name}") is not None:
            continue
        folder = OmegaConf.select(composed, source)
        if folder is None:  # the tokenizer itself is not set, which is reported as usual
            continue
        # Imported here: few programs need SentencePiece.
        from ernie_vilg.preparation.followed_sizes import followed_size

        found = followed_size(name, source, Path(folder))
        OmegaConf.update(composed, f"model.{name}", found.value)
        sentences.append(found.sentence)
    return sentences
