"""Layouts are those that the settings' own checks accept."""

import pytest

from ernie_vilg.planning.layouts import candidate_layouts, override_line, with_layout
from launch.support.composition import compose_program

_WORDS = ["experiment=quickstart", "gpu=h100-80gb"]


def test_every_layout_uses_all_gpus_and_is_accepted_by_the_program() -> None:
    config = compose_program("plan", [*_WORDS, "num_gpus=8"])

    layouts, _ = candidate_layouts(config, config.gpu, 8)

    for layout in layouts[::40]:
        assert 8 % (layout.tensor_parallel_size * layout.pipeline_parallel_size) == 0
    run = with_layout(config, layouts[0])
    words = ["experiment=quickstart", *override_line(run).split()]
    assert compose_program("pretrain", words).parallelism == layouts[0]


def test_refusal_says_what_to_set() -> None:
    config = compose_program("plan", [*_WORDS, "num_gpus=8"])

    _, refused = candidate_layouts(config, config.gpu, 8)

    zero = next(each for each in refused if each.reason == "ZeRO 2 or 3 under a pipeline")
    assert "set parallelism.zero_stage=1" in zero.fix


@pytest.mark.parametrize(
    ("word", "message"),
    [
        pytest.param("num_gpus=0", "at least 1", id="none"),
        pytest.param("num_gpus=12", "num_gpus=8 or 16", id="machines not filled"),
        pytest.param("num_gpus=-8", "at least 1", id="negative"),
    ],
)
def test_impossible_number_of_gpus_is_refused(word: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compose_program("plan", [*_WORDS, word])


def test_unknown_gpu_is_refused_with_the_list() -> None:
    with pytest.raises(ValueError, match="a100-40gb"):
        compose_program("plan", ["experiment=quickstart", "num_gpus=8", "gpu=h300"])
