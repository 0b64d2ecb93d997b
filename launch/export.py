"""Gather a run's checkpoint, whatever its layout, into one weights folder."""

from pathlib import Path

from ernie_vilg.config.generation import ExportConfig
from ernie_vilg.errors import InputError
from launch.support.program import program


@program("export", ExportConfig)
def main(config: ExportConfig) -> None:
    """Export the weights of a transformer or of an image tokenizer, as the run's record says."""
    from ernie_vilg.runs.recorded_settings import program_of

    run = Path(config.run)
    is_tokenizer = program_of(run) == "train_image_tokenizer"
    if is_tokenizer:
        _check_options_of_tokenizer(config)
    # Imported here so that a bad setting is reported before torch is loaded.
    if is_tokenizer:
        from ernie_vilg.tokenizer_training.export import export_checkpoint

        step = export_checkpoint(
            run, config.output_dir, overwrite=config.overwrite, step=config.step
        )
    else:
        from ernie_vilg.checkpoint.export import best_step_of_run, export

        step = export(
            run,
            config.output_dir,
            overwrite=config.overwrite,
            average=config.average,
            adapter=config.adapter,
            step=best_step_of_run(run) if config.best else config.step,
        )
    values = "adapters" if config.adapter else "weights"
    what = f"the average of the {values} up to" if config.average else f"the {values} of"
    print(f"{config.output_dir}: {what} step {step}")


def _check_options_of_tokenizer(config: ExportConfig) -> None:
    run = f"run={config.run}, a run of the image tokenizer"
    if config.average:
        raise InputError(
            f"average=true with {run}: it exports the average whenever training.ema_decay is above "
            "0, leave average out"
        )
    if config.best:
        raise InputError(f"best=true with {run}, which has no validation.best: name a step")
    if config.adapter:
        raise InputError(f"adapter=true with {run}, which has no adapters: leave adapter out")


if __name__ == "__main__":
    main()
