"""The stages of both halves, with their values, and the goals that their figures must reach.

Half 1 asks whether everything runs and is right: the programs, the engine in every mode, the tests
that need a GPU. Half 2 asks how fast it is. Seconds are those of an H100 at a5a332e.
"""

from dataclasses import dataclass

from benchmarks.gpu_acceptance_parts import measurements, programs
from benchmarks.gpu_acceptance_parts.gpu_tests import gpu_tests
from benchmarks.gpu_acceptance_parts.measurements import PLAIN, engine_resume, losses
from benchmarks.gpu_acceptance_parts.stages import Stage


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A figure that the acceptance run must reach on one H100 or H200."""

    metric: str
    """Name of the figure."""
    bound: float
    """Required value."""
    unit: str = ""
    """Unit of the bound; empty for a share."""
    is_lower_better: bool = False
    """Whether the figure must stay below the bound."""
    half: int
    """Half that measures it."""


GOALS = (
    Goal(half=1, metric="first step, cold", bound=35.0, unit="s", is_lower_better=True),
    Goal(half=1, metric="first step, warm", bound=20.0, unit="s", is_lower_better=True),
    Goal(half=1, metric="losses equal after kill and resume", bound=1.0),
    Goal(half=1, metric="objects drawn right", bound=0.92),
    Goal(half=2, metric="MFU, 8 x 2", bound=0.55),
    Goal(half=2, metric="MFU, 8 x 8", bound=0.60),
    Goal(half=2, metric="FP8 over bf16, 8 x 8", bound=1.25, unit="x"),
    Goal(half=2, metric="error of the planner's memory", bound=0.02, is_lower_better=True),
    # At most 2.
    Goal(half=2, metric="host waits per step", bound=3, unit="waits", is_lower_better=True),
)

_PROGRAMS = [
    Stage(
        name="train", half=1, value=100, seconds=70, run=programs.train, leaves=(programs.WHOLE,)
    ),
    Stage(name="kill", half=1, value=99, seconds=30, run=programs.kill, leaves=(programs.KILLED,)),
    Stage(
        name="resume",
        half=1,
        value=98,
        seconds=45,
        run=programs.resume,
        needs=("train", "kill"),
    ),
    Stage(
        name="export",
        half=1,
        value=89,
        seconds=15,
        run=programs.export,
        needs=("train",),
        leaves=(programs.WEIGHTS,),
        is_alone=False,
    ),
    Stage(
        name="judge",
        half=1,
        value=88,
        seconds=20,
        run=programs.judge,
        needs=("export",),
        is_alone=False,
    ),
    Stage(
        name="draw",
        half=1,
        value=75,
        seconds=15,
        run=programs.draw,
        needs=("export",),
        is_alone=False,
    ),
]

_PLAIN = Stage(name=PLAIN, half=1, value=90, seconds=30, run=losses("plain"))
"""Alone, so that the other modes find its kernels in the cache."""


def _mode(
    value: int, mode: str, *, seconds: float = 15, needs_gpu: bool = False, **task: object
) -> Stage:
    return Stage(
        name=f"losses, {mode}",
        half=1,
        value=value,
        seconds=seconds,
        run=losses(mode, **task),
        needs=(PLAIN,),
        is_alone=False,
        needs_gpu=needs_gpu,
    )


_CORRECTNESS = [
    _mode(87, "compiled", seconds=30, compile=True),
    Stage(
        name="GPU tests, kernels",
        half=1,
        value=86,
        seconds=60,
        run=gpu_tests("kernels"),
        is_alone=False,
    ),
    _mode(85, "ZeRO 3", parallelism={"zero_stage": 3}),
    _mode(84, "selective", parallelism={"activation_checkpointing": "selective"}),
    _mode(83, "full", parallelism={"activation_checkpointing": "full"}),
    Stage(
        name="engine resumes",
        half=1,
        value=82,
        seconds=15,
        run=engine_resume("ZeRO 1"),
        is_alone=False,
    ),
    _mode(81, "FP8", linear_precision="fp8"),
    _mode(81, "ZeRO 2", parallelism={"zero_stage": 2}),
    _mode(80, "EMA", ema_decay=0.999),
    _mode(79, "fp16", precision="fp16", needs_gpu=True),
    _mode(
        78,
        "ZeRO 3, offload, full",
        seconds=40,
        parallelism={
            "zero_stage": 3,
            "offload_optimizer": True,
            "activation_checkpointing": "full",
        },
    ),
    Stage(
        name="engine resumes, ZeRO 3",
        half=1,
        value=77,
        seconds=15,
        run=engine_resume("ZeRO 3", parallelism={"zero_stage": 3}),
        is_alone=False,
    ),
    *(
        Stage(
            name=f"GPU tests, {part}",
            half=1,
            value=value,
            seconds=seconds,
            run=gpu_tests(part),
            is_alone=False,
            is_optional=value < 70,
        )
        for value, part, seconds in (
            (76, "parity", 45),
            (74, "the rest", 60),
            (66, "memory", 60),
            (65, "other kernels", 90),
        )
    ),
]

_SPEED = [
    Stage(
        name="step, 8 x 2",
        half=2,
        value=94,
        seconds=50,
        run=measurements.step("8 x 2", 8, 2, with_trace=True),
    ),
    Stage(
        name="step, 8 x 8",
        half=2,
        value=93,
        seconds=55,
        run=measurements.step("8 x 8", 8, 8),
    ),
    Stage(
        name="step, FP8",
        half=2,
        value=92,
        seconds=60,
        run=measurements.fp8_step,
        needs=("step, 8 x 8",),
    ),
    Stage(
        name="host waits",
        half=2,
        value=75,
        seconds=25,
        run=measurements.host_waits,
        is_alone=False,
    ),
    Stage(
        name="drawing, bf16 sampled",
        half=2,
        value=73,
        seconds=30,
        run=measurements.drawing("bf16 sampled", precision="bfloat16", temperature=1.0),
    ),
    Stage(name="step, 4 x 4", half=2, value=72, seconds=45, run=measurements.step("4 x 4", 4, 4)),
    Stage(
        name="attention, options",
        half=2,
        value=71,
        seconds=45,
        run=measurements.attention_options,
        is_optional=True,
    ),
    Stage(
        name="step, 4 x 4, eager",
        half=2,
        value=70,
        seconds=40,
        run=measurements.step("4 x 4, eager", 4, 4, compiled=False),
        is_optional=True,
    ),
    Stage(
        name="drawing, bf16 greedy",
        half=2,
        value=69,
        seconds=30,
        run=measurements.drawing("bf16 greedy", precision="bfloat16", temperature=0.0),
        is_optional=True,
    ),
    Stage(name="memory", half=2, value=60, seconds=1, run=measurements.memory),
]

STAGES = (*_PROGRAMS, _PLAIN, *_CORRECTNESS, *_SPEED)
"""All stages."""
