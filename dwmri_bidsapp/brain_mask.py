"""A brain mask from the mean b=0 volume, for data that come without one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

SMALLEST_BRAIN_VOXELS = 16
"""An image with fewer voxels along two axes is a crop: there is no background to tell apart."""

BRIGHTEST_TISSUE = 1.5
"""Multiple of the usual signal of the brain from which on it is fluid."""

USUAL_PERCENTILE = 75
"""Of the head's signal: usual brain, whether skull, scalp and neck are half of the head or masked away."""

LEAST_BRAIN_OF_MASKED = 0.7
"""Share of the voxels with signal from which on they are the brain, in an image that is mostly zero."""

PLAUSIBLE_FRACTION = (0.01, 0.95)
"""The share of the field of view that a mask may fill before it is doubted."""


def brain_mask(mean_b0_xyz: NDArray[np.float32]) -> tuple[NDArray[np.bool_], str, list[str]]:
    """Find the brain in the mean b=0 volume.

    Otsu's threshold after a median filter (DIPY's ``median_otsu``), on the signal with its brightest part capped:
    bright cerebrospinal fluid would draw the threshold up, and dark tissue would be lost.

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
    mask_xyz = _median_otsu(mean_b0_xyz)
    if signal_xyz.mean() < 0.5:
        # Most voxels are exactly zero: the image was masked before, or its air was, by the scanner.
        filled_xyz = ndimage.binary_fill_holes(signal_xyz)
        if mask_xyz.sum() > LEAST_BRAIN_OF_MASKED * filled_xyz.sum():
            return filled_xyz, "all voxels with signal", []
    fraction = float(mask_xyz.mean())
    if PLAUSIBLE_FRACTION[0] <= fraction <= PLAUSIBLE_FRACTION[1]:
        return mask_xyz, "median_otsu", []
    warning = (
        f"the automatic brain mask would fill {fraction:.1%} of the image: all voxels are used, give --mask"
    )
    return signal_xyz, "all voxels with signal", [warning]


def _median_otsu(mean_b0_xyz: NDArray[np.float32]) -> NDArray[np.bool_]:
    from dipy.segment.mask import median_otsu
    from dipy.segment.threshold import otsu

    # Zeros around the scanned volume are not background: lift them to its level.
    floor = np.percentile(mean_b0_xyz[mean_b0_xyz > 0], 5)
    lifted_xyz = np.maximum(mean_b0_xyz, floor)
    if np.ptp(lifted_xyz) == 0:
        return np.ones(mean_b0_xyz.shape, bool)
    # On the logarithm fluid weighs no more than tissue, but scalp and marrow stand out of the air as well: a threshold
    # there finds the head, of which the brain is the bright part.
    log_xyz = np.log(lifted_xyz)
    usual = np.percentile(lifted_xyz[log_xyz > otsu(log_xyz)], USUAL_PERCENTILE)
    _, mask_xyz = median_otsu(np.minimum(lifted_xyz, BRIGHTEST_TISSUE * usual), median_radius=2, numpass=1)
    # Padded, or the opening would remove slabs of one or two slices.
    opened_xyz = ndimage.binary_opening(np.pad(mask_xyz, 1, mode="edge"))[1:-1, 1:-1, 1:-1]
    labels_xyz, n_parts = ndimage.label(opened_xyz)
    if n_parts == 0:
        return np.zeros(mean_b0_xyz.shape, bool)
    largest = 1 + int(np.argmax(np.bincount(labels_xyz.ravel())[1:]))
    return ndimage.binary_fill_holes(labels_xyz == largest)
