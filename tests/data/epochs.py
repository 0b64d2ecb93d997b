"""One epoch of token shards, read by all replicas."""

from contextlib import closing
from pathlib import Path

from ernie_vilg.config.batch_sizes import BatchSizes
from ernie_vilg.config.loader import LoaderConfig
from ernie_vilg.config.model import ModelConfig
from ernie_vilg.data.batches.step_samples import StepSamples
from ernie_vilg.data.sequence.order import ReplicaSlice
from ernie_vilg.data.sequence.quarantine import Quarantine
from ernie_vilg.data.shards.damage import DamageFinding
from ernie_vilg.storage.shard_manifest import Manifest
from tests.data.token_shards import sequence_of

MODEL = ModelConfig(
    hidden_size=8,
    num_layers=1,
    num_heads=1,
    text_vocab_size=256,
    text_length=3,
    codebook_size=200,
    image_grid_size=2,
)
SIZES = [20, 20, 20, 20]
NUM_SAMPLES = sum(SIZES)
GLOBAL_BATCH = 16
STEPS = NUM_SAMPLES // GLOBAL_BATCH
SKIP = LoaderConfig(num_workers=0, damage="skip", max_damaged_fraction=1.0)


class Epoch:
    """The samples that one epoch read, over all replicas."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.captions: list[int] = []
        self.own: list[int] = []
        """Numbers of those samples that stood at their own positions."""
        self.findings: dict[tuple[str, int | None], DamageFinding] = {}

    @property
    def num_damaged(self) -> int:
        whole = {shard for shard, index in self.findings if index is None}
        return sum(
            finding.num_samples
            for (shard, index), finding in self.findings.items()
            if index is None or shard not in whole
        )


def read_epoch(
    folder: Path,
    manifest: Manifest,
    *,
    replicas: int = 2,
    loader: LoaderConfig = SKIP,
    quarantine: Quarantine | None = None,
) -> Epoch:
    epoch = Epoch()

    def note(findings: list[DamageFinding]) -> None:
        epoch.findings.update({(finding.shard, finding.index): finding for finding in findings})

    sequence = sequence_of(folder, manifest, MODEL, loader=loader, quarantine=quarantine)
    for rank in range(replicas):
        replica = ReplicaSlice(
            batch_sizes=BatchSizes(full=GLOBAL_BATCH), data_rank=rank, data_size=replicas
        )
        with closing(StepSamples(sequence, replica, on_damage=note)) as steps:
            for step in range(1, STEPS + 1):
                samples = steps.at(step)
                numbers = samples.content.codes[:, 0]
                epoch.numbers += numbers.tolist()
                epoch.captions += (samples.content.text[:, 0] - 4).tolist()
                epoch.own += numbers[~samples.origins.is_replaced].tolist()
    return epoch
