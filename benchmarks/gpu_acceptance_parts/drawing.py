"""Time of a slot while the 10B shape draws."""

import time
from contextlib import suppress

import torch

from benchmarks.support.measurer import Result, Task
from benchmarks.support.models import read_model
from benchmarks.train_step_parts.device import machine, wait
from ernie_vilg.generation.decode import StoppedError, TokenGenerator
from ernie_vilg.generation.sampling import Sampling
from ernie_vilg.model.transformer import build_transformer
from ernie_vilg.vocabulary import NUM_SPECIAL_IDS

_STD = 0.02


def milliseconds_per_slot(task: Task) -> Result:
    """Return milliseconds per slot over a range of slots, for a batch of candidates.

    The weights are random: no text of the model is worth reading, and the time is the same.
    """
    device = machine()
    small = {} if device == "cuda" else {"hidden_size": 64, "num_heads": 4, "image_grid_size": 8}
    config = read_model("ernie_vilg_10b", num_layers=task["layers"], **small)
    with torch.device(device):  # drawing weights on the host would take seconds per layer
        network = build_transformer(config)
    network.to(device, getattr(torch, task["precision"]))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0.0, _STD)
    generator = torch.Generator().manual_seed(0)
    shape = (task["candidates"], config.text_length)
    text = torch.randint(NUM_SPECIAL_IDS, config.text_vocab_size, shape, generator=generator)
    uniforms = torch.rand(
        task["candidates"], config.num_image_tokens, generator=generator, dtype=torch.float64
    )
    first, last = int(task["first"]), int(task["last"])
    times: list[float] = []

    def should_stop() -> bool:
        if len(times) in (first, last):
            wait(device)
        times.append(time.perf_counter())
        return len(times) > last

    sampling = Sampling(temperature=task["temperature"])
    with suppress(StoppedError):
        TokenGenerator(network.eval(), config).draw(
            text.to(device), sampling, uniforms.to(device), should_stop=should_stop
        )
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0
    return {"ms": 1000 * (times[last] - times[first]) / (last - first), "peak_gib": peak}
