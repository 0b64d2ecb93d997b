"""Pictures and captions drawn and written while a model trains."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.evaluation.codebook import code_figures
from ernie_vilg.evaluation.grid import SAMPLE_COLUMNS, before_and_after
from ernie_vilg.evaluation.pairs import Pair, read_pairs
from ernie_vilg.generation.decode import ShouldStop, StoppedError, never
from ernie_vilg.generation.pipeline import (
    ErnieVilg,
    GeneratedCaption,
    GeneratedImage,
)
from ernie_vilg.observers.model_of_run import model_of_run, within_memory
from ernie_vilg.runs.observation import Observation
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.storage.files import write_bytes


@within_memory("samples")
def draw_samples(
    config: PretrainConfig,
    step: int,
    weights: dict[str, Tensor],
    should_stop: ShouldStop = never,
) -> Observation | None:
    """Draw the captions and caption the pictures of the first pairs of `samples.pairs`.

    It writes `samples/step_<step>.png` (true pictures above drawn ones) and `.jsonl` (true
    captions beside written ones) into the run folder.

    Args:
        config: settings of the run.
        step: steps taken so far.
        weights: every parameter by name, whole, in any precision.
        should_stop: called repeatedly; true ends the drawing.

    Returns:
        the picture and the figures of its codes; `samples/skipped` alone if the GPU lacks the
        memory; None if `should_stop` returned true. Nothing is written then.
    """
    model, batch_size = model_of_run(config, weights)
    assert config.samples.pairs is not None  # checked by SamplesConfig
    pairs = read_pairs(
        Path(config.samples.pairs),
        count=config.samples.count,
        image_size=model.image_tokenizer.config.image_size,
    )
    try:
        drawn = model.generate(
            [pair.caption for pair in pairs],
            temperature=config.samples.temperature,
            batch_size=batch_size,
            should_stop=should_stop,
        )
        written = model.caption(
            [pair.image for pair in pairs], batch_size=batch_size, should_stop=should_stop
        )
    except StoppedError:
        return None
    path = RunFolder(Path(config.run_dir)).samples(step)
    _write(path, pairs, drawn, written)
    return Observation(
        metrics=_metrics(model, pairs, drawn),
        pictures={"samples": path},
        captions={"samples": _legend(pairs, written)},
    )


def _write(
    path: Path,
    pairs: Sequence[Pair],
    drawn: Sequence[GeneratedImage],
    written: Sequence[GeneratedCaption],
) -> None:
    grid = before_and_after(
        [pair.image for pair in pairs], [item.image for item in drawn], columns=SAMPLE_COLUMNS
    )
    content = io.BytesIO()
    grid.save(content, format="png")
    write_bytes(path, content.getvalue())
    lines = [
        json.dumps({"caption": pair.caption, "written": item.caption}, ensure_ascii=False) + "\n"
        for pair, item in zip(pairs, written, strict=True)
    ]
    write_bytes(path.with_suffix(".jsonl"), "".join(lines).encode())


def _metrics(
    model: ErnieVilg, pairs: Sequence[Pair], drawn: Sequence[GeneratedImage]
) -> dict[str, float]:
    """Return the figures of the drawn pictures' codes and, to compare, the true pictures' codes."""
    true_codes = model.encode_images([pair.image for pair in pairs]).cpu()
    size = model.config.codebook_size
    own = code_figures([item.codes for item in drawn], size)
    true = code_figures(list(true_codes), size)
    return {f"samples/{name}": value for name, value in own.items()} | {
        f"samples/true_{name}": value for name, value in true.items()
    }


def _legend(pairs: Sequence[Pair], written: Sequence[GeneratedCaption]) -> str:
    """Return the text below the grid: the true and the written caption of each picture."""
    return "\n".join(
        f"{index}. {pair.caption} | {item.caption}"
        for index, (pair, item) in enumerate(zip(pairs, written, strict=True), start=1)
    )
