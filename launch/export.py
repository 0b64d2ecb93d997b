"""Gather a run's checkpoint, whatever its layout, into one weights folder."""

from pathlib import Path

from ernie_vilg.config.generation import ExportConfig
from launch.support.program import program


@program("export", ExportConfig)
def main(config: ExportConfig) -> None:
    """Export the weights."""
    # Imported here so that a bad setting is reported before torch is loaded.
    from ernie_vilg.checkpoint.export import export

    step = export(
        Path(config.run),
        config.output_dir,
        overwrite=config.overwrite,
        average=config.average,
    )
    what = "the average of the weights up to" if config.average else "the weights of"
    print(f"{config.output_dir}: {what} step {step}")


if __name__ == "__main__":
    main()
