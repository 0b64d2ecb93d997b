"""Models of transformers, made from a folder without the library reading the folder itself.

The library gets settings and tensors, not a path: so it can follow no link in the settings, fetch
nothing and run no code of the folder. A tensor that is missing ends the program; the library would
fill it with random numbers.

A model computes on one thread of a CPU, because sums differ between numbers of threads; worker
processes share the cores. On a GPU it computes in bfloat16.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from data_pipelines.curation.extras import import_extra
from data_pipelines.curation.models.folder import CONFIG, ModelFolder
from ernie_vilg.errors import InputError
from ernie_vilg.system.devices import choose_device, choose_precision

EXTRA = "scorers"
_BATCH_SIZES = {"cpu": 16, "cuda": 256}


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model on its device, and what turns pictures into its input."""

    module: Any
    config: Any
    pictures: Any
    """Image processor of transformers, of the kind that needs Pillow and NumPy alone."""
    device: torch.device
    dtype: torch.dtype

    @property
    def batch_size(self) -> int:
        """Number of pictures or pairs that it takes at once."""
        return _BATCH_SIZES[self.device.type]

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Return pictures as the model's input, [pictures, 3, height, width] on its device."""
        values = self.pictures(list(images), return_tensors="np")["pixel_values"]
        return torch.as_tensor(values).to(self.device, self.dtype)


def model_type(folder: ModelFolder, known: Sequence[str]) -> str:
    """Return the kind of a folder's model, as its settings name it.

    Raises:
        InputError: it is none of the known ones.
    """
    kind = folder.json(CONFIG, "the settings of a model").get("model_type")
    if kind not in known:
        raise InputError(
            f'{folder}: {CONFIG} has "model_type": {kind!r}, which is none of '
            f"{', '.join(known)}: name the folder of such a model"
        )
    return str(kind)


def load_model(
    folder: ModelFolder, *, config_class: str, model_class: Any, pictures_class: str, device: str
) -> LoadedModel:
    """Load a model and its image processor.

    Args:
        folder: the folder.
        config_class: class of transformers for `config.json`.
        model_class: class of transformers for the weights.
        pictures_class: class of transformers for `preprocessor_config.json`.
        device: cpu, cuda, cuda:INDEX or auto.

    Raises:
        InputError: a file is missing or damaged, or the weights do not fit the settings.
    """
    library = import_extra("transformers", extra=EXTRA, setting=folder.setting)
    place = _spread(choose_device(device), device)
    precision = choose_precision("auto", place)
    pixels = folder.json("preprocessor_config.json", "how pictures become its input")
    settings = folder.json(CONFIG, "the settings of a model")
    weights = folder.weights()
    with _quiet(library):
        try:
            config = getattr(library, config_class).from_dict(settings)
            pictures = getattr(library, pictures_class).from_dict(pixels)
            module, info = model_class.from_pretrained(
                None,
                config=config,
                state_dict=dict(weights),
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
                dtype=precision,
            )
        except Exception as error:  # the library raises errors of its dependencies for bad settings
            raise InputError(
                f"{folder}: its settings and weights make no {model_class.__name__} ({error}): "
                "copy the whole folder again"
            ) from error
    _require_whole(folder, info)
    module = module.to(place, precision).eval().requires_grad_(False)
    return LoadedModel(
        module=module, config=config, pictures=pictures, device=place, dtype=precision
    )


@contextmanager
def inference() -> Iterator[None]:
    """Compute in the block without gradients and on one thread of the CPU."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(threads)


def _spread(device: torch.device, setting: str) -> torch.device:
    """Return one of several GPUs, so that processes beside each other take different ones."""
    if device.type != "cuda" or setting != "auto":
        return device
    return torch.device("cuda", os.getpid() % torch.cuda.device_count())


def _require_whole(folder: ModelFolder, info: Mapping[str, Any]) -> None:
    missing = sorted(info["missing_keys"])
    mismatched = sorted(str(key) for key in info["mismatched_keys"])
    if missing or mismatched:
        raise InputError(
            f"{folder}: model.safetensors lacks {len(missing)} tensor(s) of the model and has "
            f"{len(mismatched)} of another shape, the first {(missing + mismatched)[0]}: "
            "config.json belongs to other weights; copy both from one place"
        )


@contextmanager
def _quiet(library: Any) -> Iterator[None]:
    """Keep the library's own progress bars and reports out of the program's."""
    logging = library.utils.logging
    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()
