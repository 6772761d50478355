"""Smooth random fields in space: at any points (the same on every grid), or on one regular grid (quickly)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

_LOWER_MM = np.array([-110.0, -150.0, -110.0])
_UPPER_MM = np.array([110.0, 110.0, 120.0])
# Mean over positions of the sum of squares of the four cubic B-spline weights, per axis.
_SPLINE_STD = 0.4794 ** (3 / 2)


class SmoothField:
    """A field of unit variance that varies over about ``scale_mm``: B-splines on a random lattice.

    Parameters
    ----------
    scale_mm
        Distance of the lattice points.
    rng
        Source of the lattice values; the number of draws does not depend on where the field is evaluated.
    """

    def __init__(self, scale_mm: float, rng: np.random.Generator) -> None:
        self.scale_mm = scale_mm
        size = np.ceil((_UPPER_MM - _LOWER_MM) / scale_mm).astype(int) + 3
        self._lattice = (rng.standard_normal(size) / _SPLINE_STD).astype(np.float32)

    def __call__(self, points_n3: NDArray[np.float32]) -> NDArray[np.float32]:
        """Evaluate at points in mm, (N, 3) to (N,)."""
        at = (points_n3 - _LOWER_MM.astype(np.float32)) / np.float32(self.scale_mm) + 1
        return ndimage.map_coordinates(
            self._lattice, at.T, order=3, prefilter=False, mode="nearest", output=np.float32
        )

    def gradient(self, points_n3: NDArray[np.float32], step_mm: float = 1.0) -> NDArray[np.float32]:
        """Slope per mm by central differences, (N, 3) to (N, 3)."""
        columns = []
        for axis in range(3):
            step = np.zeros(3, dtype=np.float32)
            step[axis] = step_mm
            columns.append((self(points_n3 + step) - self(points_n3 - step)) / (2 * step_mm))
        return np.stack(columns, axis=1)


class SmoothVectorField:
    """Three independent smooth fields."""

    def __init__(self, scale_mm: float, rng: np.random.Generator) -> None:
        self._components = [SmoothField(scale_mm, rng) for _ in range(3)]

    def __call__(self, points_n3: NDArray[np.float32]) -> NDArray[np.float32]:
        """Evaluate at points in mm, (N, 3) to (N, 3)."""
        return np.stack([component(points_n3) for component in self._components], axis=1)


def distance_to_curves(
    first: SmoothField, second: SmoothField, points_n3: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Distance in mm (to first order) to the curves where two fields are zero, and their tangents.

    Returns
    -------
    (N,) array, (N, 3) array
        The tangents are unit vectors.
    """
    return _to_curves(
        first(points_n3), second(points_n3), first.gradient(points_n3), second.gradient(points_n3)
    )


def _to_curves(
    value_1: NDArray[np.float32],
    value_2: NDArray[np.float32],
    slope_1: NDArray[np.float32],
    slope_2: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Distance and tangent from the values (N,) and slopes (N, 3) of both fields."""
    g11, g22, g12 = (
        np.einsum("nd,nd->n", a, b) for a, b in ((slope_1, slope_1), (slope_2, slope_2), (slope_1, slope_2))
    )
    determinant = np.maximum(g11 * g22 - g12**2, 1e-12)
    squared = (g22 * value_1**2 - 2 * g12 * value_1 * value_2 + g11 * value_2**2) / determinant
    return np.sqrt(np.maximum(squared, 0)), unit(np.cross(slope_1, slope_2))


def grid_field(
    axes: Sequence[NDArray[np.float32]], scale_mm: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Draw a field of unit variance on a regular grid: as :class:`SmoothField`, but axis by axis.

    Parameters
    ----------
    axes
        Positions in mm along x, y and z.
    scale_mm
        Distance of the lattice points.
    rng
        Source of the lattice values; their number depends on the extent of the grid.

    Returns
    -------
    (X, Y, Z) float32
    """
    weights = [_spline_weights(axis, scale_mm) for axis in axes]
    values = rng.standard_normal([w.shape[1] for w in weights], dtype=np.float32) / np.float32(_SPLINE_STD)
    for weight in weights:
        # the axis that was first goes last, so that three turns restore the order
        values = np.tensordot(values, weight, axes=(0, 1))
    return values


def _spline_weights(axis: NDArray[np.float32], scale_mm: float) -> NDArray[np.float32]:
    """Weights of the lattice points for each position, cubic B-splines, (n, lattice)."""
    at = (axis - axis[0]) / scale_mm + 1
    distance = np.abs(at[:, None] - np.arange(int(np.ceil(at[-1])) + 2))
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    return np.where(distance < 1, near, far).astype(np.float32)


def slopes(field_xyz: NDArray[np.float32], step_mm: float) -> NDArray[np.float32]:
    """Slope per mm along each axis, (3, X, Y, Z)."""
    return np.stack(list(np.gradient(field_xyz, np.float32(step_mm))))


def distance_to_zero_curves(
    first_xyz: NDArray[np.float32], second_xyz: NDArray[np.float32], step_mm: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """:func:`distance_to_curves` for fields on a regular grid of ``step_mm``.

    Returns
    -------
    (X, Y, Z) array, (X, Y, Z, 3) array
    """
    slope_1, slope_2 = (slopes(field, step_mm).reshape(3, -1).T for field in (first_xyz, second_xyz))
    distance_n, tangent_n3 = _to_curves(first_xyz.ravel(), second_xyz.ravel(), slope_1, slope_2)
    return distance_n.reshape(first_xyz.shape), tangent_n3.reshape(*first_xyz.shape, 3)


def unit(vectors_n3: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale to length one; vectors of length zero stay zero."""
    length = np.linalg.norm(vectors_n3, axis=1, keepdims=True)
    return (vectors_n3 / np.maximum(length, 1e-12)).astype(np.float32)
