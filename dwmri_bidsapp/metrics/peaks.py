"""Fibre directions by constrained spherical deconvolution (Tournier 2007, doi:10.1016/j.neuroimage.2007.02.016).

Axis letters: N voxels, V volumes, P peaks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from dipy.data import default_sphere
from dipy.direction import peaks_from_model
from dipy.reconst.csdeconv import ConstrainedSphericalDeconvModel, response_from_mask_ssst
from numpy.typing import NDArray

from ..errors import BadDataError
from ..gradients import Gradients, count_directions
from .tensor import dipy_table

Array = NDArray[np.float32]

_ORDERS = ((45, 8), (28, 6), (15, 4))
_MOST_PEAKS = 3
_SMALLEST_PEAK = 0.3
_CLOSEST_DEGREES = 25.0


@dataclass(frozen=True, eq=False)
class PeakFinder:
    """Deconvolution with the response of the truth, on the shell with most directions.

    Attributes
    ----------
    volumes_v : (V,) bool
        The volumes it uses.
    model
        DIPY's model.
    """

    volumes_v: NDArray[np.bool_]
    model: ConstrainedSphericalDeconvModel

    def find(self, signal_nv: Array) -> Array:
        """Peaks of voxels, (N, V) to (N, 3, 3); absent peaks are zeros."""
        sphere = default_sphere.subdivide(n=1)
        peaks = peaks_from_model(
            self.model,
            np.maximum(signal_nv[:, self.volumes_v], 0),
            sphere,
            _SMALLEST_PEAK,
            _CLOSEST_DEGREES,
            npeaks=_MOST_PEAKS,
            return_sh=False,
        )
        return np.asarray(peaks.peak_dirs, dtype=np.float32)


def can_find_peaks(gradients: Gradients) -> bool:
    """Whether a shell has enough directions (15)."""
    return bool(gradients.b0.any() and gradients.dwi.any() and _largest_shell(gradients)[1] >= _ORDERS[-1][0])


def make_peak_finder(single_fibre_nv: Array, gradients: Gradients) -> PeakFinder:
    """Build a deconvolution whose response is that of some voxels.

    Parameters
    ----------
    single_fibre_nv : (N, V) float32
        Clean signals of voxels with one bundle.
    gradients
        Protocol; V volumes.

    Raises
    ------
    BadDataError
        Fewer than 15 directions in every shell, no b=0, or no voxels.
    """
    if not can_find_peaks(gradients) or not len(single_fibre_nv):
        raise BadDataError(
            "expected b=0, 15 directions in a shell and voxels with one bundle for fibre peaks"
        )
    shell, n_directions = _largest_shell(gradients)
    volumes_v = gradients.b0 | (gradients.shell == shell)
    table = dipy_table(gradients.select(volumes_v))
    samples_xyzv = single_fibre_nv[:, None, None, volumes_v]
    response, _ = response_from_mask_ssst(table, samples_xyzv, np.ones(samples_xyzv.shape[:3], dtype=bool))
    order = next(order for least, order in _ORDERS if n_directions >= least)
    return PeakFinder(volumes_v, ConstrainedSphericalDeconvModel(table, response, sh_order_max=order))


def peak_angle(estimate_np3: Array, truth_np3: Array) -> float:
    """Mean angle, in degrees, from each true peak to the nearest estimated one; 90 where a voxel has none.

    Parameters
    ----------
    estimate_np3, truth_np3 : (N, P, 3) float32
        Unit vectors, or zeros for absent peaks.

    Returns
    -------
    float
        NaN without any true peak.
    """
    true = np.linalg.norm(truth_np3, axis=2) > 0
    if not true.any():
        return float("nan")
    cosine_npq = np.abs(np.einsum("npd,nqd->npq", truth_np3, estimate_np3, dtype=np.float64))
    nearest_np = np.clip(cosine_npq.max(axis=2), 0, 1)
    return float(np.rad2deg(np.arccos(nearest_np[true])).mean())


def _largest_shell(gradients: Gradients) -> tuple[int, int]:
    """The shell with most directions (of two with as many the higher one), and their number."""
    counts = {
        int(shell): count_directions(gradients.select(gradients.shell == shell))
        for shell in np.unique(gradients.shell[gradients.dwi])
    }
    shell = max(counts, key=lambda shell: (counts[shell], shell))
    return shell, counts[shell]
