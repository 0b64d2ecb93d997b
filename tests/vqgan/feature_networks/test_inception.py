"""The FID's Inception computes what a plain one does, from a file with pytorch-fid's names."""

from pathlib import Path

import torch

from ernie_vilg.vqgan.feature_networks.inception import Inception
from tests.vqgan.feature_networks.plain_inception import plain_inception, random_inception
from tests.vqgan.feature_networks.plain_networks import weights_file


def test_features_are_those_of_a_plain_network(tmp_path: Path) -> None:
    tensors = random_inception()
    network = Inception()
    weights_file(tmp_path / "inception.pth", tensors).load_into(network)
    images = torch.rand(1, 3, 40, 48, generator=torch.manual_seed(0)) * 2 - 1

    with torch.no_grad():
        found, expected = network(images), plain_inception(tensors, images)

    assert found.shape == (1, 2048)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert found.std() > 0.01


def test_file_has_no_tensors_beside_the_networks() -> None:
    names = {name for name in Inception().state_dict() if "num_batches" not in name}

    assert names == random_inception().keys()
