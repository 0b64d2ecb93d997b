"""Settings of low-rank adapters.

Source: LoRA (arXiv:2106.09685).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ernie_vilg.config.name_patterns import check_matches, matches
from ernie_vilg.config.schema import NaturalInt, PositiveFloat, Settings
from ernie_vilg.errors import InputError

LINEAR_LAYERS = (
    "attention.query_key_value",
    "attention.output",
    "feed_forward.up",
    "feed_forward.down",
)
"""Names of a block's linear layers, which adapters can be added to."""

_ALPHA = 16.0
_TARGETS = ("*.attention.*", "*.feed_forward.*")


@dataclass(frozen=True, kw_only=True)
class LoraConfig(Settings, section="model.lora"):
    """Low-rank adapters of linear layers: `W x + alpha / rank * B A x`, where A and B train."""

    rank: NaturalInt = 0
    """Number of rows of A and of columns of B; 0 turns adapters off. Above 0, all other parameters
    keep their values."""
    alpha: PositiveFloat = _ALPHA
    """Factor of the adapters' outputs, times `rank`."""
    targets: tuple[str, ...] = _TARGETS
    """Patterns of names of linear layers in blocks, such as `*.attention.output` or `12.*`: `*` is
    any text, `?` one character."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rank and (self.alpha != _ALPHA or self.targets != _TARGETS):
            raise InputError(
                f"model.lora.alpha={self.alpha:g}, model.lora.targets={','.join(self.targets)} "
                "with model.lora.rank=0, which adds no adapters: set model.lora.rank, say to 8, or "
                "leave the others out"
            )

    @property
    def scale(self) -> float:
        """Factor of `B A x`."""
        return self.alpha / self.rank

    def adapts(self, layer: str) -> bool:
        """Return whether a linear layer of a block has an adapter.

        Args:
            layer: name such as "3.attention.output"; block 1 is the first.
        """
        return self.rank > 0 and matches(layer, self.targets)

    def layers(self, num_layers: int) -> list[str]:
        """Return the names of the linear layers that have an adapter, of so many blocks."""
        return [name for name in _linear_layers(num_layers) if self.adapts(name)]

    def check(self, num_layers: int, hidden_size: int) -> None:
        """Check the settings against the model that adapters are added to.

        Raises:
            InputError: a pattern matches no linear layer of a block, there is none, or the rank is
                not low.
        """
        if not self.rank:
            return
        if self.rank >= hidden_size:
            raise InputError(
                f"model.lora.rank={self.rank} with model.hidden_size={hidden_size}: adapters of "
                f"this rank are not smaller than the weights, set it below {hidden_size}, say to 8"
            )
        known = _linear_layers(num_layers)
        for pattern in self.targets:
            check_matches("model.lora.targets", pattern, known, what="linear layer of a block")
        if not self.targets:
            raise InputError(
                f"model.lora.targets is empty with model.lora.rank={self.rank}, so nothing would "
                f"train: name linear layers, such as {','.join(_TARGETS)}, or set model.lora.rank=0"
            )

    def check_start(self, initialize_from: str | None, frozen: Sequence[str]) -> None:
        """Check that a run with adapters has weights to adapt, and freezes nothing by itself.

        Raises:
            InputError: it starts from fresh weights, or has patterns of frozen parameters.
        """
        rank = f"model.lora.rank={self.rank}"
        if self.rank and initialize_from is None:
            raise InputError(
                f"{rank} with initialize_from=null: adapters of fresh weights, which keep their "
                "random values, learn nothing useful. Set initialize_from to a weights folder or a "
                "run folder, or model.lora.rank=0"
            )
        if self.rank and frozen:
            raise InputError(
                f"{rank} with training.frozen={','.join(frozen)}: all parameters but the adapters "
                "keep their values anyway, leave training.frozen out and choose adapters by "
                "model.lora.targets"
            )


def _linear_layers(num_layers: int) -> list[str]:
    return [f"{index}.{name}" for index in range(1, num_layers + 1) for name in LINEAR_LAYERS]
