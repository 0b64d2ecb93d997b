"""Write image shards from raw pairs: curated, deduplicated, every row accounted for."""

from ernie_vilg.config.shards import BuildShardsConfig
from launch.support.program import program


@program("build_shards", BuildShardsConfig)
def main(config: BuildShardsConfig) -> None:
    """Build the shards; print what became of every row. After a kill the same command goes on."""
    # Imported here so that a bad setting is reported before torch is loaded.
    from data_pipelines.building.build import build_image_shards, inspect_share
    from data_pipelines.metadata import HELD_OUT_FOLDER, REJECTED_FILE

    if config.part_index is not None:
        counts = inspect_share(config)
        print(
            f"part {config.part_index} of {config.num_parts}: {counts.rows} rows inspected, "
            f"{counts.rejected.total()} of them rejected"
        )
        return
    report = build_image_shards(config)
    manifest = report.manifest
    print(f"{config.output_dir}: {manifest.num_samples} samples in {len(manifest.shards)} shards")
    if report.held_out is not None:
        few = "" if report.held_out.num_samples else ": raise hold_out_fraction"
        print(f"{config.output_dir}/{HELD_OUT_FOLDER}: {report.held_out.num_samples} samples{few}")
    print(report.table())
    if report.num_enlarged:
        print(f"enlarged pictures, smaller than {config.image_size} pixels: {report.num_enlarged}")
    if report.rejected:
        print(f"rejected rows are listed in {config.output_dir}/{REJECTED_FILE}")


if __name__ == "__main__":
    main()
