"""Steps that NVIDIA published for Megatron-LM, from its first cluster of A100 to H100.

Source: named with each table, with the assumptions about unpublished settings.
"""

from benchmarks.peers.shapes import PeerRun, Shape, gpt
from ernie_vilg.planning.workload import RECOMPUTATION, Spread


def megatron_runs() -> list[PeerRun]:
    """Return all of them."""
    return [*_first(), *_narayanan(), *_korthikanti(), *_h100(), *_nemo()]


def _first() -> list[PeerRun]:
    """Return images/tables.tex of September 2020, which has seconds: tensor ranks alone, then 128
    replicas of each. Sequences of 1,024, 51,200 rows (its README); full recomputation is assumed.
    """
    sizes = {"1B": (1920, 24, 15), "2B": (2304, 30, 18), "4B": (3072, 36, 24), "8B": (4096, 42, 32)}
    published = (  # GPU, replicas, batch of each, seconds by size
        ("v100-32gb", 1, 8, (1.121, 1.093, 1.238, 1.407)),
        ("a100-40gb", 1, 16, (1.076, 1.026, 1.162, 1.343)),
        ("a100-40gb", 128, 16, (1.153, 1.101, 1.242, 1.380)),
    )
    runs = []
    for gpu, data, batch, seconds in published:
        for power, (name, (hidden, layers, heads)) in enumerate(sizes.items()):
            shape = Shape(hidden=hidden, layers=layers, heads=heads, seq=1024, vocab=51200)
            tensor = 2**power
            kind = gpu.partition("-")[0].upper()
            runs.append(
                PeerRun(
                    name=f"Megatron-LM 2020 {name}, {data * tensor:,} {kind}",
                    gpu=gpu,
                    workload=gpt(shape),
                    spread=Spread(
                        tensor=tensor, data=data, micro_batch=batch, num_micro_batches=1,
                        recomputation=RECOMPUTATION["full"],
                    ),
                    seconds=seconds[power],
                )
            )  # fmt: skip
    return runs


def _narayanan() -> list[PeerRun]:
    """Return table 1 of arXiv:2104.04473 (images/cases_april2021.png): A100 80 GB, full
    recomputation, which its TFLOP/s count. Tensor ranks, stages, micro-batches and virtual stages
    are those of examples/academic_paper_scripts/sc21/run_table_1.sh.
    """
    rows = {  # hidden, layers, heads; tensor, stages, GPUs, batch, micro-batch, virtual; TFLOP/s
        "1.7B": ((2304, 24, 24), (1, 1, 32, 512, 16, 1), 137),
        "3.6B": ((3072, 30, 32), (2, 1, 64, 512, 16, 1), 138),
        "7.5B": ((4096, 36, 32), (4, 1, 128, 512, 16, 1), 142),
        "18.4B": ((6144, 40, 48), (8, 1, 256, 1024, 8, 1), 135),
        "39.1B": ((8192, 48, 64), (8, 2, 512, 1536, 4, 1), 138),
        "76.1B": ((10240, 60, 80), (8, 4, 1024, 1792, 2, 3), 140),
        "145.6B": ((12288, 80, 96), (8, 8, 1536, 2304, 2, 2), 148),
        "310.1B": ((16384, 96, 128), (8, 16, 1920, 2160, 1, 2), 155),
        "529.6B": ((20480, 105, 128), (8, 35, 2520, 2520, 1, 3), 163),
        "1008B": ((25600, 128, 160), (8, 64, 3072, 3072, 1, 1), 163),
    }
    runs = []
    for name, ((hidden, layers, heads), layout, rate) in rows.items():
        tensor, stages, gpus, batch, micro, virtual = layout
        shape = Shape(hidden=hidden, layers=layers, heads=heads, seq=2048, vocab=51200)
        data = gpus // tensor // stages
        counted = 96 * batch * 2048 * layers * hidden**2
        counted *= 1 + 2048 / (6 * hidden) + 51200 / (16 * layers * hidden)
        runs.append(
            PeerRun(
                name=f"Megatron-LM 2021 {name}, {gpus:,} A100, full recomputation",
                gpu="a100-80gb",
                workload=gpt(shape),
                spread=Spread(
                    tensor=tensor, pipeline=stages, data=data, micro_batch=micro,
                    num_micro_batches=batch // data // micro,
                    recomputation=RECOMPUTATION["full"], virtual_stages=virtual,
                ),
                seconds=counted / gpus / (rate * 1e12),
                is_calibration=name == "7.5B",
            )
        )  # fmt: skip
    return runs


def _korthikanti() -> list[PeerRun]:
    """Return table 5 of arXiv:2205.05198, which has seconds: A100 80 GB. It was written down from
    memory and not checked again.
    """
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
                    name=f"Megatron-LM 2022 {name}, {8 * stages} A100, {checkpointing} "
                    "recomputation",
                    gpu="a100-80gb",
                    workload=gpt(shape),
                    spread=Spread(
                        tensor=8,
                        pipeline=stages,
                        micro_batch=1 if stages > 1 else 4,
                        num_micro_batches=batch if stages > 1 else 1,
                        sequence_parallel=checkpointing == "selective",
                        recomputation=RECOMPUTATION[checkpointing],
                        virtual_stages=virtual,
                    ),
                    seconds=seconds,
                )
            )
    return runs


def _h100() -> list[PeerRun]:
    """Return images/model_table.png of the README (core 0.8): sequences of 4,096, 131,072 rows, 48
    replicas, communication overlapped with products. Assumed are no recomputation and, with a
    pipeline, micro-batches of one sequence and one layer per virtual stage.
    """
    rows = {  # hidden, layers, heads; tensor, stages, batch; TFLOP/s
        "1.7B": ((2048, 24, 16), (1, 1, 192), 408.8),
        "7.1B": ((4096, 30, 32), (2, 1, 192), 465.9),
        "16B": ((6144, 32, 48), (4, 1, 192), 489.1),
        "32B": ((7168, 48, 56), (8, 1, 192), 459.6),
        "70B": ((8192, 84, 64), (8, 2, 384), 419.7),
        "119B": ((10240, 92, 80), (8, 4, 768), 420.5),
        "177B": ((12288, 96, 96), (8, 6, 1152), 432.8),
        "314B": ((16384, 96, 128), (8, 8, 1536), 474.4),
        "462B": ((18432, 112, 144), (8, 16, 3072), 459.9),
    }
    runs = []
    for name, ((hidden, layers, heads), (tensor, stages, batch), rate) in rows.items():
        shape = Shape(hidden=hidden, layers=layers, heads=heads, seq=4096, vocab=131072)
        gpus = 48 * tensor * stages
        runs.append(
            PeerRun(
                name=f"Megatron-LM 2024 {name}, {gpus:,} H100",
                gpu="h100-80gb",
                workload=gpt(shape, flash=True),
                spread=Spread(
                    tensor=tensor, pipeline=stages, data=48,
                    micro_batch=1 if stages > 1 else batch // 48,
                    num_micro_batches=batch // 48 if stages > 1 else 1,
                    sequence_parallel=tensor > 1,
                    gradient_bytes=4, hides_messages=True,
                    virtual_stages=layers // stages if stages > 1 else 1,
                ),
                seconds=batch * shape.counted_flops / gpus / (rate * 1e12),
                is_calibration=name == "7.1B",
            )
        )  # fmt: skip
    return runs


def _nemo() -> list[PeerRun]:
    """Return bf16 on H100 of NVIDIA/dgxc-benchmarking v25.05.05, which has seconds. Shapes are
    those of the models' reports; context ranks halve the sequences of the 405B.
    """
    nemotron_15b = Shape(
        hidden=6144, layers=32, heads=48, seq=4096, vocab=256000, key_value_share=8 / 48
    )
    nemotron_340b = Shape(
        hidden=18432, layers=96, heads=96, seq=4096, vocab=256000, key_value_share=8 / 96
    )
    llama_405b = Shape(
        hidden=16384, layers=126, heads=128, seq=8192, vocab=128256, ffn_weights=9.75,
        key_value_share=8 / 128,
    )  # fmt: skip
    rows = (  # shape, context ranks; tensor, stages, replicas, micro-batch, passes, virtual
        ("Nemotron-4 15B, 16 H100", nemotron_15b, 1, (2, 1, 8, 2, 4, 1), 2.746),
        ("Nemotron-4 340B, 256 H100", nemotron_340b, 1, (8, 8, 4, 1, 16, 12), 4.606),
        ("Llama 3.1 405B, 512 H100", llama_405b, 2, (8, 8, 8, 1, 64, 8), 19.81),
    )
    return [
        PeerRun(
            name=f"NeMo {name}",
            gpu="h100-80gb",
            workload=gpt(shape, flash=True, parts=parts),
            spread=Spread(
                tensor=tensor, pipeline=stages, data=data, micro_batch=micro,
                num_micro_batches=passes, sequence_parallel=True, gradient_bytes=4,
                virtual_stages=virtual, hides_messages=True,
            ),
            seconds=seconds,
            has_new_kernels=True,
        )
        for name, shape, parts, (tensor, stages, data, micro, passes, virtual), seconds in rows
    ]  # fmt: skip
