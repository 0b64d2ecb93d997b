"""An imported vocabulary cuts text as BERT does; what BERT calls unknown is written in bytes."""

import itertools
import random
from pathlib import Path

import pytest

from ernie_vilg.errors import InputError
from ernie_vilg.shapes.captions import caption_of
from ernie_vilg.shapes.scenes import all_scenes
from ernie_vilg.storage.files import json_bytes
from ernie_vilg.text_tokenizer import (
    DESCRIPTION_FILE,
    WORD_PIECE_FILE,
    TextTokenizer,
    write_text_tokenizer,
)
from ernie_vilg.text_tokenizer.word_piece import word_piece_model
from ernie_vilg.vocabulary import (
    BEGIN_OF_TEXT_ID,
    QUESTION_END,
    UNKNOWN_ID,
    caption_ids,
    num_whole_ids,
    text_slots,
)

PIECES = (
    *"红绿色的圆，。（“—_,.!?:()-$%'一",
    *(letter for letter in "abcdefghijklmnopqrstuvwxyz0123456789"),
    *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz0123456789"),
    *(
        "red",
        "circle",
        "##s",
        "##cle",
        "cir",
        "un",
        "##able",
        "caf",
        "Red",
        "カ",
        "##タ",
        "[unused1]",
    ),
)
PIECES = tuple(dict.fromkeys(PIECES))
FIRST_PIECE = 260


def made(*, lower_case: bool = True, strip_accents: bool = True) -> TextTokenizer:
    model = word_piece_model(PIECES, lower_case=lower_case, strip_accents=strip_accents)
    return TextTokenizer(model, "", "wordpiece")


def pieces_of(tokenizer: TextTokenizer, text: str) -> list[str]:
    """Return the pieces of a text; bytes as <0xE5>."""
    return [
        PIECES[text_id - FIRST_PIECE] if text_id >= FIRST_PIECE else f"<0x{text_id - 4:02X}>"
        for text_id in tokenizer.encode(text)
    ]


def bytes_of(text: str) -> list[str]:
    return [f"<0x{byte:02X}>" for byte in text.encode()]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        pytest.param("红色的圆", [*"红色的圆"], id="Chinese characters apart"),
        pytest.param("Red circles", ["red", "circle", "##s"], id="the longest piece first"),
        pytest.param("cirx", ["cir", "##x"], id="a piece within a word"),
        pytest.param("一red，(un)", ["一", "red", "，", "(", "un", ")"], id="marks apart"),
        pytest.param("Café", ["caf", "##e"], id="accents removed"),
        pytest.param("r\u200bed\u3000\n红", ["red", "红"], id="format characters and spaces"),
        pytest.param("[unused1]", [*bytes_of("["), "un", "##u", "##s", "##e", "##d", "##1",
                                   *bytes_of("]")], id="no text gives an unused entry"),
        pytest.param("龘", bytes_of("龘"), id="a character without a piece"),
        pytest.param("红龘绿", ["红", *bytes_of("龘"), "绿"], id="such a character among others"),
        pytest.param("red😀s", ["red", *bytes_of("😀"), "##s"], id="within a word, which goes on"),
        pytest.param("red 😀", ["red", *bytes_of(" 😀")], id="as a word, with its space"),
        pytest.param("红 😀", ["红", *bytes_of("😀")], id="beside Chinese no space is kept"),
        pytest.param("", [], id="nothing"),
    ],
)  # fmt: skip
def test_text_is_cut_into_pieces(text: str, pieces: list[str]) -> None:
    assert pieces_of(made(), text) == pieces


def test_case_and_accents_stay_where_the_vocabulary_has_them() -> None:
    tokenizer = made(lower_case=False, strip_accents=False)

    assert pieces_of(tokenizer, "Red café") == ["Red", "caf", *bytes_of("é")]
    assert tokenizer.decode(tokenizer.encode("Red café")) == "Red café"


@pytest.mark.parametrize(
    ("text", "decoded"),
    [
        pytest.param("红色的圆", "红色的圆", id="Chinese"),
        pytest.param("red circles", "red circles", id="Latin words"),
        pytest.param("一 red 圆", "一red圆", id="no space beside Chinese"),
        pytest.param("red, unable: why?", "red, unable: why?", id="after marks"),
        pytest.param("3.5 at 12:30", "3.5 at 12:30", id="numbers"),
        pytest.param(
            "a (red) dot-com it's $5, 7%!", "a (red) dot-com it's $5,7%!", id="other marks"
        ),
        pytest.param("红，绿。", "红，绿。", id="full-width marks"),
        pytest.param("龘 red 😀 😀x", "龘red 😀 😀x", id="bytes"),
        pytest.param("カタ カタ", "カタ カタ", id="kana"),
        pytest.param("한국어 가", "한국어 가", id="Hangul, decomposed and composed again"),
        pytest.param("  red  ", "red", id="spaces around"),
    ],
)
def test_text_comes_back_with_spaces_between_latin_words(text: str, decoded: str) -> None:
    tokenizer = made()
    ids = tokenizer.encode(text)

    assert tokenizer.decode(ids) == decoded
    assert tokenizer.encode(decoded) == ids
    assert tokenizer.comparable(decoded) == tokenizer.comparable(text)
    assert UNKNOWN_ID not in ids


def test_bytes_that_are_no_text_decode_to_the_replacement_character() -> None:
    tokenizer = made()
    first_byte = tokenizer.encode("龘")[0]

    assert tokenizer.decode([first_byte, *tokenizer.encode("红")]) == "\ufffd红"


def test_special_ids_decode_to_nothing_and_others_are_refused() -> None:
    tokenizer = made()

    assert tokenizer.decode([0, UNKNOWN_ID, *tokenizer.encode("红"), 3, 0]) == "红"
    with pytest.raises(InputError, match="this text tokenizer has ids from 0 to"):
        tokenizer.decode([tokenizer.vocab_size])


def test_a_question_and_its_answer_come_back() -> None:
    tokenizer = made()
    question, answer = "红色", "圆"

    ids = tokenizer.encode(f"{question}{QUESTION_END}{answer}")

    assert ids == [*tokenizer.encode(question), BEGIN_OF_TEXT_ID, *tokenizer.encode(answer)]
    assert tokenizer.decode(ids) == f"{question}{QUESTION_END}{answer}"


def test_a_cut_caption_ends_at_a_whole_character() -> None:
    tokenizer = made()
    ids = tokenizer.encode("红色龘圆")  # a piece, a piece, three bytes, a piece

    decoded = [tokenizer.decode(caption_ids(text_slots(ids, length))) for length in range(1, 8)]

    assert decoded == ["红", "红色", "红色", "红色", "红色龘", "红色龘圆", "红色龘圆"]


def test_no_piece_is_taken_for_a_byte() -> None:
    """Cutting looks at bytes alone: whatever pieces a caption ends with, all of them stay."""
    tokenizer = made()
    for first in range(FIRST_PIECE, tokenizer.vocab_size):
        assert num_whole_ids([first] * 3) == 3
    assert tokenizer.vocab_size == FIRST_PIECE + len(PIECES)


def random_texts(*, count: int) -> list[str]:
    rng = random.Random(0)
    alphabet = [
        *"红绿色的圆，。（“—》",
        *"abcdeABCéÉüñ,.!?()-_'\"123 %$#龘😀カタ한 \t\u200d\u3000\x0b\u2028\ufffd",
        *map(chr, range(0x20, 0x250)),
        *("red", "circle", " un", "able "),
    ]
    return ["".join(rng.choices(alphabet, k=rng.randrange(1, 30))) for _ in range(count)]


@pytest.mark.parametrize("lower_case", [True, False], ids=["lower case", "case kept"])
def test_known_words_have_the_pieces_of_the_reference(lower_case: bool) -> None:
    """Against `tokenizers`, word by word; its unknown words are in bytes here, at least partly."""
    reason = "needs pip install 'ernie-vilg[scorers]', which brings tokenizers"
    tokenizers = pytest.importorskip("tokenizers", reason=reason)
    ours = made(lower_case=lower_case, strip_accents=lower_case)
    entries = ["[UNK]", *PIECES]
    model = tokenizers.models.WordPiece(
        {piece: index for index, piece in enumerate(entries)}, unk_token="[UNK]"
    )
    reference = tokenizers.Tokenizer(model)
    normalizer = tokenizers.normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=lower_case, lowercase=lower_case
    )
    cutter = tokenizers.pre_tokenizers.BertPreTokenizer()
    num_known = num_unknown = 0
    for text in [*random_texts(count=1500), *map(caption_of, list(all_scenes(1))[:20])]:
        words = [word for word, _ in cutter.pre_tokenize_str(normalizer.normalize_str(text))]
        assert ours.comparable(text) == ours.comparable("".join(words))
        expected = [reference.encode(word).tokens for word in words]
        for word, tokens in zip(words, expected, strict=True):
            found = pieces_of(ours, word)
            if tokens == ["[UNK]"]:
                num_unknown += 1
                assert any(piece.startswith("<0x") for piece in found), word
            else:
                num_known += 1
                assert found == tokens, word
        if ["[UNK]"] not in expected:
            assert pieces_of(ours, text) == [*itertools.chain(*expected)]
        ids = ours.encode(text)
        assert ours.encode(ours.decode(ids)) == ids, text
    assert num_known > 1000
    assert num_unknown > 1000


def test_the_folder_is_loaded_like_any_other(tmp_path: Path) -> None:
    model = word_piece_model(PIECES, lower_case=True, strip_accents=True)

    written = write_text_tokenizer(tmp_path, model, {"by": "a test"}, kind="wordpiece")

    loaded = TextTokenizer.load(tmp_path)
    assert loaded.kind == "wordpiece"
    assert loaded.sha256 == written.sha256
    assert loaded.encode("红 circle") == written.encode("红 circle")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {WORD_PIECE_FILE, DESCRIPTION_FILE, "README.md"}


def test_the_hash_tells_settings_apart() -> None:
    models = {
        word_piece_model(PIECES, lower_case=lower_case, strip_accents=strip_accents)
        for lower_case in (True, False)
        for strip_accents in (True, False)
    }

    assert len(models) == 4


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"no model", id="no JSON"),
        pytest.param(b"[]", id="no object"),
        pytest.param(json_bytes({"format_version": 1, "pieces": ["a"]}), id="settings missing"),
        *(
            pytest.param(
                json_bytes(
                    {
                        "format_version": version,
                        "lower_case": True,
                        "strip_accents": True,
                        "pieces": pieces,
                    }
                ),
                id=name,
            )
            for version, pieces, name in (
                (9, ["a"], "another version"),
                (1, [], "no pieces"),
                (1, ["a", ""], "an empty piece"),
                (1, ["a", "a"], "a piece twice"),
                (1, ["a", 5], "a number"),
                (1, "abc", "a text"),
            )
        ),
    ],
)
def test_what_is_no_model_is_refused(content: bytes) -> None:
    with pytest.raises(InputError, match=r"not valid JSON|where an object|import the vocabulary"):
        TextTokenizer(content, "", "wordpiece")
