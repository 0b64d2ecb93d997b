"""Train the transformer, or go on training it: the same command does both."""

from ernie_vilg.config.pretrain import PretrainConfig
from launch.environment import read_launch
from launch.program import program


@program("pretrain", PretrainConfig)
def main(config: PretrainConfig) -> None:
    """Check every setting, then train."""
    launch = read_launch()
    config.parallelism.num_micro_batches(launch.world_size)
    config.check_paths()
    # Imported here so that a bad setting is reported before torch and DeepSpeed are loaded.
    from ernie_vilg.training.pretrain import pretrain
    from launch.samples import draw_samples

    pretrain(config, launch, lambda step, weights: draw_samples(config, step, weights))


if __name__ == "__main__":
    main()
