"""A caption fills its slots with ids, end of text and padding."""

import pytest

from ernie_vilg.vocabulary import caption_ids, readable, text_slots

PAD, BEGIN, END = 0, 2, 3


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


def bytes_of(text: str) -> list[int]:
    """Return a text's ids where no character has a piece: the bytes begin at id 4."""
    return [4 + byte for byte in text.encode()]


@pytest.mark.parametrize(
    ("ids", "slots"),
    [
        pytest.param([300, *bytes_of("龘")], [300, *bytes_of("龘")], id="a character just fits"),
        pytest.param([300, 301, *bytes_of("龘")], [300, 301, PAD, PAD], id="two bytes of three"),
        pytest.param([300, 301, 302, *bytes_of("é")], [300, 301, 302, PAD], id="one of two"),
        pytest.param([300, *bytes_of("😀")], [300, PAD, PAD, PAD], id="three of four"),
        pytest.param(bytes_of("a龘é"), bytes_of("a龘"), id="cut between two"),
        pytest.param(bytes_of("ab龘"), [*bytes_of("ab"), PAD, PAD], id="ASCII is whole"),
        pytest.param(bytes_of("éab龘"), bytes_of("éab")[:4], id="an earlier one is whole"),
        pytest.param([*bytes_of("龘"), 300, 301], [*bytes_of("龘"), 300], id="a piece after it"),
        pytest.param(bytes_of("龘") + [301] * 4, [*bytes_of("龘"), 301], id="pieces after it"),
    ],
)
def test_no_cut_falls_within_a_character(ids: list[int], slots: list[int]) -> None:
    assert text_slots(ids, 4) == slots


def test_a_caption_without_room_for_its_first_character_is_empty() -> None:
    assert text_slots(bytes_of("😀"), 3) == [END, PAD, PAD]


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


@pytest.mark.parametrize(
    ("ids", "slots"),
    [
        pytest.param([7, BEGIN, 8], [7, BEGIN, 8, END, PAD, PAD], id="room to spare"),
        pytest.param([7, 8, 9, BEGIN, 5], [7, 8, 9, BEGIN, 5, END], id="just fits with its end"),
        pytest.param(
            [7, 8, 9, BEGIN, 5, 6], [7, 8, BEGIN, 5, 6, END], id="question cut, end of text kept"
        ),
        pytest.param(
            [*bytes_of("龘"), BEGIN, 500, 501], [BEGIN, 500, 501, END, PAD, PAD],
            id="no cut within a character of the question",
        ),
        pytest.param([7] * 9 + [BEGIN, 5, 6, 7, 8], [BEGIN, 5, 6, 7, 8, END], id="answer alone"),
        pytest.param([7, BEGIN, 4, 5, 6, 7, 8], [BEGIN, 4, 5, 6, 7, 8], id="fits without its end"),
        pytest.param([7, BEGIN, 4, 5, 6, 7, 8, 9], [BEGIN, 4, 5, 6, 7, 8], id="answer cut"),
        pytest.param(
            [7, BEGIN, 500, 501, 502, *bytes_of("龘")], [BEGIN, 500, 501, 502, PAD, PAD],
            id="no cut within a character of the answer",
        ),
    ],
)  # fmt: skip
def test_a_question_is_cut_so_that_its_answer_fits(ids: list[int], slots: list[int]) -> None:
    assert text_slots(ids, 6) == slots


def test_people_read_question_and_answer() -> None:
    assert readable("几只猫？\u241f两只。") == "Q: 几只猫？ A: 两只。"
    assert readable("两只猫") == "两只猫"
