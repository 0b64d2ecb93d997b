"""Train the transformer, or go on training it: the same command does both."""

from ernie_vilg.config.launch import Launch
from ernie_vilg.config.pretrain import PretrainConfig
from launch.environment import read_launch
from launch.program import program


@program("pretrain", PretrainConfig)
def main(config: PretrainConfig) -> None:
    """Check every setting, then train, or say what would be trained."""
    launch = read_launch()
    if config.dry_run:
        _dry_run(config, launch)
        return
    config.parallelism.num_micro_batches(launch.world_size)
    config.check_paths()
    # Imported here so that a bad setting is reported before torch and DeepSpeed are loaded.
    from ernie_vilg.training.pretrain import pretrain
    from launch.samples import draw_samples

    pretrain(config, launch, draw_samples)


def _dry_run(config: PretrainConfig, launch: Launch) -> None:
    world_size = launch.world_size if config.world_size is None else config.world_size
    config.parallelism.num_micro_batches(world_size)
    if launch.rank == 0:
        from ernie_vilg.training.dry_run import dry_run

        print(dry_run(config, world_size))


if __name__ == "__main__":
    main()
