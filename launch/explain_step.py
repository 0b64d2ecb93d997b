"""Show the batch that a step of a run was trained on."""

from pathlib import Path
from typing import TYPE_CHECKING

from data_pipelines.outputs import check_output_file
from ernie_vilg.config.explain import ExplainStepConfig
from ernie_vilg.runs.run_folder import RunFolder
from ernie_vilg.storage.files import write_bytes
from launch.support.program import program

if TYPE_CHECKING:
    from ernie_vilg.forensics.explain_step import StepExplanation

_MOST_PRINTED = 5


@program("explain_step", ExplainStepConfig)
def main(config: ExplainStepConfig) -> None:
    """Rebuild the batch and write one HTML file."""
    # Imported here so that a bad setting is reported before torch is loaded.
    from ernie_vilg.forensics.explain_step import explain_step
    from ernie_vilg.forensics.past_batch import Moved
    from ernie_vilg.forensics.step_page import step_page

    measure_losses = None
    if config.losses:
        from ernie_vilg.forensics.sample_losses import measure_sample_losses

        measure_losses = measure_sample_losses
    output = config.output or str(RunFolder(Path(config.run)).explanation(config.step))
    place = check_output_file("output", output, {**config.token_shards})
    explanation = explain_step(
        Path(config.run),
        config.step,
        max_samples=config.max_samples,
        moved=Moved(
            token_shards=config.token_shards,
            text_tokenizer=config.text_tokenizer_dir,
            image_tokenizer=config.image_tokenizer_dir,
            cache_dir=config.cache_dir,
        ),
        measure_losses=measure_losses,
    )
    write_bytes(place, step_page(explanation).encode())
    print(f"{output}: open it in a browser")
    _print_summary(explanation)


def _print_summary(explanation: "StepExplanation") -> None:
    record = explanation.history.record
    last = record.first_position + record.num_positions - 1
    certain = "not certain" if explanation.doubts else "certain"
    print(f"step {record.last_step}: positions {record.first_position} to {last}, {certain}")
    for doubt in explanation.doubts:
        print(f"  {doubt}")
    if not explanation.history.is_in_effect:
        print("the run has since gone back to before this step")
    if explanation.checkpoint_step is not None:
        print(f"largest losses under the weights of step {explanation.checkpoint_step}:")
        for sample in explanation.shown[:_MOST_PRINTED]:
            print(
                f"  {sample.key} of {sample.shard}: text to image {sample.text_to_image:.3f}, "
                f"image to text {sample.image_to_text:.3f}"
            )


if __name__ == "__main__":
    main()
