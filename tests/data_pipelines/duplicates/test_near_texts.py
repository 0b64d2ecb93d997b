import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.duplicates.near_texts import choose_band_size, shingles_of
from ernie_vilg.errors import InputError
from tests.data_pipelines.duplicates.tables import find, reasons, row


def number_of(shingle: str) -> int:
    first, second, third = (ord(character) for character in shingle)
    return (first << 42) + (second << 21) + third


def test_shingles_are_the_distinct_runs_of_three_characters() -> None:
    shingles, offsets = shingles_of(["ababab", "猫", "\U0001f600xy", "狗狗"])

    of_texts = [shingles[start:end].tolist() for start, end in pairwise(offsets.tolist())]
    assert of_texts == [
        [number_of("aba"), number_of("bab")],
        [number_of("猫\0\0")],
        [number_of("\U0001f600xy")],
        [number_of("狗狗\0")],
    ]


def jaccard(one: str, other: str) -> float:
    left, right = (
        {text[place : place + 3] for place in range(len(text) - 2)} for text in (one, other)
    )
    return len(left & right) / len(left | right)


def test_near_captions_are_those_whose_similarity_reaches_the_threshold(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    letters = list("abcdefghijklmnop")
    captions = ["".join(generator.choice(letters, 30)) for _ in range(60)]
    for caption in captions[:40]:
        changed = list(caption)
        for place in generator.choice(30, size=generator.integers(1, 4), replace=False):
            changed[place] = "z"
        captions.append("".join(changed))
    rows = [row(0, number, caption=caption) for number, caption in enumerate(captions)]

    found, counts = find(tmp_path, rows, near_texts=0.7)

    near = {
        number: original
        for number, original in zip(range(60, 100), range(40), strict=True)
        if jaccard(captions[number], captions[original]) >= 0.7
    }
    assert 10 < len(near) < 35
    assert reasons(found) == {
        (0, number): ("near_duplicate_text", (0, original)) for number, original in near.items()
    }
    for number, original in near.items():
        similarity = jaccard(captions[number], captions[original])
        assert found[0, number]["detail"] == f"similarity {similarity:.2f}"
    assert counts["near_text_clusters"] == len(near)


@pytest.mark.parametrize("similarity", [0.3, 0.5, 0.7, 0.8, 0.9, 1.0])
def test_bands_are_as_long_as_the_recall_allows(similarity: float) -> None:
    size = choose_band_size(similarity)

    def recall(values: int) -> float:
        return 1 - (1 - similarity**values) ** (128 // values)

    assert recall(size) >= 0.995
    assert size == 128 or recall(size + 1) < 0.995


def test_without_rensa_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rensa", None)

    with pytest.raises(InputError, match=r"near_texts needs .*rensa.*ernie-vilg\[curation\]"):
        find(tmp_path, [row(0, 0)], near_texts=0.8)
