"""Learned fusion: one estimate of a volume out of its four, by a small network.

The mean of the blended prediction and the local PCA weighs both alike at all voxels of a volume. Their differences to
the measurement and to each other show where one of them errs: white noise is left in one, a border stands in another.
Three convolutions see that. They are trained on simulated runs that the other network never saw, see
:mod:`..pretraining`, and stay as they are on the user's run, which has no clean target.

A single b=0, which no other volume predicts, has two estimates only, the local PCA and the measurement, and a network
of its own: the local PCA leaves it most of its noise, and only its neighbours in space can take that away.

Axes: ``b`` sample of a batch, ``v`` volume, ``n`` voxel of the mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .model import DenoiserNet
from .voxels import Box, Voxels, batch

FILTERS = 16
DEPTH = 3
ESTIMATES = {"fusion.": 4, "single-b0.": 2}
"""Number of estimates that each network sees, by the prefix of its weights in a file of weights."""
FUSION, SINGLE_B0 = ESTIMATES


def make_fusion(seed: int, prefix: str = FUSION) -> DenoiserNet:
    """One of the networks with its initial weights, which returns the first estimate as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DenoiserNet(ESTIMATES[prefix], 1, FILTERS, DEPTH)


@dataclass(frozen=True)
class Estimates:
    """The estimates of each volume as the network sees them; builds inputs for any box of voxels.

    Parameters
    ----------
    voxels
        The mask; outside of it, inputs are zero.
    of_volume
        The estimates (N,) of a volume in SNR units: the mean of the blended prediction and the local PCA, the
        measurement, the blind prediction, and the local PCA; of a single b=0 the local PCA and the measurement.
    targets
        Volumes that have them.
    """

    voxels: Voxels
    of_volume: Callable[[int], Sequence[Tensor]]
    targets: Tensor

    @property
    def device(self) -> torch.device:
        """Where the inputs are made."""
        return self.voxels.mask_xyz.device

    def gain(self, volume: int) -> float:
        """Factor between SNR units and what the network sees: noise is the same in all volumes."""
        return 1.0

    def inputs(self, volumes: Sequence[int], boxes: Sequence[Box]) -> tuple[Tensor, Tensor]:
        """Inputs (B, 4 or 2, X, Y, Z), float32, and coordinates, of which there are none, (B, 0)."""
        samples = []
        for volume, box in zip(volumes, boxes, strict=True):
            cut = self.voxels.cut(box)
            samples.append(cut.images([cut.values(values_n) for values_n in self.of_volume(volume)]))
        inputs = batch(samples)
        return inputs, inputs.new_zeros((len(samples), 0))
