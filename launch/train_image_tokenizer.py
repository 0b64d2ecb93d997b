"""Train the image tokenizer; the same command starts and resumes.

Exit codes: 0 all steps are done, 75 stopped on request with a checkpoint, 2 a setting is wrong,
1 any other failure.
"""

import os
import sys

from ernie_vilg.config.launch import Launch
from ernie_vilg.config.train_image_tokenizer import TrainImageTokenizerConfig
from ernie_vilg.runs.run_lock import RunLock
from ernie_vilg.storage.locations import check_apart
from ernie_vilg.storage.shard_manifest import Manifest, read_manifest_at
from launch.support.environment import read_launch
from launch.support.program import program
from launch.support.run_start import start_run


@program("train_image_tokenizer", TrainImageTokenizerConfig, has_ranks=True)
def main(config: TrainImageTokenizerConfig) -> None:
    """Check every setting, then train."""
    launch = read_launch()
    config.micro_batch_size(launch.world_size)
    manifest = _manifest(config, "shards", config.shards)
    held_out = None
    if config.reconstructions.shards is not None:
        held_out = _manifest(config, "reconstructions.shards", config.reconstructions.shards)

    def train(launch: Launch, lock: RunLock) -> int:
        # Imported here so that a bad setting is reported before torch is loaded.
        import torch

        from ernie_vilg.tokenizer_training.train import train_image_tokenizer

        # The deepspeed launcher gives every rank all cores, and the ranks would compete for them.
        cores_per_rank = max(1, (os.cpu_count() or 1) // launch.world_size)
        torch.set_num_threads(min(torch.get_num_threads(), cores_per_rank))
        return train_image_tokenizer(config, launch, manifest, held_out, lock=lock)

    sys.exit(start_run(config, launch, train))


def _manifest(config: TrainImageTokenizerConfig, setting: str, shards: str) -> Manifest:
    """Return the manifest of shards whose pictures are large enough.

    Raises:
        InputError: there is none, the pictures are too small, or the run folder lies within.
    """
    manifest = read_manifest_at(shards, "image")
    config.check_image_size(shards, int(manifest.settings["image_size"]))
    check_apart("run_dir", config.run_dir, setting, shards)
    return manifest


if __name__ == "__main__":
    main()
