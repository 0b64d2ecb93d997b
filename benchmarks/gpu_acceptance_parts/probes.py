"""Answers tasks of the acceptance run, each a probe by name; imports follow the probe."""

from benchmarks.support.measurer import Result, Task, answer, tasks


def main() -> None:
    """Answer tasks, each with one result."""
    for task in tasks():
        answer(_answer(task))


def _answer(task: Task) -> Result:
    match task["probe"]:
        case "versions":
            from benchmarks.gpu_acceptance_parts.versions import versions

            return versions()
        case "losses":
            from benchmarks.gpu_acceptance_parts.engine_probes import losses

            return losses(task)
        case "resume":
            from benchmarks.gpu_acceptance_parts.engine_probes import resume

            return resume(task)
        case "waits":
            from benchmarks.gpu_acceptance_parts.engine_probes import waits_of_a_step

            return waits_of_a_step(task)
        case "drawing":
            from benchmarks.gpu_acceptance_parts.drawing import milliseconds_per_slot

            return milliseconds_per_slot(task)
        case "step":
            from benchmarks.gpu_acceptance_parts.step_rows import step_row

            return step_row(task)
    raise ValueError(f"no probe {task['probe']}")


if __name__ == "__main__":
    main()
