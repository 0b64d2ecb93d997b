"""A plain VQGAN, to compare with: the layers and names of taming-transformers, written out.

It shares no code with `ernie_vilg.vqgan`. Every layer is computed as its formula stands: float32,
channels first, a table of all distances, attention with a table of all scores.

Source: VQGAN (Esser et al. 2021, arXiv:2012.09841); parameter names as in its public checkpoints.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class PlainShape:
    """Shape, in the words of the public models' settings."""

    ch: int
    """Channels at the finest resolution."""
    ch_mult: Sequence[int]
    """Multiples of `ch` per resolution, finest first."""
    num_res_blocks: int
    """Blocks per resolution of the encoder."""
    attn_resolutions: Sequence[int]
    """Sides at which attention follows every block."""
    resolution: int
    """Side of a picture in pixels."""
    z_channels: int
    """Channels between encoder and projection."""
    embed_dim: int
    """Numbers per code."""
    n_embed: int
    """Number of codes."""
    kind: str = "nearest"
    """Rule of the code: nearest, normalized or gumbel."""


class PlainVQGAN(nn.Module):
    """Encoder, quantizer and decoder under the names of taming-transformers."""

    def __init__(self, shape: PlainShape) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = PlainEncoder(shape)
        self.decoder = PlainDecoder(shape)
        self.quant_conv = nn.Conv2d(shape.z_channels, shape.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(shape.embed_dim, shape.z_channels, 1)
        self.quantize = nn.Module()
        table = nn.Embedding(shape.n_embed, shape.embed_dim)
        if shape.kind == "gumbel":
            self.quantize.embed = table
            self.quantize.proj = nn.Conv2d(shape.z_channels, shape.n_embed, 1)
        else:
            self.quantize.embedding = table

    def codes(self, images: Tensor) -> Tensor:
        """Return the codes of pictures, int64 [batch, grid, grid]."""
        latent = self.quant_conv(self.encoder(images))
        if self.shape.kind == "gumbel":
            logits: Tensor = self.quantize.proj(latent)
            return logits.argmax(dim=1)
        table, latent = self.code_vectors(), latent.permute(0, 2, 3, 1)
        if self.shape.kind == "normalized":
            latent = latent / latent.norm(dim=-1, keepdim=True)
        rows = latent.reshape(-1, latent.shape[-1])
        squares = rows.pow(2).sum(1, keepdim=True) + table.pow(2).sum(1)
        distances = squares - 2 * rows @ table.t()
        return distances.argmin(dim=1).view(latent.shape[:3])

    def code_vectors(self) -> Tensor:
        """Return the vectors of all codes, float32 [codes, embedding]."""
        owner = self.quantize.embed if self.shape.kind == "gumbel" else self.quantize.embedding
        table: Tensor = owner.weight
        if self.shape.kind == "normalized":
            table = table / table.norm(dim=-1, keepdim=True)
        return table

    def pictures(self, codes: Tensor) -> Tensor:
        """Return the pictures of codes, float32 [batch, 3, height, width]."""
        vectors = self.code_vectors()[codes].permute(0, 3, 1, 2).contiguous()
        return self.pictures_of_vectors(vectors)

    def pictures_of_vectors(self, vectors: Tensor) -> Tensor:
        """Return the pictures of code vectors, float32 [batch, 3, height, width]."""
        pictures: Tensor = self.decoder(self.post_quant_conv(vectors))
        return pictures


class PlainEncoder(nn.Module):
    """From pictures to z_channels."""

    def __init__(self, shape: PlainShape) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, shape.ch, 3, 1, 1)
        self.down = nn.ModuleList()
        before = shape.ch
        for level, factor in enumerate(shape.ch_mult):
            side = shape.resolution // 2**level
            stage, before = _stage(shape.num_res_blocks, before, shape.ch * factor, side, shape)
            if level < len(shape.ch_mult) - 1:
                stage.downsample = nn.Module()
                stage.downsample.conv = nn.Conv2d(before, before, 3, 2, 0)
            self.down.append(stage)
        self.mid = _middle(before)
        self.norm_out = _norm(before)
        self.conv_out = nn.Conv2d(before, shape.z_channels, 3, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return features [batch, z_channels, grid, grid]."""
        h = self.conv_in(images)
        for stage in self.down:
            h = _run_stage(stage, h)
            if hasattr(stage, "downsample"):
                right = h.new_zeros(*h.shape[:3], 1)
                h = torch.cat([h, right], dim=3)
                below = h.new_zeros(*h.shape[:2], 1, h.shape[3])
                h = stage.downsample.conv(torch.cat([h, below], dim=2))
        features: Tensor = self.conv_out(_swish(self.norm_out(_run_middle(self.mid, h))))
        return features


class PlainDecoder(nn.Module):
    """From z_channels to pictures."""

    def __init__(self, shape: PlainShape) -> None:
        super().__init__()
        before = shape.ch * shape.ch_mult[-1]
        self.conv_in = nn.Conv2d(shape.z_channels, before, 3, 1, 1)
        self.mid = _middle(before)
        stages: dict[int, nn.Module] = {}
        for level in reversed(range(len(shape.ch_mult))):
            side, after = shape.resolution // 2**level, shape.ch * shape.ch_mult[level]
            stages[level], before = _stage(shape.num_res_blocks + 1, before, after, side, shape)
            if level > 0:
                stages[level].upsample = nn.Module()
                stages[level].upsample.conv = nn.Conv2d(before, before, 3, 1, 1)
        self.up = nn.ModuleList([stages[level] for level in range(len(shape.ch_mult))])
        self.norm_out = _norm(before)
        self.conv_out = nn.Conv2d(before, 3, 3, 1, 1)

    def forward(self, latent: Tensor) -> Tensor:
        """Return pictures [batch, 3, height, width]."""
        h = _run_middle(self.mid, self.conv_in(latent))
        for stage in reversed(list(self.up)):
            h = _run_stage(stage, h)
            if hasattr(stage, "upsample"):
                doubled = h.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
                h = stage.upsample.conv(doubled)
        pictures: Tensor = self.conv_out(_swish(self.norm_out(h)))
        return pictures


class _Residual(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(before), nn.Conv2d(before, after, 3, 1, 1)
        self.norm2, self.conv2 = _norm(after), nn.Conv2d(after, after, 3, 1, 1)
        if before != after:
            self.nin_shortcut = nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(_swish(self.norm1(x)))
        h = self.conv2(_swish(self.norm2(h)))
        if hasattr(self, "nin_shortcut"):
            x = self.nin_shortcut(x)
        total: Tensor = x + h
        return total


class _Attention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        for name in ("q", "k", "v", "proj_out"):
            self.add_module(name, nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        query, key, value = (part(h).flatten(2) for part in (self.q, self.k, self.v))
        scores = query.transpose(1, 2) @ key / x.shape[1] ** 0.5  # [batch, query, key]
        attended = value @ scores.softmax(dim=2).transpose(1, 2)
        total: Tensor = x + self.proj_out(attended.view(x.shape))
        return total


def _stage(
    count: int, before: int, after: int, side: int, shape: PlainShape
) -> tuple[nn.Module, int]:
    """Return blocks of one resolution, and the number of channels that leave them."""
    stage = nn.Module()
    stage.block, stage.attn = nn.ModuleList(), nn.ModuleList()
    for _ in range(count):
        stage.block.append(_Residual(before, after))
        before = after
        if side in shape.attn_resolutions:
            stage.attn.append(_Attention(after))
    return stage, before


def _run_stage(stage: nn.Module, h: Tensor) -> Tensor:
    blocks, attentions = stage.block, stage.attn
    assert isinstance(blocks, nn.ModuleList)
    assert isinstance(attentions, nn.ModuleList)
    for index, block in enumerate(blocks):
        h = block(h)
        if len(attentions) > 0:
            h = attentions[index](h)
    return h


def _middle(channels: int) -> nn.Module:
    middle = nn.Module()
    middle.block_1 = _Residual(channels, channels)
    middle.attn_1 = _Attention(channels)
    middle.block_2 = _Residual(channels, channels)
    return middle


def _run_middle(middle: nn.Module, h: Tensor) -> Tensor:
    parts: Iterable[nn.Module] = middle.children()
    for part in parts:
        h = part(h)
    return h


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


def _swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)
