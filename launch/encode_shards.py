"""Write token shards: every image and caption of image shards as the codes of frozen tokenizers."""

from ernie_vilg.config.shards import EncodeShardsConfig
from launch.support.program import program


@program("encode_shards", EncodeShardsConfig)
def main(config: EncodeShardsConfig) -> None:
    """Encode the shards; after a kill the same command encodes the remaining ones."""
    # Imported here so that a bad setting is reported before torch is loaded.
    from data_pipelines.encoding.encode import encode_image_shards, encode_part

    if config.part_index is not None:
        num_shards = encode_part(config)
        print(f"part {config.part_index} of {config.num_parts}: {num_shards} shards encoded")
        return
    manifest = encode_image_shards(config)
    print(
        f"{config.output_dir}: {manifest.num_samples} samples in {len(manifest.shards)} shards, "
        f"at most {manifest.settings['max_text_tokens']} text tokens"
    )


if __name__ == "__main__":
    main()
