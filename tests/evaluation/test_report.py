"""The page embeds every figure and picture, and loads nothing."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ernie_vilg.evaluation.report import read_content, report_html

SHAPE_SCORES = {
    "pairs": 2,
    "judge": "shapes",
    "text_to_image": {"objects_correct": 0.75, "num_objects": 4},
    "image_to_text": {"exact_matches": 0.5, "captions_correct": 0.5},
    "image_tokenizer": {"psnr": 31.25, "codebook_usage": 0.4, "objects_correct": 1.0},
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The files that the stages of a small job leave."""
    for folder in ("evaluation/originals", "evaluation/drawn", "pretrain/samples", "tokenizer"):
        (tmp_path / folder).mkdir(parents=True)
    picture = Image.new("RGB", (64, 64), "white")
    for name in ("originals/0", "originals/1", "drawn/0", "drawn/1", "drawn", "reconstructed"):
        picture.save(tmp_path / f"evaluation/{name}.png")
    for step in (300, 1200):
        picture.save(tmp_path / f"pretrain/samples/step_{step:08d}.png")
    write_evaluation(tmp_path, SHAPE_SCORES, judged=True)
    metrics = [{"step": s, "loss": 3.0 / s, "loss_text_to_image": 2.0 / s} for s in (1, 2)]
    (tmp_path / "pretrain/metrics.jsonl").write_text("\n".join(map(json.dumps, metrics)))
    (tmp_path / "tokenizer/metrics.jsonl").write_text('{"step": 1, "psnr": 20.0}\n')
    return tmp_path


def write_evaluation(folder: Path, scores: dict[str, Any], *, judged: bool) -> None:
    pairs: list[dict[str, Any]] = [
        {
            "caption": f"真{index}<b>",
            "written": f"写{index}",
            "original": f"originals/{index}.png",
            "drawn": f"drawn/{index}.png",
        }
        for index in range(2)
    ]
    if judged:
        pairs[0].update(objects=2, objects_correct=2, caption_correct=True)
        pairs[1].update(objects=2, objects_correct=1, caption_correct=False)
    lines = [json.dumps(pair, ensure_ascii=False) for pair in pairs]
    (folder / "evaluation/pairs.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "evaluation/evaluation.json").write_text(json.dumps(scores))


def page(folder: Path, *, trained_on: bool = False, with_stages: bool = True) -> str:
    stages = {
        "draw": {"seconds": 1.5, "peak_memory_bytes": 2**29, "command": "python draw.py a=<1>"},
        "train": {"seconds": 60.0, "peak_memory_bytes": 2**31, "command": "deepspeed train.py"},
    }
    return report_html(
        read_content(
            title="A & B",
            command="make quickstart",
            versions={"torch": "2.13.0"},
            pretrain=folder / "pretrain",
            image_tokenizer=folder / "tokenizer",
            evaluation=folder / "evaluation",
            stages=stages if with_stages else {},
            trained_on=trained_on,
            examples=1,
            sample_steps=8,
        )
    )


def test_nothing_is_fetched_and_nothing_runs(run: Path) -> None:
    content = page(run)

    addresses = re.findall(r'(?:src|href)="([^"]*)"', content)
    assert addresses
    assert all(address.startswith("data:image/") for address in addresses)
    assert "<script" not in content
    assert "url(" not in content
    assert "@import" not in content


@pytest.mark.parametrize(
    "expected",
    ["75.0 %", "50.0 %", "31.2 dB", "40.0 %", "2.00 GiB", "1m02s", "61.5", "make quickstart"],
)
def test_figures_stand_on_the_page(run: Path, expected: str) -> None:
    assert expected in page(run)


def test_the_page_says_that_pictures_were_chosen(run: Path) -> None:
    assert "the model chose" not in page(run)

    write_evaluation(run, {**SHAPE_SCORES, "drawings": 8}, judged=True)

    assert "the model chose one of 8 pictures" in page(run)


def test_text_of_others_is_escaped(run: Path) -> None:
    content = page(run)

    assert "<h1>A &amp; B</h1>" in content
    assert "真0&lt;b&gt;" in content
    assert "python draw.py a=&lt;1&gt;" in content


def test_wrong_pairs_are_shown_beyond_the_examples(run: Path) -> None:
    content = page(run)  # one example, which is right; the second pair is wrong

    assert content.count("真1") == 2  # among the wrong pictures and the wrong captions
    assert "wrong, 1 of 2 objects" in content


def test_sample_grids_stand_in_the_order_of_steps(run: Path) -> None:
    content = page(run)

    assert content.index("step 300") < content.index("step 1200")


def test_disturbed_sets_and_unseen_pairs_stand_on_the_page(run: Path) -> None:
    by_number = {"1": 0.25, "2": 0.75}
    written = {"captions_correct": 0.5, "by_num_objects": by_number}
    objects = {key: {"objects_correct": share} for key, share in by_number.items()}
    drawn = {"objects_correct": 0.625, "by_num_objects": objects}
    scores = {
        **SHAPE_SCORES,
        "text_to_image": {**drawn, "num_objects": 4},
        "image_to_text": {**written, "exact_matches": 0.5},
        "image_tokenizer": {
            **SHAPE_SCORES["image_tokenizer"], "objects_correct_by_num_objects": by_number,
        },
        "disturbed": {"jpeg_80": {**written, "captions_correct": 0.375}},
        "unseen_pairs": {"text_to_image": drawn, "image_to_text": written},
    }  # fmt: skip
    write_evaluation(run, scores, judged=True)
    records = [
        {
            "set": "jpeg_80", "picture": "originals/0.png", "caption": "C",
            "written": f"written:{index}", "caption_correct": index > 3,
        }
        for index in range(6)
    ]  # fmt: skip
    (run / "evaluation/captions_of_sets.jsonl").write_text("\n".join(map(json.dumps, records)))
    Image.new("RGB", (64, 64)).save(run / "evaluation/unseen_pairs.png")

    content = page(run)

    assert "captions right, jpeg 80" in content
    assert "37.5 %" in content
    assert "Unseen pairs above drawn pictures" in content
    assert "4 of 6 wrong" in content
    shown = re.findall(r"written:(\d)", content)
    assert shown == ["0", "1", "2", "4"]  # three wrong ones, then a right one


def test_without_a_judge_nothing_is_called_right_or_wrong(run: Path) -> None:
    scores = {
        **SHAPE_SCORES,
        "text_to_image": {},
        "image_to_text": {"exact_matches": 0.25},
        "image_tokenizer": {"psnr": 20.0, "codebook_usage": 0.5},
    }
    write_evaluation(run, scores, judged=False)

    content = page(run, trained_on=True)

    body = content[content.index("<main>") :]
    assert "right</span>" not in body
    assert "wrong</span>" not in body
    assert "Pictures for training captions" in body
    assert "unseen" not in body.lower()


def test_page_without_stages_has_no_empty_table(run: Path) -> None:
    assert "Time and memory" not in page(run, with_stages=False)


def test_missing_evaluation_is_named(run: Path) -> None:
    (run / "evaluation/pairs.jsonl").unlink()

    with pytest.raises(ValueError, match=r"pairs\.jsonl does not exist: run launch/evaluate\.py"):
        page(run)


def test_retrieval_stands_on_the_page_with_its_likeliest_candidates(run: Path) -> None:
    values = {"recall_at_1": 0.11, "recall_at_5": 0.22, "recall_at_10": 0.33, "median_rank": 17.5}
    by_score = {
        name: {**values, "recall_at_10": share}
        for name, share in (("text_given_image", 0.44), ("image_given_text", 0.55), ("sum", 0.66))
    }
    retrieval = {
        "candidates": 2,
        "captions_of_pictures": by_score,
        "pictures_of_captions": by_score,
    }
    drawn = {"psnr": 14.25, "psnr_of_mean_picture": 9.5}
    scores = {**SHAPE_SCORES, "text_to_image": drawn, "retrieval": retrieval}
    write_evaluation(run, scores, judged=False)
    pairs = run / "evaluation/pairs.jsonl"
    records = [json.loads(line) for line in pairs.read_text(encoding="utf-8").splitlines()]
    records[0].update(
        caption_rank=2, likeliest_captions=[1, 0], picture_rank=1, likeliest_pictures=[0, 1]
    )
    pairs.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")

    content = page(run)

    assert "Retrieval among 2 unseen pairs" in content
    cards = re.findall(r"(\w+) retrieval</div>\s*<div class=\"figure \">([^<]*)<", content)
    assert cards == [("Caption", "44.0 %"), ("Picture", "44.0 %")]
    assert "17.5" in content
    assert "真1&lt;b&gt; / 真0&lt;b&gt;" in content
    assert "14.2 dB" in content
    assert "the mean picture&#39;s is 9.5 dB" in content


def test_a_page_without_retrieval_says_nothing_of_it(run: Path) -> None:
    assert "etrieval" not in page(run)
