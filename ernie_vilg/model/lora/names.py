"""Names of the parameters of adapters.

The linear layer "3.attention.output" has its adapter's matrices as "3.attention.output.lora_a" and
"3.attention.output.lora_b"; its own weight and bias keep their names.

Source: LoRA (arXiv:2106.09685).
"""

from ernie_vilg.config.model import ModelConfig

LORA_A, LORA_B = "lora_a", "lora_b"
"""Names, in a linear layer, of the matrix [rank, in] and of the matrix [out, rank]."""
_ENDINGS = {LORA_A: f".{LORA_A}.weight", LORA_B: f".{LORA_B}.weight"}


def is_adapter(name: str) -> bool:
    """Return whether a parameter is a matrix of an adapter.

    Args:
        name: name such as "3.attention.output.lora_a.weight".
    """
    return name.endswith(tuple(_ENDINGS.values()))


def matrix_of(name: str) -> tuple[str, str]:
    """Return the name of an adapter's linear layer, and `LORA_A` or `LORA_B`."""
    matrix = LORA_A if name.endswith(_ENDINGS[LORA_A]) else LORA_B
    return name.removesuffix(_ENDINGS[matrix]), matrix


def adapter_names(layer: str) -> tuple[str, str]:
    """Return the names of both matrices of a linear layer's adapter, A first."""
    return f"{layer}{_ENDINGS[LORA_A]}", f"{layer}{_ENDINGS[LORA_B]}"


def has_optimizer_state(name: str, config: ModelConfig) -> bool:
    """Return whether the optimizer has a parameter: with adapters, it has theirs alone."""
    return not config.lora.rank or is_adapter(name)
