"""Turn a public VQGAN's checkpoint into an image tokenizer's folder."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ernie_vilg.config.import_image_tokenizer import ImportImageTokenizerConfig
from ernie_vilg.errors import InputError
from launch.support.program import program


@program("import_image_tokenizer", ImportImageTokenizerConfig)
def main(config: ImportImageTokenizerConfig) -> None:
    """Import the weights; with a picture, show what becomes of it."""
    # Imported here so that a bad setting is reported before torch is loaded.
    from ernie_vilg.vqgan.foreign.convert import draw_reconstruction, import_image_tokenizer

    model, sha256 = import_image_tokenizer(config, read_model_config(config.model_config))
    shape = model.config
    print(
        f"{config.output_dir}: f = {shape.downsampling_factor}, {shape.codebook_size} codes of "
        f"{shape.embedding_size} numbers, quantizer {shape.quantizer}, SHA-256 {sha256}"
    )
    if config.picture is not None:
        folder = Path(config.output_dir)
        output = folder.with_name(f"{folder.name}_reconstruction.png")
        psnr = draw_reconstruction(model, Path(config.picture), output)
        print(f"{output}: the picture and its reconstruction, PSNR {psnr:.2f} dB")


def read_model_config(path: str | None) -> Any:
    """Return the content of a model's settings file as plain values; None without one.

    Raises:
        InputError: the file cannot be read.
    """
    if path is None:
        return None
    try:
        return OmegaConf.to_container(OmegaConf.load(path))
    except Exception as error:  # errors of the file, of YAML and of OmegaConf share no other class
        raise InputError(f"model_config={path} cannot be read ({error}): correct it") from error


if __name__ == "__main__":
    main()
