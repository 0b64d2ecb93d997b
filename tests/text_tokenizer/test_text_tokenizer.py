"""Text becomes ids and text again, and a hash identifies the tokenizer."""

import io
from pathlib import Path

import pytest
import sentencepiece

from data_pipelines.captions import clean_caption
from ernie_vilg.config.text_tokenizer import TrainTextTokenizerConfig
from ernie_vilg.errors import InputError
from ernie_vilg.shapes.captions import caption_of
from ernie_vilg.shapes.scenes import all_scenes
from ernie_vilg.storage.files import sha256_of_file, write_json
from ernie_vilg.storage.json_files import read_json
from ernie_vilg.text_tokenizer import (
    DESCRIPTION_FILE,
    MODEL_FILE,
    WORD_PIECE_FILE,
    TextTokenizer,
    train_text_tokenizer,
    write_text_tokenizer,
)
from ernie_vilg.text_tokenizer.sentence_piece import restore_full_width
from ernie_vilg.vocabulary import (
    BEGIN_OF_TEXT_ID,
    END_OF_TEXT_ID,
    NUM_SPECIAL_IDS,
    PADDING_ID,
    UNKNOWN_ID,
)

SCENES = [*all_scenes(1), *all_scenes(2)]
CAPTIONS = [caption_of(scene) for scene in SCENES[::11]]


def settings(**values: object) -> TrainTextTokenizerConfig:
    defaults = {"vocab_size": 315, "model_type": "bpe", "max_piece_length": 6}
    return TrainTextTokenizerConfig(shards="unused", output_dir="unused", **{**defaults, **values})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text_tokenizer")
    write_text_tokenizer(folder, train_text_tokenizer(CAPTIONS, settings()), {"by": "a test"})
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> TextTokenizer:
    return TextTokenizer.load(folder)


def copy_of(folder: Path, tmp_path: Path) -> Path:
    for name in (MODEL_FILE, DESCRIPTION_FILE):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    return tmp_path


def test_every_built_in_caption_comes_back_exactly(tokenizer: TextTokenizer) -> None:
    for scene in SCENES:
        caption = caption_of(scene)
        assert tokenizer.decode(tokenizer.encode(caption)) == caption


def test_a_built_in_caption_takes_at_most_eight_slots(tokenizer: TextTokenizer) -> None:
    longest = max(len(tokenizer.encode(caption_of(scene))) for scene in SCENES)

    # Quadrant, colour, size and shape, comma, and the same again; one slot for the end.
    assert longest == 7


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("<pad></s><s><unk>", id="names of special ids"),
        pytest.param("<0x41><0xE5>", id="names of bytes"),
        pytest.param("龘😀é", id="characters never seen in training"),
        pytest.param("按键: #", id="ASCII colon with a space after it"),
        pytest.param("hot  pepper, 12:30 (a?)!", id="ASCII text"),
        pytest.param("你好（世界），真的吗？！", id="full-width marks of all kinds"),
        pytest.param("按键：红；好", id="full-width colon and semicolon"),
    ],
)
def test_text_comes_back_and_yields_no_special_id(tokenizer: TextTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)

    assert min(ids) >= NUM_SPECIAL_IDS
    assert max(ids) < tokenizer.vocab_size
    assert tokenizer.decode(ids) == " ".join(text.split())


def test_empty_text_has_no_ids(tokenizer: TextTokenizer) -> None:
    assert tokenizer.encode("") == []
    assert tokenizer.decode([]) == ""


def test_full_width_letters_share_ids_with_half_width_ones(tokenizer: TextTokenizer) -> None:
    assert tokenizer.encode("ＡＢＣ１") == tokenizer.encode("ABC1")


def test_special_ids_decode_to_nothing(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode("红色")

    assert tokenizer.decode([UNKNOWN_ID, *ids, END_OF_TEXT_ID, PADDING_ID]) == "红色"


def test_a_question_and_its_answer_have_a_begin_of_text_between(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode("红色？\u241f绿色，圆")

    assert ids == [*tokenizer.encode("红色？"), BEGIN_OF_TEXT_ID, *tokenizer.encode("绿色，圆")]
    assert tokenizer.decode(ids) == "红色？\u241f绿色，圆"


def test_bytes_that_are_no_text_decode_to_the_replacement_character(
    tokenizer: TextTokenizer,
) -> None:
    first_byte_of_a_character = tokenizer.encode("龘")[0]

    assert tokenizer.decode([first_byte_of_a_character]) == "\ufffd"


@pytest.mark.parametrize("bad_id", [-1, 315])
def test_an_id_outside_the_vocabulary_is_refused(tokenizer: TextTokenizer, bad_id: int) -> None:
    with pytest.raises(ValueError, match="this text tokenizer has ids from 0 to 314"):
        tokenizer.decode([5, bad_id])


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_the_same_captions_give_the_same_model(model_type: str) -> None:
    models = {
        train_text_tokenizer(CAPTIONS[:300], settings(model_type=model_type)) for _ in range(2)
    }

    assert len(models) == 1


def test_more_pieces_than_the_captions_hold_are_not_invented() -> None:
    model = train_text_tokenizer(CAPTIONS[:300], settings(vocab_size=5000, model_type="unigram"))

    assert TextTokenizer(model, "").vocab_size < 1000


def test_a_caption_longer_than_sentencepiece_reads_by_default_is_learned_from() -> None:
    model = train_text_tokenizer(
        ["红" * 3000 + "绿"], settings(vocab_size=270, character_coverage=1.0)
    )

    assert len(TextTokenizer(model, "").encode("绿")) == 1


def test_a_caption_with_the_sign_that_sentencepiece_reserves_is_learned_from(
    caplog: pytest.LogCaptureFixture,
) -> None:
    captions = ["红绿蓝"] * 9 + ["\u2585龘龘"] * 9 + ["\u2585"] * 2

    model = train_text_tokenizer(captions, settings(vocab_size=270, character_coverage=1.0))

    tokenizer = TextTokenizer(model, "")
    assert len(tokenizer.encode("龘")) == 1
    assert tokenizer.decode(tokenizer.encode("\u2585龘")) == "\u2585龘"
    assert "11 captions contain U+2585" in caplog.text


def test_a_caption_beyond_what_sentencepiece_takes_is_refused() -> None:
    captions = ["红", "绿" * (1 << 19)]

    with pytest.raises(ValueError, match=r"a caption has 1,572,864 bytes .* shorten it"):
        train_text_tokenizer(captions, settings(vocab_size=270, character_coverage=1.0))


def test_a_model_without_byte_fallback_is_refused() -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS), model_writer=model, vocab_size=50, model_type="bpe",
        pad_id=0, unk_id=1, bos_id=2, eos_id=3, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip

    with pytest.raises(ValueError, match="ids 4 to 259 are not the 256 bytes"):
        TextTokenizer(model.getvalue(), "")


def test_what_is_said_alike_has_the_same_ids(tokenizer: TextTokenizer) -> None:
    """Other forms of the same words: training, drawing and evaluation treat them alike."""
    forms = ("红色Ae\u0301", "红\u200b色Ａ\u202e\u00e9", "\ufeff红色\uff21\u00e9\u2028")

    ids = [tokenizer.encode(clean_caption(form, max_characters=99)) for form in forms]

    assert ids[1:] == ids[:1] * 2


def test_no_captions_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"vocab_size=315, .*: SentencePiece cannot learn it"):
        train_text_tokenizer([], settings())


def test_too_small_a_vocabulary_is_an_error() -> None:
    many_characters = "".join(chr(code) for code in range(0x4E00, 0x4E80))

    with pytest.raises(ValueError, match="take 388 ids: set vocab_size to at least 388"):
        train_text_tokenizer([many_characters], settings(vocab_size=300, character_coverage=1.0))


def test_the_hash_of_the_model_is_recorded(folder: Path, tokenizer: TextTokenizer) -> None:
    description = read_json(folder / DESCRIPTION_FILE)

    assert description["sha256"] == sha256_of_file(folder / MODEL_FILE) == tokenizer.sha256
    assert description["vocab_size"] == tokenizer.vocab_size == 315
    assert description["made_from"] == {"by": "a test"}
    assert description["kind"] == "sentencepiece"


def test_a_folder_written_before_there_were_kinds_is_read(folder: Path, tmp_path: Path) -> None:
    copy = copy_of(folder, tmp_path)
    description = read_json(copy / DESCRIPTION_FILE)
    del description["kind"], description["figures"]
    write_json(copy / DESCRIPTION_FILE, description)

    assert TextTokenizer.load(copy).kind == "sentencepiece"


def test_a_folder_with_models_of_both_kinds_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = copy_of(folder, tmp_path)
    (copy / WORD_PIECE_FILE).write_text("{}")

    with pytest.raises(InputError, match=r"has both text_tokenizer\.model and .*wordpiece\.json"):
        TextTokenizer.load(copy)


def test_a_model_of_another_kind_than_recorded_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = copy_of(folder, tmp_path)
    description = read_json(copy / DESCRIPTION_FILE)
    write_json(copy / DESCRIPTION_FILE, {**description, "kind": "wordpiece"})

    with pytest.raises(InputError, match="records the kind 'wordpiece': copy the whole folder"):
        TextTokenizer.load(copy)


def test_a_changed_model_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = copy_of(folder, tmp_path)
    content = bytearray((copy / MODEL_FILE).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / MODEL_FILE).write_bytes(content)

    with pytest.raises(ValueError, match="it is damaged or was replaced"):
        TextTokenizer.load(copy)


@pytest.mark.parametrize("name", [MODEL_FILE, DESCRIPTION_FILE])
def test_a_missing_file_is_named(folder: Path, tmp_path: Path, name: str) -> None:
    (copy_of(folder, tmp_path) / name).unlink()

    with pytest.raises(ValueError, match=f"has no {name}: name a folder written by"):
        TextTokenizer.load(tmp_path)


def test_a_description_of_another_version_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = copy_of(folder, tmp_path)
    description = read_json(copy / DESCRIPTION_FILE)
    write_json(copy / DESCRIPTION_FILE, {**description, "format_version": 99})

    with pytest.raises(ValueError, match="format_version 99, this code reads 1"):
        TextTokenizer.load(copy)


def test_bytes_that_are_no_model_are_refused() -> None:
    with pytest.raises(ValueError, match="not a SentencePiece model"):
        TextTokenizer(b"no model", "")


@pytest.mark.parametrize(
    ("ascii_text", "restored"),
    [
        pytest.param("红,蓝", "红，蓝", id="comma between Chinese characters"),
        pytest.param("红,A", "红，A", id="comma after a Chinese character"),
        pytest.param("A,红", "A,红", id="comma after a letter"),
        pytest.param("红, 蓝", "红, 蓝", id="comma with a space after it"),
        pytest.param("按键: #", "按键: #", id="colon with a space after it"),
        pytest.param("真的?!", "真的？！", id="two marks in a row"),
        pytest.param("12:30", "12:30", id="a time"),
        pytest.param("好(A)吗", "好（A）吗", id="a parenthesis closes as it opened"),
        pytest.param("f(好)", "f(好)", id="parentheses after a letter"),
        pytest.param("(笑)好", "（笑）好", id="parenthesis at the start"),
        pytest.param("(a) 好", "(a) 好", id="ASCII parenthesis at the start"),
        pytest.param("好(f(x))", "好（f(x)）", id="nested parentheses"),
        pytest.param("好)", "好)", id="closing parenthesis without an opening one"),
        pytest.param("カナ!", "カナ！", id="kana"),
        pytest.param("한국어,", "한국어,", id="Korean has ASCII marks"),
        pytest.param("", "", id="nothing"),
    ],
)
def test_full_width_marks_stand_where_chinese_has_them(ascii_text: str, restored: str) -> None:
    assert restore_full_width(ascii_text) == restored


@pytest.mark.parametrize(
    ("values", "message"),
    [
        pytest.param({"vocab_size": 260}, "vocab_size=260: must be above 260", id="no room"),
        pytest.param(
            {"model_type": "word"}, "model_type=word: choose unigram or bpe", id="unknown type"
        ),
        pytest.param({"character_coverage": 1.5}, "character_coverage=1.5", id="more than all"),
        pytest.param({"max_piece_length": 0}, "max_piece_length=0", id="empty pieces"),
        pytest.param({"sample_captions": 0}, "sample_captions=0", id="no captions"),
        pytest.param({"held_out_fraction": 1.0}, "held_out_fraction=1.0", id="all held out"),
        pytest.param(
            {"max_caption_characters": 1 << 19}, "SentencePiece skips longer lines", id="too long"
        ),
    ],
)
def test_bad_settings_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**values)
