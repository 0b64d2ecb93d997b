"""Special ids and byte ids of text, and the layout of a caption in its slots.

Text and images keep separate vocabularies. A text id indexes the text embedding and the text half
of the output head, an image code indexes the image embedding and the image half, so neither needs
an offset, and each direction computes only its own half of the logits. The paper does not state its
vocabulary layout.

A text is a caption, or a question and its answer. The question's ids come first, then
BEGIN_OF_TEXT_ID, then the answer's. No tokenizer writes BEGIN_OF_TEXT_ID within a caption, so the
ids alone tell which slots are targets. The paper's order of picture, question and answer is not
stated; this one keeps the answer last, next to its end of text. Source: ours.
"""

from collections.abc import Sequence

PADDING_ID = 0
UNKNOWN_ID = 1
BEGIN_OF_TEXT_ID = 2
END_OF_TEXT_ID = 3
NUM_SPECIAL_IDS = 4
SPECIAL_IDS = {
    "padding": PADDING_ID,
    "unknown": UNKNOWN_ID,
    "begin_of_text": BEGIN_OF_TEXT_ID,
    "end_of_text": END_OF_TEXT_ID,
}
"""Special ids by name, as text tokenizers record them."""
FIRST_BYTE_ID = NUM_SPECIAL_IDS
NUM_BYTES = 256
"""Number of ids of byte fallback, in the order of the bytes: a character without a piece is written
as its UTF-8 bytes. So it is in every text tokenizer, imported ones included: cutting a caption
(`num_whole_ids`) and the audit of shards recognise a byte by its id alone."""
NUM_RESERVED_IDS = NUM_SPECIAL_IDS + NUM_BYTES
"""Number of ids before the first piece."""
QUESTION_END = "\u241f"
"""Character between a question and its answer where both are one text. Cleaning removes it from
every caption."""


def readable(text: str) -> str:
    """Return a text as people read it: a question and its answer are named."""
    question, end, answer = text.partition(QUESTION_END)
    return f"Q: {question} A: {answer}" if end else text


def text_slots(token_ids: Sequence[int], text_length: int) -> list[int]:
    """Put a caption's ids into a fixed number of slots: ids, end of text, padding.

    A caption without room for its end of text is cut after the last character that fits whole. Its
    end of text is then missing, which tells the model that the caption goes on. Of a question and
    an answer that do not fit, the question is cut, so that the answer is whole; an answer that does
    not fit alone is cut like a caption, and nothing of its question is left.

    Args:
        token_ids: the caption's ids without special ids, or those of a question, BEGIN_OF_TEXT_ID
            and those of its answer.
        text_length: number of slots.

    Returns:
        exactly `text_length` ids.
    """
    if BEGIN_OF_TEXT_ID in token_ids and len(token_ids) >= text_length:
        return _slots_of_answer(token_ids, text_length)
    ids = [*token_ids, END_OF_TEXT_ID]
    if len(token_ids) > text_length:
        # If no character fits, the caption is empty and has its end of text.
        ids = ids[: num_whole_ids(ids[:text_length])] or [END_OF_TEXT_ID]
    ids = ids[:text_length]
    return ids + [PADDING_ID] * (text_length - len(ids))


def _slots_of_answer(token_ids: Sequence[int], text_length: int) -> list[int]:
    """Put a question and its answer, which need more slots, into these; at least 2."""
    begin = list(token_ids).index(BEGIN_OF_TEXT_ID)
    question, answer = token_ids[:begin], token_ids[begin + 1 :]
    room = max(0, text_length - len(answer) - 2)  # begin and end of text
    question = question[: num_whole_ids(question[:room])]
    rest = text_slots(answer, text_length - len(question) - 1)
    return [*question, BEGIN_OF_TEXT_ID, *rest]


def num_whole_ids(ids: Sequence[int]) -> int:
    """Return the number of a cut caption's ids without an incomplete character at its end.

    Only UTF-8 bytes can be part of a character: a lead byte from 0xC0 tells how many bytes follow
    it, each from 0x80 to 0xBF.
    """
    for count in range(1, min(4, len(ids)) + 1):  # bytes of the last character, if it is in bytes
        byte = ids[-count] - FIRST_BYTE_ID
        if not 0x80 <= byte < NUM_BYTES:
            break
        if byte >= 0xC0:
            needed = 2 + (byte >= 0xE0) + (byte >= 0xF0)
            return len(ids) - count if count < needed else len(ids)
    return len(ids)


def caption_ids(slots: Sequence[int]) -> list[int]:
    """Return the ids before the end of text, the inverse of `text_slots`.

    Those of a question and its answer have BEGIN_OF_TEXT_ID between them.
    """
    ids = list(slots)
    for stop in (END_OF_TEXT_ID, PADDING_ID):
        if stop in ids:
            ids = ids[: ids.index(stop)]
    return ids
