"""A Ray of two nodes encodes the same bytes as one process."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipelines.encoding.encode import encode_image_shards
from tests.data_pipelines.encoding.image_shards import write_images
from tests.data_pipelines.encoding.test_encode import config, folder
from tests.data_pipelines.encoding.test_reuse import SEVERAL, files_of
from tests.data_pipelines.ray_nodes import RayNodes, ray_nodes

__all__ = ["folder"]  # a fixture


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    with ray_nodes() as nodes:
        yield nodes


@pytest.mark.slow
def test_ray_writes_the_bytes_of_one_process(folder: Path, nodes: RayNodes) -> None:
    write_images(folder / "images", SEVERAL, size=12, per_shard=2)
    encode_image_shards(config(folder, "alone", views=2))

    encode_image_shards(
        config(folder, views=2, executor="ray", ray_address=nodes.address, num_workers=2)
    )

    assert files_of(folder / "tokens") == files_of(folder / "alone")
