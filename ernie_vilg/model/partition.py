"""The cut of the list of layers into pipeline stages."""

from collections.abc import Sequence


def stage_bounds(costs: Sequence[int], num_stages: int) -> list[int]:
    """Cut a list of layers into stages so that the slowest stage is as fast as possible.

    The first layer (the embedding) and the last (the head) stay with their neighbours, so every
    stage has a block. Among equally good cuts, earlier stages get more layers, since the last stage
    also computes the loss.

    Args:
        costs: cost of each layer, in any unit.
        num_stages: number of stages, at most the number of blocks, `len(costs) - 2`.

    Returns:
        the first layer of each stage, and the number of layers: `num_stages + 1` numbers.
    """
    num_blocks = len(costs) - 2
    assert 1 <= num_stages <= num_blocks, f"{num_stages} stages of {num_blocks} blocks"
    blocks = [*costs[1:-1]]
    blocks[0] += costs[0]
    blocks[-1] += costs[-1]
    # best[n]: the smallest possible cost of the slowest stage over the first n blocks.
    best = [sum(blocks[:count]) for count in range(num_blocks + 1)]
    starts: list[list[int]] = []
    for stage in range(1, num_stages):
        largest, start_of = list(best), [0] * (num_blocks + 1)
        for count in range(stage + 1, num_blocks + 1):
            options = [
                (max(best[start], sum(blocks[start:count])), -start)
                for start in range(stage, count)
            ]
            largest[count], negative_start = min(options)
            start_of[count] = -negative_start
        best = largest
        starts.append(start_of)
    bounds, count = [num_blocks], num_blocks
    for start_of in reversed(starts):
        count = start_of[count]
        bounds.append(count)
    first_layers = [1 + block for block in reversed(bounds[1:])]
    return [0, *first_layers, len(costs)]
