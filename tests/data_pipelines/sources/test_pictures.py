"""A picture is found below the named folders, and nowhere else."""

import errno
import tracemalloc
from pathlib import Path

import pytest

from data_pipelines.rejections import Reason, RejectedError
from data_pipelines.sources.pictures import LocalPicture, PictureFolder
from data_pipelines.sources.rows import MAX_PICTURE_BYTES


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A source whose images are a link to another disk, and that disk's folder."""
    source, disk = tmp_path / "source", tmp_path / "disk"
    (disk / "deep").mkdir(parents=True)
    source.mkdir()
    (disk / "a.png").write_bytes(b"a")
    (disk / "deep" / "b.png").write_bytes(b"b")
    (source / "own.png").write_bytes(b"own")
    (tmp_path / "secret.png").write_bytes(b"secret")
    (source / "images").symlink_to(disk)
    (disk / "out.png").symlink_to(tmp_path / "secret.png")
    return source, disk


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param("a.png", b"a", id="below the root"),
        pytest.param("deep/b.png", b"b", id="in a folder of the root"),
        pytest.param("images/a.png", b"a", id="by a link of the source into the root"),
        pytest.param("own.png", b"own", id="of the source"),
    ],
)
def test_a_named_root_may_be_reached(folders: tuple[Path, Path], name: str, content: bytes) -> None:
    source, disk = folders
    pictures = PictureFolder(folder=str(source), images_root=str(disk))

    assert pictures.find(name)[1].read() == content


def test_an_absolute_path_may_lead_into_a_named_root_only(folders: tuple[Path, Path]) -> None:
    source, disk = folders
    named = PictureFolder(folder=str(source), images_root=str(disk))

    assert named.find(str(disk / "a.png"))[0] == "a.png"
    for pictures, path in [
        (named, source / "own.png"),
        (named, disk / "deep" / ".." / "a.png"),
        (named, disk.parent / "secret.png"),
        (PictureFolder(folder=str(source)), source / "own.png"),
    ]:
        with pytest.raises(RejectedError) as caught:
            pictures.find(str(path))
        assert caught.value.reason == Reason.UNSAFE_PATH


@pytest.mark.parametrize(
    ("name", "has_root", "reason"),
    [
        ("images/a.png", False, Reason.UNSAFE_PATH),
        ("images/out.png", True, Reason.UNSAFE_PATH),
        ("out.png", True, Reason.UNSAFE_PATH),
        ("../secret.png", True, Reason.UNSAFE_PATH),
        ("https://host/a.png", True, Reason.UNSAFE_PATH),
        ("none.png", True, Reason.MISSING_IMAGE),
        ("deep", True, Reason.MISSING_IMAGE),
    ],
)
def test_nothing_else_may_be_reached(
    folders: tuple[Path, Path], name: str, has_root: bool, reason: Reason
) -> None:
    source, disk = folders
    pictures = PictureFolder(folder=str(source), images_root=str(disk) if has_root else None)

    with pytest.raises(RejectedError) as caught:
        pictures.find(name)

    assert caught.value.reason == reason


def test_one_file_has_one_id(folders: tuple[Path, Path]) -> None:
    source, disk = folders
    pictures = PictureFolder(folder=str(source), images_root=str(disk))

    names = ["a.png", "./a.png", "images/a.png", "deep//../a.png"]
    assert {pictures.find(name)[0] for name in names[:3]} == {"a.png"}


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    with path.open("wb") as file:
        file.truncate(MAX_PICTURE_BYTES + 1)

    tracemalloc.start()
    with pytest.raises(RejectedError) as caught:
        LocalPicture(path=str(path)).read()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert caught.value.reason == Reason.IMAGE_TOO_LARGE
    assert peak < 1 << 20


def test_a_file_that_is_gone_is_missing(tmp_path: Path) -> None:
    with pytest.raises(RejectedError) as caught:
        LocalPicture(path=str(tmp_path / "none.png")).read()

    assert caught.value.reason == Reason.MISSING_IMAGE


def test_an_error_of_the_machine_rejects_no_picture(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _ = folders
    pictures = PictureFolder(folder=str(source))
    _, picture = pictures.find("own.png")

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr("data_pipelines.sources.pictures.open_regular", fail)
    with pytest.raises(OSError, match="Stale file handle"):
        picture.read()
    monkeypatch.setattr("os.lstat", fail)
    with pytest.raises(OSError, match="Stale file handle"):
        pictures.find("own.png")
