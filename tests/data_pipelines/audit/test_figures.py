"""The figures of an audit are those that a hand count gives."""

from pathlib import Path

import numpy as np
import pytest

from data_pipelines.audit.checks import MOST_PROBLEMS, Tallies
from data_pipelines.audit.codes import code_statistics, divergence, thinned, unlike_shards
from data_pipelines.audit.database import open_database
from data_pipelines.audit.examples import Examples, read_examples
from data_pipelines.audit.recoding import RecodedPicture
from data_pipelines.audit.samples import RecodedStatistics
from data_pipelines.audit.shard_pass import chosen_samples
from data_pipelines.audit.statistics import (
    Histogram,
    SourceCounts,
    Threshold,
    caption_statistics,
    row_statistics,
)
from data_pipelines.audit.tokens import split_captions
from data_pipelines.metadata import EXAMPLE_COLUMNS, EXAMPLES_FILE, write_rows
from tests.data_pipelines.audit.made import CAPTIONS, metadata_rows, write_metadata

RULES = {"default": {"min_nouns": 1, "max_nouns": None, "min_similarity": 0.0, "max_words": 0}}


def test_divergence_is_zero_for_equal_use_and_one_bit_for_none_in_common() -> None:
    assert divergence(np.array([2, 6, 0]), np.array([1, 3, 0])) == pytest.approx(0.0)
    assert divergence(np.array([5, 0]), np.array([0, 9])) == pytest.approx(1.0)
    # Half and half against all of one: 1/2 (log2(4/3)) + 1/2 (1/2 log2(2/3) + 1/2 log2(2)).
    assert divergence(np.array([1, 0]), np.array([1, 1])) == pytest.approx(0.3113, abs=1e-4)


def test_a_small_shard_is_not_unlike_the_others_for_its_size() -> None:
    # Divergence by chance is in proportion to 1 / pictures: 0.01 of 100 is as usual as 0.1 of 10.
    usual, counts = [0.01] * 8 + [0.1], [100] * 8 + [10]

    assert list(unlike_shards(usual, counts)) == []
    assert list(unlike_shards([*usual[:3], 0.06, *usual[4:]], counts)) == [3]


def test_dead_codes_and_perplexity_are_counted() -> None:
    found = code_statistics(np.array([0, 4, 0, 4]), [])

    assert (found.num_codes, found.num_used, found.codebook_size) == (8, 2, 4)
    assert found.perplexity == pytest.approx(2.0)
    assert found.most_used[:2] == ((1, 0.5), (3, 0.5))
    assert found.shares == (0.5, 0.5, 0.0, 0.0)


@pytest.mark.parametrize(
    ("expected", "drift"),
    [([0, 1, 0, 1], 0.0), ([3, 0, 0, 0], 1.0), ([0, 0, 0, 0], None), ([1, 1], None), (None, None)],
)
def test_use_is_compared_with_the_tokenizer_s_card(
    expected: list[int] | None, drift: float | None
) -> None:
    found = code_statistics(np.array([0, 4, 0, 4]), [], expected)

    assert found.from_card == (None if drift is None else pytest.approx(drift))


def test_thinning_keeps_both_ends() -> None:
    assert thinned(range(1000), 4) == (0, 333, 666, 999)
    assert thinned([1, 2], 4) == (1, 2)


def test_captions_of_a_picture_are_split_at_their_ends() -> None:
    parts = split_captions(np.array([7, 8, 3, 9], np.int32))

    assert [part.tolist() for part in parts] == [[7, 8], [9]]
    assert [part.tolist() for part in split_captions(np.array([7], np.int32))] == [[7]]


def test_samples_are_chosen_by_their_keys_alone() -> None:
    keys = np.array([f"{number:08d}".encode() for number in range(50)])

    chosen = chosen_samples(keys, 5)

    assert len(chosen) == 5
    assert chosen == sorted(chosen)
    assert [keys[at] for at in chosen] == [
        key for key in keys if key in keys[::-1][chosen_samples(keys[::-1], 5)]
    ]
    assert chosen_samples(keys[:3], 5) == [0, 1, 2]


def recoded(key: str, psnr: float) -> RecodedPicture:
    return RecodedPicture(
        key=key, shard="s", caption="", original=b"", decoded=b"", psnr=psnr, num_codes=4,
        num_equal=3,
    )  # fmt: skip


def test_only_the_best_the_worst_and_a_few_pictures_are_held() -> None:
    found = RecodedStatistics(most=2)
    pictures = [recoded(f"{number:08d}", 20.0 + number) for number in range(30)]
    found.add(pictures)

    assert [each.psnr for each in found.best] == [49.0, 48.0]
    assert [each.psnr for each in found.worst] == [20.0, 21.0]
    assert found.mean_psnr == pytest.approx(34.5)
    assert found.equal_share == 0.75
    again = RecodedStatistics(most=2)
    again.add(reversed(pictures))
    assert again.typical == found.typical
    assert len(found.typical) == 2


def test_problems_are_all_counted_and_the_first_are_kept() -> None:
    one, two = Tallies(), Tallies()
    one["keys"].add((f"problem {number}" for number in range(15)), checked=100)
    two["keys"].add((f"problem {number}" for number in range(15, 40)), checked=100)

    one.merge(two)

    assert (one["keys"].checked, one["keys"].num_problems) == (200, 40)
    assert one["keys"].problems == [f"problem {number}" for number in range(MOST_PROBLEMS)]


def test_rows_are_counted_by_source_and_measure(tmp_path: Path) -> None:
    from data_pipelines.audit.database import add_metadata

    write_metadata(tmp_path, metadata_rows(CAPTIONS))
    with open_database(tmp_path, memory="1GB", num_threads=1) as connection:
        assert add_metadata(connection, tmp_path, Tallies())
        found = row_statistics(connection, RULES)

    # Rows 0 to 4 are "web", the others "books"; row 3 has two captions.
    assert found.sources == (
        SourceCounts(
            source="books", read=4, kept=3, held_out=1, enlarged=0,
            rejected={"near_duplicate_picture": 1},
        ),
        SourceCounts(
            source="web", read=6, kept=5, held_out=0, enlarged=1, rejected={"too_few_nouns": 1}
        ),
    )  # fmt: skip
    assert found.languages == (("zh", 8),)
    by_name = {each.name: each for each in found.histograms}
    # A row has its number modulo 3 nouns: 0, 3, 3 and 6 none; 1 and, rejected, 4 and 7 one; 2, 5
    # and 8 two.
    assert by_name["nouns"] == Histogram(
        name="nouns", low=0, high=3, kept=(4, 1, 3), rejected=(0, 2, 0),
        thresholds=(Threshold(label="default.min_nouns", value=1.0),),
    )  # fmt: skip
    similarity = by_name["similarity of picture and caption"]
    assert (sum(similarity.kept), sum(similarity.rejected)) == (8, 2)
    assert similarity.thresholds == (Threshold(label="default.min_similarity", value=0.0),)
    assert "words" not in by_name  # measured nowhere


def test_captions_are_counted_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "0.jsonl").write_text(
        '{"split": "train", "shard": 0, "key": "a", "captions": "红色\\n黄色的圆"}\n'
        '{"split": "train", "shard": 0, "key": "b", "captions": "红色"}\n'
        '{"split": "train", "shard": 0, "key": "c", "captions": null}\n',
        encoding="utf-8",
    )
    with open_database(tmp_path, memory="1GB", num_threads=1) as connection:
        found = caption_statistics(connection)

    assert found is not None
    assert (found.num_captions, found.num_distinct, found.max_characters) == (3, 2, 4)
    assert found.most_frequent == (("红色", 2),)
    assert found.characters.kept == (2, 0, 1)


def test_examples_are_few_and_large_pictures_are_left_out(tmp_path: Path) -> None:
    rows = [
        {"kind": kind, "part": 0, "row": number, "caption": f"{number}", **more}
        for kind, more in (
            ("kept", {"jpeg": b"x" * 70_000}),
            ("rejected", {"reason": "nsfw", "detail": "0.9", "jpeg": b"small"}),
            ("cluster", {"cluster": 5, "reason": "near_duplicate_picture", "detail": "distance 3"}),
        )
        for number in range(30)
    ]
    rows.append({"kind": "cluster", "part": 0, "row": 99, "caption": "first", "cluster": 5})
    write_rows(tmp_path / EXAMPLES_FILE, rows, EXAMPLE_COLUMNS)
    with open_database(tmp_path, memory="1GB", num_threads=1) as connection:
        found = read_examples(connection, tmp_path, 4)
        nothing = read_examples(connection, tmp_path / "nowhere", 4)

    assert [each.caption for each in found.kept] == ["0", "1", "2", "3"]
    assert found.kept[0].jpeg is None  # larger than a page should hold
    assert [(each.detail, each.jpeg) for each in found.rejected["nsfw"]] == [("0.9", b"small")] * 4
    (cluster,) = found.clusters
    assert [each.detail for each in cluster] == ["kept"] + ["distance 3"] * 7
    assert cluster[0].caption == "first"
    assert nothing == Examples()
