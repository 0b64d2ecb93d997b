"""Reader of image shards that an earlier run of build_shards wrote.

One task reads one shard, after every byte of it is checked against the manifest. All samples of a
shard that differs are DAMAGED_SHARD.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from data_pipelines.rejections import Reason, RejectedError, Rejection
from data_pipelines.sources.listed import Entry, Pair, numbered
from data_pipelines.sources.pictures import DeferredPicture
from data_pipelines.sources.places import Place
from data_pipelines.sources.rows import Part, RawPair
from data_pipelines.sources.tar_samples import first_member, read_at
from ernie_vilg.data.batches.pictures import PICTURE_MEMBERS
from ernie_vilg.data.shards.damage import DamagedSampleError, DamagedShardError
from ernie_vilg.data.shards.open_shards import LocalFolder, OpenShard, open_shard
from ernie_vilg.data.shards.shard_index import RECORD_BYTES
from ernie_vilg.errors import InputError
from ernie_vilg.storage.json_files import object_of, parse_json
from ernie_vilg.storage.shard_manifest import Manifest, Shard, read_manifest_at

CAPTIONS = "captions"
"""Setting of the manifest: all, where a sample's txt has one caption per line."""


@dataclass(frozen=True, kw_only=True)
class ImageShards:
    """The samples of image shards."""

    name: str
    """Name in the settings."""
    place: Place
    """Folder of the shards."""
    manifest: Manifest
    """Their manifest."""
    work: Path
    """Folder for copies of remote shards."""

    def fingerprint(self) -> str:
        """Return the hash that names the data set."""
        return self.manifest.digest()

    def parts(self) -> Iterator[Part]:
        """Yield a part for every shard."""
        has_one = self._has_one_caption
        first_row = 0
        for shard in self.manifest.shards:
            yield Part(
                source=self.name,
                file=shard.file,
                first_row=first_row if has_one else None,
                rows=shard.samples if has_one else None,
            )
            first_row += shard.samples

    def of_part(self, part: Part) -> "ImageShards":
        """Return the source with one shard."""
        return replace(self, manifest=replace(self.manifest, shards=(self._shards[part.file],)))

    def rows(self, part: Part) -> Iterator[RawPair | Rejection]:
        """Yield the rows of a shard."""
        return numbered(self._entries(self._shards[part.file]))

    @functools.cached_property
    def _shards(self) -> dict[str, Shard]:
        return {shard.file: shard for shard in self.manifest.shards}

    @property
    def _has_one_caption(self) -> bool:
        return self.manifest.settings.get(CAPTIONS) != "all"

    def _entries(self, shard: Shard) -> Iterator[Entry]:
        with self.place.opened(self.work) as copies:
            try:
                for stored in shard.files:
                    self.place.fetch(stored.file, copies)
                path = self.place.fetch(shard.file, copies)
                opened = open_shard(LocalFolder(str(path.parent)), shard)
            except (DamagedShardError, FileNotFoundError) as error:
                rejection = RejectedError(Reason.DAMAGED_SHARD, f"{error!s:.300}")
                for number in range(shard.samples):
                    yield f"{shard.file} sample {number}", rejection
                return
            with opened.file:
                for number in range(shard.samples):
                    yield from self._entries_of(opened, path, number)

    def _entries_of(self, opened: OpenShard, path: Path, number: int) -> Iterator[Entry]:
        key, shard = opened.key(number), opened.shard
        place = f"{shard.file} {key}"
        try:
            problem = opened.problem(number)
            if problem is not None:
                raise problem
            captions = opened.member("txt", number).decode()
            record = object_of(parse_json(opened.member("json", number), place), place)
        except (DamagedSampleError, UnicodeDecodeError, InputError) as error:
            yield place, RejectedError(Reason.DAMAGED_SHARD, f"{error!s:.300}")
            return
        member = first_member(dict.fromkeys(shard.members), PICTURE_MEMBERS)
        assert member is not None  # as `open_image_shards` checks
        offset = int(opened.index.records[member][number]) * RECORD_BYTES
        span = (offset, int(opened.index.sizes[member][number]))
        get = functools.partial(read_at, path, span)
        picture = DeferredPicture(name=f"{key}.{member}", get=get)
        for caption in [captions] if self._has_one_caption else captions.split("\n"):
            record = {**record, "caption": caption}
            yield place, Pair(f"{shard.file}/{key}", picture, caption, record)


def open_image_shards(name: str, place: Place, work: Path) -> ImageShards:
    """Read the manifest of image shards.

    Raises:
        InputError: there is none, or the shards lack a member.
    """
    manifest = read_manifest_at(place.folder, "image")
    for shard in manifest.shards:
        has_picture = first_member(dict.fromkeys(shard.members), PICTURE_MEMBERS)
        if has_picture is None or not {"txt", "json"} <= set(shard.members):
            raise InputError(
                f"{place.name_of(shard.file)} has members {', '.join(shard.members)}: image shards "
                "have a picture, txt and json"
            )
    return ImageShards(name=name, place=place, manifest=manifest, work=work)
