"""Weights in, pictures and captions out.

    model = ErnieVilg.from_pretrained(Path("outputs/quickstart/weights"))
    model.generate(["..."])[0].image.save("picture.png")

Source: ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from data_pipelines.images import crop_and_resize
from ernie_vilg.config.model import ModelConfig
from ernie_vilg.data.pictures import on_white
from ernie_vilg.errors import InputError
from ernie_vilg.generation.decode import Decoder, Drawing, ShouldStop, never
from ernie_vilg.generation.sampling import Sampling
from ernie_vilg.model.weights import (
    IMAGE_TOKENIZER_FOLDER,
    TEXT_TOKENIZER_FOLDER,
    load_weights,
    read_model_config,
)
from ernie_vilg.seeds import seed_named
from ernie_vilg.text_tokenizer import TextTokenizer
from ernie_vilg.vocabulary import caption_ids, text_slots
from ernie_vilg.vqgan.autoencoder import VQGAN
from ernie_vilg.vqgan.pixels import from_bytes, to_bytes
from ernie_vilg.vqgan.weights import load_image_tokenizer


@dataclass(frozen=True, kw_only=True)
class GeneratedImage:
    """One picture for one prompt."""

    prompt_index: int
    """Index of the prompt."""
    candidate: int
    """Index among the prompt's pictures."""
    prompt: str
    """The prompt."""
    image: Image.Image
    """The picture, RGB."""
    codes: Tensor
    """Its image codes, int64 [grid, grid]."""
    seed: int
    """The seed that it was drawn with; with the same prompt it gives the same picture."""
    log_probability: float
    """Of the codes given the prompt, in nats."""


@dataclass(frozen=True, kw_only=True)
class GeneratedCaption:
    """One caption of one picture."""

    caption: str
    """The text."""
    log_probability: float
    """Of the text given the picture's codes, in nats, its end included."""


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
        model = load_weights(weights).to(device)
        image_tokenizer, _ = load_image_tokenizer(weights / IMAGE_TOKENIZER_FOLDER)
        return cls(
            model,
            read_model_config(weights),
            TextTokenizer.load(weights / TEXT_TOKENIZER_FOLDER),
            image_tokenizer.to(device),
        )

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
        """Draw pictures for prompts.

        Args:
            prompts: texts; none may be empty.
            images_per_prompt: pictures per prompt.
            temperature: 0 draws the likeliest code at every slot, 1 samples from the model.
            top_k: sample among this many likeliest codes only; 0 among all.
            seed: names the draws. Picture `c` of prompt `p` depends on the seed, `p` and `c`
                alone, not on the batch it is drawn in.
            batch_size: pictures drawn at once.
            should_stop: asked before every slot.

        Returns:
            ordered by prompt, then by candidate.

        Raises:
            InputError: a prompt is empty, or a setting is out of range.
            StoppedError: `should_stop` said so.
        """
        sampling = Sampling(temperature=temperature, top_k=top_k)
        self._check_prompts(prompts, images_per_prompt)
        jobs = [(p, c) for p in range(len(prompts)) for c in range(images_per_prompt)]
        results = []
        for start in range(0, len(jobs), batch_size):
            batch = jobs[start : start + batch_size]
            text = self.text_ids([prompts[p] for p, _ in batch])
            seeds = [picture_seed(seed, p, c) for p, c in batch]
            drawing = self.decoder.draw(
                text, sampling, generators_of(seeds), should_stop=should_stop
            )
            grids = self.grids(drawing.codes)
            pictures = self.pictures(drawing)
            for index, (p, c) in enumerate(batch):
                results.append(
                    GeneratedImage(
                        prompt_index=p,
                        candidate=c,
                        prompt=prompts[p],
                        image=pictures[index],
                        codes=grids[index].cpu(),
                        seed=seeds[index],
                        log_probability=float(drawing.log_probabilities[index]),
                    )
                )
        return results

    def caption(
        self,
        images: Sequence[Image.Image],
        *,
        temperature: float = 0.0,
        batch_size: int = 64,
        should_stop: ShouldStop = never,
    ) -> list[GeneratedCaption]:
        """Write a caption for each picture.

        Args:
            images: pictures of any size and mode; transparent ones are put on white, and all
                are cropped to the centre square and resized, as in training.
            temperature: 0 takes the likeliest piece at every slot.
            batch_size: pictures captioned at once.
            should_stop: asked before every slot.

        Raises:
            StoppedError: `should_stop` said so.
        """
        sampling = Sampling(temperature=temperature)
        results = []
        for start in range(0, len(images), batch_size):
            codes = self.encode_images(images[start : start + batch_size])
            seeds = range(start, start + len(codes))
            text, log_probabilities = self.decoder.caption(
                codes.flatten(1), sampling, generators_of(seeds), should_stop=should_stop
            )
            results += [
                GeneratedCaption(caption=caption, log_probability=float(log_probability))
                for caption, log_probability in zip(
                    self.captions(text), log_probabilities, strict=True
                )
            ]
        return results

    @torch.inference_mode()
    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Return the codes of pictures, int64 [batch, grid, grid]."""
        size = self.image_tokenizer.config.image_size
        pixels = torch.stack(
            [_to_tensor(crop_and_resize(on_white(image), size)) for image in images]
        )
        return self.image_tokenizer.encode(pixels.to(self._device))

    @torch.inference_mode()
    def decode_images(self, codes: Tensor) -> list[Image.Image]:
        """Return the RGB pictures of codes [batch, grid, grid]."""
        return _to_images(self.image_tokenizer.decode(codes.to(self._device)))

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
        slots = [
            text_slots(self.text_tokenizer.encode(prompt), self.config.text_length)
            for prompt in prompts
        ]
        return torch.tensor(slots, device=self._device)

    def _check_prompts(self, prompts: Sequence[str], images_per_prompt: int) -> None:
        if images_per_prompt < 1:
            raise InputError(f"images_per_prompt={images_per_prompt}: must be at least 1")
        for index, prompt in enumerate(prompts):
            if not self.text_tokenizer.encode(prompt):
                raise InputError(f"prompt {index} is empty ({prompt!r}): write what to draw")


def choose_device(name: str) -> torch.device:
    """Resolve a device setting: cpu, cuda, or auto, a GPU if there is one.

    Raises:
        InputError: cuda is asked for and there is no GPU.
    """
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise InputError("device=cuda but torch finds no GPU: set device=cpu or device=auto")
    return torch.device("cuda" if has_cuda and name != "cpu" else "cpu")


def picture_seed(seed: int, prompt_index: int, candidate: int) -> int:
    """Return the seed of one picture, below 2^63."""
    return seed_named(f"{seed}/{prompt_index}/{candidate}")


def generators_of(seeds: Sequence[int]) -> list[torch.Generator]:
    """Return one random generator per seed, on the CPU."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def _to_tensor(image: Image.Image) -> Tensor:
    """Return an RGB picture as float32 [3, height, width] in [-1, 1]."""
    return from_bytes(torch.from_numpy(np.array(image)).permute(2, 0, 1))


def _to_images(pixels: Tensor) -> list[Image.Image]:
    """Return the RGB pictures of float [batch, 3, height, width] in [-1, 1]."""
    # [batch, height, width, channels]
    arrays = to_bytes(pixels).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(array) for array in arrays]
