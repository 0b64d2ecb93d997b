"""The plain VQGAN, and ours with the same weights, at the same work."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.image_tokenizer_parts.plain import PlainShape, PlainVQGAN
from ernie_vilg.config.image_tokenizer import ImageTokenizerConfig
from ernie_vilg.config.schema import from_json
from ernie_vilg.vqgan.autoencoder import VQGAN
from ernie_vilg.vqgan.foreign.names import foreign_names, to_network

_CONF = Path(__file__).resolve().parents[2] / "conf"
_COMMITMENT = 0.25
SMALL = ImageTokenizerConfig(
    image_size=64,
    codebook_size=1024,
    embedding_size=32,
    latent_channels=32,
    base_channels=32,
    channel_multipliers=(1, 2, 2, 4),
    num_residual_blocks=1,
    attention_resolutions=(8,),
)
"""A VQGAN for small pictures, in the layout of the public ones."""

Work = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """An architecture and how it is measured."""

    config: ImageTokenizerConfig
    """The architecture."""
    batch_size: int
    """Pictures at once."""
    has_plain: bool
    """Whether the plain VQGAN has these layers."""


def shapes(device: str, *, quick: bool) -> dict[str, Shape]:
    """Return the architectures that are measured, by name."""
    size = 64 if device == "cuda" else 2
    found = {
        "small": Shape(config=SMALL, batch_size=16 * size, has_plain=True),
        "quickstart": Shape(config=preset("quickstart"), batch_size=16 * size, has_plain=False),
    }
    if not quick:
        large = Shape(config=preset("vqgan_f8_8192"), batch_size=size // 2, has_plain=True)
        found["vqgan_f8_8192"] = large
    return found


def preset(name: str) -> ImageTokenizerConfig:
    """Return an architecture of conf/image_tokenizer."""
    content = OmegaConf.to_container(OmegaConf.load(_CONF / f"image_tokenizer/{name}.yaml"))
    assert isinstance(content, dict)
    return from_json(content["image_tokenizer"], ImageTokenizerConfig, name)


def works(shape: Shape, device: str) -> dict[str, dict[str, Work]]:
    """Return what to run, by kind of work and by side.

    Args:
        shape: the architecture; both sides get the same random weights.
        device: cpu or cuda.
    """
    config, size = shape.config, shape.config.image_size
    torch.manual_seed(0)
    ours = VQGAN(config)
    sides: dict[str, dict[str, Work]] = {"encode": {}, "decode": {}, "training step": {}}
    generator = torch.Generator().manual_seed(1)
    images = (torch.rand(shape.batch_size, 3, size, size, generator=generator) * 2 - 1).to(device)
    codes = torch.randint(
        config.codebook_size,
        (shape.batch_size, config.grid_size, config.grid_size),
        generator=generator,
    ).to(device)
    if shape.has_plain:
        plain = PlainVQGAN(_plain_shape(config))
        ours.load_state_dict(to_network(plain.state_dict(), foreign_names(ours, "taming")))
        plain = plain.to(device)
        sides["encode"]["plain fp32"] = _inferred(lambda: plain.codes(images))
        sides["decode"]["plain fp32"] = _inferred(lambda: plain.pictures(codes))
        sides["training step"]["plain fp32"] = lambda: _plain_step(plain, images)
    ours = ours.to(device, memory_format=torch.channels_last)
    for name, in_bfloat16 in (("fp32", False), ("bf16", True)):

        def cast(is_on: bool = in_bfloat16) -> torch.autocast:
            return torch.autocast(device, torch.bfloat16, enabled=is_on)

        sides["encode"][f"ours {name}"] = _inferred(_within(cast, lambda: ours.encode(images)))
        sides["decode"][f"ours {name}"] = _inferred(_within(cast, lambda: ours.decode(codes)))
        step = _within(cast, lambda: _our_step(ours, images))
        sides["training step"][f"ours {name}"] = step
    return sides


def flops(config: ImageTokenizerConfig) -> dict[str, int]:
    """Return the operations of each kind of work per picture; the search of codes included."""
    with torch.device("meta"):
        model = VQGAN(config)
        grid, size = config.grid_size, config.image_size
        encode = _counted(lambda: model.encoder(torch.empty(1, 3, size, size)))
        vectors = torch.empty(1, config.embedding_size, grid, grid)
        decode = _counted(lambda: model.decoder(vectors))
    search = 2 * grid**2 * config.codebook_size * config.embedding_size
    return {
        "encode": encode + search,
        "decode": decode,
        "training step": 3 * (encode + decode) + search,
    }


def equal_codes(sides: dict[str, Work]) -> float | None:
    """Return the fraction of codes that ours in fp32 has in common with the plain side's."""
    if "plain fp32" not in sides:
        return None
    found = [sides[name]() for name in ("plain fp32", "ours fp32")]
    first, second = found
    assert isinstance(first, Tensor)
    assert isinstance(second, Tensor)
    return float((first == second).double().mean())


def _plain_shape(config: ImageTokenizerConfig) -> PlainShape:
    assert config.latent_channels is not None
    return PlainShape(
        ch=config.base_channels,
        ch_mult=config.channel_multipliers,
        num_res_blocks=config.num_residual_blocks,
        attn_resolutions=config.attention_resolutions,
        resolution=config.image_size,
        z_channels=config.latent_channels,
        embed_dim=config.embedding_size,
        n_embed=config.codebook_size,
        kind=config.quantizer,
    )


def _plain_step(model: PlainVQGAN, images: Tensor) -> None:
    """Run forward and backward pass of the plain VQGAN with absolute and quantization error."""
    vectors = model.quant_conv(model.encoder(images))
    rows, table = vectors.permute(0, 2, 3, 1), model.code_vectors()
    if model.shape.kind == "normalized":
        rows = F.normalize(rows, dim=-1)
    flat = rows.reshape(-1, rows.shape[-1])
    squares = flat.pow(2).sum(1, keepdim=True) + table.pow(2).sum(1)
    chosen = table[(squares - 2 * flat @ table.t()).argmin(dim=1)].view(rows.shape)
    passed = rows + (chosen - rows).detach()
    drawn = model.pictures_of_vectors(passed.permute(0, 3, 1, 2))
    loss = (
        F.l1_loss(drawn, images)
        + F.mse_loss(chosen, rows.detach())
        + _COMMITMENT * F.mse_loss(rows, chosen.detach())
    )
    _backward(loss, model)


def _our_step(model: VQGAN, images: Tensor) -> None:
    """Run forward and backward pass of ours with the same terms."""
    output = model(images.contiguous(memory_format=torch.channels_last))
    with torch.autocast(images.device.type, enabled=False):
        absolute = F.l1_loss(output.reconstruction.float(), images)
    _backward(absolute + torch.stack(list(output.quantized.losses.values())).sum(), model)


def _backward(loss: Tensor, model: nn.Module) -> None:
    loss.backward()
    for parameter in model.parameters():
        parameter.grad = None


def _inferred(work: Work) -> Work:
    def run() -> object:
        with torch.inference_mode():
            return work()

    return run


def _within(context: Callable[[], torch.autocast], work: Work) -> Work:
    def run() -> object:
        with context():
            return work()

    return run


def _counted(work: Work) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    total: int = counter.get_total_flops()
    return total
