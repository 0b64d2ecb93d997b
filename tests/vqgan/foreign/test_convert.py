"""Public checkpoints become image tokenizers, or are refused with what to change."""

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.image_tokenizer_parts.plain import PlainShape, PlainVQGAN
from ernie_vilg.config.import_image_tokenizer import (
    ExportImageTokenizerConfig,
    ImportImageTokenizerConfig,
)
from ernie_vilg.errors import InputError
from ernie_vilg.storage.files import sha256_of_file
from ernie_vilg.vqgan.foreign.convert import (
    draw_reconstruction,
    export_image_tokenizer,
    import_image_tokenizer,
)
from ernie_vilg.vqgan.weights import load_image_tokenizer, read_card
from launch.import_image_tokenizer import read_model_config

SHAPE = {
    "ch": 32,
    "ch_mult": [1, 1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [8],
    "resolution": 32,
    "z_channels": 8,
    "embed_dim": 8,
    "n_embed": 24,
}
TO_LLAMAGEN = (
    ("mid.block_1", "mid.0"),
    ("mid.attn_1", "mid.1"),
    ("mid.block_2", "mid.2"),
    ("encoder.down", "encoder.conv_blocks"),
    ("decoder.up.2", "decoder.conv_blocks.A"),  # LlamaGen counts the decoder from its input
    ("decoder.up.1", "decoder.conv_blocks.B"),
    ("decoder.up.0", "decoder.conv_blocks.C"),
    (".A", ".0"),
    (".B", ".1"),
    (".C", ".2"),
    (".block.", ".res."),
)


class Callback:
    """A callback object as Lightning pickled them."""


def plain(**changes: Any) -> PlainVQGAN:
    torch.manual_seed(0)
    return PlainVQGAN(PlainShape(**{**SHAPE, **changes})).eval().requires_grad_(False)


def lightning(model: PlainVQGAN, **others: Any) -> dict[str, Any]:
    """Return the content of a Lightning checkpoint as taming-transformers writes it."""
    loss = {
        "loss.perceptual_loss.net.slice1.0.weight": torch.zeros(4, 3, 3, 3),
        "loss.perceptual_loss.lin0.model.1.weight": torch.zeros(1, 4, 1, 1),
        "loss.discriminator.main.0.weight": torch.zeros(4, 3, 4, 4),
    }
    return {
        "epoch": 3,
        "global_step": 1000,
        "pytorch-lightning_version": "1.0.8",
        "state_dict": {**model.state_dict(), **loss},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5), "dirpath": "x"}},
        "optimizer_states": [{"state": {}, "param_groups": [{"lr": 4.5e-6}]}] * 2,
        "lr_schedulers": [],
        "hyper_parameters": {"n_embed": 24},
        **others,
    }


def llamagen_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in tensors.items():
        for theirs, new in TO_LLAMAGEN:
            name = name.replace(theirs, new)
        renamed[name] = value
    return renamed


def saved(folder: Path, content: Any, name: str = "last.ckpt") -> Path:
    torch.save(content, folder / name)
    return folder / name


def settings(folder: Path, file: Path, **others: Any) -> ImportImageTokenizerConfig:
    return ImportImageTokenizerConfig(
        **{
            "checkpoint": str(file),
            "output_dir": str(folder / "tokenizer"),
            "image_size": 32,
            **others,
        }
    )


def pictures(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 3, 32, 32, generator=generator) * 2 - 1


def check_is(theirs: PlainVQGAN, folder: Path) -> None:
    model, _ = load_image_tokenizer(folder / "tokenizer")
    images = pictures(2)
    codes = theirs.codes(images)
    assert torch.equal(model.encode(images), codes)
    expected = theirs.pictures(codes).clamp(-1, 1)
    torch.testing.assert_close(model.decode(codes), expected, rtol=1e-5, atol=1e-5)


def test_lightning_file_is_imported_and_the_rest_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = plain()
    checkpoint = saved(tmp_path, lightning(theirs))

    with caplog.at_level(logging.INFO):
        _, sha256 = import_image_tokenizer(settings(tmp_path, checkpoint))

    check_is(theirs, tmp_path)
    card = read_card(tmp_path / "tokenizer")
    assert card.lineage["imported_sha256"] == sha256_of_file(checkpoint)
    assert card.lineage["layout"] == "taming"
    assert card.lineage["skipped_entries"] == 10  # 3 of the loss, 2 of optimizers, 5 others
    assert "skipped: optimizer_states, 2 entries" in caplog.text
    assert "skipped: state_dict: loss.*, 3 entries" in caplog.text
    assert len(sha256) == 64


def test_gumbel_model_is_imported_as_one(tmp_path: Path) -> None:
    theirs = plain(kind="gumbel")

    model, _ = import_image_tokenizer(settings(tmp_path, saved(tmp_path, lightning(theirs))))

    assert model.config.quantizer == "gumbel"
    check_is(theirs, tmp_path)


def test_llamagen_file_is_imported_with_codes_of_length_1(tmp_path: Path) -> None:
    theirs = plain(kind="normalized", embed_dim=4)
    tensors = llamagen_names(theirs.state_dict())
    tensors["quantize.codebook_used"] = torch.zeros(65536)
    content = {"model": {"wrong": torch.zeros(1)}, "ema": tensors, "steps": 10}

    model, _ = import_image_tokenizer(settings(tmp_path, saved(tmp_path, content, "vq.pt")))

    assert (model.config.quantizer, model.config.latent_channels) == ("normalized", 8)
    assert read_card(tmp_path / "tokenizer").lineage["part"] == "ema"
    check_is(theirs, tmp_path)


def test_bare_tensors_behind_a_wrapper_in_half_precision_are_imported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = plain().half().float()
    tensors = {f"module.{name}": value.half() for name, value in theirs.state_dict().items()}
    save_file(tensors, tmp_path / "vqgan.safetensors")

    with caplog.at_level(logging.INFO):
        import_image_tokenizer(settings(tmp_path, tmp_path / "vqgan.safetensors"))

    check_is(theirs, tmp_path)
    assert "converted to float32: weights in torch.float16" in caplog.text


def test_attention_in_the_middle_alone_is_recognised(tmp_path: Path) -> None:
    theirs = plain(attn_resolutions=[])

    model, _ = import_image_tokenizer(settings(tmp_path, saved(tmp_path, lightning(theirs))))

    assert (model.config.attention_resolutions, model.config.middle_attention) == ((), True)
    check_is(theirs, tmp_path)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (
            {"callbacks": {"ModelCheckpoint": Callback()}},
            r"foreign.test_convert.Callback",
        ),
        ({"best": np.float64(0.5)}, r"numpy._core.multiarray.scalar"),
        ({"args": argparse.Namespace(lr=1)}, r"argparse.Namespace"),
    ],
    ids=["a pickled callback", "a numpy scalar", "LlamaGen's arguments"],
)
def test_file_with_code_is_refused_with_how_to_convert_it(
    tmp_path: Path, content: dict[str, Any], name: str
) -> None:
    theirs = plain()
    checkpoint = saved(tmp_path, lightning(theirs, **content))

    with pytest.raises(InputError, match=f"(?s){name}.*python -c.*last_weights.pt") as raised:
        import_image_tokenizer(settings(tmp_path, checkpoint))

    # The advice works: the program between the quotes makes a file that is accepted.
    recipe = str(raised.value).partition("python -c '")[2].partition("'\nThen")[0]
    exec(recipe, {})
    import_image_tokenizer(settings(tmp_path, tmp_path / "last_weights.pt"))
    check_is(theirs, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello, this is no checkpoint", "cannot be read"),
        (b"", "cannot be read"),
        (b"PK\x03\x04 cut", "cannot be read"),
    ],
)
def test_file_that_is_no_checkpoint_is_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "last.ckpt").write_bytes(content)

    with pytest.raises(InputError, match=message):
        import_image_tokenizer(settings(tmp_path, tmp_path / "last.ckpt"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": None}, "image_size=null"),
        ({"image_size": 30}, "image_size=30 is no multiple of the downsampling factor 4"),
        ({"layout": "llamagen"}, "layout=llamagen, but .* taming"),
        ({"quantizer": "gumbel"}, "quantizer=gumbel, but .* quantizer=nearest"),
        ({"weights": "ema"}, "weights=ema: .* only state_dict"),
        ({"checkpoint_sha256": "0" * 64}, "not checkpoint_sha256=000"),
        ({"checkpoint": "/nowhere.ckpt"}, "is no file"),
    ],
)
def test_wrong_setting_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    checkpoint = saved(tmp_path, lightning(plain()))

    with pytest.raises(InputError, match=message):
        import_image_tokenizer(settings(tmp_path, checkpoint, **changes))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"quantize.used": torch.zeros(3)}, "renumbers its codes"),
        ({"encoder.more.weight": torch.zeros(3)}, "missing or unknown, such as encoder.more"),
        ({"encoder.conv_in.weight": torch.zeros(32, 1, 3, 3)}, "takes 1 channels, not 3"),
        ({"encoder.conv_out.weight": torch.zeros(16, 64, 3, 3)}, r"encoder.output.weight is"),
        ({"decoder.norm_out.bias": torch.full((32,), torch.nan)}, "NaN or infinite"),
        ({"encoder.down.1.block.0.conv2.weight": torch.zeros(40, 40, 3, 3)}, "multiples of 32"),
    ],
)
def test_network_of_another_kind_is_refused(
    tmp_path: Path, tensors: dict[str, Tensor], message: str
) -> None:
    content = lightning(plain())
    content["state_dict"].update(tensors)

    with pytest.raises(InputError, match=message):
        import_image_tokenizer(settings(tmp_path, saved(tmp_path, content)))


def test_autoencoder_without_codes_is_refused(tmp_path: Path) -> None:
    content = lightning(plain())
    del content["state_dict"]["quantize.embedding.weight"]

    with pytest.raises(InputError, match="has no codebook"):
        import_image_tokenizer(settings(tmp_path, saved(tmp_path, content)))


def model_config(folder: Path, **changes: Any) -> Path:
    shape = {"double_z": False, "in_channels": 3, "out_ch": 3, "dropout": 0.0, **SHAPE, **changes}
    top = {key: shape.pop(key) for key in ("embed_dim", "n_embed")}
    content = {
        "model": {"target": "taming.models.vqgan.VQModel", "params": {**top, "ddconfig": shape}}
    }
    (folder / "model.yaml").write_text(yaml.safe_dump(content))
    return folder / "model.yaml"


def test_the_model_s_own_settings_give_the_size_of_the_pictures(tmp_path: Path) -> None:
    theirs = plain()
    checkpoint = saved(tmp_path, lightning(theirs))
    own = model_config(tmp_path, attn_resolutions=[8, 2])  # no layer computes at 2

    config = settings(tmp_path, checkpoint, image_size=None, model_config=str(own))
    import_image_tokenizer(config, read_model_config(str(own)))

    check_is(theirs, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ch_mult": [1, 2, 2]}, r"ch_mult=\[1, 2, 2\], .* channel_multipliers=\(1, 1, 2\)"),
        ({"n_embed": 1024}, "n_embed=1024, .* codebook_size=24"),
        ({"resolution": 64}, "resolution=64, .* image_size=32"),
        ({"attn_resolutions": [16]}, r"attn_resolutions=\[16\], .* attention_resolutions=\(8,\)"),
        ({"double_z": True}, "double_z=True"),
    ],
)
def test_settings_that_disagree_with_the_weights_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    checkpoint = saved(tmp_path, lightning(plain()))
    own = model_config(tmp_path, **changes)

    config = settings(tmp_path, checkpoint, model_config=str(own))
    with pytest.raises(InputError, match=message):
        import_image_tokenizer(config, read_model_config(str(own)))


@pytest.mark.parametrize("content", ["a: [1", "just words", "${nowhere}", "model: {params: 3}"])
def test_file_that_is_no_model_s_settings_is_refused(tmp_path: Path, content: str) -> None:
    own = tmp_path / "model.yaml"
    own.write_text(content)
    config = settings(tmp_path, saved(tmp_path, lightning(plain())), model_config=str(own))

    with pytest.raises(InputError, match="model_config="):
        import_image_tokenizer(config, read_model_config(str(own)))


@pytest.mark.parametrize("layout", ["taming", "llamagen"])
@pytest.mark.parametrize("kind", ["nearest", "gumbel"])
def test_exported_tokenizer_is_imported_as_the_same(tmp_path: Path, layout: Any, kind: str) -> None:
    _, sha256 = import_image_tokenizer(
        settings(tmp_path, saved(tmp_path, lightning(plain(kind=kind))))
    )
    output = tmp_path / "there.ckpt"

    export_image_tokenizer(
        ExportImageTokenizerConfig(
            image_tokenizer_dir=str(tmp_path / "tokenizer"),
            layout=layout,
            output_file=str(output),
        )
    )
    config = settings(tmp_path, output, output_dir=str(tmp_path / "back"), quantizer=kind)
    _, back = import_image_tokenizer(config)

    assert back == sha256


def test_exported_file_has_the_names_and_tensors_of_the_imported_one(tmp_path: Path) -> None:
    theirs = plain()
    import_image_tokenizer(settings(tmp_path, saved(tmp_path, lightning(theirs))))
    output = tmp_path / "there.ckpt"
    config = ExportImageTokenizerConfig(
        image_tokenizer_dir=str(tmp_path / "tokenizer"), output_file=str(output)
    )

    count = export_image_tokenizer(config)

    found = torch.load(output, weights_only=True)["state_dict"]
    assert count == len(found)
    assert found.keys() == theirs.state_dict().keys()
    assert all(torch.equal(found[name], value) for name, value in theirs.state_dict().items())
    with pytest.raises(InputError, match="already exists"):
        export_image_tokenizer(config)


def test_picture_is_drawn_beside_its_reconstruction(tmp_path: Path) -> None:
    model, _ = import_image_tokenizer(settings(tmp_path, saved(tmp_path, lightning(plain()))))
    picture = Image.effect_noise((70, 41), 50).convert("RGB")
    picture.save(tmp_path / "picture.png")

    psnr = draw_reconstruction(model, tmp_path / "picture.png", tmp_path / "both.png")

    with Image.open(tmp_path / "both.png") as both:
        assert both.size == (2 * 68, 40)
        assert both.crop((0, 0, 68, 40)).tobytes() == picture.crop((0, 0, 68, 40)).tobytes()
    assert 0 < psnr < 99
