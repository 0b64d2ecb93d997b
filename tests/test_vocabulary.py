"""How a caption fills its slots."""

import pytest

from ernie_vilg.vocabulary import caption_ids, text_slots

PAD, END = 0, 3


@pytest.mark.parametrize(
    ("ids", "slots"),
    [
        pytest.param([], [END, PAD, PAD, PAD], id="no text: end at once"),
        pytest.param([7, 8], [7, 8, END, PAD], id="room to spare"),
        pytest.param([7, 8, 9], [7, 8, 9, END], id="just fits with its end"),
        pytest.param([7, 8, 9, 10], [7, 8, 9, 10], id="fits without its end"),
        pytest.param([7, 8, 9, 10, 11], [7, 8, 9, 10], id="cut"),
    ],
)
def test_text_is_followed_by_its_end_and_padding(ids: list[int], slots: list[int]) -> None:
    assert text_slots(ids, 4) == slots


@pytest.mark.parametrize(
    ("slots", "ids"),
    [
        pytest.param([7, 8, END, PAD], [7, 8], id="up to the end"),
        pytest.param([7, 8, END, 9], [7, 8], id="nothing after the end counts"),
        pytest.param([7, PAD, 8, END], [7], id="padding before the end, as a model may generate"),
        pytest.param([7, 8, 9, 10], [7, 8, 9, 10], id="no end"),
        pytest.param([END, 7], [], id="end at once"),
        pytest.param([], [], id="no slots"),
    ],
)
def test_a_caption_is_what_comes_before_its_end(slots: list[int], ids: list[int]) -> None:
    assert caption_ids(slots) == ids
