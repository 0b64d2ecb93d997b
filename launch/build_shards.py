"""Write image shards from raw pairs: a folder of images and `captions.jsonl`."""

from ernie_vilg.config.shards import BuildShardsConfig
from launch.support.program import program


@program("build_shards", BuildShardsConfig)
def main(config: BuildShardsConfig) -> None:
    """Build the shards; print their counts, and those of rejected lines."""
    # Imported here so that a bad setting is reported before torch is loaded.
    from data_pipelines.build import REJECTED_FILE, build_image_shards

    report = build_image_shards(config)
    manifest = report.manifest
    print(f"{config.output_dir}: {manifest.num_samples} samples in {len(manifest.shards)} shards")
    if report.num_enlarged:
        print(f"enlarged pictures, smaller than {config.image_size} pixels: {report.num_enlarged}")
    if report.rejected:
        counts = ", ".join(f"{reason}: {count}" for reason, count in report.rejected.items())
        print(f"rejected lines, listed in {config.output_dir}/{REJECTED_FILE}: {counts}")


if __name__ == "__main__":
    main()
