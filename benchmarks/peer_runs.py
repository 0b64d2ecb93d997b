"""Runs that peers published, as work and layout.

Source: named with each run; see docs/scaling.md.
"""

from dataclasses import dataclass

from ernie_vilg.planning.work import EAGER_BYTES, FUSED_BYTES, Spread, Work

_SCORE_BYTES = 30.0
"""Moved per score by attention that writes its scores down: about 15 fused passes of 2 bytes."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A GPT."""

    hidden: int
    """Width."""
    layers: int
    """Blocks."""
    heads: int
    """Of attention."""
    seq: int
    """Tokens per sequence."""
    vocab: int
    """Rows of the embedding."""
    ffn_weights: float = 8.0
    """Weights of the feed-forward layer over hidden squared."""
    key_value_share: float = 1.0
    """Key and value heads over query heads."""


@dataclass(frozen=True, kw_only=True)
class PeerRun:
    """One published step."""

    name: str
    """Whose, which model, on how many GPUs."""
    gpu: str
    """Preset of conf/gpu/."""
    work: Work
    """The model."""
    spread: Spread
    """Its layout."""
    seconds: float
    """Published, of a step."""
    is_calibration: bool = False
    """Whether a factor is fitted to it."""

    @property
    def generation(self) -> str:
        """Of the GPU."""
        return self.gpu.partition("-")[0]


def gpt(shape: Shape, *, flash: bool = False, fused: bool = True) -> Work:
    """Describe a GPT; causal attention that is not flash computes all scores."""
    attention_weights = 2 + 2 * shape.key_value_share
    weights = (attention_weights + shape.ffn_weights) * shape.hidden**2
    scores = shape.seq**2 * (0.5 if flash else 1.0)
    return Work(
        hidden_size=shape.hidden,
        num_layers=shape.layers,
        tokens=shape.seq,
        block_flops=2.0 * weights * shape.seq,
        attention_flops=4.0 * shape.hidden * scores,
        head_flops=2.0 * shape.hidden * shape.vocab * shape.seq,
        block_parameters=round(weights),
        outer_parameters=2 * shape.vocab * shape.hidden,
        elementwise_bytes=FUSED_BYTES if fused else EAGER_BYTES,
        attention_bytes=0.0 if flash else _SCORE_BYTES * shape.heads * shape.seq**2,
    )


def peer_runs() -> list[PeerRun]:
    """Return the runs; the first of each generation of GPUs is calibrated on."""
    return [*_korthikanti(), *_narayanan(), *_neox(), *_torchtitan(), *_nanotron()]


def _korthikanti() -> list[PeerRun]:
    """Return table 5 of arXiv:2205.05198, which publishes seconds: A100 80 GB, micro-batch 1."""
    sizes = {  # hidden, layers, heads; stages, batch, virtual stages; seconds full, selective
        "22B": ((6144, 48, 64), (1, 4, 1), (1.42, 1.10)),
        "175B": ((12288, 96, 96), (8, 64, 3), (18.13, 13.75)),
        "530B": ((20480, 105, 128), (35, 280, 3), (49.05, 37.83)),
        "1T": ((25600, 128, 160), (64, 512, 1), (94.42, 71.49)),
    }
    runs = []
    for name, ((hidden, layers, heads), (stages, batch, virtual), both) in sizes.items():
        shape = Shape(hidden=hidden, layers=layers, heads=heads, seq=2048, vocab=51200)
        for checkpointing, seconds in zip(("full", "selective"), both, strict=True):
            runs.append(
                PeerRun(
                    name=f"Megatron-LM {name}, {8 * stages} A100, {checkpointing} recomputation",
                    gpu="a100-80gb",
                    work=gpt(shape),
                    spread=Spread(
                        tensor=8,
                        pipeline=stages,
                        micro_batch=1 if stages > 1 else 4,
                        num_micro_batches=batch if stages > 1 else 1,
                        sequence_parallel=checkpointing == "selective",
                        checkpointing=checkpointing,
                        virtual_stages=virtual,
                    ),
                    seconds=seconds,
                    is_calibration=name == "175B" and checkpointing == "full",
                )
            )
    return runs


def _narayanan() -> list[PeerRun]:
    """Return table 1 of arXiv:2104.04473: A100 80 GB, full recomputation, which its TFLOP/s count.
    Micro-batches are not in the table and assumed.
    """
    rows = {
        "1.7B": (2304, 24, 24, 1, 1, 32, 512, 16, 137),
        "3.6B": (3072, 30, 32, 2, 1, 64, 512, 16, 138),
        "7.5B": (4096, 36, 32, 4, 1, 128, 512, 16, 142),
        "18.4B": (6144, 40, 48, 8, 1, 256, 1024, 8, 135),
        "39.1B": (8192, 48, 64, 8, 2, 512, 1536, 4, 138),
        "76.1B": (10240, 60, 80, 8, 4, 1024, 1792, 2, 140),
        "145.6B": (12288, 80, 96, 8, 8, 1536, 2304, 2, 148),
        "310.1B": (16384, 96, 128, 8, 16, 1920, 2160, 1, 155),
    }
    runs = []
    for name, row in rows.items():
        hidden, layers, heads, tensor, stages, gpus, batch, micro, rate = row
        shape = Shape(hidden=hidden, layers=layers, heads=heads, seq=2048, vocab=51200)
        data = gpus // tensor // stages
        counted = 96 * batch * 2048 * layers * hidden**2
        counted *= 1 + 2048 / (6 * hidden) + 51200 / (16 * layers * hidden)
        runs.append(
            PeerRun(
                name=f"Megatron-LM {name}, {gpus:,} A100, full recomputation",
                gpu="a100-80gb",
                work=gpt(shape),
                spread=Spread(
                    tensor=tensor, pipeline=stages, data=data, micro_batch=micro,
                    num_micro_batches=batch // data // micro, checkpointing="full",
                    virtual_stages=2 if stages > 1 else 1,
                ),
                seconds=counted / gpus / (rate * 1e12),
            )
        )  # fmt: skip
    return runs


def _torchtitan() -> list[PeerRun]:
    """Return Llama 3.1 8B of torchtitan's benchmarks: tokens per second of a GPU, bfloat16."""
    shape = Shape(
        hidden=4096, layers=32, heads=32, seq=8192, vocab=128256, ffn_weights=10.5,
        key_value_share=0.25,
    )  # fmt: skip
    runs = []
    for gpus, rate, compiled in (
        (8, 6667, True),
        (8, 5762, False),
        (128, 6514, True),
        (128, 5605, False),
    ):
        way = "compiled" if compiled else "eager"
        runs.append(
            PeerRun(
                name=f"torchtitan Llama 3.1 8B, {gpus} H100, FSDP, {way}",
                gpu="h100-80gb",
                work=gpt(shape, flash=True, fused=compiled),
                spread=Spread(
                    data=gpus, zero_stage=3, micro_batch=2, num_micro_batches=1,
                    checkpointing="selective",
                ),
                seconds=2 * 8192 / rate,
            )
        )  # fmt: skip
    return runs


def _nanotron() -> list[PeerRun]:
    """Return the 8.86B of nanotron v0.5's summary: MFU on nodes of 8 H100.

    The shape follows from the number of parameters: Llama 3 8B with as many key as query heads and
    131,072 rows. Sequences of 4,096 are assumed; the batch of 256 follows from the first row's 128
    passes of 2 replicas, and the summary says that it is constant.
    """
    shape = Shape(hidden=4096, layers=32, heads=32, seq=4096, vocab=131072, ffn_weights=10.5)
    work = gpt(shape, flash=True, fused=False)
    counted = 3 * (shape.layers * (work.block_flops + 2 * work.attention_flops) + work.head_flops)
    rows = (
        (1, 1, 4, 2, 0.452), (2, 4, 1, 4, 0.439), (4, 1, 2, 16, 0.433), (8, 1, 2, 32, 0.395),
        (16, 8, 1, 16, 0.363),
    )  # fmt: skip
    return [
        PeerRun(
            name=f"nanotron 8.86B, {8 * nodes} H100, DP{data} TP{tensor} PP{stages}",
            gpu="h100-80gb",
            work=work,
            spread=Spread(
                tensor=tensor,
                pipeline=stages,
                data=data,
                micro_batch=1,
                num_micro_batches=256 // data,
                sequence_parallel=tensor > 1,
                gradient_bytes=4,
            ),
            seconds=256 * counted / (8 * nodes * 989e12 * share),
            is_calibration=nodes == 1,
        )
        for nodes, tensor, stages, data, share in rows
    ]


def _neox() -> list[PeerRun]:
    """Return GPT-NeoX-20B: 150,000 steps in 1,830 hours on 96 A100, all stops included."""
    shape = Shape(hidden=6144, layers=44, heads=64, seq=2048, vocab=50432)
    return [
        PeerRun(
            name="GPT-NeoX-20B, 96 A100 40 GB, 3D",
            gpu="a100-40gb",
            work=gpt(shape, fused=False),
            spread=Spread(
                tensor=2, pipeline=4, data=12, micro_batch=4, num_micro_batches=32,
                checkpointing="full",
            ),
            seconds=1830 * 3600 / 150_000,
        )
    ]  # fmt: skip
