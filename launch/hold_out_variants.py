"""Split raw pairs that come in variants: every held-out picture is a variant of a seen one."""

from ernie_vilg.config.hold_out import HoldOutVariantsConfig
from launch.support.program import program


@program("hold_out_variants", HoldOutVariantsConfig)
def main(config: HoldOutVariantsConfig) -> None:
    """Copy the pairs of `source` to `train/` and `held_out/` of `output_dir`."""
    # Imported here so that a bad setting is reported at once.
    from data_pipelines.hold_out import HELD_OUT, TRAIN, hold_out_variants

    report = hold_out_variants(config)
    pairs = report.num_pairs
    print(
        f"{report.num_bases} bases, {report.num_bases_with_variants} of them with several variants"
    )
    print(f"{config.output_dir}/{TRAIN}: {pairs[TRAIN]} pairs")
    few = "" if pairs[HELD_OUT] else ": raise fraction"
    print(
        f"{config.output_dir}/{HELD_OUT}: {pairs[HELD_OUT]} pairs of {report.num_bases_held_out} "
        f"bases, {report.num_held_out_captions} different captions, "
        f"{report.num_captions_on_both_sides} of which training pairs have too{few}"
    )
    if report.rejected:
        print(f"rows that give no pair: {sum(report.rejected.values())} {dict(report.rejected)}")


if __name__ == "__main__":
    main()
