"""TensorBoard's event files of a run, in its folder `tensorboard/`.

Every start opens a file of its own. A reader takes the files in the order of their names, and drops
what it has read of steps that a new file says will be made again: no abandoned step stays in a
curve. A run that turns TensorBoard on later gets the earlier lines of its metrics file first.

The package `tensorboard` is an extra, imported when a run wants event files.

Source: TensorBoard (https://github.com/tensorflow/tensorboard), SessionLog.START in event.proto.
"""

import importlib.util
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from ernie_vilg.errors import InputError
from ernie_vilg.storage.jsonl import read_lines
from ernie_vilg.tracking.values import Picture, figures_of, pictures_of

FOLDER = "tensorboard"
"""Name of the folder of event files in a run folder."""
_PATTERN = "events.out.tfevents.*"
_RGB = 3

logger = logging.getLogger(__name__)


def check_tensorboard() -> None:
    """Check that the package is installed, without the time that its import takes.

    Raises:
        InputError: it is not.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise InputError(
            "tracking.tensorboard=true needs the package tensorboard: "
            "pip install 'ernie-vilg[tensorboard]', or set tracking.tensorboard=false"
        )


class EventFiles:
    """The event files of one run, written on its leader.

    Files are written and flushed at every call; nothing waits for a network. An error of the disk
    ends the writing with a warning, and the run goes on.
    """

    def __init__(self, run_dir: Path, metrics: Path, step: int) -> None:
        """Open the file of this start.

        Args:
            run_dir: folder of the run.
            metrics: its metrics file, which holds no line after `step`.
            step: steps taken; event files hold the later ones from this start only.
        """
        self._run_dir = run_dir
        self._writer: Any = None
        try:
            earlier = sorted((run_dir / FOLDER).glob(_PATTERN))
            self._open(len(earlier), step if earlier else None)
        except OSError as error:
            self._give_up(error)
        if not earlier and metrics.exists():
            for line in read_lines(metrics):
                if line.record is not None and isinstance(line.record.get("step"), int):
                    self.add(line.record)

    def add(self, entry: Mapping[str, Any]) -> None:
        """Write the figures and pictures of a line of the metrics file."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in figures_of(entry).items()
            if isinstance(value, int | float) and math.isfinite(value)  # a line has null
        ]
        try:
            for picture in pictures_of(entry, self._run_dir):
                values += _picture_values(picture)
        except OSError as error:
            logger.warning("a picture of step %s is not in TensorBoard: %s", entry["step"], error)
        seconds = entry.get("unix_seconds") or time.time()
        self._write(Event(wall_time=seconds, step=entry["step"], summary=Summary(value=values)))

    def go_back(self, step: int) -> None:
        """Let readers drop the later steps, which are made again."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        logger.info("TensorBoard drops what it holds of the steps after %d", step)
        start = SessionLog(status=SessionLog.START)
        self._write(Event(wall_time=time.time(), step=step + 1, session_log=start))

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
        self._writer = None

    def _open(self, index: int, made_again_after: int | None) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder = self._run_dir / FOLDER
        folder.mkdir(exist_ok=True)
        # Numbered, not dated: the order must not depend on a clock.
        path = folder / _PATTERN.replace("*", f"{index:08d}")
        self._writer = RecordWriter(path.open("xb"))
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if made_again_after is not None:
            self.go_back(made_again_after)

    def _write(self, event: Any) -> None:
        if self._writer is None:
            return
        try:
            self._writer.write(event.SerializeToString())
            self._writer.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        logger.warning(
            "TensorBoard's files cannot be written, the run goes on without them until its next "
            "start: %s",
            error,
        )
        self._writer = None


def _picture_values(picture: Picture) -> list[Any]:
    """Return the values of a picture and of its caption."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING
    from tensorboard.plugins.text.metadata import create_summary_metadata

    with Image.open(picture.path) as opened:
        width, height = opened.size
    image = Summary.Image(
        height=height,
        width=width,
        colorspace=_RGB,
        encoded_image_string=picture.path.read_bytes(),
    )
    values = [Summary.Value(tag=picture.name, image=image)]
    if picture.caption:
        name = f"{picture.name}/captions"
        # Two spaces before the end of a line keep the lines apart in Markdown.
        text = TensorProto(
            dtype=DT_STRING, string_val=[picture.caption.replace("\n", "  \n").encode()]
        )
        metadata = create_summary_metadata(display_name=name, description="")
        values.append(Summary.Value(tag=name, metadata=metadata, tensor=text))
    return values
