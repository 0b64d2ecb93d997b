"""Similarity of pictures and captions: the cosine of their embeddings in a CLIP model.

Source: CLIP (Radford et al. 2021, arXiv:2103.00020); Chinese CLIP (Yang et al. 2022,
arXiv:2211.01335), whose reference code cuts captions to 52 tokens, as this does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from data_pipelines.curation.extras import import_extra
from data_pipelines.curation.models.folder import ModelFolder
from data_pipelines.curation.models.scorers import without_repeats
from data_pipelines.curation.models.transformers_models import (
    EXTRA,
    LoadedModel,
    inference,
    load_model,
    model_type,
)
from ernie_vilg.errors import InputError


@dataclass(frozen=True, kw_only=True)
class _Kind:
    config: str
    model: str
    pictures: str
    context_length: int


_KINDS: Mapping[str, _Kind] = {
    "chinese_clip": _Kind(
        config="ChineseCLIPConfig",
        model="ChineseCLIPModel",
        pictures="ChineseCLIPImageProcessorPil",
        context_length=52,
    ),
    "clip": _Kind(
        config="CLIPConfig",
        model="CLIPModel",
        pictures="CLIPImageProcessorPil",
        context_length=77,
    ),
}


class ClipScorer:
    """Scores pairs by a ChineseCLIP or CLIP model: a `PairScorer`."""

    def __init__(self, folder: ModelFolder, *, device: str = "auto") -> None:
        """Load the model.

        Args:
            folder: `config.json`, `model.safetensors`, `preprocessor_config.json`, and the
                tokenizer: `vocab.txt` of ChineseCLIP, `vocab.json` and `merges.txt` of CLIP.
            device: cpu, cuda, cuda:INDEX or auto.

        Raises:
            InputError: the folder holds no such model.
        """
        name = model_type(folder, tuple(_KINDS))
        kind = _KINDS[name]
        library = import_extra("transformers", extra=EXTRA, setting=folder.setting)
        self._tokenizer = _TOKENIZERS[name](library, folder)
        self._model: LoadedModel = load_model(
            folder,
            config_class=kind.config,
            model_class=getattr(library, kind.model),
            pictures_class=kind.pictures,
            device=device,
        )
        self._check_vocabulary(folder)
        positions = self._model.config.text_config.max_position_embeddings
        self._max_length = min(kind.context_length, positions)

    def score(self, images: Sequence[Image.Image], captions: Sequence[str]) -> NDArray[np.float32]:
        """Return the cosine of each picture's and caption's embeddings, float32 [pairs].

        The same picture object several times is embedded once.
        """
        different, places = without_repeats(images)
        step = self._model.batch_size
        with inference():
            pictures = [
                self._embed_pictures(different[start : start + step])
                for start in range(0, len(different), step)
            ]
            texts = [
                self._embed_captions(captions[start : start + step])
                for start in range(0, len(captions), step)
            ]
            if not texts:
                return np.zeros(0, np.float32)
            cosines = (torch.cat(pictures)[places] * torch.cat(texts)).sum(dim=1)
        return cosines.numpy()

    def _embed_pictures(self, images: Sequence[Image.Image]) -> Tensor:
        pixels = self._model.pixels(images)
        return _unit(self._model.module.get_image_features(pixel_values=pixels))

    def _embed_captions(self, captions: Sequence[str]) -> Tensor:
        tokens = self._tokenizer(
            list(captions),
            padding=True,
            truncation=True,
            max_length=self._max_length,
            return_tensors="pt",
        ).to(self._model.device)
        return _unit(self._model.module.get_text_features(**tokens))

    def _check_vocabulary(self, folder: ModelFolder) -> None:
        rows = self._model.config.text_config.vocab_size
        if len(self._tokenizer) > rows:
            raise InputError(
                f"{folder}: its vocabulary has {len(self._tokenizer):,} tokens and its model "
                f"{rows:,}: copy both from one place"
            )


def _unit(features: Any) -> Tensor:
    """Return projected features with length 1, float32 [rows, projection] on the CPU."""
    return torch.nn.functional.normalize(features.pooler_output.float(), dim=1).cpu()


def _bert_tokenizer(library: Any, folder: ModelFolder) -> Any:
    path = folder.require("vocab.txt", "the tokens of ChineseCLIP")
    with path.open(encoding="utf-8") as file:
        vocabulary = {line.rstrip("\n"): number for number, line in enumerate(file)}
    missing = [token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]") if token not in vocabulary]
    if missing:
        raise InputError(
            f"{path} lacks {', '.join(missing)}: it is no vocabulary of BERT; copy it again"
        )
    settings = folder.optional_json("tokenizer_config.json")
    taken = ("do_lower_case", "strip_accents", "tokenize_chinese_chars")
    return library.BertTokenizer(
        vocab=vocabulary, **{name: settings[name] for name in taken if name in settings}
    )


def _clip_tokenizer(library: Any, folder: ModelFolder) -> Any:
    vocabulary = folder.json("vocab.json", "the tokens of CLIP")
    path = folder.require("merges.txt", "how CLIP's tokens are merged")
    lines = path.read_text(encoding="utf-8").split("\n")
    merges = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
    if any(len(merge) != 2 for merge in merges):
        raise InputError(f"{path} has a line that is not two tokens: copy it again")
    return library.CLIPTokenizer(vocab=vocabulary, merges=merges)


_TOKENIZERS = {"chinese_clip": _bert_tokenizer, "clip": _clip_tokenizer}
