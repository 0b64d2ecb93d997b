"""What every rank of a distributed test imports; see tests.distributed."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of Transformer Engine and Apex, which we do not use
    import ernie_vilg.parallel.engine.build
    import ernie_vilg.parallel.engine.tensor_parallel
    import ernie_vilg.training.loop  # noqa: F401
