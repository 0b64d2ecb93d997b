"""Every layout of raw pairs, made from a folder with captions.jsonl.

    python -m tests.data_pipelines.layouts SOURCE OUT

writes OUT/captions, OUT/csv, OUT/img2dataset and so on, with links to the pictures where a layout
has files of them. The pictures and captions are the same in each, in the same order.
"""

import csv
import io
import json
import os
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb

Rows = Sequence[Mapping[str, Any]]
"""The objects of captions.jsonl: image, caption and further keys."""


def read_rows(source: Path, *, count: int | None = None) -> Rows:
    """Return the first objects of a folder's captions.jsonl, all of them without a count."""
    with (source / "captions.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file][:count]


def place_pictures(source: Path, rows: Rows, folder: Path) -> None:
    """Give a folder the pictures under their names, by hard link or copy."""
    for name in dict.fromkeys(row["image"] for row in rows):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source / name, target)
        except OSError:
            shutil.copyfile(source / name, target)


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write objects as JSON Lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def write_captions(source: Path, rows: Rows, folder: Path) -> str:
    """Write a folder with captions.jsonl."""
    place_pictures(source, rows, folder)
    write_lines(folder / "captions.jsonl", rows)
    return str(folder)


def write_table(source: Path, rows: Rows, folder: Path, *, separator: str = ",") -> str:
    """Write a csv or tsv with the columns image and caption."""
    place_pictures(source, rows, folder)
    path = folder / ("pairs.csv" if separator == "," else "pairs.tsv")
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=separator)
        writer.writerow(["image", "caption"])
        writer.writerows([row["image"], row["caption"]] for row in rows)
    return str(path)


def write_tsv(source: Path, rows: Rows, folder: Path) -> str:
    """Write a tsv with the columns image and caption."""
    return write_table(source, rows, folder, separator="\t")


def write_jsonl(source: Path, rows: Rows, folder: Path) -> str:
    """Write JSON Lines with the usual names of other programs."""
    place_pictures(source, rows, folder)
    lines = [{"file_name": row["image"], "text": row["caption"]} for row in rows]
    write_lines(folder / "pairs.jsonl", lines)
    return str(folder / "pairs.jsonl")


def write_parquet(path: Path, columns: Mapping[str, Sequence[Any]], types: Sequence[str]) -> None:
    """Write columns as one Parquet file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = ", ".join(f'"{name}" {kind}' for name, kind in zip(columns, types, strict=True))
    with duckdb.connect() as connection:
        connection.execute(f"create table given ({names})")
        values = list(zip(*columns.values(), strict=True))
        if values:
            marks = ", ".join("?" for _ in columns)
            connection.executemany(f"insert into given values ({marks})", values)
        connection.execute(f"copy given to '{path}' (format parquet)")


def write_parquet_paths(source: Path, rows: Rows, folder: Path) -> str:
    """Write a Parquet file of paths and captions."""
    place_pictures(source, rows, folder)
    columns = {name: [row[name] for row in rows] for name in ("image", "caption")}
    write_parquet(folder / "pairs.parquet", columns, ["varchar", "varchar"])
    return str(folder / "pairs.parquet")


def write_parquet_pictures(source: Path, rows: Rows, folder: Path) -> str:
    """Write two Parquet files that hold the pictures, as Hugging Face's `datasets` does."""
    half = (len(rows) + 1) // 2
    for number, some in enumerate((rows[:half], rows[half:])):
        images = [
            {"bytes": (source / row["image"]).read_bytes(), "path": row["image"]} for row in some
        ]
        columns = {"image": images, "text": [row["caption"] for row in some]}
        types = ["struct(bytes blob, path varchar)", "varchar"]
        write_parquet(folder / f"train-{number:05d}-of-00002.parquet", columns, types)
    return str(folder)


def write_img2dataset(
    source: Path, rows: Rows, folder: Path, *, per_tar: int = 1000, failed: int = 0
) -> str:
    """Write tars with a Parquet file and stats beside each, as img2dataset does.

    Args:
        source: folder of the pictures.
        rows: the pairs.
        folder: folder to write.
        per_tar: pictures of each tar.
        failed: rows of each Parquet file that were not downloaded.
    """
    folder.mkdir(parents=True)
    for shard, first in enumerate(range(0, len(rows), per_tar)):
        some = rows[first : first + per_tar]
        keys = [f"{shard:05d}{number:04d}" for number in range(len(some) + failed)]
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as archive:
            for key, row in zip(keys, some, strict=False):
                picture = (source / row["image"]).read_bytes()
                extension = Path(row["image"]).suffix[1:]
                record = {"caption": row["caption"], "key": key, "status": "success"}
                add_member(archive, f"{key}.{extension}", picture)
                add_member(archive, f"{key}.json", json.dumps(record).encode())
                add_member(archive, f"{key}.txt", row["caption"].encode())
        columns = {
            "key": keys,
            "status": ["success"] * len(some) + ["failed_to_download"] * failed,
            "error_message": [None] * len(some) + ["HTTP Error 404: Not Found"] * failed,
        }
        write_parquet(folder / f"{shard:05d}.parquet", columns, ["varchar"] * 3)
        stats = {"count": len(keys), "successes": len(some), "failed_to_download": failed}
        (folder / f"{shard:05d}_stats.json").write_text(json.dumps(stats))
    return str(folder)


def add_member(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file to a tar."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def write_coco(source: Path, rows: Rows, folder: Path) -> str:
    """Write annotations/captions_train2017.json and train2017/ as COCO has them."""
    for row in rows:
        (folder / "train2017" / row["image"]).parent.mkdir(parents=True, exist_ok=True)
    place_pictures(source, rows, folder / "train2017")
    ids = {name: number for number, name in enumerate(dict.fromkeys(r["image"] for r in rows), 7)}
    content = {
        "info": {"year": 2017},
        "images": [{"id": number, "file_name": name} for name, number in ids.items()],
        "annotations": [
            {"id": number, "image_id": ids[row["image"]], "caption": row["caption"]}
            for number, row in enumerate(rows)
        ],
    }
    path = folder / "annotations" / "captions_train2017.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return str(path)


def write_caption_list(source: Path, rows: Rows, folder: Path) -> str:
    """Write a JSON list of pictures with all captions of each, as AIC-ICC has it."""
    place_pictures(source, rows, folder)
    captions: dict[str, list[str]] = {}
    for row in rows:
        captions.setdefault(row["image"], []).append(row["caption"])
    items = [{"image_id": name, "caption": texts} for name, texts in captions.items()]
    path = folder / "caption_train_annotations.json"
    path.write_text(json.dumps(items, ensure_ascii=False), encoding="utf-8")
    return str(path)


def write_image_folder(source: Path, rows: Rows, folder: Path) -> str:
    """Write a Hugging Face image folder with metadata.jsonl."""
    place_pictures(source, rows, folder)
    lines = [{"file_name": row["image"], "text": row["caption"]} for row in rows]
    write_lines(folder / "metadata.jsonl", lines)
    return str(folder)


LAYOUTS: Mapping[str, Callable[[Path, Rows, Path], str]] = {
    "captions": write_captions,
    "csv": write_table,
    "tsv": write_tsv,
    "jsonl": write_jsonl,
    "parquet": write_parquet_paths,
    "parquet_pictures": write_parquet_pictures,
    "img2dataset": write_img2dataset,
    "coco": write_coco,
    "caption_list": write_caption_list,
    "image_folder": write_image_folder,
}
"""Writes a layout to a folder and returns the location for `source=`."""


def main(source: Path, out: Path) -> None:
    """Write every layout and print its location."""
    rows = read_rows(source)
    for name, write in LAYOUTS.items():
        sys.stdout.write(f"{name}: source={write(source, rows, out / name)}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
