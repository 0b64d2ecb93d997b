"""The card's figures are counted on the captions that are given."""

import pytest

from ernie_vilg.text_tokenizer import TextTokenizer
from ernie_vilg.text_tokenizer.card import card_text
from ernie_vilg.text_tokenizer.figures import measure_text_tokenizer
from ernie_vilg.text_tokenizer.word_piece import word_piece_model


@pytest.fixture
def tokenizer() -> TextTokenizer:
    pieces = [*"红绿色a", "##a"]
    model = word_piece_model(pieces, lower_case=True, strip_accents=True)
    return TextTokenizer(model, "", "wordpiece")


def test_the_figures_are_those_counted_by_hand(tokenizer: TextTokenizer) -> None:
    captions = ["红色"] * 17 + ["红" * 16] + ["aa é"] + ["龘红"]

    figures = measure_text_tokenizer(tokenizer, captions)

    # Ids: 2 each, 16, 4 (a, ##a, a space and an e in bytes), 4 (three bytes and a piece).
    assert figures["captions"] == 20
    assert figures["characters"] == 17 * 2 + 16 + 3 + 2
    assert figures["character_coverage"] == pytest.approx(1 - 2 / 55)  # e and the rare one
    assert figures["captions_with_byte_ids"] == pytest.approx(2 / 20)
    assert figures["byte_ids"] == pytest.approx(5 / 58)
    assert figures["unknown_ids"] == 0
    assert figures["ids_per_character"] == pytest.approx(58 / 55)
    assert figures["length_mean"] == pytest.approx(58 / 20 + 1)
    assert [figures[f"length_{name}"] for name in ("p50", "p95", "p99", "max")] == [3, 5, 17, 17]
    # Slots of 16 have no room for the end of the longest caption's 16 ids.
    fits = {"16": 0.95, "32": 1.0, "64": 1.0, "128": 1.0, "256": 1.0}
    assert figures["fits_text_length"] == pytest.approx(fits)


def test_without_captions_nothing_is_measured(tokenizer: TextTokenizer) -> None:
    assert measure_text_tokenizer(tokenizer, []) == {}


def test_the_card_holds_figures_origin_and_settings(tokenizer: TextTokenizer) -> None:
    text = card_text(
        {
            "kind": "wordpiece",
            "vocab_size": 265,
            "sha256": "ab",
            "made_from": {"vocabulary": {"file": "vocab.txt"}, "settings": {"lower_case": True}},
            "figures": measure_text_tokenizer(tokenizer, ["红色", "龘"]),
        }
    )

    assert "WordPiece vocabulary with 265 ids" in text
    assert "| vocabulary.file | vocab.txt |" in text
    assert "| characters with a piece | 66.6667% |" in text
    assert "| captions whole in text_length=64 | 100.000% |" in text
    assert "| lower_case | True |" in text
