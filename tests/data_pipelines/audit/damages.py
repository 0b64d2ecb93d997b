"""Damage to shards, metadata and tokens, and the checks that each kind fails."""

import io
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from data_pipelines.shard_writer import write_shard
from ernie_vilg.data.shards.open_shards import Sample, read_shard
from ernie_vilg.storage.files import sha256_of_file, write_json
from ernie_vilg.storage.json_files import read_json
from ernie_vilg.storage.shard_manifest import describe_file, read_manifest, write_manifest
from tests.data_pipelines.audit.made import (
    CAPTIONS,
    metadata_rows,
    picture,
    sample,
    write_curation,
    write_images,
    write_metadata,
)


def flip_a_bit(path: Path, at: int = 700) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def rewrite(folder: Path, change: Callable[[list[Sample]], None]) -> None:
    """Change the samples of the first shard, and describe it in the manifest as it then is."""
    kind = "token" if "tokens" in folder.parts else "image"
    manifest = read_manifest(folder, kind)
    shard = manifest.shards[0]
    samples = read_shard(folder, shard)
    change(samples)
    written = write_shard(folder / shard.file, samples, members=shard.members)
    assert written is not None
    write_manifest(folder, replace(manifest, shards=(written, *manifest.shards[1:])))


def rewrite_tokens(member: str, content: bytes) -> Callable[[Path], None]:
    """Return a function that replaces a member of the first token sample."""

    def change(folder: Path) -> None:
        rewrite(folder / "tokens", lambda samples: samples[0].update({member: content}))

    return change


def rewrite_images(
    folder: Path, *, captions: Mapping[str, Any] | None = None, **changed: bytes
) -> None:
    """Write the image shards with another first sample."""
    first = "00000000"
    other = {**CAPTIONS, **(captions or {})}
    write_images(folder / "images", other, {first: sample(first, other[first], **changed)})


def npy(values: object, dtype: type) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array(values, dtype), allow_pickle=False)
    return buffer.getvalue()


def rewrite_rows(folder: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """Write the metadata with other rows, and the counts of them."""
    rows = metadata_rows(CAPTIONS)
    change(rows)
    write_metadata(folder / "images", rows)
    write_curation(folder / "images", rows)


def row_with(rows: list[dict[str, Any]], key: str) -> dict[str, Any]:
    return next(row for row in rows if row.get("key") == key)


def edit_json(path: Path, change: Callable[[Any], object]) -> None:
    content = read_json(path)
    change(content)
    write_json(path, content)


def lose_a_shard(folder: Path) -> None:
    (folder / "images" / "images-00001.tar").unlink()


def flip_in_held_out(folder: Path) -> None:
    flip_a_bit(folder / "images" / "held_out" / "images-00000.tar")


def flip_in_an_index(folder: Path) -> None:
    flip_a_bit(folder / "images" / "images-00001.tar.index", -1)


def index_of_another_shard(folder: Path) -> None:
    images = folder / "images"
    manifest = read_manifest(images, "image")
    first, second = manifest.shards
    shutil.copy(images / "images-00001.tar.index", images / "images-00000.tar.index")
    index = describe_file(images / "images-00000.tar.index")
    write_manifest(images, replace(manifest, shards=(replace(first, index=index), second)))


def adopt_images(folder: Path) -> None:
    """Record the new image shards in the lineage of the token shards."""
    digest = read_manifest(folder / "images", "image").digest()
    manifest = read_manifest(folder / "tokens", "token")
    lineage = {**manifest.lineage, "image_shards": digest}
    write_manifest(folder / "tokens", replace(manifest, lineage=lineage))


def key_twice(folder: Path) -> None:
    def change(samples: list[Sample]) -> None:
        samples[0]["__key__"] = b"00000003"  # of the second shard

    rewrite(folder / "images", change)


def caption_in_gbk(folder: Path) -> None:
    rewrite(folder / "images", lambda samples: samples[0].update(txt="红色".encode("gbk")))


def caption_not_cleaned(folder: Path) -> None:
    rewrite_images(folder, txt="红色的圆\u202e".encode())


def other_caption(folder: Path) -> None:
    rewrite_images(folder, captions={"00000000": ["紫色"]})


def other_record(folder: Path) -> None:
    rewrite_images(folder, json=b'{"caption": "other"}')


def other_images(folder: Path) -> None:
    rewrite(folder / "images", lambda samples: samples[0].update(json=samples[0]["json"] + b" "))


def picture_of_html(folder: Path) -> None:
    rewrite(folder / "images", lambda samples: samples[0].update(png=b"<html>"))


def other_picture(folder: Path) -> None:
    rewrite(folder / "images", lambda samples: samples[0].update(png=picture(99)))
    adopt_images(folder)


def lose_a_row(folder: Path) -> None:
    rewrite_rows(folder, lambda rows: rows.remove(row_with(rows, "00000002")))


def invent_a_row(folder: Path) -> None:
    def change(rows: list[dict[str, Any]]) -> None:
        rows.append({**row_with(rows, "00000002"), "row": 3333, "key": "00003333"})

    rewrite_rows(folder, change)


def row_of_another_shard(folder: Path) -> None:
    rewrite_rows(folder, lambda rows: row_with(rows, "00000002").update(shard=1))


def two_verdicts(folder: Path) -> None:
    rewrite_rows(folder, lambda rows: row_with(rows, "00000002").update(reason="too_few_nouns"))


def row_twice(folder: Path) -> None:
    rewrite_rows(folder, lambda rows: rows.append(rows[-1]))


def lose_a_part(folder: Path) -> None:
    (folder / "images" / "metadata" / "rows-00001.parquet").unlink()


def cut_a_part(folder: Path) -> None:
    path = folder / "images" / "metadata" / "rows-00001.parquet"
    path.write_bytes(path.read_bytes()[:-9])


def lose_a_column(folder: Path) -> None:
    path = folder / "images" / "metadata" / "rows-00001.parquet"
    other = folder / "images" / "metadata" / "rows-00000.parquet"
    for each in (path, other):
        with duckdb.connect() as connection:
            connection.execute(
                f"COPY (SELECT * EXCLUDE (split) FROM read_parquet('{each}')) TO '{each}.new' "
                "(FORMAT parquet)"
            )
        Path(f"{each}.new").rename(each)


def straddling_pixels(folder: Path) -> None:
    def change(rows: list[dict[str, Any]]) -> None:
        row_with(rows, "00000008")["pixels_sha256"] = row_with(rows, "00000001")["pixels_sha256"]

    rewrite_rows(folder, change)


def straddling_cluster(folder: Path) -> None:
    def change(rows: list[dict[str, Any]]) -> None:
        for key in ("00000001", "00000008"):
            row_with(rows, key)["cluster"] = 7

    rewrite_rows(folder, change)


def other_counts(folder: Path) -> None:
    def change(content: Any) -> None:
        content["sources"]["web"]["rejected"]["too_few_nouns"] = 2

    edit_json(folder / "images" / "curation.json", change)


def damage_examples(folder: Path) -> None:
    (folder / "images" / "examples.parquet").write_bytes(b"PAR1")


def lose_curation(folder: Path) -> None:
    (folder / "images" / "curation.json").unlink()


def other_tokenizer(folder: Path) -> None:
    def change(content: Any) -> None:
        content["lineage"]["image_tokenizer"] = "0" * 64

    edit_json(folder / "tokens" / "manifest.json", change)


def flip_in_tokens(folder: Path) -> None:
    flip_a_bit(folder / "tokens" / "tokens-00000.tar")


def fewer_token_shards(folder: Path) -> None:
    manifest = read_manifest(folder / "tokens", "token")
    write_manifest(folder / "tokens", replace(manifest, shards=manifest.shards[:1]))


def tokens_in_another_order(folder: Path) -> None:
    rewrite(folder / "tokens", lambda samples: samples.reverse())


def other_code_counts(folder: Path) -> None:
    path = folder / "tokens" / "codes.json"
    edit_json(path, lambda content: content["counts"].reverse())

    def change(content: Any) -> None:
        content["settings"]["codes"]["sha256"] = sha256_of_file(path)

    edit_json(folder / "tokens" / "manifest.json", change)


def no_settings(folder: Path) -> None:
    edit_json(folder / "tokens" / "manifest.json", lambda content: content["settings"].clear())


def no_shards(folder: Path) -> None:
    edit_json(folder / "images" / "manifest.json", lambda content: content.pop("shards"))


GRID = np.arange(16).reshape(4, 4)

IMAGE_DAMAGE: list[Any] = [
    (lose_a_shard, {"image_files": "is missing"}),
    (flip_in_held_out, {"image_files": "held_out/images-00000.tar differs from the manifest's"}),
    (flip_in_an_index, {"image_files": "images-00001.tar.index differs"}),
    (index_of_another_shard, {"image_members": "places members where the tar file has none"}),
    (
        key_twice,
        {
            "keys": "key 00000003 is 2 times in train",
            "kept_rows": "sample 00000000 is missing in shard 0 of train",
        },
    ),
    (
        caption_in_gbk,
        {"captions": "sample '00000000' of", "records": "the json of sample '00000000'"},
    ),
    (caption_not_cleaned, {"captions": "were not cleaned"}),
    (other_caption, {"row_captions": "has the caption 紫色 where the metadata have 红色的圆"}),
    (other_record, {"records": "has captions ['other'] where its txt has ['红色的圆']"}),
    (picture_of_html, {"pictures": "has a picture that cannot be read"}),
    (lose_a_row, {"kept_rows": "sample 00000002 in shard 0 of train has no kept row"}),
    (invent_a_row, {"kept_rows": "sample 00003333 is missing in shard 0 of train"}),
    (row_of_another_shard, {"kept_rows": "sample 00000002 "}),
    (two_verdicts, {"rows": "row 2 of part 0 is kept with reason too_few_nouns"}),
    (row_twice, {"rows": "row 3 of part 1 is there 2 times", "row_captions": "黄色"}),
    (
        lose_a_part,
        {"curation": "source books", "kept_rows": "sample 00000005 in shard 1 of train has no"},
    ),
    (cut_a_part, {"metadata": "cannot be read"}),
    (lose_a_column, {"metadata": "lacks the columns split"}),
    (straddling_pixels, {"hold_out": "the picture with pixels 0000"}),
    (straddling_cluster, {"hold_out": "cluster 7 is in train and in held_out, in 2 kept rows"}),
    (other_counts, {"curation": "source web: curation.json says"}),
    (damage_examples, {"metadata": "examples.parquet cannot be read"}),
    (lose_curation, {"curation": "cannot be read"}),
    (no_shards, {"image_manifests": "has no shards of type list"}),
]  # fmt: skip
"""Damage, and the first words of the checks that it must fail; no other may fail."""

TOKEN_DAMAGE: list[Any] = [
    (other_picture, {"recoding": "of 16 codes of sample '00000000'"}),
    (other_tokenizer, {"lineage": "image_tokenizer 0000000000000000..., the given one is"}),
    (other_images, {"lineage": "image_shards "}),
    (flip_in_tokens, {"token_files": "tokens-00000.tar differs"}),
    (fewer_token_shards, {"token_keys": "of 1 image shards", "counts": "num_text_tokens of"}),
    (tokens_in_another_order, {"token_keys": "they differ from sample 0 on"}),
    (
        rewrite_tokens("codes.npy", npy(GRID, np.int32)),
        {"codes": "are int32 [4, 4]", "counts": "codes.json"},
    ),
    (
        rewrite_tokens("codes.npy", npy(GRID + 1, np.uint16)),
        {"codes": "go up to 16", "counts": "codes.json"},
    ),
    (
        rewrite_tokens("codes.npy", npy(GRID, np.uint16)),
        {"recoding": "of 16 codes", "counts": "codes.json"},
    ),
    (
        rewrite_tokens("text.npy", npy([9, 9999], np.int32)),
        {"text_ids": "go from 9 to 9999", "counts": "num_text_tokens"},
    ),
    (
        rewrite_tokens("text.npy", npy([9, 3, 3, 9], np.int32)),
        {"text_ids": "without ids", "counts": "num_text_tokens"},
    ),
    (
        rewrite_tokens("text.npy", npy([9], np.int32)),
        {"text_of_captions": "红色的圆", "counts": "caption_lengths"},
    ),
    (other_code_counts, {"counts": "codes.json counts other codes than the shards hold"}),
    (no_settings, {"token_manifest": "has no settings image_size, grid_size"}),
]  # fmt: skip
"""The same for damage that only the audit of token shards finds."""
