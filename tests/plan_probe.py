from ernie_vilg.parallel.engine.build import build_engine
from ernie_vilg.parallel.engine.precision import machine_precision
from ernie_vilg.parallel.layout.groups import build_groups, start_processes
from tests.collectives_trace import CollectivesTrace
from tests.parallel.parity import *
from tests.parallel import parity
ROWS = [(Row(tensor=1,pipeline=1,data=2),'bf16'),(Row(tensor=2,pipeline=1,data=1),'bf16'),(Row(tensor=2,pipeline=1,data=1,variant=Variant(sequence_parallel=True)),'bf16'),(Row(tensor=1,pipeline=2,data=1),'bf16'),(Row(tensor=2,pipeline=2,data=1,variant=Variant(sequence_parallel=True)),'bf16')]
def trace(launch, config):
    device = start_processes(launch, timeout_seconds=120)
    l = config.parallelism
    groups = build_groups(l.tensor_parallel_size, l.pipeline_parallel_size, device)
    engine = build_engine(config, groups, machine_precision(config.precision, device))
    from benchmarks.support.models import random_batch
    n = engine.num_micro_batches
    def batches(s): return [random_batch(config.model, l.micro_batch_size, s*n+i) for i in range(n)]
    engine.train_batch(batches(0), 1e-3)
    with CollectivesTrace() as t:
        engine.train_batch(batches(1), 1e-3)
    return {tuple(k): v for k, v in t.counts.items()}
