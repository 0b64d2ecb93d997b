"""The published runs that the planner is compared with.

Two of them calibrate a factor, by a rule that was fixed before the results were seen: for each
generation of GPUs, the run of Megatron-LM, whose layers ours are, on several machines that is
nearest to ten billion parameters.

Source: named with each run; see docs/scaling.md.
"""

from dataclasses import replace

from benchmarks.peers.megatron import megatron_runs
from benchmarks.peers.shapes import PeerRun, Shape, gpt
from ernie_vilg.planning.workload import (
    RECOMPUTATION,
    SUMMED,
    GradientTraffic,
    Recomputation,
    Spread,
)

_TORCHTITAN_BANDWIDTH = 2.4e12
"""Memory bandwidth of torchtitan's H100, which have HBM2e, in bytes per second."""


def peer_runs() -> list[PeerRun]:
    """Return all runs."""
    runs = [*megatron_runs(), *_neox(), *_torchtitan(), *_nanotron()]
    return [
        replace(
            run,
            spread=replace(
                run.spread,
                gradients=_gradient_traffic(run),
                reduces_early=run.spread.pipeline == 1,
            ),
        )
        for run in runs
    ]


def _gradient_traffic(run: PeerRun) -> GradientTraffic:
    """Return the traffic around a run's gradients, which no peer publishes.

    nanotron adds 16-bit gradients to float32 sums (10 bytes). The others add in the product, or in
    16 bits, which takes 6 bytes beyond the gradient itself. A single pass on GPUs before the H100,
    whose sums were 16-bit, and under FSDP has nothing to add to.
    """
    is_alone = run.spread.num_micro_batches == 1
    keeps_sums = run.gpu.startswith("h100") and run.spread.zero_stage == 1
    pass_bytes = 10 if run.peer == "nanotron" else 0 if is_alone and not keeps_sums else 6
    return replace(SUMMED, pass_bytes=pass_bytes, step_waits=0)


def _neox() -> list[PeerRun]:
    """Return GPT-NeoX-20B: 150,000 steps in 1,830 hours on 96 A100, including stops."""
    shape = Shape(hidden=6144, layers=44, heads=64, seq=2048, vocab=50432)
    return [
        PeerRun(
            name="GPT-NeoX 20B, 96 A100 40 GB, 3D",
            gpu="a100-40gb",
            workload=gpt(shape, fused=False),
            spread=Spread(
                tensor=2, pipeline=4, data=12, micro_batch=4, num_micro_batches=32,
                recomputation=RECOMPUTATION["full"],
            ),
            seconds=1830 * 3600 / 150_000,
        )
    ]  # fmt: skip


def _torchtitan() -> list[PeerRun]:
    """Return Llama 3.1 8B of torchtitan's benchmarks (December 2024): tokens per second of a GPU,
    bfloat16. Its selective recomputation, at commit 9dec370, covers every second product of a block
    and all element-wise passes; attention is kept. Gradients are reduced in float32. Its H100 use
    500 W, the preset's 700 W: the effect is neither published nor modelled.
    """
    shape = Shape(
        hidden=4096, layers=32, heads=32, seq=8192, vocab=128256, ffn_weights=10.5,
        key_value_share=0.25,
    )  # fmt: skip
    # Key, output and one half of the gate, out of 13 hidden squared.
    recomputation = Recomputation(matrix=(0.25 + 1 + 3.5) / 13, elementwise=1.0)
    rows = ((8, 6667, True), (8, 5762, False), (128, 6514, True), (128, 5605, False))
    return [
        PeerRun(
            name=f"torchtitan Llama 3.1 8B, {gpus} H100, FSDP, "
            f"{'compiled' if compiled else 'eager'}",
            gpu="h100-80gb",
            workload=gpt(shape, flash=True, fused=compiled),
            spread=Spread(
                data=gpus, zero_stage=3, micro_batch=2, num_micro_batches=1,
                recomputation=recomputation, gradient_bytes=4,
            ),
            seconds=2 * 8192 / rate,
            memory_bandwidth=_TORCHTITAN_BANDWIDTH,
        )
        for gpus, rate, compiled in rows
    ]  # fmt: skip


def _nanotron() -> list[PeerRun]:
    """Return the 8.86B of nanotron v0.5's summary: MFU on nodes of 8 H100.

    The shape follows from the number of parameters: Llama 3 8B with as many key as query heads and
    131,072 rows. Sequences of 4,096 are assumed; the batch of 256 follows from the first row's 128
    passes of 2 replicas, and the summary states that it is constant. Communication among tensor
    ranks and replicas overlaps with computing.
    """
    shape = Shape(hidden=4096, layers=32, heads=32, seq=4096, vocab=131072, ffn_weights=10.5)
    rows = (
        (1, 1, 4, 2, 0.452), (2, 4, 1, 4, 0.439), (4, 1, 2, 16, 0.433), (8, 1, 2, 32, 0.395),
        (16, 8, 1, 16, 0.363),
    )  # fmt: skip
    return [
        PeerRun(
            name=f"nanotron 8.86B, {8 * nodes} H100, DP{data} TP{tensor} PP{stages}",
            gpu="h100-80gb",
            workload=gpt(shape, flash=True, fused=False),
            spread=Spread(
                tensor=tensor,
                pipeline=stages,
                data=data,
                micro_batch=1,
                num_micro_batches=256 // data,
                sequence_parallel=tensor > 1,
                gradient_bytes=4,
                hides_messages=True,
            ),
            seconds=256 * shape.counted_flops / (8 * nodes * 989e12 * share),
        )
        for nodes, tensor, stages, data, share in rows
    ]
