"""Sampled pictures of all shards: figures of their reconstructions, and a few to look at."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from data_pipelines.audit.recoding import RecodedPicture


@dataclass(kw_only=True)
class RecodedStatistics:
    """Figures of the sampled pictures, and the few that the report shows."""

    most: int
    """Most pictures kept of each kind."""
    num_pictures: int = 0
    num_codes: int = 0
    num_equal: int = 0
    """Number of codes that encoding the pictures again gives."""
    sum_psnr: float = 0.0
    best: list[RecodedPicture] = field(default_factory=list)
    """Pictures of the highest PSNR, the highest first."""
    typical: list[RecodedPicture] = field(default_factory=list)
    """Pictures chosen by a hash of their keys."""
    worst: list[RecodedPicture] = field(default_factory=list)
    """Pictures of the lowest PSNR, the lowest first."""

    @property
    def mean_psnr(self) -> float:
        """Mean PSNR of the pictures, dB; 0 without any."""
        return self.sum_psnr / max(1, self.num_pictures)

    @property
    def equal_share(self) -> float:
        """Fraction of equal codes; 1 without any."""
        return self.num_equal / self.num_codes if self.num_codes else 1.0

    def add(self, pictures: Iterable[RecodedPicture]) -> None:
        """Count pictures, and keep those that belong to the best, the worst or the typical."""
        for picture in pictures:
            self.num_pictures += 1
            self.num_codes += picture.num_codes
            self.num_equal += picture.num_equal
            self.sum_psnr += picture.psnr
            self._keep(self.best, picture, lambda one: -one.psnr)
            self._keep(self.worst, picture, lambda one: one.psnr)
            self._keep(self.typical, picture, _lot)

    def _keep(
        self,
        group: list[RecodedPicture],
        picture: RecodedPicture,
        rank: Callable[[RecodedPicture], float],
    ) -> None:
        group.append(picture)
        group.sort(key=lambda one: (rank(one), one.key))
        del group[self.most :]


def _lot(picture: RecodedPicture) -> float:
    return int.from_bytes(hashlib.sha256(f"typical {picture.key}".encode()).digest()[:6])
