"""The patterns tell the converter how tensor parallelism splits every parameter."""

import re
from dataclasses import replace

import pytest

from ernie_vilg.config.model import ModelConfig, ReconstructorConfig
from ernie_vilg.model.initialization import split_dimension
from ernie_vilg.model.transformer import build_transformer
from ernie_vilg.parallel.engine.split_patterns import universal_checkpoint_info
from tests.model.tiny import CONFIG, DECODER

WHOLE = replace(
    CONFIG,
    qk_norm=True,
    sandwich_norm=True,
    reconstructor=ReconstructorConfig(kind="end_to_end", decoder=DECODER),
)


@pytest.mark.parametrize(
    "config",
    [pytest.param(CONFIG, id="plain"), pytest.param(WHOLE, id="with all optional parts")],
)
def test_every_name_matches_the_patterns_of_its_split_alone(config: ModelConfig) -> None:
    """A parameter that matches no pattern would be joined along the wrong dimension."""
    info = universal_checkpoint_info(config)
    for name, _ in build_transformer(config).named_parameters():
        replicated = [p for p in info["tp_replicated_parameter_patterns"] if re.match(p, name)]
        by_row = [p for p in info["parameter_with_row_parallelism_patterns"] if re.match(p, name)]
        expected = {None: (1, 0), 0: (0, 0), 1: (0, 1)}[split_dimension(name)]
        assert (len(replicated), len(by_row)) == expected, name
