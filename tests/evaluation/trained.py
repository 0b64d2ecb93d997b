"""A model that has memorised three pairs, in both directions."""

import torch
from torch import Tensor, nn

from ernie_vilg.config.model import ObjectiveConfig
from ernie_vilg.model.layers import SINGLE_DEVICE
from ernie_vilg.model.loss import Objective
from ernie_vilg.vocabulary import PADDING_ID
from tests.model.tiny import CONFIG, tiny_model, tiny_pairs


def trained_model(num_steps: int = 60) -> tuple[nn.Sequential, tuple[Tensor, Tensor]]:
    """Return the model and its pairs: text ids [3, 5] and codes [3, 4]."""
    model, (text, codes) = tiny_model(), tiny_pairs()
    objective = Objective(ObjectiveConfig(), SINGLE_DEVICE)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    count = (text != PADDING_ID).sum()[None].float()
    for _ in range(num_steps):
        optimizer.zero_grad()
        objective(model((text, codes)), (text, codes, count)).total.backward()
        optimizer.step()
    optimizer.zero_grad()
    assert CONFIG.num_image_tokens == codes.shape[1]
    return model, (text, codes)
