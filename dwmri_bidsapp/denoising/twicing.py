"""Give back slow angular signal that the estimate lost: what the residuals of a shell have in common.

Every part of the method smooths, and what it takes away too much of lies where the signal does: in the mean of a shell
and in the contrasts that vary over the sphere as slowly as a tensor does. Noise has few dimensions there and no
neighbours, lost signal has both. So the residuals are projected on these dimensions, averaged over neighbouring voxels,
and a share of that is added to the estimate (Tukey 1977, Exploratory Data Analysis, called it twicing).

Axes: ``v`` volume, ``n`` voxel of the mask, ``k`` dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..gradients import Gradients
from .blend import box_mean
from .local_pca import angular_contrasts
from .voxels import Voxels

# share that is given back, and voxels on either side that are averaged; chosen on real runs and phantoms, see
# docs/research-log.md
SHARE = 0.6
RADIUS = 1


class Twicing:
    """Collects the residuals of a run, volume by volume, and then says what each volume gets back.

    Parameters
    ----------
    gradients
        The gradient table of the V volumes.
    voxels
        The N voxels of the mask.
    """

    def __init__(self, gradients: Gradients, voxels: Voxels) -> None:
        self._voxels = voxels
        device = voxels.mask_xyz.device
        self._slow_vk = angular_contrasts(gradients, with_mean=True).to(device)
        self._left_kn = torch.zeros((self._slow_vk.shape[1], len(voxels)), device=device)

    def learn(self, volume: int, measured_n: Tensor, estimate_n: Tensor) -> None:
        """Add the residual of a volume."""
        residual_n = measured_n - estimate_n
        for k in self._slow_vk[volume].nonzero().flatten().tolist():
            self._left_kn[k] += self._slow_vk[volume, k] * residual_n

    def finish(self) -> None:
        """Average over neighbours, after the last volume."""
        count_n = self._voxels.gather(box_mean(self._voxels.mask_xyz.float(), RADIUS))
        for left_n in self._left_kn:
            left_n.copy_(self._voxels.gather(box_mean(self._voxels.scatter(left_n), RADIUS)) / count_n)

    def given_back(self, volume: int) -> Tensor:
        """What a volume gets back (N,), in SNR units."""
        return SHARE * (self._slow_vk[volume] @ self._left_kn)
