"""Figures of drawn pictures against true ones, and their tables.

benchmarks/reconstructor.py defines the figures.
"""

import statistics
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.reconstructor_parts.rows import DIFFERENCES, ROWS, Figures, Pictures
from benchmarks.support import tables
from ernie_vilg.evaluation.pairs import Pair
from ernie_vilg.shapes.captions import required_scenes
from ernie_vilg.shapes.scores import score_pictures
from ernie_vilg.vqgan.losses.pixel import psnr_of_pictures

CELLS = 4
"""Number of cells along each side of a picture, for the Frechet distance."""
_NAMES = ("objects right, %", "PSNR, dB", "Fréchet")


def figures_of(drawn: Pictures, pairs: Sequence[Pair]) -> Figures:
    """Return a row's figures; the module's text defines them."""
    originals = [pair.image for pair in pairs]
    scenes = required_scenes([pair.caption for pair in pairs])
    return {
        "objects_correct": score_pictures(scenes, drawn).objects_correct,
        "psnr": psnr_of_pictures(originals, drawn),
        "frechet": frechet(drawn, originals),
    }


def frechet(pictures: Pictures, true_pictures: Pictures) -> float:
    """Return the Frechet distance of pictures to true ones; the module's text defines it."""
    true = features(true_pictures)
    scale = true.std(axis=0)
    mean, covariance = _moments(features(pictures) / scale)
    true_mean, true_covariance = _moments(true / scale)
    root = _square_root(true_covariance)
    cross = _square_root(root @ covariance @ root)
    distance = np.square(mean - true_mean).sum() + np.trace(
        covariance + true_covariance - 2 * cross
    )
    return float(distance)


def features(pictures: Pictures) -> NDArray[np.float64]:
    """Return the 80 numbers of each picture, float64 [batch, 80]."""
    pixels = np.stack([np.asarray(picture, np.float64) / 255 for picture in pictures])
    grey = pixels.mean(axis=3)
    across = np.diff(grey, axis=2, append=grey[:, :, -1:])
    down = np.diff(grey, axis=1, append=grey[:, -1:, :])
    edges = np.sqrt(_cell_means(np.stack([across**2, down**2], axis=3)))
    return np.concatenate([_cell_means(pixels), edges], axis=2).reshape(len(pictures), -1)


def _cell_means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return [batch, cells, channels] of [batch, height, width, channels]."""
    batch, height, width, channels = values.shape
    cells = values.reshape(batch, CELLS, height // CELLS, CELLS, width // CELLS, channels)
    return cells.mean(axis=(2, 4)).reshape(batch, CELLS**2, channels)


def _moments(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return values.mean(axis=0), np.cov(values, rowvar=False)


def _square_root(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the root of a symmetric matrix without negative eigenvalues."""
    eigenvalues, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(eigenvalues.clip(min=0))) @ vectors.T


def report_of(figures: Sequence[Mapping[str, Figures]]) -> str:
    """Return the tables as Markdown: mean ± standard deviation over the seeds."""
    lines = [tables.header(["codes / reconstructor", *_NAMES])]
    for row in ROWS:
        seeds = [seed[row.name] for seed in figures if row.name in seed]
        lines.append(tables.row([row.name, *_cells(seeds, "")]))
    lines += ["", tables.header(["difference, seed by seed", *_NAMES])]
    for title, row, base in DIFFERENCES:
        seeds = [
            {key: seed[row.name][key] - seed[base.name][key] for key in seed[row.name]}
            for seed in figures
            if row.name in seed
        ]
        lines.append(tables.row([title, *_cells(seeds, "+")]))
    return "".join(f"{line}\n" for line in lines)


def _cells(seeds: Sequence[Figures], sign: str) -> list[str]:
    formats = {"objects_correct": f"{sign}.1f", "psnr": f"{sign}.2f", "frechet": f"{sign}.2f"}
    scales = {"objects_correct": 100.0, "psnr": 1.0, "frechet": 1.0}
    return [
        _spread([scales[key] * seed[key] for seed in seeds], form) for key, form in formats.items()
    ]


def _spread(values: Sequence[float], form: str) -> str:
    spread = f" ± {statistics.stdev(values):{form.lstrip('+')}}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{form}}{spread}"
