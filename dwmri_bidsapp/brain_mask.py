"""A brain mask from the mean b=0 volume, for data that come without one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

SMALLEST_BRAIN_VOXELS = 16
"""An image with fewer voxels along two axes is a crop: there is no background to tell apart."""

PLAUSIBLE_FRACTION = (0.01, 0.95)
"""The share of the field of view that a mask may fill before it is doubted."""


def brain_mask(mean_b0_xyz: NDArray[np.float32]) -> tuple[NDArray[np.bool_], str, list[str]]:
    """Find the brain in the mean b=0 volume.

    Otsu's threshold after a median filter (DIPY's ``median_otsu``), on the logarithm of the signal:
    on the signal itself, bright cerebrospinal fluid draws the threshold up, and dark tissue is lost.

    Parameters
    ----------
    mean_b0_xyz : (X, Y, Z) array
        Mean of the b=0 volumes, in signal units.

    Returns
    -------
    mask : (X, Y, Z) bool array
        Never empty where there is any signal.
    source : str
        How the mask was made.
    warnings : list of str
        Why the mask should be looked at, if it should.
    """
    signal_xyz = mean_b0_xyz > 0
    if sorted(mean_b0_xyz.shape)[1] < SMALLEST_BRAIN_VOXELS:
        return (
            signal_xyz,
            "all voxels with signal",
            ["the image is too small for a brain mask: all voxels are used"],
        )
    if signal_xyz.mean() < 0.5:
        # Most voxels are exactly zero, so somebody has masked the image before.
        return ndimage.binary_fill_holes(signal_xyz), "all voxels with signal", []
    mask_xyz = _median_otsu(mean_b0_xyz)
    fraction = float(mask_xyz.mean())
    if PLAUSIBLE_FRACTION[0] <= fraction <= PLAUSIBLE_FRACTION[1]:
        return mask_xyz, "median_otsu", []
    warning = (
        f"the automatic brain mask would fill {fraction:.1%} of the image: all voxels are used, give --mask"
    )
    return signal_xyz, "all voxels with signal", [warning]


def _median_otsu(mean_b0_xyz: NDArray[np.float32]) -> NDArray[np.bool_]:
    from dipy.segment.mask import median_otsu

    # Zeros around the scanned volume are not background: lift them to its level.
    floor = np.percentile(mean_b0_xyz[mean_b0_xyz > 0], 5)
    log_xyz = np.log(np.maximum(mean_b0_xyz, floor))
    if np.ptp(log_xyz) == 0:
        return np.ones(mean_b0_xyz.shape, bool)
    _, mask_xyz = median_otsu(log_xyz, median_radius=2, numpass=1)
    # Padded, or the opening would remove slabs of one or two slices.
    opened_xyz = ndimage.binary_opening(np.pad(mask_xyz, 1, mode="edge"))[1:-1, 1:-1, 1:-1]
    labels_xyz, n_parts = ndimage.label(opened_xyz)
    if n_parts == 0:
        return np.zeros(mean_b0_xyz.shape, bool)
    largest = 1 + int(np.argmax(np.bincount(labels_xyz.ravel())[1:]))
    return ndimage.binary_fill_holes(labels_xyz == largest)
