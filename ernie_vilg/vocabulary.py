"""Which number means what: the special ids of text, and how a caption fills its slots.

Text and images keep separate vocabularies. A text id indexes the text embedding and the
text half of the output head, an image code indexes the image embedding and the image half,
so neither needs an offset, and each direction computes only its own half of the logits.

Source: ours; the paper does not state its vocabulary layout.
"""

from collections.abc import Sequence

PADDING_ID = 0
UNKNOWN_ID = 1
BEGIN_OF_TEXT_ID = 2
END_OF_TEXT_ID = 3
NUM_SPECIAL_IDS = 4


def text_slots(token_ids: Sequence[int], text_length: int) -> list[int]:
    """Lay a caption's ids into a fixed number of slots: ids, end of text, padding.

    A caption with no room left for its end of text is cut; the end of text then is missing,
    which tells the model that the caption goes on.

    Args:
        token_ids: the caption's ids without special ids.
        text_length: number of slots.

    Returns:
        exactly `text_length` ids.
    """
    ids = [*token_ids, END_OF_TEXT_ID][:text_length]
    return ids + [PADDING_ID] * (text_length - len(ids))


def caption_ids(slots: Sequence[int]) -> list[int]:
    """Return the ids before the end of text: the inverse of `text_slots`."""
    ids = list(slots)
    for stop in (END_OF_TEXT_ID, PADDING_ID):
        if stop in ids:
            ids = ids[: ids.index(stop)]
    return ids
