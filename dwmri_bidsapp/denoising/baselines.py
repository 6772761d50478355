"""Denoisers of others, through DIPY, behind one signature: what this package's own is compared with.

Axes: ``x y z`` space, ``v`` volume.

References
----------
Veraart et al. 2016, Denoising of diffusion MRI using random matrix theory, doi:10.1016/j.neuroimage.2016.08.016;
Fadnavis et al. 2020, Patch2Self: denoising diffusion MRI with self-supervised learning, arXiv:2011.01355.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..gradients import B0_THRESHOLD, Gradients

_FIFTHS = 5

Baseline = Callable[[NDArray[np.floating], Gradients, NDArray[np.bool_]], NDArray[np.float32]]


def denoise_mppca(
    dwi_xyzv: NDArray[np.floating], gradients: Gradients, mask_xyz: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Denoise by Marchenko-Pastur PCA, DIPY's ``mppca``, which makes negative values zero.

    With several OpenBLAS threads DIPY stalls: set ``OPENBLAS_NUM_THREADS=1`` before NumPy is imported.

    Parameters
    ----------
    dwi_xyzv
        (X, Y, Z, V) magnitudes, finite.
    gradients
        Not looked at: all volumes are alike to the method.
    mask_xyz
        (X, Y, Z) the brain; outside of it the input is returned.

    Returns
    -------
    (X, Y, Z, V) float32 array
    """
    from dipy.denoise.localpca import mppca

    with np.errstate(invalid="ignore"):  # outside the mask DIPY divides zero by zero
        denoised = mppca(
            np.asarray(dwi_xyzv, dtype=np.float32),
            mask=mask_xyz,
            patch_radius=patch_radius(dwi_xyzv.shape[3]),
            suppress_warning=True,
        )
    return _inside(denoised, dwi_xyzv, mask_xyz)


def denoise_patch2self(
    dwi_xyzv: NDArray[np.floating], gradients: Gradients, mask_xyz: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Denoise by Patch2Self as DIPY ships it (version 3), without its shift and without its clipping.

    DIPY 1.12.1 writes in fifths, and loses track of the volumes that are left over: they come out as others, or it
    fails. Empty volumes, from which nothing can be predicted, fill the series up.

    Parameters
    ----------
    dwi_xyzv
        (X, Y, Z, V) magnitudes, finite.
    gradients
        Which volumes are b=0.
    mask_xyz
        (X, Y, Z) the brain; outside of it the input is returned.

    Returns
    -------
    (X, Y, Z, V) float32 array
    """
    from dipy.denoise.patch2self import patch2self

    # DIPY has a threshold of its own: what counts as b=0 here must count there.
    bvals_v = np.where(gradients.b0, 0.0, np.maximum(gradients.bvals, B0_THRESHOLD + 1))
    n_volumes, n_empty = dwi_xyzv.shape[3], -dwi_xyzv.shape[3] % _FIFTHS
    filled_xyzv = np.zeros((*dwi_xyzv.shape[:3], n_volumes + n_empty), dtype=np.float32)
    filled_xyzv[..., :n_volumes] = dwi_xyzv
    with (
        tempfile.TemporaryDirectory(prefix="patch2self-") as folder,
        warnings.catch_warnings(),
        contextlib.redirect_stderr(io.StringIO()),  # a progress bar that cannot be turned off
    ):
        warnings.simplefilter("ignore")  # fewer than ten volumes of a kind: our own page warns of it
        denoised = patch2self(
            filled_xyzv,
            np.append(bvals_v, np.full(n_empty, B0_THRESHOLD + 1)),
            b0_threshold=B0_THRESHOLD,
            shift_intensity=False,
            clip_negative_vals=False,
            tmp_dir=folder,
        )
    return _inside(denoised[..., :n_volumes], dwi_xyzv, mask_xyz)


BASELINES: dict[str, Baseline] = {"mppca": denoise_mppca, "patch2self": denoise_patch2self}
"""The methods by the name that ``--compare`` takes."""


def patch_radius(n_volumes: int) -> int:
    """Radius of the smallest cube, from 2 up, that holds more voxels than there are volumes."""
    radius = 2
    while (2 * radius + 1) ** 3 <= n_volumes:
        radius += 1
    return radius


def _inside(
    denoised_xyzv: NDArray[Any], dwi_xyzv: NDArray[np.floating], mask_xyz: NDArray[np.bool_]
) -> NDArray[np.float32]:
    result_xyzv = np.array(dwi_xyzv, dtype=np.float32)
    result_xyzv[mask_xyz] = denoised_xyzv[mask_xyz]
    return result_xyzv
