"""The best of several pictures of a prompt, as the model itself judges them.

Several pictures are drawn for each prompt. The one that is kept has the largest sum of two means:
the log-likelihood per piece of the prompt given the picture, which says whether the model reads the
prompt from it, and the log-likelihood per code of the picture given the prompt, which says whether
it is well formed. This sum is the negative training loss of the pair, and needs no other model.

Source: DALL-E (arXiv:2102.12092, section 2.6) keeps the best of several by another model, CLIP.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from ernie_vilg.model.attention_mask import Direction
from ernie_vilg.model.loss import text_targets

if TYPE_CHECKING:
    from ernie_vilg.generation.pipeline import ErnieVilg, GeneratedImage


def draw_chosen(
    model: "ErnieVilg",
    prompts: Sequence[str],
    *,
    drawings: int,
    temperature: float,
    seed: int = 0,
    batch_size: int = 64,
) -> Iterator["GeneratedImage"]:
    """Yield one picture per prompt, the best of some.

    Args:
        model: draws and judges.
        prompts: texts, as for `ErnieVilg.draw`.
        drawings: pictures drawn per prompt.
        temperature: temperature of the drawing; above 0, or all are equal.
        seed: seed of the pictures.
        batch_size: pictures drawn at once.

    Raises:
        InputError: a prompt is empty, or a setting is out of range.
    """
    drawn = model.generate(
        prompts,
        images_per_prompt=drawings,
        temperature=temperature,
        seed=seed,
        batch_size=batch_size,
    )
    text = model.text_ids([picture.prompt for picture in drawn])
    codes = torch.stack([picture.codes.flatten() for picture in drawn]).to(text.device)
    of_text = model.likelihood.of_pairs(Direction.IMAGE_TO_TEXT, text, codes).cpu()
    num_pieces = text_targets(text).sum(dim=1).cpu()
    of_codes = torch.tensor([picture.log_probability for picture in drawn]) / codes.shape[1]
    scores = (of_text / num_pieces + of_codes).view(-1, drawings)
    for index, best in enumerate(scores.argmax(dim=1).tolist()):
        yield drawn[index * drawings + best]
