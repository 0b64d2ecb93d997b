"""A trained model with its tokenizers: prompts to pictures, pictures to captions.

model = ErnieVilg.from_pretrained(Path("outputs/quickstart/weights"))
model.generate(["..."])[0].image.save("picture.png")
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import wraps
from itertools import islice
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn

from data_pipelines.captions import clean_caption
from data_pipelines.images import crop_and_resize
from data_pipelines.rejections import RejectedError
from ernie_vilg.config.model import ModelConfig
from ernie_vilg.data.batches.pictures import upright_on_white
from ernie_vilg.errors import InputError
from ernie_vilg.generation.choice import draw_chosen
from ernie_vilg.generation.decode import Drawing, ShouldStop, TokenGenerator, never
from ernie_vilg.generation.fixed_batches import in_fixed_batches
from ernie_vilg.generation.likelihood import Likelihood
from ernie_vilg.generation.randomness import Occurrences, drawing_seed, item_of, uniforms
from ernie_vilg.generation.sampling import Sampling
from ernie_vilg.model.weights import (
    IMAGE_TOKENIZER_FOLDER,
    TEXT_TOKENIZER_FOLDER,
    load_weights,
)
from ernie_vilg.system.devices import choose_device, choose_precision
from ernie_vilg.text_tokenizer import TextTokenizer
from ernie_vilg.vocabulary import caption_ids, text_slots
from ernie_vilg.vqgan.autoencoder import VQGAN
from ernie_vilg.vqgan.pixels import from_pictures, to_pictures
from ernie_vilg.vqgan.weights import load_image_tokenizer

Parameters = ParamSpec("Parameters")
Item = TypeVar("Item")

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
    """Part of the prompt that was drawn, in the text tokenizer's forms of characters: shorter than
    the prompt if that has more ids than the model has slots."""
    image: Image.Image
    """The picture, RGB."""
    codes: Tensor
    """Image codes of the picture, int64 [grid, grid]."""
    seed: int
    """Seed that draws this picture again, with this prompt alone and the same temperature and
    top_k."""
    log_probability: float
    """Log-probability of the codes given the prompt, in nats."""


@dataclass(frozen=True, kw_only=True)
class GeneratedCaption:
    """One caption of one picture."""

    caption: str
    """Text of the caption."""
    log_probability: float
    """Log-probability of the text given the picture's codes, in nats, its end included."""
    seed: int
    """Seed that writes this caption again, with this picture alone and the same temperature."""


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One picture to draw."""

    prompt_index: int
    candidate: int
    prompt: str
    slots: list[int]
    item: bytes
    seed: int


def _as_list(
    method: Callable[Parameters, Iterator[Item]],
) -> Callable[Parameters, list[Item]]:
    """Turn a method that yields items into one that returns them as a list."""

    @wraps(method)
    def collect(*arguments: Parameters.args, **options: Parameters.kwargs) -> list[Item]:
        return list(method(*arguments, **options))

    return collect


class ErnieVilg:
    """A trained model with its two tokenizers."""

    def __init__(
        self,
        model: nn.Sequential,
        config: ModelConfig,
        text_tokenizer: TextTokenizer,
        image_tokenizer: VQGAN,
    ) -> None:
        """Take the parts; `from_pretrained` reads them from a folder."""
        self.config = config
        self.text_tokenizer = text_tokenizer
        self.image_tokenizer = image_tokenizer.eval()
        self.transformer = model.eval()
        self.token_generator = TokenGenerator(self.transformer, config, text_tokenizer.vocab_size)
        self.likelihood = Likelihood(self.transformer, config)
        self._device = next(model.parameters()).device

    @classmethod
    def from_pretrained(
        cls, weights: Path, device: torch.device | str = "cpu", precision: str = "auto"
    ) -> "ErnieVilg":
        """Read a weights folder written by launch/export.py.

        Args:
            weights: the folder.
            device: device, or its name: auto, cpu, cuda or cuda:INDEX.
            precision: number format of the transformer: fp32, bf16, or auto, which is bf16 on a GPU
                that computes in it, else fp32.

        Raises:
            InputError: the folder is incomplete, damaged, or of another format; or the device does
                not exist or lacks the precision.
        """
        device = choose_device(str(device))
        config, model = load_weights(weights, device, choose_precision(precision, device))
        text_tokenizer = TextTokenizer.load(weights / TEXT_TOKENIZER_FOLDER)
        image_tokenizer, _ = load_image_tokenizer(weights / IMAGE_TOKENIZER_FOLDER)
        _check_tokenizers(weights, config, text_tokenizer, image_tokenizer)
        return cls(model, config, text_tokenizer, image_tokenizer.to(device))

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
            prompts: texts; they are cleaned like captions of the training data and must not be
                empty then. A prompt with more ids than the model has slots is cut, with a warning.
            images_per_prompt: pictures per prompt.
            temperature: 0 takes the likeliest code at every slot, 1 samples from the model.
            top_k: number of likeliest codes to sample from; 0 is all.
            seed: seed of all pictures. A picture depends on the seed, the cleaned prompt, the
                number of equal prompts before it, and its index among the prompt's pictures; in
                bfloat16 also on the other pictures of its batch.
            batch_size: pictures drawn at once.
            should_stop: called before every slot; true ends the work.

        Raises:
            InputError: a prompt is empty, or a setting is out of range.
            StoppedError: `should_stop` returned true.
        """
        sampling = Sampling(temperature=temperature, top_k=top_k)
        _check_at_least_one(images_per_prompt=images_per_prompt, batch_size=batch_size)
        cleaned = [clean_prompt(prompt, f"prompt {p}") for p, prompt in enumerate(prompts)]
        jobs = self._jobs(cleaned, images_per_prompt, seed)
        for start in range(0, len(jobs), batch_size):
            yield from self._draw(jobs[start : start + batch_size], sampling, should_stop)

    generate = _as_list(draw)
    generate_chosen = _as_list(draw_chosen)

    def _jobs(self, prompts: Sequence[str], images_per_prompt: int, seed: int) -> list[_Job]:
        jobs: list[_Job] = []
        counted = Occurrences()
        for index, prompt in enumerate(prompts):
            slots, item = self._slots(prompt, index), item_of(prompt.encode())
            occurrence = counted.next(item)
            jobs += [
                _Job(
                    prompt_index=index,
                    candidate=candidate,
                    prompt=prompt,
                    slots=slots,
                    item=item,
                    seed=drawing_seed(seed, occurrence, candidate),
                )
                for candidate in range(images_per_prompt)
            ]
        return jobs

    def _draw(
        self, jobs: Sequence[_Job], sampling: Sampling, should_stop: ShouldStop
    ) -> Iterator[GeneratedImage]:
        """Yield the pictures of one batch."""
        seeds, items = [job.seed for job in jobs], [job.item for job in jobs]
        numbers = uniforms(seeds, items, self.config.num_image_tokens)
        text = torch.tensor([job.slots for job in jobs], device=self._device)
        drawing = self.token_generator.draw(text, sampling, numbers, should_stop=should_stop)
        columns = (
            self.captions(text),
            self.pictures(drawing),
            self.grids(drawing.codes).cpu(),
            drawing.log_probabilities.tolist(),
        )
        for job, drawn_prompt, image, codes, nats in zip(jobs, *columns, strict=True):
            yield GeneratedImage(
                prompt_index=job.prompt_index,
                candidate=job.candidate,
                prompt=job.prompt,
                drawn_prompt=drawn_prompt,
                image=image,
                codes=codes,
                seed=job.seed,
                log_probability=nats,
            )

    def write(
        self,
        images: Iterable[Image.Image],
        *,
        temperature: float = 0.0,
        seed: int = 0,
        batch_size: int = 64,
        should_stop: ShouldStop = never,
    ) -> Iterator[GeneratedCaption]:
        """Yield a caption for each picture, in order; pictures are read a batch at a time.

        Args:
            images: pictures of any size and mode; as in training, they are rotated by their EXIF
                orientation, put on white where transparent, cropped to the centre square and
                resized.
            temperature: 0 takes the likeliest piece at every slot.
            seed: seed of all captions. A caption depends on the seed, the prepared picture and the
                number of equal pictures before it; in bfloat16 also on the other pictures of its
                batch.
            batch_size: pictures captioned at once.
            should_stop: called before every slot; true ends the work.

        Raises:
            InputError: a setting is out of range.
            StoppedError: `should_stop` returned true.
        """
        sampling, counted, rest = Sampling(temperature=temperature), Occurrences(), iter(images)
        _check_at_least_one(batch_size=batch_size)
        while batch := [self._prepare(image) for image in islice(rest, batch_size)]:
            items = [item_of(image.tobytes()) for image in batch]
            seeds = [drawing_seed(seed, counted.next(item), 0) for item in items]
            numbers = uniforms(seeds, items, self.config.text_length)
            codes = self._encode(batch).flatten(1)
            text, log_probabilities = self.token_generator.caption(
                codes, sampling, numbers, should_stop=should_stop
            )
            parts = (self.captions(text), log_probabilities.tolist(), seeds)
            for caption, log_probability, written_with in zip(*parts, strict=True):
                yield GeneratedCaption(
                    caption=caption, log_probability=log_probability, seed=written_with
                )

    caption = _as_list(write)

    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Return the codes of pictures of any size and mode, int64 [batch, grid, grid]."""
        return self._encode([self._prepare(image) for image in images])

    @torch.inference_mode()
    def _encode(self, prepared: Sequence[Image.Image]) -> Tensor:
        (codes,) = in_fixed_batches(
            lambda rows: (self.image_tokenizer.encode(rows.to(self._device)),),
            # Another order in memory takes other kernels, which round differently.
            from_pictures(prepared).contiguous(),
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
        return to_pictures(pixels)

    def pictures(self, drawing: Drawing) -> list[Image.Image]:
        """Return the RGB pictures of a drawing."""
        if drawing.pixels is not None:
            return to_pictures(drawing.pixels)
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
        """Put a prompt's ids into slots, with a warning where it is cut."""
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
    """Clean a prompt like a caption of the training data.

    Args:
        prompt: the text.
        name: name of the prompt for messages.

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
    """Check that model and tokenizers of a weights folder fit each other."""
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
