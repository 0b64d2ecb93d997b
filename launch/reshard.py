"""Consolidate a run's checkpoint on one machine, so that another layout resumes it at once."""

from pathlib import Path

from ernie_vilg.config.reshard import ReshardConfig
from launch.support.program import program


@program("reshard", ReshardConfig)
def main(config: ReshardConfig) -> None:
    """Consolidate the checkpoint."""
    # Imported here so that a bad setting is reported before torch is loaded.
    from ernie_vilg.checkpoint.reshard import reshard

    done = reshard(Path(config.run), config.step, config.num_workers)
    universal = done.universal
    print(
        f"{universal.folder}: {'made' if done.is_new else 'exists already'}, step "
        f"{universal.manifest['step']}, {universal.num_bytes / 1e6:,.0f} MB"
    )


if __name__ == "__main__":
    main()
