"""Give a volume back its own measurement where the blind prediction is the worse of the two.

The blind prediction p ignores the measured value y. With v the variance of p's error and n that of the noise, the best
linear estimate is p + v/(v + n) (y - p). The local PCA says how v varies over space and volumes; how much of it is left
after the network is measured from the residuals of each shell, since E (y - p)² = v + n.

Axes: ``v`` volume, ``x y z`` space.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

# voxels on either side that speak for a local excess (a lesion, a moved edge)
LOCAL_RADIUS = 2
# standard errors above which a local excess is believed
SIGNIFICANT = 3.0
# scale found on phantoms, and the error of the noise variance that may hide it from the residuals; see
# docs/research-log.md
USUAL_SCALE = 0.85
NOISE_DOUBT = 0.04


@dataclass(frozen=True)
class Blend:
    """How one shell is blended.

    Parameters
    ----------
    scale
        Share of the local PCA's expected error variance that the network's prediction still has, as found.
    likely_scale
        The same for the uncertainty map. What is found is wrong by several times the error of the noise map, since the
        prediction's error is a small part of a residual; so it is at least what is usual, as far as residuals allow.
    """

    scale: float
    likely_scale: float


def calibrate(residuals: Iterable[tuple[Tensor, Tensor, Tensor]]) -> Blend:
    """Fit the scale of the error variance over the volumes of one shell.

    Parameters
    ----------
    residuals
        For each volume, over the voxels of the mask: squared residual, noise variance, and the variance that the
        local PCA expects of its own error, all (N,).

    Returns
    -------
    Blend
        Scales between 0 and 4.
    """
    square = noise = expected = 0.0
    for square_n, noise_n, error_n in residuals:
        square += float(square_n.sum(dtype=torch.float64))
        noise += float(noise_n.sum(dtype=torch.float64))
        expected += float(error_n.sum(dtype=torch.float64))
    found, doubt = (x / max(expected, 1e-12) for x in (square - noise, NOISE_DOUBT * noise))
    likely = max(found, min(USUAL_SCALE, found + doubt))
    return Blend(*(min(4.0, max(0.0, scale)) for scale in (found, likely)))


def error_variance(
    measured_xyz: Tensor,
    prediction_xyz: Tensor,
    expected_xyz: Tensor,
    noise_xyz: Tensor,
    mask_xyz: Tensor,
    count_xyz: Tensor,
    blend: Blend,
) -> Tensor:
    """Variance of the blind prediction's error, per voxel, in SNR units.

    Parameters
    ----------
    measured_xyz, prediction_xyz
        One volume in SNR units.
    expected_xyz
        Variance of the error of the blind base.
    noise_xyz
        Variance of the noise of the magnitudes.
    mask_xyz
        (X, Y, Z) bool.
    count_xyz
        Share of the mask around each voxel, from :func:`box_mean`.
    blend
        Calibration of the shell.

    Returns
    -------
    Tensor
        (X, Y, Z), at least 0: the calibrated variance, plus the local excess where it is beyond chance.
    """
    regular = blend.scale * expected_xyz
    total = regular + noise_xyz
    inside = mask_xyz.float()
    surplus = ((measured_xyz - prediction_xyz).square() / total - 1.0) * inside
    surplus = box_mean(surplus) / count_xyz.clamp(min=1e-6)
    samples = (count_xyz * (2 * LOCAL_RADIUS + 1) ** 3).clamp(min=1.0)
    # the square of a normal variate has variance 2
    believed = torch.where(surplus > SIGNIFICANT * (2.0 / samples).sqrt(), surplus, torch.zeros_like(surplus))
    return regular + believed * total


def box_mean(image_xyz: Tensor, radius: int = LOCAL_RADIUS) -> Tensor:
    """Mean over the cube around each voxel, as far as ``radius``; zero outside the image."""
    for axis, n in enumerate(image_xyz.shape):
        total = image_xyz.clone()
        for step in range(1, min(radius, n - 1) + 1):
            total.narrow(axis, step, n - step).add_(image_xyz.narrow(axis, 0, n - step))
            total.narrow(axis, 0, n - step).add_(image_xyz.narrow(axis, step, n - step))
        image_xyz = total
    return image_xyz / (2 * radius + 1) ** 3
