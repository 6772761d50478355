"""How much the head moved, estimated without registering or resampling what is denoised.

Each volume is compared with a prediction of it from the other volumes of its shell, whose weights depend on the
directions alone, so that it does not know the volume's position. Least squares on the prediction's spatial gradients
gives three shifts and three turns. What is linear in the direction is taken for eddy currents, not for motion.

Axis letters: V volumes, N voxels of a lattice, x, y, z axes of the image.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from ..gradients import Gradients

Array = NDArray[np.float32]

HEAD_RADIUS_MM = 50.0
MOTION_COLUMNS = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")
"""As fMRIPrep and QSIPrep call them: mm, and radians."""

_LEAST_DIRECTIONS = 20  # six coefficients are fitted to them, and as much of the motion is lost
_LEAST_VOXELS = 500
_STRIDE = 2
_BLOCK = 8
_LEAST_NOISE_MM = 0.02
_USUAL_STEP_MM = 0.05
_ROUNDS = 15
_MOVED_MM = 0.3  # the gradients describe less than that; more is undone before a second look


def framewise_displacement(motion_v6: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return how far the head moved since the volume before, in mm (Power 2012).

    doi:10.1016/j.neuroimage.2011.10.018: the sum of the absolute changes, turns as arcs on a sphere of 50 mm.

    Parameters
    ----------
    motion_v6 : (V, 6)
        Shifts (mm) and turns (radians).

    Returns
    -------
    (V,) float64
        NaN for the first volume, and where a position is not known.
    """
    arcs_v6 = motion_v6 * np.array([1, 1, 1, *[HEAD_RADIUS_MM] * 3])
    return np.concatenate([[np.nan], np.abs(np.diff(arcs_v6, axis=0)).sum(axis=1)])


def motion_measures(displacement_v: NDArray[np.floating]) -> dict[str, float]:
    """Return ``fd_mean`` and ``fd_max`` in mm; nothing where less than half of the volumes have a displacement."""
    known_v = displacement_v[np.isfinite(displacement_v)]
    if 2 * known_v.size < len(displacement_v):
        return {}
    return {"fd_mean": float(known_v.mean()), "fd_max": float(known_v.max())}


def estimate_motion(
    dwi_xyzv: Array, gradients: Gradients, mask_xyz: NDArray[np.bool_], voxel_mm: Iterable[float]
) -> NDArray[np.float64]:
    """Estimate the position of the head in each volume.

    Parameters
    ----------
    dwi_xyzv : (X, Y, Z, V) float32
        Signal as acquired.
    gradients
        Protocol; V volumes.
    mask_xyz : (X, Y, Z) bool
        Brain.
    voxel_mm
        Three edges of a voxel.

    Returns
    -------
    (V, 6) float64
        Shift of the volume along the axes of the image (mm) and its turn about them (radians), as
        :data:`MOTION_COLUMNS`. NaN for shells of fewer than twenty directions, a single b=0 volume, and brains
        of fewer than 500 voxels of a lattice of every second voxel.

    Notes
    -----
    Shells are joined by the course of the head alone: a move between one whole shell and the next is not seen.
    Motion is underestimated, most where every volume moves.
    """
    spacing_3 = np.asarray(tuple(voxel_mm), dtype=np.float64)
    motion_v6 = np.full((gradients.n_volumes, 6), np.nan)
    weights_vv = _prediction_weights(gradients)
    known = np.flatnonzero(weights_vv.any(axis=1))
    lattice = _Lattice(mask_xyz, spacing_3)
    if lattice.n_voxels < _LEAST_VOXELS or not known.size:
        return motion_v6
    weights_vv, shell_v = weights_vv[np.ix_(known, known)], gradients.shell[known]
    bvecs_v3 = gradients.bvecs[known]
    values_v4n = np.stack([lattice.sample(_smooth(dwi_xyzv[..., v])) for v in known])
    found_v6 = _joint_positions(
        *lattice.offsets(values_v4n, weights_vv, shell_v), weights_vv, shell_v, bvecs_v3
    )
    moved = np.flatnonzero(_largest_shift(found_v6) > _MOVED_MM)
    if moved.size:
        undone_v6 = np.zeros_like(found_v6)
        undone_v6[moved] = found_v6[moved]
        for i in moved:
            back_xyz = lattice.move_back(_smooth(dwi_xyzv[..., known[i]]), found_v6[i])
            values_v4n[i] = lattice.sample(back_xyz)
        rest_v6, noise_6 = lattice.offsets(values_v4n, weights_vv, shell_v)
        found_v6 = undone_v6 + _joint_positions(rest_v6, noise_6, weights_vv, shell_v, bvecs_v3)
    motion_v6[known] = found_v6
    return motion_v6


class _Lattice:
    """Every second voxel of the brain, with what is needed to compare volumes there."""

    def __init__(self, mask_xyz: NDArray[np.bool_], spacing_3: NDArray[np.float64]) -> None:
        inner = np.zeros_like(mask_xyz)
        places = tuple(slice(1, -1, _STRIDE) for _ in range(3))
        inner[places] = mask_xyz[places]
        self._at = np.flatnonzero(inner)
        self._steps = (mask_xyz.shape[1] * mask_xyz.shape[2], mask_xyz.shape[2], 1)
        self._spacing_3 = spacing_3
        index_3n = np.array(np.unravel_index(self._at, mask_xyz.shape))
        self._middle_3 = index_3n.mean(axis=1) if self._at.size else np.zeros(3)
        self._half = (index_3n // _BLOCK).sum(axis=0) % 2 == 0
        self._place_3n = ((index_3n - self._middle_3[:, None]) * spacing_3[:, None]).astype(np.float32)

    @property
    def n_voxels(self) -> int:
        return len(self._at)

    def sample(self, volume_xyz: Array) -> Array:
        """Values and spatial gradients (per mm), (4, N)."""
        flat = np.ascontiguousarray(volume_xyz).reshape(-1)
        slopes = [
            (flat[self._at + step] - flat[self._at - step]) / np.float32(2 * mm)
            for step, mm in zip(self._steps, self._spacing_3, strict=True)
        ]
        return np.stack([flat[self._at], *slopes])

    def offsets(
        self, values_v4n: Array, weights_vv: NDArray[np.float64], shell_v: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Position of each volume relative to its prediction, (V, 6), and the noise of each parameter, (6,)."""
        predicted_v4n = np.tensordot(weights_vv.astype(np.float32), values_v4n, 1)
        # Where the prediction is poor in the whole shell, tissue is to blame, not motion.
        error_vn = values_v4n[:, 0] - predicted_v4n[:, 0]
        trust = {
            s: 1 / np.maximum(np.square(error_vn[shell_v == s]).mean(axis=0), 1e-12) for s in set(shell_v)
        }
        x, y, z = self._place_3n
        offsets_v6 = np.zeros((len(values_v4n), 6))
        differences_v6 = np.zeros((len(values_v4n), 6))
        for v, (signal, *(gx, gy, gz)) in enumerate(predicted_v4n):
            turns = (gz * y - gy * z, gx * z - gz * x, gy * x - gx * y)
            design = np.stack([gx, gy, gz, *turns, signal])
            weighted = design * trust[shell_v[v]]
            normal, right = weighted @ design.T, weighted @ values_v4n[v, 0]
            half = weighted[:, self._half] @ design[:, self._half].T
            half_right = weighted[:, self._half] @ values_v4n[v, 0, self._half]
            offsets_v6[v] = _solve(normal, right)
            differences_v6[v] = _solve(half, half_right) - _solve(normal - half, right - half_right)
        # Both halves of the brain's blocks should tell the same; their mean has half the spread of their difference.
        noise_6 = 1.4826 / 2 * np.median(np.abs(differences_v6 - np.median(differences_v6, axis=0)), axis=0)
        return offsets_v6, noise_6

    def move_back(self, volume_xyz: Array, motion_6: NDArray[np.float64]) -> Array:
        """Undo a motion, by linear interpolation."""
        turn_33 = Rotation.from_rotvec(motion_6[3:]).as_matrix().T
        matrix_33 = turn_33 * self._spacing_3 / self._spacing_3[:, None]
        offset_3 = self._middle_3 - matrix_33 @ (self._middle_3 + motion_6[:3] / self._spacing_3)
        return ndimage.affine_transform(volume_xyz, matrix_33, offset_3, order=1, mode="nearest")


def _solve(normal: NDArray, right: NDArray) -> NDArray[np.float64]:
    solution = np.linalg.lstsq(normal, right, rcond=None)[0]
    return solution[:6] / solution[6] if solution[6] > 0 else np.zeros(6)


def _smooth(volume_xyz: NDArray) -> Array:
    """Binomial filter of three voxels along each axis: gradients of noise would make all motion look small."""
    smooth = np.asarray(volume_xyz, dtype=np.float32)
    for axis in range(3):
        along = np.moveaxis(smooth, axis, 0)
        filtered = along.copy()
        filtered[1:-1] = 0.25 * (along[:-2] + along[2:]) + 0.5 * along[1:-1]
        smooth = np.moveaxis(filtered, 0, axis)
    return smooth


def _prediction_weights(gradients: Gradients) -> NDArray[np.float64]:
    """Weights (V, V) of the other volumes in the prediction of each; zeros where there are too few.

    b=0: their mean. Else the leave-one-out prediction by a symmetric tensor of the signal in the direction.
    """
    weights_vv = np.zeros((gradients.n_volumes, gradients.n_volumes))
    for shell in np.unique(gradients.shell):
        members = np.flatnonzero(gradients.shell == shell)
        if len(members) < (_LEAST_DIRECTIONS if shell else 2):
            continue
        x, y, z = gradients.bvecs[members].T
        basis = np.stack([x * x, y * y, z * z, x * y, x * z, y * z] if shell else [np.ones_like(x)], axis=1)
        hat_vv = basis @ np.linalg.pinv(basis)
        own_v = np.diag(hat_vv)
        if (own_v > 0.95).any():  # a direction that the others say nothing about
            continue
        weights_vv[np.ix_(members, members)] = (hat_vv - np.diag(own_v)) / (1 - own_v)[:, None]
    return weights_vv


def _joint_positions(
    offsets_v6: NDArray[np.float64],
    noise_6: NDArray[np.float64],
    weights_vv: NDArray[np.float64],
    shell_v: NDArray[np.int64],
    bvecs_v3: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Most probable course of the head, given the offsets.

    A prediction lies at the weighted mean of the volumes it is made of; eddy currents add what is linear in the
    direction; the head rests most of the time and jumps now and then (steps follow a Cauchy distribution, so
    that a large one is not made smaller).
    """
    n = len(offsets_v6)
    units_6 = np.array([1, 1, 1, *[HEAD_RADIUS_MM] * 3])
    arcs_v6 = offsets_v6 * units_6
    eddy_ve = np.concatenate([bvecs_v3 * (shell_v == s)[:, None] for s in np.unique(shell_v)], axis=1)
    relative_vv = np.eye(n) - weights_vv
    design = relative_vv @ np.concatenate([np.eye(n), eddy_ve], axis=1)
    step = np.diff(np.eye(n, design.shape[1]), axis=0)
    noise_6 = np.maximum(noise_6 * units_6, _LEAST_NOISE_MM)
    solution = np.zeros((design.shape[1], 6))
    weight = np.full(n - 1, 1 / _USUAL_STEP_MM**2)
    for _ in range(_ROUNDS):
        prior = step.T @ (weight[:, None] * step) + 1e-6 * np.eye(design.shape[1])
        for i in range(6):
            normal = design.T @ design / noise_6[i] ** 2 + prior
            solution[:, i] = np.linalg.solve(normal, design.T @ arcs_v6[:, i] / noise_6[i] ** 2)
        weight = 7 / (_USUAL_STEP_MM**2 + np.square(step @ solution).sum(axis=1))
    return solution[:n] / units_6


def _largest_shift(motion_v6: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.linalg.norm(motion_v6[:, :3], axis=1) + HEAD_RADIUS_MM * np.linalg.norm(
        motion_v6[:, 3:], axis=1
    )
