"""A vocabulary file is read as it is, or refused with its line."""

from pathlib import Path

import pytest

from ernie_vilg.errors import InputError
from ernie_vilg.text_tokenizer.vocabulary_file import read_vocabulary

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "vocab.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("\n".join([*SPECIAL, "[unused1]", "红", "##a", "\u2028"]), id="BERT's"),
        pytest.param(
            "\n".join([*SPECIAL, "[unused1]", "红", "##a", "\u2028"]) + "\n", id="last line whole"
        ),
        pytest.param(
            "\ufeff" + "\r\n".join([*SPECIAL, "[unused1]", "红", "##a", "\u2028"]), id="of Windows"
        ),
        pytest.param(
            "[PAD]\t0\n[CLS]\t1\n[unused1]\t2\n红\t3\n##a\t4\n\u2028\t5\n[UNK]\t6\n",
            id="ERNIE's, with numbers and another order",
        ),
    ],
)
def test_pieces_keep_their_order(tmp_path: Path, content: str) -> None:
    vocabulary = read_vocabulary(written(tmp_path, content))

    assert vocabulary.pieces == ("[unused1]", "红", "##a", "\u2028")
    assert "[UNK]" in vocabulary.special
    assert vocabulary.num_unused == 1


def test_of_a_rare_repetition_the_last_line_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    others = [f"piece{index}" for index in range(200)]

    vocabulary = read_vocabulary(written(tmp_path, "\n".join(["$", "[UNK]", *others, "$"])))

    assert vocabulary.pieces == (*others, "$")
    assert "1 of 203 lines" in caplog.text
    assert "'$' in lines 1 and 203: of each, the last line counts" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param("[PAD]\n红\n", r"has no line \[UNK\]", id="no unknown entry"),
        pytest.param("", r"has no line \[UNK\]", id="empty file"),
        pytest.param("[UNK]\n红\n绿\n红\n", "'红' in lines 2 and 4, and entries", id="repeated"),
        pytest.param("[UNK]\n红\n\n绿\n", "line 3 of .* is empty", id="empty line"),
        pytest.param("[UNK]\n红\n\n", "line 3 of .* is empty", id="empty last line"),
        pytest.param(b"[UNK]\n\xba\xec\n", "line 2 of .* is not UTF-8", id="GBK"),
        pytest.param("[UNK]\n[PAD]\n", "has no pieces besides", id="special entries alone"),
        pytest.param(
            "[UNK]\t0\n红\t2\n", "line 2 of .* ends with '2' where the number 1", id="gap"
        ),
        pytest.param("[UNK]\t0\n红\n", "line 2 of .* where the number 1", id="number missing"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_vocabulary(written(tmp_path, content))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"vocabulary=.*nothing\.txt does not exist"):
        read_vocabulary(tmp_path / "nothing.txt")
