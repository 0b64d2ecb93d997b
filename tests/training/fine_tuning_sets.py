"""Miniatures of the four sets of fine-tuning, in the layouts of their releases."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NUM_PICTURES = 12
CAPTIONS = ("两只猫在红色的沙发上", "一个男人在海边骑车", "桌子上有一杯咖啡", "孩子们在草地上踢球")
QUESTIONS = ("图中有几只猫？", "这个人在做什么？", "桌子上有什么？", "孩子们在哪里？")
ANSWERS = ("两只。", "骑车。", "一杯咖啡。", "草地上。")


@dataclass(frozen=True, kw_only=True)
class MiniatureSet:
    """One set on disk, and what becomes of it."""

    settings: Sequence[str]
    """Settings of launch/build_shards.py, without the output folder and sizes."""
    samples: int
    """Pictures that it gives."""
    texts: Sequence[Sequence[str]]
    """Captions of each picture, or its questions with their answers, in order."""
    held_out: Sequence[str] = field(default=("hold_out_fraction=0.25",))
    """Settings that hold pictures out, or those of the set's own validation split."""


def write_picture(path: Path, number: int) -> None:
    """Write coloured squares, which no other number has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    squares = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(squares).resize((64, 64), Image.Resampling.NEAREST).save(path)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, its folder included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def captions_of(number: int) -> list[str]:
    """Return five captions of a picture."""
    return [f"{CAPTIONS[(number + nth) % 4]}，{'甲乙丙丁戊'[nth]}" for nth in range(5)]


def write_coco(folder: Path) -> MiniatureSet:
    """Write annotations/captions_train2014.json and train2014/."""
    names = [f"COCO_train2014_{number:012d}.jpg" for number in range(NUM_PICTURES)]
    annotations = []
    for number, name in enumerate(names):
        write_picture(folder / "train2014" / name, number)
        annotations += [
            {"id": 5 * number + nth, "image_id": number, "caption": caption}
            for nth, caption in enumerate(captions_of(number))
        ]
    content = {
        "info": {"year": 2014},
        "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
        "annotations": annotations,
    }
    path = folder / "annotations" / "captions_train2014.json"
    write_json(path, content)
    return MiniatureSet(
        settings=[f"source={path}"],
        samples=NUM_PICTURES,
        texts=[captions_of(number) for number in range(NUM_PICTURES)],
    )


def write_coco_cn(folder: Path) -> MiniatureSet:
    """Write imageid.human-written-caption.txt and the lists of its split, beside COCO's pictures.

    The first picture has two captions; the last three are the validation split.
    """
    ids = [f"COCO_train2014_{number:012d}" for number in range(NUM_PICTURES)]
    lines = [f"{name}#0\t{CAPTIONS[number % 4]}" for number, name in enumerate(ids)]
    lines.insert(1, f"{ids[0]}#1\t猫在睡觉")
    for number, name in enumerate(ids):
        write_picture(folder / "coco" / "train2014" / f"{name}.jpg", number)
    release = folder / "coco-cn-version1805v1.1"
    release.mkdir()
    for name, part in (("train", ids[:-3]), ("val", ids[-3:])):
        (release / f"coco-cn_{name}.txt").write_text("\n".join(part) + "\n")
    path = release / "imageid.human-written-caption.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    source = [f"source={path}", f"images_root={folder / 'coco'}"]
    return MiniatureSet(
        settings=[*source, f"image_list={release / 'coco-cn_train.txt'}"],
        samples=NUM_PICTURES - 3,
        texts=[
            [CAPTIONS[number % 4], *(["猫在睡觉"] if number == 0 else [])]
            for number in range(NUM_PICTURES - 3)
        ],
        held_out=[*source, f"image_list={release / 'coco-cn_val.txt'}"],
    )


def write_aic_icc(folder: Path) -> MiniatureSet:
    """Write caption_train_annotations_20170902.json and its folder of pictures."""
    release = folder / "ai_challenger_caption_train_20170902"
    images = release / "caption_train_images_20170902"
    names = [f"{number:040x}.jpg" for number in range(NUM_PICTURES)]
    for number, name in enumerate(names):
        write_picture(images / name, number)
    items = [
        {"url": f"http://example.org/{name}", "image_id": name, "caption": captions_of(number)}
        for number, name in enumerate(names)
    ]
    path = release / "caption_train_annotations_20170902.json"
    write_json(path, items)
    return MiniatureSet(
        settings=[f"source={path}", f"images_root={images}"],
        samples=NUM_PICTURES,
        texts=[captions_of(number) for number in range(NUM_PICTURES)],
    )


def write_fmiqa(folder: Path) -> MiniatureSet:
    """Write FM-CH-QA.json with both lists, beside COCO's pictures; two questions per picture."""
    lists: dict[str, list[dict[str, str]]] = {"train": [], "val": []}
    for number in range(NUM_PICTURES):
        write_picture(folder / "coco/train2014" / f"COCO_train2014_{number:012d}.jpg", number)
        for nth in (number, number + 1):
            question, answer = QUESTIONS[nth % 4], ANSWERS[nth % 4]
            item = {"image_id": str(number), "Question": question, "Answer": answer}
            lists["train"].append(item)
    lists["val"].append({"image_id": "99", "Question": "在哪里？", "Answer": "在家。"})
    write_json(folder / "FM-CH-QA.json", lists)
    source = f"source={folder / 'FM-CH-QA.json'}"
    return MiniatureSet(
        settings=[source, "split=train", f"images_root={folder / 'coco'}"],
        samples=NUM_PICTURES,
        texts=[
            [f"{QUESTIONS[nth % 4]}\u241f{ANSWERS[nth % 4]}" for nth in (number, number + 1)]
            for number in range(NUM_PICTURES)
        ],
    )


WRITERS: Mapping[str, Callable[[Path], MiniatureSet]] = {
    "coco": write_coco,
    "coco_cn": write_coco_cn,
    "aic_icc": write_aic_icc,
    "fmiqa": write_fmiqa,
}
"""Writer of each set, by the name that its preset has after `finetune_`."""
