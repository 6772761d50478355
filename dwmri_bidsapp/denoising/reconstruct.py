"""From the network's blind predictions to the denoised volumes: blend, average, uncertainty.

Axes: ``v`` volume, ``n`` voxel of the mask, ``x y z`` space.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .blend import Blend, box_mean, calibrate, error_variance, look_up
from .blind import BlindBase
from .context import Context
from .hardware import Precision
from .noise import rician_bias_table, rician_variance_table
from .predict import predict_volume, tiles_of

# share of the local PCA's estimate; chosen on real pieces and phantoms, see docs/research-log.md
PCA_SHARE = 0.35
# between the expected error and the one found on five phantoms, see docs/research-log.md
ERROR_FACTOR = 1.12


@dataclass
class Reconstruction:
    """Rebuilds the volumes of a run one by one.

    Parameters
    ----------
    context, base
        The run, and its blind base.
    pca_vn
        Overcomplete local PCA estimates, see :mod:`.local_pca`; without them the result is the blind prediction.
    model
        Trained network in evaluation mode.
    mask_xyz
        (X, Y, Z) bool.
    precision
        Number format of the forward pass.
    floor_stays
        Whether the result keeps the noise floor of magnitudes, which then counts as an error.
    pca_share
        Share of the local PCA's estimate in the result.

    Attributes
    ----------
    blends
        Calibration of each shell, filled while the volumes are rebuilt.
    """

    context: Context
    base: BlindBase
    pca_vn: Tensor | None
    model: nn.Module
    mask_xyz: Tensor
    precision: Precision
    floor_stays: bool = True
    pca_share: float = PCA_SHARE

    def __post_init__(self) -> None:
        self.blends: dict[int, Blend] = {}
        self._table = rician_variance_table(self.context.device)
        self._bias_table = rician_bias_table(self.context.device)
        self._variance_n = torch.zeros(int(self.mask_xyz.sum()), device=self.context.device)
        self._n_dwi = 0
        self._count = box_mean(self.mask_xyz.float())

    def volumes(self) -> Iterator[tuple[int, Tensor]]:
        """Every target volume and its denoised values (N,) in SNR units, shell after shell."""
        tiles = tiles_of(self.mask_xyz, halo=int(self.model.reach))  # type: ignore[arg-type]
        targets = self.context.targets
        for shell in torch.unique(self.context.shell[targets]).tolist():
            members = targets[self.context.shell[targets] == shell].tolist()
            blind = {
                v: predict_volume(self.model, self.context, v, tiles, self.precision)[self.mask_xyz].half()
                for v in members
            }
            if self.pca_vn is None:
                yield from ((v, p_n.float()) for v, p_n in blind.items())
                continue
            self.blends[shell] = calibrate(self._residuals(v, p_n.float()) for v, p_n in blind.items())
            for v in members:
                own_n = self._blended(v, blind.pop(v).float(), self.blends[shell])
                other_n = self.pca_vn[v].to(own_n)
                yield v, own_n + self.pca_share * (other_n - own_n)

    def uncertainty(self) -> Tensor:
        """Expected error (root mean square) of a denoised diffusion-weighted volume, (X, Y, Z), in SNR units."""
        image = torch.zeros(self.mask_xyz.shape, device=self.context.device)
        image[self.mask_xyz] = ERROR_FACTOR * (self._variance_n / max(1, self._n_dwi)).sqrt()
        return image

    def _measured(self, volume: int) -> Tensor:
        return self.context.snr_vxyz[volume][self.mask_xyz].float()

    def _expected(self, volume: int) -> Tensor:
        error = self.base.expected_error(volume, tuple(self.mask_xyz.shape))  # type: ignore[arg-type]
        return error.to(self.context.device)

    def _residuals(self, volume: int, p_n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        square_n = (self._measured(volume) - p_n).square()
        return square_n, look_up(p_n, self._table), self._expected(volume)[self.mask_xyz]

    def _blended(self, volume: int, p_n: Tensor, blend: Blend) -> Tensor:
        """The prediction moved towards the measurement by what its error allows."""
        prediction = torch.zeros(self.mask_xyz.shape, device=p_n.device)
        prediction[self.mask_xyz] = p_n
        noise = look_up(prediction, self._table)
        measured = self.context.snr_vxyz[volume].float()
        variance = error_variance(
            measured, prediction, self._expected(volume), noise, self.mask_xyz, self._count, blend
        )[self.mask_xyz]
        noise_n = noise[self.mask_xyz]
        if self.context.shell[volume] > 0:
            self._variance_n += variance * noise_n / (variance + noise_n)
            if self.floor_stays:
                self._variance_n += look_up(p_n, self._bias_table).square()
            self._n_dwi += 1
        return p_n + variance / (variance + noise_n) * (self._measured(volume) - p_n)
