"""Opens every file of a folder as the loader would, and says what that cost in memory.

A process of its own, whose peak is not that of other tests:
python -m tests.data.bomb_process FOLDER
"""

import json
import sys
from pathlib import Path

from ernie_vilg.data.batches.pictures import decode_picture
from ernie_vilg.data.shards.damage import DamageError
from ernie_vilg.data.shards.open_shards import LocalFolder, open_shard
from ernie_vilg.data.shards.tar_index import describe_shard

PICTURE_SIZE = 256


def peak_bytes() -> int:
    """Return the most memory that this process had resident so far."""
    # Not getrusage, which begins with the peak of the process that started this one.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def reason_of(path: Path) -> str:
    """Open one file; return the reason for which it is refused."""
    try:
        if path.suffix != ".tar":
            decode_picture({"__key__": b"a", "jpg": path.read_bytes()}, PICTURE_SIZE)
            return ""
        shard = describe_shard(path, samples=1, members=("png",))
        with (opened := open_shard(LocalFolder(str(path.parent)), shard)).file:
            opened.sample(0)
    except DamageError as error:
        return error.reason
    return ""


def main() -> None:
    """Write the reasons by file, and the bytes by which the peak grew."""
    # What the first picture and the first hash bring with them is no matter of theirs.
    folder = Path(sys.argv[1])
    assert reason_of(folder / "harmless.png") == ""
    before = peak_bytes()
    reasons = {path.name: reason_of(path) for path in sorted(folder.iterdir())}
    sys.stdout.write(json.dumps({"reasons": reasons, "bytes": peak_bytes() - before}))


if __name__ == "__main__":
    main()
