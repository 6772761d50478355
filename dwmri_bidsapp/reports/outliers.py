"""Runs that are unlike the others of their protocol, by robust distances.

Axis letters: r runs, m measures.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from .pairs import OWN_METHOD, MeasureTable

LOOKED_AT = (
    "b0_snr", "residual_std", "residual_edge_correlation", "edge_slope", "neighbouring_dwi_correlation",
    "dti_kfold_error", "fa_mean", "md_mean", "fd_mean",
)  # fmt: skip
"""Measures of the denoised run that tell a strange run from an ordinary one."""

LEAST_RUNS = 8
"""Of a protocol: fewer do not say what is ordinary."""

_RUNS_PER_MEASURE = 5  # below, a covariance cannot be estimated robustly
_STRANGE = 3.5  # robust z; Iglewicz & Hoaglin 1993
_QUANTILE = 0.999
# Medians of few runs are uncertain, and their distances have long tails: limits are this share of the runs wider.
_FEW_RUNS = 12


@dataclass(frozen=True)
class Distance:
    """How far a run is from the others of its protocol.

    Attributes
    ----------
    distance, limit
        Robust distance, and the one that few ordinary runs exceed (1 in 1,000 of a large group).
    outlier
        Beyond the limit, and strange in at least one measure.
    reasons
        Measures with their robust z, the strangest first.
    """

    distance: float
    limit: float
    outlier: bool
    reasons: list[tuple[str, float]]


def distances(table: MeasureTable, protocols_r: Sequence[object]) -> list[Distance | None]:
    """Return the robust distance of each run from the others of its protocol.

    With enough runs the distance is Mahalanobis' with the minimum covariance determinant (Rousseeuw 1999,
    doi:10.1080/00401706.1999.10485670); with fewer, that of the robust z of each measure alone.

    Parameters
    ----------
    table
        All measures.
    protocols_r
        What the runs that are acquired alike have in common.

    Returns
    -------
    list
        None for a run of a protocol with fewer than :data:`LEAST_RUNS` runs, or that lacks a measure.
    """
    found: list[Distance | None] = [None] * len(table.labels)
    if OWN_METHOD not in table.methods:
        return found
    columns = [i for i, name in enumerate(table.measures) if name in LOOKED_AT]
    names = [table.measures[i] for i in columns]
    values_rm = table.values[:, columns, table.methods.index(OWN_METHOD)]
    for protocol in dict.fromkeys(protocols_r):
        members = np.array([i for i, other in enumerate(protocols_r) if other == protocol])
        present = np.isfinite(values_rm[members]).mean(axis=0) > 0.5
        complete = members[np.isfinite(values_rm[members][:, present]).all(axis=1)]
        if len(complete) < LEAST_RUNS:
            continue
        kept = [name for name, keep in zip(names, present, strict=True) if keep]
        for run, distance in zip(complete, _distances(values_rm[complete][:, present], kept), strict=True):
            found[int(run)] = distance
    return found


def _distances(values_rm: NDArray[np.float64], names: Sequence[str]) -> list[Distance]:
    middle_m = np.median(values_rm, axis=0)
    spread_m = 1.4826 * np.median(np.abs(values_rm - middle_m), axis=0)
    # A measure that is the same in most runs has no scale to judge the others by.
    usable = spread_m > 1e-9 * (np.abs(middle_m) + 1e-12)
    z_rm = (values_rm - middle_m)[:, usable] / spread_m[usable]
    names = [name for name, keep in zip(names, usable, strict=True) if keep]
    n_runs, n_measures = z_rm.shape
    if n_measures == 0:
        return [Distance(0.0, 0.0, False, []) for _ in values_rm]
    if n_runs >= _RUNS_PER_MEASURE * n_measures:
        from sklearn.covariance import MinCovDet  # half a second to import

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # measures that depend on each other: the support is still found
            squared_r = MinCovDet(random_state=0).fit(z_rm).mahalanobis(z_rm)
    else:
        squared_r = (z_rm**2).sum(axis=1)
    distance_r = np.sqrt(np.maximum(squared_r, 0))
    widening = 1 + _FEW_RUNS / n_runs
    limit = widening * float(np.sqrt(stats.chi2.ppf(_QUANTILE, n_measures)))
    result = []
    for distance, z_m in zip(distance_r.tolist(), z_rm, strict=True):
        order = np.argsort(-np.abs(z_m))
        strange = bool(distance > limit and np.abs(z_m).max() > widening * _STRANGE)
        result.append(Distance(distance, limit, strange, [(names[i], float(z_m[i])) for i in order[:3]]))
    return result
