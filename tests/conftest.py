"""Fixtures and rules of all tests.

Processes that tests start, ranks and data workers alike, are forked from one server of this
process, which imports once what any of them needs. Whoever starts it must know all of that.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import torch

from ernie_vilg.data.batches import workers
from tests import compiler
from tests.distributed import one_process

if TYPE_CHECKING:
    from tests.data.shard_server import ShardServer

workers.PRELOADED_MODULES = ["tests.rank_imports"]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked gpu where there is none."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files of tests that start processes first.

    They take longest; workers that take files in this order end at nearly the same time.
    """
    long_ones = {item.path for item in items if item.get_closest_marker("distributed")}
    items.sort(key=lambda item: item.path not in long_ones)


@pytest.fixture
def alone() -> Iterator[None]:
    """Make this process the only rank of a group."""
    with one_process():
        yield


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Forget what torch has compiled before and after a test."""
    with compiler.fresh_compiler():
        yield


@pytest.fixture(scope="module")
def servers(
    tmp_path_factory: pytest.TempPathFactory,
) -> "Iterator[tuple[ShardServer, ShardServer]]":
    """Serve files over https, and another server's as an object store."""
    from tests.data.shard_server import make_certificate, serving

    certificate = make_certificate(tmp_path_factory.mktemp("certificate"))
    with serving(certificate) as web, serving() as store:
        yield web, store
