"""Consolidate a run's checkpoint on one machine, so that another layout resumes it at once."""

from pathlib import Path

from ernie_vilg.config.reshard import ReshardConfig
from launch.support.program import program


@program("reshard", ReshardConfig)
def main(config: ReshardConfig) -> None:
    """Consolidate the checkpoint."""
    # Imported here so that a bad setting is reported before torch is loaded.
    from ernie_vilg.checkpoint.consolidated import consolidate

    done, is_new = consolidate(Path(config.run), config.step, config.num_workers)
    print(
        f"{done.folder}: {'made' if is_new else 'exists already'}, step "
        f"{done.manifest['step']}, {done.num_bytes / 1e6:,.0f} MB"
    )


if __name__ == "__main__":
    main()
