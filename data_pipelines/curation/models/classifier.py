"""Probability that a picture has a property, by an image classifier of transformers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from data_pipelines.curation.extras import import_extra
from data_pipelines.curation.models.folder import CONFIG, ModelFolder
from data_pipelines.curation.models.transformers_models import (
    EXTRA,
    LoadedModel,
    inference,
    load_model,
    model_type,
)
from ernie_vilg.errors import InputError


class ClassifierScorer:
    """Scores pictures by the probability of one label: a `PictureScorer`."""

    def __init__(self, folder: ModelFolder, *, labels: Sequence[str], device: str = "auto") -> None:
        """Load the model.

        Args:
            folder: `config.json` with `id2label`, `model.safetensors`,
                `preprocessor_config.json`.
            labels: names of the wanted label, in small letters with spaces; the model has
                exactly one of them.
            device: cpu, cuda, cuda:INDEX or auto.

        Raises:
            InputError: the folder holds no image classifier, or none with such a label.
        """
        library = import_extra("transformers", extra=EXTRA, setting=folder.setting)
        kinds = _kinds(library)
        kind = model_type(folder, tuple(kinds))
        self._label = _label(folder, labels)
        self._model: LoadedModel = load_model(
            folder,
            config_class=library.CONFIG_MAPPING[kind].__name__,
            model_class=getattr(library, kinds[kind]),
            pictures_class=_pictures_class(library, kind),
            device=device,
        )

    def score(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Return the probability of the label for each picture, float32 [pictures]."""
        step = self._model.batch_size
        parts = [np.zeros(0, np.float32)]
        with inference():
            for start in range(0, len(images), step):
                pixels = self._model.pixels(images[start : start + step])
                logits = self._model.module(pixel_values=pixels).logits.float()
                parts.append(self._probabilities(logits)[:, self._label].cpu().numpy())
        return np.concatenate(parts)

    def _probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        if self._model.config.problem_type == "multi_label_classification":
            return logits.sigmoid()
        return logits.softmax(dim=1)


def _kinds(library: Any) -> Mapping[str, str]:
    """Return the class of the classifier by `model_type`, where pictures need Pillow alone."""
    models = library.models.auto.modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    return {
        kind: name
        for kind, name in sorted(models.items())
        if isinstance(name, str) and _pictures_class(library, kind)
    }


def _pictures_class(library: Any, kind: str) -> str:
    names = library.models.auto.image_processing_auto.IMAGE_PROCESSOR_MAPPING_NAMES
    return str(names.get(kind, {}).get("pil") or "")


def _label(folder: ModelFolder, wanted: Sequence[str]) -> int:
    """Return the number of the label that has one of the wanted names."""
    labels = folder.json(CONFIG, "the settings of a model").get("id2label")
    if not isinstance(labels, dict) or not labels:
        raise InputError(
            f"{folder}: {CONFIG} has no id2label, the names of its classes: name an image "
            "classifier of transformers"
        )
    found = [number for number, name in labels.items() if _plain(name) in wanted]
    if len(found) != 1 or not found[0].isdecimal():
        raise InputError(
            f"{folder}: its labels are {', '.join(map(str, labels.values()))}, and not exactly one "
            f"is called {' or '.join(wanted)}: name a classifier that has that label, or rename "
            f"it in id2label of {CONFIG}"
        )
    return int(found[0])


def _plain(name: object) -> str:
    return str(name).lower().replace("_", " ").replace("-", " ").strip()
