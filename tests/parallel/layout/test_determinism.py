"""No operation of a step depends on the order in which a GPU's threads arrive."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ernie_vilg.config.model import ModelConfig, ObjectiveConfig, ReconstructorConfig
from ernie_vilg.model.layers import SINGLE_DEVICE
from ernie_vilg.model.loss import Objective
from ernie_vilg.parallel.layout.determinism import make_deterministic
from tests.model.test_reference import sparse_config
from tests.model.tiny import DECODER, tiny_config, tiny_model, tiny_pairs

END_TO_END = ReconstructorConfig(kind="end_to_end", decoder=DECODER)

ADDS_IN_ANY_ORDER = {
    "_adaptive_avg_pool2d_backward",
    "_adaptive_avg_pool3d_backward",
    "_ctc_loss_backward",
    "_embedding_bag_backward",
    "_index_put_impl_",
    "_scaled_dot_product_efficient_attention_backward",
    "_scaled_dot_product_flash_attention_backward",
    "bincount",
    "cumsum",
    "grid_sampler_2d_backward",
    "histc",
    "index_add",
    "index_add_",
    "index_copy",
    "index_put",
    "index_put_",
    "kthvalue",
    "max_pool2d_with_indices_backward",
    "median",
    "nll_loss2d_backward",
    "nll_loss2d_forward",
    "put_",
    "reflection_pad2d_backward",
    "replication_pad2d_backward",
    "scatter_add",
    "scatter_add_",
    "scatter_reduce",
    "upsample_bicubic2d_backward",
    "upsample_bilinear2d_backward",
    "upsample_linear1d_backward",
}
"""Operations of the list of torch.use_deterministic_algorithms. Convolutions are on it as well:
`make_deterministic` chooses their kernels."""


class Operations(TorchDispatchMode):
    """Notes the names of all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        self.names.add(function.overloadpacket.__name__)
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(tiny_config(dropout=0.1), id="full attention, dropout"),
        pytest.param(sparse_config(qk_norm=True, pb_relax=8.0), id="sparse attention"),
        pytest.param(tiny_config(reconstructor=END_TO_END), id="end-to-end reconstructor"),
        pytest.param(tiny_config(tied_embeddings=True), id="tied embeddings"),
    ],
)
def test_no_operation_adds_in_any_order(config: ModelConfig) -> None:
    model = tiny_model(config).train()
    text, codes = tiny_pairs(config)
    pixels = torch.randint(256, (3, 3, 8, 8), dtype=torch.uint8)
    targets = (text, codes, torch.tensor([8.0]))
    if config.reconstructor.is_end_to_end:
        targets = (*targets, pixels)  # type: ignore[assignment]

    with Operations() as operations:
        losses = Objective(ObjectiveConfig(), SINGLE_DEVICE)(model((text, codes)), targets)
        losses.total.backward()

    assert {"mm", "embedding_dense_backward"} <= operations.names
    assert not operations.names & ADDS_IN_ANY_ORDER


def test_convolutions_on_a_gpu_take_fixed_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    torch.use_deterministic_algorithms(False)  # whatever an earlier test has set

    make_deterministic(torch.device("cuda", 0))

    assert torch.backends.cudnn.deterministic
    assert not torch.are_deterministic_algorithms_enabled()
