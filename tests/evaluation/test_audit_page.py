"""The page of an audit shows the verdict, the counts and the pictures, and nothing runs in it."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from data_pipelines.audit.audit import Audit, DataSet
from data_pipelines.audit.checks import CLAIMS, Check, Outcome, Tallies, conclude
from data_pipelines.audit.codes import code_statistics
from data_pipelines.audit.examples import Example, Examples
from data_pipelines.audit.recoding import RecodedPicture
from data_pipelines.audit.samples import RecodedStatistics
from data_pipelines.audit.statistics import (
    CaptionStatistics,
    Histogram,
    RowStatistics,
    SourceCounts,
    Threshold,
)
from data_pipelines.audit.tokens import TokenFindings
from data_pipelines.encoding.task import new_counts
from ernie_vilg.evaluation.audit_page import AuditHeading, audit_html

ATTACK = '<script>alert("x")</script>\u202egnp.exe'
JPEG = b"\xff\xd8 a thumbnail"


def checks(problems: Sequence[str] = ()) -> tuple[Check, ...]:
    tallies = Tallies()
    tallies["image_files"].add(problems, checked=3)
    return conclude(tallies, dict.fromkeys(CLAIMS, "not given"))


def examples(number: int, *, detail: str = "", jpeg: bytes | None = JPEG) -> tuple[Example, ...]:
    return tuple(
        Example(place=f"line {at}", caption=f"caption {at}", detail=detail, jpeg=jpeg)
        for at in range(number)
    )


def whole_audit(**changed: Any) -> Audit:
    sources = (
        SourceCounts(
            source="web", read=1200, kept=900, held_out=9, enlarged=0, rejected={"nsfw": 300}
        ),
        SourceCounts(
            source="books", read=30, kept=10, held_out=0, enlarged=2,
            rejected={"nsfw": 5, "similarity": 15},
        ),
    )  # fmt: skip
    similarity = Histogram(
        name="similarity", low=0.0, high=1.0, kept=(1, 5, 9), rejected=(7, 2, 0),
        thresholds=(Threshold(label="web.min_similarity", value=0.5),),
    )  # fmt: skip
    tokens = TokenFindings(counts=new_counts(16), num_ids=100, num_byte_ids=3)
    tokens.counts.caption_lengths.update({3: 90, 30: 10})
    tokens.unknown_characters.update({"龘": 3})
    recoded = RecodedStatistics(most=3)
    recoded.add(
        RecodedPicture(
            key=f"{at:08d}", shard="tokens-00000.tar", caption="圆", original=b"one",
            decoded=b"two", psnr=20.0 + at, num_codes=16, num_equal=16,
        )
        for at in range(5)
    )  # fmt: skip
    values: dict[str, Any] = {
        "checks": checks(),
        "data_sets": (
            DataSet(
                name="images, train", location="outputs/images", num_samples=901, num_shards=2,
                num_bytes=12_300_000, settings={},
            ),
        ),
        "rows": RowStatistics(sources=sources, languages=(("zh", 7),), histograms=(similarity,)),
        "captions": CaptionStatistics(
            num_captions=910, num_distinct=905, most_frequent=(("黄色", 6),),
            characters=Histogram(name="characters", low=2, high=4, kept=(1, 2)),
            mean_characters=3.25, max_characters=40,
        ),
        "tokens": tokens,
        "codes": code_statistics(np.arange(16), [0.1, 0.2]),
        "recoded": recoded,
        "examples": Examples(
            kept=examples(2),
            rejected={"similarity": examples(1, detail="0.43"), "nsfw": examples(3, jpeg=None)},
            clusters=(examples(2, detail="distance 12"),),
        ),
    }  # fmt: skip
    return Audit(**{**values, **changed})


def page(audit: Audit) -> str:
    return audit_html(audit, AuditHeading(command="the command", seconds=75, text_length=20))


def cells(text: str) -> list[list[str]]:
    """Return the texts of the cells of every row of a page's tables."""
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", text, re.DOTALL)
    return [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in rows]


def test_the_table_of_rows_adds_up_by_source_and_over_all() -> None:
    text = page(whole_audit())

    table = cells(text)
    assert ["read", "1,200", "30", "1,230"] in table
    assert ["rejected: nsfw", "300", "5", "305"] in table
    assert ["rejected: similarity", "", "15", "15"] in table
    assert ["kept", "900", "10", "910"] in table
    assert "do not add up" not in text
    short = SourceCounts(source="web", read=9, kept=5, held_out=0, enlarged=0, rejected={"nsfw": 3})
    lost = RowStatistics(sources=(short,), languages=(), histograms=())
    assert "The counts do not add up." in page(whole_audit(rows=lost))


def test_the_verdict_comes_first_and_failed_checks_lead_the_list() -> None:
    sound, damaged = page(whole_audit()), page(whole_audit(checks=checks(["shard x is missing"])))

    assert "1 of 26 checks passed, none failed, 25 not made" in sound
    assert "1 of 26 checks failed, 0 passed, 25 not made" in damaged
    assert sound.index("passed</span>") < sound.index("25 claims, because ")
    assert "leave their samples out" in damaged
    assert "leave their samples out" not in sound
    first = next(row for row in cells(damaged) if len(row) == 3)
    assert "failed" in first[0]
    assert "shard x is missing" in first[1]


def test_pictures_captions_and_figures_are_there() -> None:
    text = page(whole_audit())

    assert text.count("data:image/jpeg;base64") == 2 + 1 + 2
    assert text.index("nsfw <span") < text.index("similarity <span")  # the most frequent first
    assert "caption 2" in text  # a rejected row without a picture is listed
    assert "distance 12" in text
    assert "10 captions (10.0 %) are longer than text_length=20" in text
    assert "PSNR of 5 sampled pictures" in text
    assert text.count("24.0 dB") >= 1  # the best
    assert "15 of 16 codes are used. The perplexity" in text  # code 0 is dead
    assert "龘" in text
    assert "It took 1m15s." in text


def test_a_caption_runs_nothing_and_hides_nothing() -> None:
    example = Example(place=ATTACK, caption=ATTACK, detail=ATTACK, jpeg=None)
    captions = whole_audit().captions
    assert captions is not None
    attacked = whole_audit(
        checks=checks([ATTACK]),
        examples=Examples(kept=(example,), rejected={ATTACK: (example,)}, clusters=((example,),)),
        rows=RowStatistics(
            sources=(
                SourceCounts(
                    source=ATTACK, read=1, kept=0, held_out=0, enlarged=0, rejected={ATTACK: 1}
                ),
            ),
            languages=((ATTACK, 1),),
            histograms=(
                Histogram(
                    name="words", low=0, high=2, kept=(1, 1),
                    thresholds=(Threshold(label=ATTACK, value=1),),
                ),
            ),
        ),
    )  # fmt: skip

    text = page(attacked)

    assert "<script" not in text
    assert "\u202e" not in text
    assert "&lt;script&gt;" in text
    assert r"\u202egnp.exe" in text


def test_a_page_loads_nothing() -> None:
    addresses = re.findall(r'(?:src|href)="([^"]{12})', page(whole_audit()))

    assert addresses
    assert all(address.startswith("data:image/") for address in addresses)


def test_an_audit_of_tokens_alone_has_a_page() -> None:
    bare = Audit(checks=checks(), tokens=whole_audit().tokens)

    text = page(bare)

    assert "Captions by text ids" in text
    assert "<h2>Rows</h2>" not in text


@pytest.mark.parametrize("outcome", Outcome)
def test_every_outcome_has_a_mark(outcome: Outcome) -> None:
    check = Check(name="drift", claim="a claim", outcome=outcome, detail="9 shards")

    assert f'">{outcome.value}</span>' in page(whole_audit(checks=(check,)))
