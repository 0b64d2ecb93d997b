"""Train the transformer; the same command starts and resumes.

Exit codes: 0 all steps are done, 75 stopped on request with a checkpoint, 2 a setting is wrong,
1 any other failure.
"""

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from ernie_vilg.config.launch import Launch
from ernie_vilg.config.pretrain import PretrainConfig
from ernie_vilg.runs.run_lock import RunLock
from launch.support.environment import read_launch
from launch.support.program import program
from launch.support.run_start import start_run

if TYPE_CHECKING:
    from ernie_vilg.parallel.engine.engine import Engine
    from ernie_vilg.runs.phases import Phases
    from ernie_vilg.training.callbacks import Callback, PretrainCallbacks


@program("pretrain", PretrainConfig, has_ranks=True)
def main(config: PretrainConfig) -> None:
    """Check every setting, then train, or print what would be trained."""
    launch = read_launch()
    if config.dry_run:
        _dry_run(config, launch)
        return
    sys.exit(start(config, launch))


def start(config: PretrainConfig, launch: Launch, phases: "Phases | None" = None) -> int:
    """Check everything that needs no device, then train; return the exit code.

    Args:
        config: settings of the run.
        launch: rank and launchers of this process.
        phases: phases of this rank; the fire drill passes its own.
    """
    config.parallelism.num_micro_batches(launch.world_size)
    config.check_paths()

    def train(launch: Launch, lock: RunLock) -> int:
        from ernie_vilg.training.pretrain import pretrain

        with ExitStack() as parts:
            callbacks = callbacks_of(config, parts)
            return pretrain(config, launch, callbacks=callbacks, lock=lock, phases=phases)

    tensor_parallel_size = config.parallelism.tensor_parallel_size
    return start_run(config, launch, train, tensor_parallel_size=tensor_parallel_size)


def callbacks_of(config: PretrainConfig, parts: ExitStack) -> "PretrainCallbacks":
    """Return the work besides the steps; what a run never does is not imported.

    Args:
        config: settings of the run.
        parts: closes what a callback leaves open, when training ends in any way.
    """
    from ernie_vilg.runs.phases import Phase
    from ernie_vilg.training.callbacks import Call, OnWholeWeights, PretrainCallbacks

    first: list[Callback[PretrainConfig, Engine]] = []
    between: list[Callback[PretrainConfig, Engine]] = []
    last: list[Callback[PretrainConfig, Engine]] = []
    if config.validation.every:
        from ernie_vilg.observers.validation import HeldOutLosses

        held_out = HeldOutLosses()
        every = config.validation.every
        first.append(Call(phase=Phase.VALIDATE, run=held_out.load))
        between.append(Call(every=every, phase=Phase.VALIDATE, run=held_out.measure))
        last.append(Call(phase=Phase.VALIDATE, run=held_out.measure))
    if config.samples.every:
        draw, draw_first = _samples(config.samples.every)
        first.append(draw_first)
        between.append(draw)
    if config.health.every:  # matplotlib takes a second
        from ernie_vilg.observers.health import measure_health

        every = config.health.every
        between.append(OnWholeWeights(every=every, phase=Phase.HEALTH, observe=measure_health))
    if config.statistics.every:
        from ernie_vilg.observers.step_statistics import StatisticsOfSteps

        between.append(StatisticsOfSteps(config.statistics))
    if config.profile.steps:
        from ernie_vilg.runs.profile import StepProfile

        profile = StepProfile(config.profile, Path(config.run_dir))
        parts.callback(profile.close)
        between.append(profile)
    return PretrainCallbacks(first=first, between=between, last=last)


def _samples(
    every: int,
) -> "tuple[Callback[PretrainConfig, Engine], Callback[PretrainConfig, Engine]]":
    """Return the drawing of samples at an interval, and before the first step."""
    from ernie_vilg.observers.samples import draw_samples
    from ernie_vilg.runs.phases import Phase
    from ernie_vilg.training.callbacks import BeforeFirstStep, OnWholeWeights

    draw = OnWholeWeights(every=every, phase=Phase.DRAW, observe=draw_samples)
    return draw, BeforeFirstStep(callback=draw)


def _dry_run(config: PretrainConfig, launch: Launch) -> None:
    world_size = launch.world_size if config.world_size is None else config.world_size
    config.parallelism.num_micro_batches(world_size)
    if launch.rank == 0:
        from ernie_vilg.preparation.dry_run import dry_run

        print(dry_run(config, world_size))


if __name__ == "__main__":
    main()
