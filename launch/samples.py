"""Pictures and captions while a model trains: where training meets generation."""

import json
from pathlib import Path

from torch import Tensor

from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.evaluation.grid import before_and_after
from ernie_vilg.evaluation.pairs import read_pairs
from ernie_vilg.files import write_bytes
from ernie_vilg.generation.pipeline import ErnieVilg, choose_device
from ernie_vilg.model.weights import model_from_weights
from ernie_vilg.text_tokenizer import TextTokenizer
from ernie_vilg.vqgan.weights import load_image_tokenizer


def draw_samples(config: PretrainConfig, step: int, weights: dict[str, Tensor]) -> dict[str, Path]:
    """Draw the captions and caption the pictures of the first pairs of `samples.pairs`.

    Writes `samples/step_<step>.png` (true pictures above drawn ones) and `.jsonl` (true
    captions beside written ones) into the run folder.

    Args:
        config: the run.
        step: steps taken so far.
        weights: every parameter by name, whole, in any precision.

    Returns:
        the picture file, by the name that it is tracked under.
    """
    device = choose_device("auto")
    tokenizer, _ = load_image_tokenizer(Path(config.data.image_tokenizer))
    model = ErnieVilg(
        model_from_weights(config.model, weights).to(device),
        config.model,
        TextTokenizer.load(Path(config.data.text_tokenizer)),
        tokenizer.to(device),
    )
    assert config.samples.pairs is not None  # checked by SamplesConfig
    pairs = read_pairs(
        Path(config.samples.pairs),
        count=config.samples.count,
        image_size=tokenizer.config.image_size,
    )
    drawn = model.generate([pair.caption for pair in pairs], temperature=config.samples.temperature)
    written = model.caption([pair.image for pair in pairs])
    path = Path(config.run_dir) / "samples" / f"step_{step:08d}.png"
    path.parent.mkdir(exist_ok=True)
    before_and_after(
        [pair.image for pair in pairs], [item.image for item in drawn], columns=8
    ).save(path)
    lines = [
        json.dumps({"caption": pair.caption, "written": item.caption}, ensure_ascii=False) + "\n"
        for pair, item in zip(pairs, written, strict=True)
    ]
    write_bytes(path.with_suffix(".jsonl"), "".join(lines).encode())
    return {"samples": path}
