"""Examples of a code are its first place in each of the first pictures that have it."""

import numpy as np

from ernie_vilg.evaluation.image_tokenizer.code_examples import CodeExamples
from ernie_vilg.evaluation.image_tokenizer.pictures import Place


def test_first_places_are_kept_over_batches() -> None:
    examples = CodeExamples(5, per_code=2)
    a, b, c = Place(0, 4), Place(1, 0), Place(1, 2)

    examples.add(np.array([[[3, 1], [1, 1]], [[0, 3], [3, 0]]]), [a, b])
    examples.add(np.array([[[1, 1], [3, 4]]]), [c])

    assert examples.of(0) == [(b, 0, 0)]
    assert examples.of(1) == [(a, 0, 1), (c, 0, 0)]
    assert examples.of(2) == []
    assert examples.of(3) == [(a, 0, 0), (b, 0, 1)]  # a third picture has it too
    assert examples.of(4) == [(c, 1, 1)]
