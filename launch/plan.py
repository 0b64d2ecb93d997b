"""Plan a run without its GPUs: the fastest layouts that fit, their memory, hours and cost.

Command: `python launch/plan.py experiment=ernie_vilg_10b num_gpus=64 gpu=h100-80gb`.
"""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipelines.outputs import check_output
from ernie_vilg.config.plan import PlanConfig
from ernie_vilg.errors import InputError
from launch.support.no_compiler import leave_compiler_unloaded
from launch.support.program import program

if TYPE_CHECKING:
    from ernie_vilg.planning.calibration import Correction
    from ernie_vilg.planning.plan import Plan, PlannedLayout
    from ernie_vilg.preparation.data_size import RunLength

PLAN_NAME = "plan.json"
PICTURE_NAME = "plan.png"
_CURVE = (8, 16, 32, 64, 128, 256, 512, 1024)


@program("plan", PlanConfig)
def main(config: PlanConfig) -> None:
    """Print the layouts, or only the best one's settings, and write plan.json and plan.png."""
    leave_compiler_unloaded()
    # Imported here so that a bad setting is reported before torch is loaded.
    from ernie_vilg.planning.layouts import override_line
    from ernie_vilg.planning.plan import plan
    from ernie_vilg.planning.report import lines_of_plan, scaling_table
    from ernie_vilg.preparation.data_size import run_length

    folder = None if config.apply else check_output("plan_dir", config.plan_dir, is_filled=True)
    length = run_length(config)
    correction, lessons = _learn(config)
    found = plan(config, correction)
    _require_a_layout(config, found, correction)
    if folder is None:
        print(override_line(found.best[0].run))
        return
    lines = [*lessons, *length.lines(), *lines_of_plan(config, found), ""]
    print("\n".join(lines), flush=True)
    # The scaling curve and the picture take as long again; the person reads meanwhile.
    curve = _scaling(config, correction, found)
    print("\n".join(scaling_table(curve)), flush=True)
    _write(folder, config, length, found, curve)


def _learn(config: PlanConfig) -> tuple["Correction", list[str]]:
    """Return the correction from past runs, and lines that describe it."""
    from ernie_vilg.planning.calibration import Correction

    if not config.history:
        return Correction(), []
    from ernie_vilg.planning.past_runs import learn_from_runs

    return learn_from_runs(config)


def _require_a_layout(config: PlanConfig, found: "Plan", correction: "Correction") -> None:
    if found.best:
        return
    from ernie_vilg.planning.plan import smallest_number

    enough = smallest_number(config, correction)
    fix = f"num_gpus={enough} is enough" if enough else "no number up to 4096 is"
    reasons = "; ".join(f"{reason}: {count}" for reason, count, _ in found.reasons)
    raise InputError(
        f"num_gpus={config.num_gpus} of gpu={config.gpu.name}: no layout fits ({reasons}): {fix}"
    )


def _scaling(
    config: PlanConfig, correction: "Correction", found: "Plan"
) -> dict[int, "PlannedLayout"]:
    """Return the best layout of each number of GPUs in the scaling curve, if there is one."""
    from ernie_vilg.planning.plan import plan

    curve = {config.num_gpus: found.best[0]}
    for num_gpus in _CURVE:
        if num_gpus not in curve and num_gpus % config.gpu.gpus_per_node == 0:
            best = plan(config, correction, num_gpus=num_gpus, top=1).best
            curve |= {num_gpus: best[0]} if best else {}
    return dict(sorted(curve.items()))


def _write(
    folder: Path,
    config: PlanConfig,
    length: "RunLength",
    found: "Plan",
    curve: dict[int, "PlannedLayout"],
) -> None:
    from ernie_vilg.evaluation.plan_picture import plan_picture
    from ernie_vilg.storage.files import write_bytes, write_json

    write_json(
        folder / PLAN_NAME,
        {
            "num_gpus": config.num_gpus,
            "gpu": asdict(config.gpu),
            "length": {**asdict(length), "epochs": length.epochs},
            "layouts": [_as_json(layout) for layout in found.best],
            "refused": [asdict(refusal) for refusal in found.refused],
            "scaling": {str(num_gpus): _as_json(best) for num_gpus, best in curve.items()},
        },
    )
    write_bytes(folder / PICTURE_NAME, plan_picture(config, found.best, curve))
    print(f"written: {config.plan_dir}/{PLAN_NAME}, {config.plan_dir}/{PICTURE_NAME}")


def _as_json(layout: "PlannedLayout") -> dict[str, Any]:
    return {
        "parallelism": asdict(layout.run.parallelism),
        "seconds_per_step": layout.step.total,
        "parts": asdict(layout.step),
        "memory_bytes": {**asdict(layout.memory), "total": layout.memory.total},
        "goodput": asdict(layout.goodput),
        "tokens_per_second": layout.tokens_per_second,
        "flops_utilization": layout.flops_utilization,
        "hours": layout.hours,
        "gpu_hours": layout.hours * layout.num_gpus,
        "dollars": layout.dollars,
    }


if __name__ == "__main__":
    main()
