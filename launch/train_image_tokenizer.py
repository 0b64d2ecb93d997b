"""Train the image tokenizer; the same command starts and resumes."""

import os
from pathlib import Path

from ernie_vilg.config.launch import Launch
from ernie_vilg.config.train_image_tokenizer import TrainImageTokenizerConfig
from ernie_vilg.runs.preflight import check_run_folder
from ernie_vilg.runs.run_lock import RunLock
from ernie_vilg.storage.locations import check_apart
from ernie_vilg.storage.shard_manifest import Manifest, read_manifest_at
from launch.support.environment import read_launch
from launch.support.program import program


@program("train_image_tokenizer", TrainImageTokenizerConfig, has_ranks=True)
def main(config: TrainImageTokenizerConfig) -> None:
    """Check every setting, then train."""
    launch = read_launch()
    config.check_ranks(launch.world_size)
    manifest = read_manifest_at(config.shards, "image")
    config.check_image_size(int(manifest.settings["image_size"]))
    run_dir = Path(config.run_dir)
    check_apart("run_dir", config.run_dir, "shards", config.shards)
    if launch.is_leader:
        check_run_folder(run_dir)
    # Refuse a second run in the same folder before torch is loaded.
    with RunLock(run_dir, launch):
        _train(config, manifest, launch)


def _train(config: TrainImageTokenizerConfig, manifest: Manifest, launch: Launch) -> None:
    # Imported here so that a bad setting is reported before torch is loaded.
    import torch
    import torch.distributed as dist

    from ernie_vilg.parallel.layout.groups import start_processes
    from ernie_vilg.tokenizer_training.train import train_image_tokenizer

    # The deepspeed launcher gives every rank all cores, and the ranks would compete for them.
    cores_per_rank = max(1, (os.cpu_count() or 1) // launch.world_size)
    torch.set_num_threads(min(torch.get_num_threads(), cores_per_rank))
    device = start_processes(launch, config.cluster.collective_timeout_seconds)
    try:
        train_image_tokenizer(config, manifest, device)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
