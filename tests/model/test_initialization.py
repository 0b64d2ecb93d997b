"""Fresh weights are the same for every layout."""

from dataclasses import replace

import pytest
import torch

from ernie_vilg.model.initialization import initialize, split_dimension, takes_weight_decay
from ernie_vilg.model.transformer import build_transformer
from tests.model.tiny import CONFIG


def test_concatenated_parts_are_the_whole() -> None:
    whole = build_transformer(CONFIG)
    initialize(whole.named_parameters(), CONFIG, seed=3)
    for name, parameter in whole.named_parameters():
        dimension = split_dimension(name)
        if dimension is None:
            continue
        shares = []
        for rank in range(2):
            share = torch.nn.Parameter(torch.empty_like(parameter.chunk(2, dimension)[rank]))
            initialize([(name, share)], CONFIG, seed=3, tensor_rank=rank, tensor_size=2)
            shares.append(share)
        assert torch.cat(shares, dimension).equal(parameter), name


def test_seed_and_name_decide() -> None:
    values = []
    for name, seed in [("1.x.weight", 0), ("1.x.weight", 0), ("2.x.weight", 0), ("1.x.weight", 1)]:
        parameter = torch.nn.Parameter(torch.empty(4, 4))
        initialize([(name, parameter)], CONFIG, seed)
        values.append(parameter.detach())

    assert values[0].equal(values[1])
    assert not values[0].equal(values[2])
    assert not values[0].equal(values[3])


def test_codes_start_as_one_linear_map_of_their_vectors() -> None:
    config = replace(CONFIG, codebook_std=0.1)
    vectors = 7.0 * torch.randn(20, 3, generator=torch.Generator().manual_seed(0)) + 5.0
    model = build_transformer(config)
    initialize(model.named_parameters(), config, seed=3, codebook=vectors)

    tables = [model[0].image_embedding.weight.detach(), model[-1].image_logits.weight.detach()]
    for table in tables:
        assert torch.linalg.matrix_rank(table) == 3
        solution = torch.linalg.lstsq(vectors - vectors.mean(dim=0), table)
        assert torch.allclose((vectors - vectors.mean(dim=0)) @ solution.solution, table, atol=1e-5)
        assert 0.05 < table.std() < 0.2
    assert not torch.allclose(tables[0], tables[1], atol=1e-2)  # each has a map of its own
    assert model[0].text_embedding.weight.std() > 0.2  # the others start as ever


def test_tensor_ranks_hold_parts_of_the_map() -> None:
    config = replace(CONFIG, codebook_std=0.1)
    vectors = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    whole, *parts = (torch.nn.Parameter(torch.empty(size, 16)) for size in (20, 10, 10))
    name = "0.image_embedding.weight"
    initialize([(name, whole)], config, seed=3, codebook=vectors)
    for rank, part in enumerate(parts):
        initialize([(name, part)], config, 3, tensor_rank=rank, tensor_size=2, codebook=vectors)

    assert torch.cat(parts).equal(whole)


@pytest.mark.parametrize(
    ("name", "dimension", "decays"),
    [
        ("0.text_embedding.weight", 0, False),
        ("0.image_embedding.weight", 0, False),
        ("0.text_position", None, False),
        ("3.attention.query_key_value.weight", 0, True),
        ("3.attention.query_key_value.bias", 0, False),
        ("3.attention.output.weight", 1, True),
        ("3.attention.output.bias", None, False),
        ("3.attention_branch.norm.weight", None, False),
        ("3.feed_forward.up.bias", 0, False),
        ("3.feed_forward.down.weight", 1, True),
        ("3.feed_forward.down.bias", None, False),
        ("5.norm.weight", None, False),
        ("5.image_logits.weight", 0, True),
        ("5.text_logits.bias", 0, False),
        ("5.reconstructor.up.weight", 0, True),
        ("5.reconstructor.down.weight", 1, True),
        ("5.reconstructor.down.bias", None, False),
        ("5.reconstructor.decoder.input.weight", None, False),
    ],
)
def test_split_and_decay_by_name(name: str, dimension: int | None, decays: bool) -> None:
    assert split_dimension(name) == dimension
    assert takes_weight_decay(name) == decays


def test_every_parameter_that_changes_shape_is_split_by_name() -> None:
    """A new layer that `split_dimension` does not know would be drawn per rank."""
    names = [name for name, _ in build_transformer(CONFIG).named_parameters()]

    assert sum(split_dimension(name) is not None for name in names) == 2 + CONFIG.num_layers * 6 + 4


def test_an_earlier_run_s_weights_fit_other_positions() -> None:
    hidden = CONFIG.hidden_size
    start = {
        "0.text_position": torch.arange(3.0)[:, None].expand(3, hidden),
        "0.image_row": torch.tensor([0.0, 4.0])[:, None].expand(2, hidden),
        "1.attention.output.weight": torch.full((4, 4), 7.0),
    }
    shapes = {
        "0.text_position": (5, hidden),
        "0.image_row": (4, hidden),
        "1.attention.output.weight": (4, 2),  # the second of two tensor-parallel parts
    }
    named = {name: torch.nn.Parameter(torch.empty(shape)) for name, shape in shapes.items()}

    initialize(named.items(), CONFIG, seed=3, tensor_rank=1, tensor_size=2, start=start.__getitem__)

    text, rows, matrix = named.values()
    fresh = torch.nn.Parameter(torch.empty(5, hidden))
    initialize([("0.text_position", fresh)], CONFIG, seed=3)
    assert text[:3].equal(start["0.text_position"])
    assert text[3:].equal(fresh[3:])
    assert rows[:, 0].tolist() == [0.0, 1.0, 3.0, 4.0]  # pixel centres at 1/4, 3/4 of each half
    assert matrix.equal(torch.full((4, 2), 7.0))

    shorter = torch.nn.Parameter(torch.empty(2, hidden))
    initialize([("0.text_position", shorter)], CONFIG, seed=3, start=start.__getitem__)
    assert shorter.equal(start["0.text_position"][:2])
