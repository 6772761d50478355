"""What the network sees: nine channels of a target volume, none of which knows that volume.

Channels, in order: the blind base, the mean of the other volumes of the shell, the mean b=0, and the six volumes of the
shell that are nearest in q-space. All are in SNR units; values of b=0 volumes are scaled by :data:`B0_GAIN`,
because they are many times brighter than the rest.

Axes: ``b`` sample of a batch, ``c`` channel, ``v`` volume, ``s`` shell, ``n`` voxel of the mask, ``x y z`` space.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..gradients import Gradients, direction_cosines, nearest_in_shell
from .voxels import Box, Cut, Voxels, batch

N_NEIGHBOURS = 6
N_CHANNELS = 3 + N_NEIGHBOURS
N_COORDINATES = 2
B0_GAIN = 0.2


@dataclass(frozen=True)
class Context:
    """The run as the network sees it; builds inputs for any box of voxels.

    Parameters
    ----------
    voxels
        The mask; outside of it, inputs are zero.
    snr_vn
        (V, N) measured data in SNR units.
    base_vn
        (V, N) their blind prediction, see :mod:`.blind`.
    shell_sum_sn
        (S, N) sum of the volumes of each shell, float32.
    shell
        (V,) shell of each volume; 0 is b=0.
    neighbours
        (V, 6) nearest volumes in q-space.
    coordinates_vck
        (V, 9, 2) place of each channel in q-space: b in ms/µm² and the cosine of the angle to the target.
    targets
        Volumes that can be predicted.
    leave_out
        ``"base"``: the mean of the other volumes stands in the channel of the base; ``"context"``: the base stands in
        all channels.
    """

    voxels: Voxels
    snr_vn: Tensor
    base_vn: Tensor
    shell_sum_sn: Tensor
    shell: Tensor
    neighbours: Tensor
    coordinates_vck: Tensor
    targets: Tensor
    leave_out: Collection[str] = ()

    @property
    def device(self) -> torch.device:
        """Where the data lie, and the inputs are made."""
        return self.snr_vn.device

    def gain(self, volume: int) -> float:
        """Factor between SNR units and what the network sees of this volume."""
        return B0_GAIN if self.shell[volume] == 0 else 1.0

    def inputs(self, volumes: Sequence[int], boxes: Sequence[Box]) -> tuple[Tensor, Tensor]:
        """Inputs of the network.

        Parameters
        ----------
        volumes
            Target volume of each sample.
        boxes
            Voxels of each sample, all of one shape.

        Returns
        -------
        inputs : Tensor
            (B, 9, X, Y, Z), float32.
        coordinates : Tensor
            (B, 9, 2), float32.
        """
        samples = []
        for volume, box in zip(volumes, boxes, strict=True):
            cut = self.voxels.cut(box)
            samples.append(cut.images(self._channels(volume, cut)))
        return batch(samples), self.coordinates_vck[torch.as_tensor(volumes)].to(self.device)

    def target(self, volumes: Sequence[int], boxes: Sequence[Box]) -> Tensor:
        """The measured target volumes (B, 1, X, Y, Z), float32, on the network's scale."""
        return torch.stack(
            [
                self.voxels.cut(box).image(self.snr_vn[v])[None] * self.gain(v)
                for v, box in zip(volumes, boxes, strict=True)
            ]
        )

    def _channels(self, volume: int, cut: Cut) -> list[Tensor]:
        """The channels of one target, (M,) each."""
        shell = int(self.shell[volume])
        gain = self.gain(volume)
        n_others = int((self.shell == shell).sum()) - 1
        base = others = cut.values(self.base_vn[volume]) * gain
        if n_others:
            others = cut.values(self.shell_sum_sn[shell]) - cut.values(self.snr_vn[volume])
            others *= gain / n_others
        b0 = others
        if shell > 0:
            n_b0 = max(1, int((self.shell == 0).sum()))
            b0 = cut.values(self.shell_sum_sn[0]) * (B0_GAIN / n_b0)
        neighbours = [cut.values(self.snr_vn[v]) * self.gain(v) for v in self.neighbours[volume].tolist()]
        channels = [base, others, b0, *neighbours]
        if "base" in self.leave_out:
            channels[0] = others
        if "context" in self.leave_out:
            channels = channels[:1] * N_CHANNELS
        return channels


def build_context(
    snr_vn: Tensor,
    base_vn: Tensor,
    mask_xyz: Tensor,
    gradients: Gradients,
    targets: Sequence[int],
    leave_out: Collection[str] = (),
) -> Context:
    """Gather what the inputs are made of.

    Parameters
    ----------
    snr_vn, base_vn
        (V, N) measured data and blind base in SNR units, on the same device.
    mask_xyz
        (X, Y, Z) bool with N voxels, on the same device.
    gradients
        The run's gradient table.
    targets
        Volumes that can be predicted.
    leave_out
        Parts of the method to do without, of :data:`~dwmri_bidsapp.options.PARTS`.
    """
    shell = torch.as_tensor(gradients.shell, dtype=torch.long)
    n_shells = len(gradients.shell_bvals)
    shell_sum = torch.zeros((n_shells, snr_vn.shape[1]), device=snr_vn.device)
    for volume, s in enumerate(shell.tolist()):
        shell_sum[s] += snr_vn[volume]
    neighbours = torch.as_tensor(nearest_in_shell(gradients, N_NEIGHBOURS))
    by_index = "q-space" in leave_out
    places = places_by_index(neighbours.numpy()) if by_index else _coordinates(gradients, neighbours.numpy())
    coordinates = torch.as_tensor(places, dtype=torch.float32)
    where = torch.as_tensor(list(targets))
    return Context(
        Voxels(mask_xyz), snr_vn, base_vn, shell_sum, shell, neighbours, coordinates, where, leave_out
    )


def places_by_index(neighbours_vn: np.ndarray) -> np.ndarray:
    """Number of each channel's volume in the series, as it would be encoded without q-space, (V, 9, 2).

    ``neighbours_vn`` are the (V, 6) nearest volumes of each.
    """
    n_volumes = len(neighbours_vn)
    places = np.zeros((n_volumes, N_CHANNELS, N_COORDINATES))
    places[:, :3, 0] = np.arange(n_volumes)[:, None]
    places[:, 3:, 0] = neighbours_vn
    return places


def _coordinates(gradients: Gradients, neighbours_vn: np.ndarray) -> np.ndarray:
    """Place of each channel in q-space, (V, 9, 2)."""
    b = gradients.shell_bvals[gradients.shell] / 1000.0
    cosines = direction_cosines(gradients)
    places = np.zeros((gradients.n_volumes, N_CHANNELS, N_COORDINATES))
    places[:, 0] = np.stack([b, np.ones_like(b)], axis=1)
    # a mean over directions has none: half way between parallel and orthogonal
    places[:, 1] = np.stack([b, np.full_like(b, 0.5)], axis=1)
    for volume, near in enumerate(neighbours_vn):
        places[volume, 3:, 0] = b[near]
        places[volume, 3:, 1] = cosines[volume, near]
    return places
