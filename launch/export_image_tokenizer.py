"""Turn an image tokenizer's folder into a checkpoint for other code."""

from ernie_vilg.config.import_image_tokenizer import ExportImageTokenizerConfig
from launch.support.program import program


@program("export_image_tokenizer", ExportImageTokenizerConfig)
def main(config: ExportImageTokenizerConfig) -> None:
    """Export the weights under the names of another code."""
    # Imported here so that a bad setting is reported before torch is loaded.
    from ernie_vilg.vqgan.foreign.convert import export_image_tokenizer

    count = export_image_tokenizer(config)
    print(f"{config.output_file}: {count} tensors under the names of {config.layout}")


if __name__ == "__main__":
    main()
