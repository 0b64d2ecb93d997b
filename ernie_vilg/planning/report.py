"""Plans as text: lines for the terminal and the tables of docs/scaling.md."""

from collections.abc import Mapping, Sequence

from ernie_vilg.config.plan import PlanConfig
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.planning.goodput import run_pairs
from ernie_vilg.planning.plan import Plan, PlannedLayout

_HEADER = (
    f"{'TP':>3}{'PP':>4}{'DP':>5}{'ZeRO':>5}{'SP':>3}{'micro':>6} {'recompute':<10}{'offload':<8}"
    f"{'compiled':<8}"
    f"{'memory':>8}{'step':>9}{'bubble':>7}{'MFU':>5}{'tokens/s':>10}{'hours':>8}{'dollars':>12}"
)


def lines_of_plan(config: PlanConfig, found: Plan) -> list[str]:
    """Return the lines to print for a plan.

    Args:
        config: settings of the plan.
        found: at least one layout.
    """
    best = found.best[0]
    stalls = f"{best.goodput.stall_seconds:.1f} s of stall"
    return [
        f"{config.num_gpus} x {config.gpu.name}, {found.num_legal} legal layouts; predictions, "
        f"with {config.memory_margin:.0%} of the memory left free",
        *adapter_note(config),
        "",
        _HEADER,
        *(line_of_layout(layout) for layout in found.best),
        "",
        f"best: {run_pairs(config):,} pairs in {amount(best.hours)} hours, "
        f"{amount(best.hours * config.num_gpus)} GPU-hours, {amount(best.dollars)} dollars; "
        f"goodput {best.goodput.share:.1%} with a stop every "
        f"{best.goodput.hours_between_stops:,.0f} hours",
        f"checkpoints: {stalls}, {best.goodput.write_seconds:.0f} s of writing; "
        f"checkpoint.every={config.checkpoint.every}, {best.goodput.best_interval_steps} loses "
        "the least time",
        "",
        "not possible:",
        *(f"{count:>6}  {reason}; such as: {fix}" for reason, count, fix in found.reasons),
    ]


def adapter_note(config: PretrainConfig) -> list[str]:
    """Return a line about what a prediction does not know of a run with adapters; else none."""
    if not config.model.lora.rank:
        return []
    return [
        "memory is that of training adapters alone; seconds, and what follows from them, are those "
        "of training all weights, which takes longer"
    ]


def line_of_layout(layout: PlannedLayout) -> str:
    """Return a layout as a row of the terminal's table."""
    split = layout.run.parallelism
    data = split.data_parallel_size(layout.num_gpus)
    flag = "yes" if split.sequence_parallel else "-"
    offload = "yes" if split.offload_optimizer else "-"
    compiled = "yes" if layout.run.compile_blocks else "-"
    return (
        f"{split.tensor_parallel_size:>3}{split.pipeline_parallel_size:>4}{data:>5}"
        f"{split.zero_stage:>5}{flag:>4}{split.micro_batch_size:>5} "
        f"{split.activation_checkpointing:<10}{offload:<8}{compiled:<8}"
        f"{layout.memory.total / 1e9:>5.0f} GB"
        f"{layout.step.total:>7.2f} s{layout.step.bubble / layout.step.total:>7.0%}"
        f"{layout.flops_utilization:>5.0%}{layout.tokens_per_second:>10,.0f}{amount(layout.hours):>8}"
        f"{amount(layout.dollars):>12}"
    )


def amount(value: float) -> str:
    """Return hours or dollars in words of a table, small ones with their decimals."""
    if value >= 10:
        return f"{value:,.0f}"
    return f"{value:.2g}" if value >= 0.01 else "<0.01"


def layout_words(layout: PlannedLayout) -> str:
    """Return a layout in words, with whether its blocks are compiled."""
    words = layout.run.parallelism.describe(layout.num_gpus)
    return words if layout.run.compile_blocks else f"{words}, not compiled"


def scaling_table(curve: Mapping[int, PlannedLayout]) -> Sequence[str]:
    """Return the best layout for each number of GPUs as a Markdown table."""
    rows = [
        "| GPUs | layout | micro | GB | step, s | MFU | tokens/s | hours | GPU-hours | goodput |"
    ]
    rows.append("|---|---|---|---|---|---|---|---|---|---|")
    for num_gpus, best in curve.items():
        rows.append(
            f"| {num_gpus:,} | {layout_words(best)} | "
            f"{best.run.parallelism.micro_batch_size} | {best.memory.total / 1e9:.0f} | "
            f"{best.step.total:.2f} | {best.flops_utilization:.0%} | "
            f"{best.tokens_per_second:,.0f} | {amount(best.hours)} | "
            f"{amount(best.hours * num_gpus)} | {best.goodput.share:.1%} |"
        )
    return rows
