"""How many pairs a run draws, how many its data has, and where each number comes from.

A plan is often made before the data is encoded. Token shards are counted by their manifests; while
there are none, the settings say what is expected. Manifests on servers are not read: a plan uses no
network.
"""

from dataclasses import dataclass
from pathlib import Path

from ernie_vilg.config.plan import PlanConfig
from ernie_vilg.planning.goodput import run_pairs, run_steps
from ernie_vilg.storage.locations import is_remote
from ernie_vilg.storage.shard_manifest import FILE_NAME, read_manifest


@dataclass(frozen=True, kw_only=True)
class RunLength:
    """The length of a run in pairs, steps and epochs."""

    pairs: int
    """Pairs that the run trains on, each as often as it is drawn."""
    steps: int
    """Optimizer steps."""
    pairs_from: str
    """Where the number of pairs comes from."""
    data_pairs: int | None
    """Pairs that all data sets together have; None if that is not known."""
    data_pairs_from: str
    """Where that number comes from, or what to do for one."""

    @property
    def epochs(self) -> float | None:
        """Pairs of the run for each pair of the data; None if the data's size is not known."""
        return self.pairs / self.data_pairs if self.data_pairs else None

    def lines(self) -> list[str]:
        """Return the lines to print."""
        data = self.data_pairs_from
        if self.epochs is not None:
            data = f"{self.epochs:,.2f} epochs of {self.data_pairs:,} pairs, {data}"
        return [
            f"length: {self.pairs:,} pairs in {self.steps:,} steps, {self.pairs_from}",
            f"data: {data}",
        ]


def run_length(config: PlanConfig) -> RunLength:
    """Return the length of a planned run.

    Raises:
        InputError: the manifest of token shards is damaged.
    """
    pairs_from = f"by num_pairs={config.num_pairs}"
    if config.num_pairs is None:
        pairs_from = (
            f"by training.steps={config.training.steps} x parallelism.global_batch_size="
            f"{config.parallelism.global_batch_size}"
        )
        if config.batch_sizes.warmup:
            pairs_from += ", less in parallelism.batch_size_warmup"
    data_pairs, data_pairs_from = _data_pairs(config)
    return RunLength(
        pairs=run_pairs(config),
        steps=run_steps(config),
        pairs_from=pairs_from,
        data_pairs=data_pairs,
        data_pairs_from=data_pairs_from,
    )


def _data_pairs(config: PlanConfig) -> tuple[int | None, str]:
    """Return the number of pairs that the data has, and where it comes from."""
    data = config.data
    if config.num_data_pairs is not None:
        return config.num_data_pairs, f"by num_data_pairs={config.num_data_pairs}"
    folders = list(data.locations.values())
    if all(not is_remote(folder) and (Path(folder) / FILE_NAME).is_file() for folder in folders):
        count = sum(read_manifest(Path(folder), "token").num_samples for folder in folders)
        if count:
            return count, f"counted in {', '.join(folders)}"
    if data.expected_pairs is not None:
        return data.expected_pairs, f"by data.expected_pairs={data.expected_pairs}"
    return None, (
        f"of an unknown size, since {', '.join(folders)} cannot be counted here and "
        "data.expected_pairs=null: set num_data_pairs=N for the number of epochs"
    )
