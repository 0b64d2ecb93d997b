"""Which captions text tokenizer training reads."""

import pytest

from data_pipelines.captions import caption_of, is_taken
from ernie_vilg.data.damage import DamagedSampleError


@pytest.mark.parametrize(
    ("wanted", "total", "positions"),
    [
        pytest.param(3, 3, [0, 1, 2], id="all"),
        pytest.param(9, 3, [0, 1, 2], id="more than there are"),
        pytest.param(2, 6, [2, 5], id="every third"),
        pytest.param(3, 7, [2, 4, 6], id="uneven distances"),
        pytest.param(1, 5, [4], id="one"),
    ],
)
def test_captions_are_taken_at_even_distances(
    wanted: int, total: int, positions: list[int]
) -> None:
    taken = [index for index in range(total) if is_taken(index, wanted=wanted, total=total)]

    assert taken == positions


@pytest.mark.parametrize("members", [{}, {"txt": b"\xff"}], ids=["missing", "not UTF-8"])
def test_a_sample_without_a_caption_is_named(members: dict[str, bytes]) -> None:
    with pytest.raises(DamagedSampleError, match=r"sample 'a' of b\.tar has no txt in UTF-8"):
        caption_of({"__key__": b"a", **members}, "b.tar")
