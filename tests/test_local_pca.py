"""Overcomplete local PCA: every voxel is estimated, noise is removed, signal is kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dwmri_bidsapp.denoising.local_pca import overcomplete_local_pca, window_edge


def ball(shape: tuple[int, int, int]) -> torch.Tensor:
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    return torch.from_numpy((grid**2).sum(axis=0) < 1.0)


def smooth_low_rank(shape: tuple[int, int, int], n_volumes: int, seed: int = 0) -> np.ndarray:
    """Clean (V, X, Y, Z) signal of rank 3 with a step."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(0, 3, n) for n in shape), indexing="ij")
    maps = np.stack([np.sin(x + y), np.cos(2 * z), (x > 1.5).astype(float)])
    return 15 + np.einsum("rv,rxyz->vxyz", 5 * rng.normal(size=(3, n_volumes)), maps)


@pytest.mark.parametrize(
    ("n_volumes", "edge"), [(1, 5), (7, 5), (125, 5), (126, 7), (343, 7), (344, 9), (1000, 11)]
)
def test_window_holds_as_many_voxels_as_volumes(n_volumes: int, edge: int) -> None:
    assert window_edge(n_volumes) == edge


@pytest.mark.parametrize("shape", [(7, 9, 10), (5, 4, 3), (1, 1, 1), (20, 1, 9)])
@pytest.mark.parametrize("n_volumes", [2, 40])
def test_every_voxel_of_the_mask_gets_a_finite_estimate(shape: tuple[int, int, int], n_volumes: int) -> None:
    rng = np.random.default_rng(0)
    snr = torch.from_numpy(10 + rng.normal(size=(n_volumes, *shape))).half()
    mask = torch.ones(shape, dtype=torch.bool)
    found = overcomplete_local_pca(snr, mask)
    assert found.shape == (n_volumes, mask.sum())
    assert torch.isfinite(found).all()
    # an unestimated voxel would be 0 (or NaN): the data are 10 sigma away from it
    assert float(found.min()) > 4.0


def test_pure_noise_becomes_nearly_the_mean() -> None:
    rng = np.random.default_rng(1)
    snr = torch.from_numpy(20 + rng.normal(size=(30, 14, 13, 12))).half()
    mask = torch.ones((14, 13, 12), dtype=torch.bool)
    error = overcomplete_local_pca(snr, mask).float() - 20
    assert float(error.square().mean()) < 0.03


def test_low_rank_signal_is_recovered() -> None:
    """A rank of 3 in 30 volumes leaves about a tenth of the noise's energy; the signal itself is not smoothed."""
    shape = (16, 15, 14)
    clean = smooth_low_rank(shape, 30)
    rng = np.random.default_rng(2)
    mask = ball(shape)
    snr = torch.from_numpy(clean + rng.normal(size=clean.shape)).half()
    truth = torch.from_numpy(clean).float()[:, mask]
    estimate = overcomplete_local_pca(snr, mask).float()
    noisy_error = (snr.float()[:, mask] - truth).square().mean(dim=1)
    error = (estimate - truth).square().mean(dim=1)
    assert float(error.mean()) < 0.2 * float(noisy_error.mean())
    assert bool((error < 0.5 * noisy_error).all()), "no volume may suffer"


def test_a_volume_is_in_the_order_of_the_mask() -> None:
    """Without noise the estimates are the values, voxel by voxel."""
    shape = (9, 8, 7)
    clean = torch.from_numpy(smooth_low_rank(shape, 12)).half()
    mask = ball(shape)
    torch.testing.assert_close(
        overcomplete_local_pca(clean, mask).float(), clean[:, mask].float(), atol=0.7, rtol=0
    )


def test_content_outside_the_mask_does_not_matter() -> None:
    shape = (10, 9, 11)
    snr = torch.from_numpy(smooth_low_rank(shape, 8)).half()
    mask = ball(shape)
    garbage = torch.where(mask, snr, torch.full_like(snr, 777.0))
    assert torch.equal(overcomplete_local_pca(snr, mask), overcomplete_local_pca(garbage, mask))


def test_it_looks_at_the_own_value() -> None:
    """Unlike the blind base: a strong value of one volume and voxel moves its own estimate."""
    shape = (11, 11, 11)
    snr = torch.from_numpy(smooth_low_rank(shape, 8)).half()
    mask = torch.ones(shape, dtype=torch.bool)
    changed = snr.clone()
    changed[3, 5, 5, 5] += 60
    where = int(np.ravel_multi_index((5, 5, 5), shape))
    moved = overcomplete_local_pca(changed, mask)[3, where] - overcomplete_local_pca(snr, mask)[3, where]
    assert float(moved) > 30
