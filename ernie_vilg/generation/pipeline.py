"""Weights in, pictures and captions out.

    model = ErnieVilg.from_pretrained(Path("outputs/quickstart/weights"))
    model.generate(["..."])[0].image.save("picture.png")

Source: ours.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from data_pipelines.images import crop_and_resize
from data_pipelines.sources import RejectedError, clean_caption
from ernie_vilg.config.model import ModelConfig
from ernie_vilg.data.batches.pictures import upright_on_white
from ernie_vilg.errors import InputError
from ernie_vilg.generation.decode import Decoder, Drawing, ShouldStop, never
from ernie_vilg.generation.fixed_batches import in_fixed_batches
from ernie_vilg.generation.randomness import Occurrences, drawing_seed, item_of, uniforms
from ernie_vilg.generation.sampling import Sampling
from ernie_vilg.model.weights import (
    IMAGE_TOKENIZER_FOLDER,
    TEXT_TOKENIZER_FOLDER,
    load_weights,
)
from ernie_vilg.text_tokenizer import TextTokenizer
from ernie_vilg.vocabulary import caption_ids, text_slots
from ernie_vilg.vqgan.autoencoder import VQGAN
from ernie_vilg.vqgan.pixels import from_bytes, to_bytes
from ernie_vilg.vqgan.weights import load_image_tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class GeneratedImage:
    """One picture for one prompt."""

    prompt_index: int
    """Index of the prompt."""
    candidate: int
    """Index among the prompt's pictures."""
    prompt: str
    """The prompt, cleaned."""
    drawn_prompt: str
    """The part of it that the picture shows: less than the prompt where that has more ids than the
    model has slots, and in the text tokenizer's forms of characters."""
    image: Image.Image
    """The picture, RGB."""
    codes: Tensor
    """Its image codes, int64 [grid, grid]."""
    seed: int
    """The seed that, with this prompt alone and the same temperature and top_k, draws this picture
    again."""
    log_probability: float
    """Of the codes given the prompt, in nats."""


@dataclass(frozen=True, kw_only=True)
class GeneratedCaption:
    """One caption of one picture."""

    caption: str
    """The text."""
    log_probability: float
    """Of the text given the picture's codes, in nats, its end included."""
    seed: int
    """The seed that, with this picture alone at the same temperature, writes it again."""


class ErnieVilg:
    """A trained model with its two tokenizers."""

    def __init__(
        self,
        model: nn.Sequential,
        config: ModelConfig,
        text_tokenizer: TextTokenizer,
        image_tokenizer: VQGAN,
    ) -> None:
        """Put the parts together; `from_pretrained` reads them from a folder."""
        self.config = config
        self.text_tokenizer = text_tokenizer
        self.image_tokenizer = image_tokenizer.eval()
        self.transformer = model.eval()
        self.decoder = Decoder(self.transformer, config, text_tokenizer.vocab_size)
        self._device = next(model.parameters()).device

    @classmethod
    def from_pretrained(cls, weights: Path, device: torch.device | str = "cpu") -> "ErnieVilg":
        """Read a weights folder written by launch/export.py.

        Raises:
            InputError: the folder is incomplete, damaged, or of another format.
        """
        config, model = load_weights(weights)
        text_tokenizer = TextTokenizer.load(weights / TEXT_TOKENIZER_FOLDER)
        image_tokenizer, _ = load_image_tokenizer(weights / IMAGE_TOKENIZER_FOLDER)
        _check_tokenizers(weights, config, text_tokenizer, image_tokenizer)
        return cls(model.to(device), config, text_tokenizer, image_tokenizer.to(device))

    def generate(
        self,
        prompts: Sequence[str],
        *,
        images_per_prompt: int = 1,
        temperature: float = 0.0,
        top_k: int = 0,
        seed: int = 0,
        batch_size: int = 64,
        should_stop: ShouldStop = never,
    ) -> list[GeneratedImage]:
        """Draw pictures for prompts: the list of what `draw` yields, with its arguments."""
        drawn = self.draw(
            prompts,
            images_per_prompt=images_per_prompt,
            temperature=temperature,
            top_k=top_k,
            seed=seed,
            batch_size=batch_size,
            should_stop=should_stop,
        )
        return list(drawn)

    def draw(
        self,
        prompts: Sequence[str],
        *,
        images_per_prompt: int = 1,
        temperature: float = 0.0,
        top_k: int = 0,
        seed: int = 0,
        batch_size: int = 64,
        should_stop: ShouldStop = never,
    ) -> Iterator[GeneratedImage]:
        """Yield pictures for prompts, ordered by prompt, then by candidate.

        Args:
            prompts: texts; they are cleaned as captions are for training, and nothing may be empty
                then. A prompt with more ids than the model has slots is cut, with a warning.
            images_per_prompt: pictures per prompt.
            temperature: 0 draws the likeliest code at every slot, 1 samples from the model.
            top_k: sample among this many likeliest codes only; 0 among all.
            seed: names the draws. A picture depends on the seed, the cleaned prompt, how often the
                same prompt came before, and its index among the prompt's pictures; in float32 on
                nothing else, in bfloat16 on the others in its batch, too.
            batch_size: pictures drawn at once.
            should_stop: asked before every slot.

        Raises:
            InputError: a prompt is empty, or a setting is out of range.
            StoppedError: `should_stop` said so.
        """
        sampling = Sampling(temperature=temperature, top_k=top_k)
        _check_at_least_one(images_per_prompt=images_per_prompt, batch_size=batch_size)
        cleaned = [clean_prompt(prompt, f"prompt {p}") for p, prompt in enumerate(prompts)]
        slots = [self._slots(prompt, p) for p, prompt in enumerate(cleaned)]
        counted, items = Occurrences(), [item_of(prompt.encode()) for prompt in cleaned]
        jobs = [
            (p, c, drawing_seed(seed, occurrence, c))
            for p, occurrence in enumerate(map(counted.next, items))
            for c in range(images_per_prompt)
        ]
        for start in range(0, len(jobs), batch_size):
            batch = jobs[start : start + batch_size]
            numbers = uniforms(
                [job[2] for job in batch],
                [items[p] for p, *_ in batch],
                self.config.num_image_tokens,
            )
            text = torch.tensor([slots[p] for p, *_ in batch], device=self._device)
            drawing = self.decoder.draw(text, sampling, numbers, should_stop=should_stop)
            grids, pictures = self.grids(drawing.codes), self.pictures(drawing)
            shown = self.captions(text)
            for index, (p, c, drawn_with) in enumerate(batch):
                yield GeneratedImage(
                    prompt_index=p,
                    candidate=c,
                    prompt=cleaned[p],
                    drawn_prompt=shown[index],
                    image=pictures[index],
                    codes=grids[index].cpu(),
                    seed=drawn_with,
                    log_probability=float(drawing.log_probabilities[index]),
                )

    def caption(
        self,
        images: Iterable[Image.Image],
        *,
        temperature: float = 0.0,
        seed: int = 0,
        batch_size: int = 64,
        should_stop: ShouldStop = never,
    ) -> list[GeneratedCaption]:
        """Write a caption for each picture: the list of what `write` yields."""
        written = self.write(
            images,
            temperature=temperature,
            seed=seed,
            batch_size=batch_size,
            should_stop=should_stop,
        )
        return list(written)

    def write(
        self,
        images: Iterable[Image.Image],
        *,
        temperature: float = 0.0,
        seed: int = 0,
        batch_size: int = 64,
        should_stop: ShouldStop = never,
    ) -> Iterator[GeneratedCaption]:
        """Yield a caption for each picture, in order; pictures are taken a batch at a time.

        Args:
            images: pictures of any size and mode; they are turned as their EXIF says, transparent
                ones are put on white, and all are cropped to the centre square and resized, as in
                training.
            temperature: 0 takes the likeliest piece at every slot.
            seed: names the captions. A caption depends on the seed, the prepared picture and how
                often the same picture came before; in bfloat16 on the others in its batch, too.
            batch_size: pictures captioned at once.
            should_stop: asked before every slot.

        Raises:
            InputError: a setting is out of range.
            StoppedError: `should_stop` said so.
        """
        sampling, counted, rest = Sampling(temperature=temperature), Occurrences(), iter(images)
        _check_at_least_one(batch_size=batch_size)
        while batch := [self._prepare(image) for image in islice(rest, batch_size)]:
            items = [item_of(image.tobytes()) for image in batch]
            seeds = [drawing_seed(seed, counted.next(item), 0) for item in items]
            numbers = uniforms(seeds, items, self.config.text_length)
            codes = self.encode_images(batch).flatten(1)
            text, log_probabilities = self.decoder.caption(
                codes, sampling, numbers, should_stop=should_stop
            )
            parts = (self.captions(text), log_probabilities.tolist(), seeds)
            for caption, log_probability, written_with in zip(*parts, strict=True):
                yield GeneratedCaption(
                    caption=caption, log_probability=log_probability, seed=written_with
                )

    @torch.inference_mode()
    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Return the codes of pictures, int64 [batch, grid, grid]."""
        pixels = torch.stack([_to_tensor(self._prepare(image)) for image in images])
        (codes,) = in_fixed_batches(
            lambda rows: (self.image_tokenizer.encode(rows.to(self._device)),),
            pixels,
            like=next(self.image_tokenizer.parameters()),
        )
        return codes

    @torch.inference_mode()
    def decode_images(self, codes: Tensor) -> list[Image.Image]:
        """Return the RGB pictures of codes [batch, grid, grid]."""
        (pixels,) = in_fixed_batches(
            lambda rows: (self.image_tokenizer.decode(rows.to(self._device)),),
            codes,
            like=next(self.image_tokenizer.parameters()),
        )
        return _to_images(pixels)

    def pictures(self, drawing: Drawing) -> list[Image.Image]:
        """Return the RGB pictures of what the decoder drew."""
        if drawing.pixels is not None:
            return _to_images(drawing.pixels)
        return self.decode_images(self.grids(drawing.codes))

    def grids(self, codes: Tensor) -> Tensor:
        """Return codes in raster order [batch, num_image_tokens] as [batch, grid, grid]."""
        return codes.unflatten(1, (self.config.image_grid_size, -1))

    def captions(self, text: Tensor) -> list[str]:
        """Return the texts of padded ids, int64 [batch, text_length]."""
        return [self.text_tokenizer.decode(caption_ids(ids)) for ids in text.tolist()]

    def text_ids(self, prompts: Sequence[str]) -> Tensor:
        """Return the padded ids of texts, int64 [batch, text_length]."""
        slots = [self._slots(prompt, index) for index, prompt in enumerate(prompts)]
        return torch.tensor(slots, device=self._device)

    def _slots(self, prompt: str, index: int) -> list[int]:
        """Lay a prompt's ids into slots, with a warning where it is cut."""
        ids, length = self.text_tokenizer.encode(prompt), self.config.text_length
        slots = text_slots(ids, length)
        if len(ids) > length:
            logger.warning(
                "prompt %d has %d ids, more than the model's %d: only %r is drawn; shorten it",
                index,
                len(ids),
                length,
                self.text_tokenizer.decode(caption_ids(slots)),
            )
        return slots

    def _prepare(self, image: Image.Image) -> Image.Image:
        size = self.image_tokenizer.config.image_size
        image = upright_on_white(image)
        return image if image.size == (size, size) else crop_and_resize(image, size)


def clean_prompt(prompt: str, name: str) -> str:
    """Return a prompt as a caption of the training data would be cleaned.

    Args:
        prompt: the text.
        name: what it is, for the message.

    Raises:
        InputError: nothing is left of it, or it is not Unicode text.
    """
    try:
        prompt.encode()
        return clean_caption(prompt, max_characters=len(prompt))
    except UnicodeEncodeError as error:
        raise InputError(f"{name} is not UTF-8 text ({prompt!r:.100}): write it again") from error
    except RejectedError as error:
        raise InputError(f"{name} is empty ({prompt!r:.100}): write what to draw") from error


def _check_at_least_one(**settings: int) -> None:
    for name, value in settings.items():
        if value < 1:
            raise InputError(f"{name}={value}: must be at least 1")


def _check_tokenizers(
    weights: Path, config: ModelConfig, text_tokenizer: TextTokenizer, image_tokenizer: VQGAN
) -> None:
    """Check that the parts of a weights folder fit each other."""
    if text_tokenizer.vocab_size > config.text_vocab_size:
        raise InputError(
            f"{weights}: its text tokenizer has {text_tokenizer.vocab_size} ids, its model "
            f"{config.text_vocab_size}: export the run again"
        )
    found = (image_tokenizer.config.codebook_size, image_tokenizer.config.grid_size)
    needed = (config.codebook_size, config.image_grid_size)
    if found != needed:
        raise InputError(
            f"{weights}: its image tokenizer has {found[0]} codes and a grid of {found[1]}, its "
            f"model {needed[0]} and {needed[1]}: export the run again"
        )


def choose_device(name: str) -> torch.device:
    """Resolve a device setting: cpu, cuda, or auto, a GPU if there is one.

    Raises:
        InputError: cuda is asked for and there is no GPU.
    """
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise InputError("device=cuda but torch finds no GPU: set device=cpu or device=auto")
    return torch.device("cuda" if has_cuda and name != "cpu" else "cpu")


def _to_tensor(image: Image.Image) -> Tensor:
    """Return an RGB picture as float32 [3, height, width] in [-1, 1]."""
    return from_bytes(torch.from_numpy(np.array(image)).permute(2, 0, 1))


def _to_images(pixels: Tensor) -> list[Image.Image]:
    """Return the RGB pictures of float [batch, 3, height, width] in [-1, 1]."""
    # [batch, height, width, channels]
    arrays = to_bytes(pixels).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(array) for array in arrays]
