"""The picture of a plan: memory and step time of the best layouts, and tokens/s by GPUs."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import fields

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ernie_vilg.config.plan import PlanConfig
from ernie_vilg.planning.plan import PlannedLayout
from ernie_vilg.planning.step_time import StepTime

_INCHES = (15.0, 5.0)
_MEMORY_PARTS = (
    "weights", "gradients", "optimizer", "activations", "workspace", "logits", "fragmentation"
)  # fmt: skip


def plan_picture(
    config: PlanConfig, layouts: Sequence[PlannedLayout], curve: Mapping[int, PlannedLayout]
) -> bytes:
    """Draw a plan.

    Args:
        config: settings of the plan.
        layouts: the best layouts, the fastest first.
        curve: the best layout by number of GPUs.

    Returns:
        a PNG file.
    """
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "font.size": 8}):
        figure = Figure(figsize=_INCHES, layout="constrained")
        memory, seconds, scaling = figure.subplots(1, 3)
        names = [_name(layout) for layout in layouts]
        parts = {
            part: [getattr(layout.memory, part) / 1e9 for layout in layouts]
            for part in _MEMORY_PARTS
        }
        _bars(memory, names, parts, "memory of a GPU, GB")
        _limits(memory, config)
        times = {
            part.name: [getattr(layout.step, part.name) for layout in layouts]
            for part in fields(StepTime)
        }
        _bars(seconds, names, times, "a step, seconds")
        seconds.set_yticklabels([])
        _scaling(scaling, curve)
        figure.suptitle(f"{config.num_gpus} x {config.gpu.name}, predicted", fontweight="bold")
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=110, metadata={"Software": None})
    return content.getvalue()


def _name(layout: PlannedLayout) -> str:
    split = layout.run.parallelism
    marks = " SP" if split.sequence_parallel else ""
    marks += " offload" if split.offload_optimizer else ""
    return (
        f"T{split.tensor_parallel_size} P{split.pipeline_parallel_size} Z{split.zero_stage} "
        f"m{split.micro_batch_size} {split.activation_checkpointing}{marks}"
    )


def _bars(
    axes: Axes, names: Sequence[str], parts: Mapping[str, Sequence[float]], title: str
) -> None:
    left = [0.0] * len(names)
    colours = matplotlib.colormaps["tab10"]
    for index, (part, values) in enumerate(parts.items()):
        if any(values):
            axes.barh(range(len(names)), values, left=left, label=part, color=colours(index))
        left = [start + value for start, value in zip(left, values, strict=True)]
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_title(title, loc="left", fontweight="bold")
    axes.legend(frameon=False, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=4)
    axes.spines[["top", "right"]].set_visible(False)


def _limits(axes: Axes, config: PlanConfig) -> None:
    """Draw a line at the memory of a GPU, and one at the part of it that a layout may use."""
    whole = config.gpu.memory_bytes / 1e9
    limits = ((whole, "#dc2626", "all"), (whole * (1 - config.memory_margin), "#f59e0b", "allowed"))
    for place, colour, name in limits:
        axes.axvline(place, color=colour, linestyle="--")
        is_all = name == "all"
        axes.annotate(
            name,
            (place, 1.0),
            (2 if is_all else -2, -8),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="left" if is_all else "right",
            color=colour,
        )


def _scaling(axes: Axes, curve: Mapping[int, PlannedLayout]) -> None:
    gpus = list(curve)
    rates = [curve[number].tokens_per_second for number in gpus]
    ideal = [rates[0] * number / gpus[0] for number in gpus]
    axes.plot(gpus, rates, marker="o", color="#2563eb", label="predicted")
    axes.plot(gpus, ideal, color="#9ca3af", linestyle="--", label="as many times as fast")
    for number, rate in zip(gpus, rates, strict=True):
        axes.annotate(
            f"{curve[number].flops_utilization:.0%}",
            (number, rate),
            (0, -12),
            textcoords="offset points",
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(gpus, [str(number) for number in gpus])
    axes.set_title("tokens per second by GPUs (MFU)", loc="left", fontweight="bold")
    axes.grid(color="#e5e7eb")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
