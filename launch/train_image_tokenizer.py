"""Train the image tokenizer, or go on training it: the same command does both."""

import os

from ernie_vilg.config.image_tokenizer import TrainImageTokenizerConfig
from ernie_vilg.manifest import read_manifest_at
from launch.environment import read_launch
from launch.program import program


@program("train_image_tokenizer", TrainImageTokenizerConfig, has_ranks=True)
def main(config: TrainImageTokenizerConfig) -> None:
    """Check every setting, then train."""
    launch = read_launch()
    config.check_ranks(launch.world_size)
    manifest = read_manifest_at(config.shards, "image")
    config.check_image_size(int(manifest.settings["image_size"]))
    # Imported here so that a bad setting is reported before torch is loaded.
    import torch
    import torch.distributed as dist

    from ernie_vilg.parallel.groups import start_processes
    from ernie_vilg.training.image_tokenizer import train_image_tokenizer

    # The deepspeed launcher leaves every rank all cores, on which they would wait for each other.
    cores_per_rank = max(1, (os.cpu_count() or 1) // launch.world_size)
    torch.set_num_threads(min(torch.get_num_threads(), cores_per_rank))
    device = start_processes(launch, config.training.timeout_seconds)
    try:
        train_image_tokenizer(config, manifest, device)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
