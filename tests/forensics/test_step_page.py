"""The page about a step holds everything itself, and what others wrote does nothing in it."""

import html
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ernie_vilg.data.records.damage_log import DamageSummary
from ernie_vilg.data.records.ledger import read_step
from ernie_vilg.data.sequence.quarantine import read_quarantine
from ernie_vilg.data.sequence.sample_sequence import DataSource
from ernie_vilg.data.shards.damage import DamageFinding
from ernie_vilg.forensics.explain_step import ExplainedSample, StepExplanation
from ernie_vilg.forensics.past_batch import LeftOut
from ernie_vilg.forensics.step_page import quarantine_line, step_page
from ernie_vilg.storage.shard_manifest import Manifest
from tests.data.records.test_ledger import write_steps

NO_DAMAGE = DamageSummary(
    findings=(), num_samples=0, num_samples_by_reason={}, num_unreadable_lines=0
)


def sample(position: int = 8, **others: Any) -> ExplainedSample:
    picture = np.full((8, 8, 3), position, np.uint8)
    usual = ExplainedSample(
        position=position, data_rank=0, micro_batch=1, data_set="main", epoch=0,
        shard="tokens-00000.tar", index=4, key="00000004", caption="红色的圆", text="红色的圆",
        left_out=None, doubt="", picture=picture,
    )  # fmt: skip
    return replace(usual, **others)


@pytest.fixture
def explanation(tmp_path: Path) -> StepExplanation:
    """Step 2 of a run that made steps 1 to 3, with one sample shown and one listed."""
    write_steps(tmp_path, 1, 2, 3, batch=2)
    manifest = Manifest(kind="token", shards=(), settings={}, lineage={})
    return StepExplanation(
        run_dir=tmp_path,
        history=read_step(tmp_path, 2),
        doubts=(),
        sources=(DataSource(name="main", location="https://me:canary@h/x", manifest=manifest),),
        shown=(sample(8),),
        listed=(sample(9, key="00000009", picture=None),),
        checkpoint_step=None,
        damage=NO_DAMAGE,
    )


def with_sample(explanation: StepExplanation, **values: Any) -> str:
    return step_page(replace(explanation, shown=(sample(**values),)))


def test_nothing_is_fetched_and_nothing_runs(explanation: StepExplanation) -> None:
    page = step_page(explanation)

    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert addresses
    assert all(address.startswith("data:image/png;base64,") for address in addresses)
    for word in ("<script", "url(", "@import", "canary"):
        assert word not in page


def test_what_and_where_each_sample_is_stands_on_the_page(explanation: StepExplanation) -> None:
    page = step_page(explanation)

    for words in (
        "positions 2 to 3", "红色的圆", "00000004", "tokens-00000.tar, sample 4", "main, epoch 0",
        "8, rank 0, pass 1", "The other 1 samples", "00000009",
    ):  # fmt: skip
        assert words in page


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ('"><img src=x onerror=y>', "&#34;&gt;&lt;img src=x onerror=y&gt;"),
        ("a\u202eb\u2066c", "a\\u202eb\\u2066c"),
        ("a\x00b\x1b[31m", "a\\x00b\\x1b[31m"),
        ("a\ud800b", "a\\ud800b"),
        ("\U0001f468\u200d\U0001f469", "\U0001f468\u200d\U0001f469"),
    ],
    ids=["script", "attribute", "bidi override", "control", "lone surrogate", "emoji is left"],
)
@pytest.mark.parametrize("field", ["caption", "text", "key", "doubt"])
def test_hostile_text_is_shown_and_does_nothing(
    explanation: StepExplanation, text: str, shown: str, field: str
) -> None:
    page = with_sample(explanation, **{field: text})

    assert shown in page
    assert shown == text or text not in page
    page.encode()


def test_a_long_caption_is_cut(explanation: StepExplanation) -> None:
    page = with_sample(explanation, caption="真" * 5000, text="")

    assert page.count("真") == 1000
    assert "(and 4000 characters more)" in page


def test_the_line_for_the_quarantine_is_one(explanation: StepExplanation, tmp_path: Path) -> None:
    entry = sample(key='a"<\n\u2028b')
    page = step_page(replace(explanation, shown=(entry,)))
    (line,) = re.findall(r'<code class="line">([^\n]*?)</code>', page)
    assert html.unescape(line) == quarantine_line(entry)
    (tmp_path / "quarantine.jsonl").write_text(html.unescape(line) + "\n")

    quarantine = read_quarantine(tmp_path / "quarantine.jsonl")

    assert quarantine.holds("main", "tokens-00000.tar", entry.key)
    assert set(json.loads(quarantine_line(entry))) == {"key", "shard", "data_set", "reason"}


def test_losses_stand_on_the_page_and_outliers_are_marked(explanation: StepExplanation) -> None:
    losses = {"text_to_image": 2.5, "image_to_text": 0.25}
    page = step_page(
        replace(
            explanation,
            checkpoint_step=1,
            shown=(sample(**losses, outlying=("text to image",)),),
            listed=(sample(**{**losses, "text_to_image": 1.5}),),
        )
    )

    assert "2.000" in page  # the mean
    assert '2.500 <span class="mark">outlier</span>' in page
    assert "1.500, 0.250" in page
    assert page.count("outlier") == 1
    assert "under the weights of step 1, without dropout: this step had not been made" in page


def test_a_replaced_sample_says_for_which_and_why(explanation: StepExplanation) -> None:
    left_out = LeftOut(key="7<", shard="b.tar", index=3, reason="in quarantine: a & b")

    page = with_sample(explanation, left_out=left_out)

    assert "<code>7&lt;</code>, b.tar, sample 3: in quarantine: a &amp; b" in page
    assert '<div class="figure ">1</div><div class="what">left out' in page


def test_the_page_says_whether_the_batch_is_certain(explanation: StepExplanation) -> None:
    certain, doubtful = (
        step_page(replace(explanation, doubts=doubts)) for doubts in ((), ("<lost>",))
    )

    assert '<div class="figure good">yes</div>' in certain
    assert "have the digests that the ledger recorded" in certain
    assert '<div class="figure bad">no</div>' in doubtful
    assert "Not certain: &lt;lost&gt;." in doubtful
    assert "have the digests" not in doubtful


def test_earlier_records_are_shown(explanation: StepExplanation, tmp_path: Path) -> None:
    assert "made more than once" not in step_page(explanation)
    write_steps(tmp_path, 2, batch=2)

    page = step_page(replace(explanation, history=read_step(tmp_path, 2)))
    after = step_page(replace(explanation, history=read_step(tmp_path, 3)))

    assert "The step was made more than once." in page
    assert page.count("rolled back") == 1
    assert "not made it again" not in page
    assert "gone back to before this step since, and not made it again" in after


def test_damage_is_counted(explanation: StepExplanation) -> None:
    finding = DamageFinding(
        data_set="main", shard="a.tar", index=None, key="", num_samples=10, reason="sha256",
        detail="shard <a>", position=40,
    )  # fmt: skip
    damage = replace(
        NO_DAMAGE, findings=(finding,), num_samples=10, num_samples_by_reason={"sha256": 10}
    )

    page = step_page(replace(explanation, damage=damage))

    assert "Damaged samples in the whole run: 10 (10 sha256)." in page
    assert "shard &lt;a&gt;" in page
    assert "Damage</h2>" not in step_page(explanation)
