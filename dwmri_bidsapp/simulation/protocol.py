"""Acquisition protocols: directions spread evenly, b=0 volumes spread in time."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from dipy.core.sphere import HemiSphere, disperse_charges
from numpy.typing import NDArray

from ..errors import UsageError
from ..gradients import Gradients


def make_protocol(n_b0: int, shells: Mapping[float, int], rng: np.random.Generator) -> Gradients:
    """Draw a protocol of one or more shells.

    Parameters
    ----------
    n_b0
        Number of b=0 volumes; the first volume is one, the others are spread evenly in time.
    shells
        Number of directions for each b-value in s/mm², such as ``{1000: 30, 2500: 60}``.
    rng
        Where the directions start from, and the order of the volumes.

    Raises
    ------
    UsageError
        Fewer than one volume in all, or a shell of fewer than one.
    """
    if any(n < 1 for n in shells.values()):
        raise UsageError(f"expected at least one direction in each shell, found {dict(shells)}")
    bvals = np.concatenate([np.full(n, b, dtype=np.float64) for b, n in shells.items()] or [np.zeros(0)])
    if n_b0 < 0 or n_b0 + bvals.size < 1:
        raise UsageError(f"expected at least one volume, found {n_b0} b=0 volumes and shells {dict(shells)}")
    bvecs = np.concatenate([_spread_directions(n, rng) for n in shells.values()] or [np.zeros((0, 3))])
    order = rng.permutation(bvals.size)
    at = np.floor(np.arange(n_b0) * bvals.size / max(n_b0, 1)).astype(int)
    return Gradients.from_arrays(np.insert(bvals[order], at, 0.0), np.insert(bvecs[order], at, 0.0, axis=0))


def _spread_directions(n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Spread ``n`` directions over the sphere by electrostatic repulsion, opposites being the same."""
    directions = rng.standard_normal((n, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    if n > 1:
        directions = disperse_charges(HemiSphere(xyz=directions), 500)[0].vertices
    # On a hemisphere eddy currents would all have one sign; scanners use the whole sphere.
    return directions * rng.choice([-1.0, 1.0], size=(n, 1))
