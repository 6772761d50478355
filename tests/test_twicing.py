"""What the residuals of a shell have in common goes back into the estimate, and nothing else does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dwmri_bidsapp.denoising.local_pca import angular_contrasts
from dwmri_bidsapp.denoising.twicing import RADIUS, SHARE, Twicing
from dwmri_bidsapp.denoising.voxels import Voxels
from dwmri_bidsapp.gradients import Gradients
from dwmri_bidsapp.simulation import make_protocol

SHAPE = (9, 10, 8)


@pytest.fixture
def gradients() -> Gradients:
    return make_protocol(2, {700.0: 6, 1000.0: 15, 2000.0: 20}, np.random.default_rng(0))


@pytest.fixture
def voxels() -> Voxels:
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[1:, 2:, :7] = True
    mask[4, 5, 3] = False
    return Voxels(mask)


def given_back(gradients: Gradients, voxels: Voxels, residual_vn: torch.Tensor) -> torch.Tensor:
    """What all volumes get back for these residuals."""
    twicing = Twicing(gradients, voxels)
    estimate_n = torch.linspace(1, 5, len(voxels))
    for volume, residual_n in enumerate(residual_vn):
        twicing.learn(volume, estimate_n + residual_n, estimate_n)
    twicing.finish()
    return torch.stack([twicing.given_back(v) for v in range(gradients.n_volumes)])


def tensor_signal(gradients: Gradients) -> torch.Tensor:
    """A mean and a contrast in each shell, (V,), that vary over the sphere as a tensor does; none at b=0."""
    form = np.diag([1.0, -0.4, 0.3]) + 0.2
    signal = gradients.bvals / 1000 * np.einsum("vi,ij,vj->v", gradients.bvecs, form, gradients.bvecs)
    return torch.from_numpy(np.where(gradients.b0, 0.0, signal)).float()


def test_dimensions_are_orthonormal_means_and_contrasts_of_the_larger_shells(gradients: Gradients) -> None:
    slow_vk = angular_contrasts(gradients, with_mean=True)
    assert slow_vk.shape[1] == 2 * 6
    assert torch.allclose(slow_vk.T @ slow_vk, torch.eye(12), atol=1e-5)
    large = torch.from_numpy(gradients.bvals >= 1000)
    signal = tensor_signal(gradients) * large
    assert torch.allclose(slow_vk @ (slow_vk.T @ signal), signal, atol=1e-5)
    assert not slow_vk[~large].any()


def test_a_share_of_a_lost_tensor_comes_back_up_to_the_border(gradients: Gradients, voxels: Voxels) -> None:
    lost_v = tensor_signal(gradients)
    back_vn = given_back(gradients, voxels, lost_v[:, None].expand(-1, len(voxels)))
    large = torch.from_numpy(gradients.bvals >= 1000)
    assert torch.allclose(back_vn[large], SHARE * lost_v[large, None].expand(-1, len(voxels)), atol=1e-4)
    assert not back_vn[~large].any(), "neither b=0 nor six directions, where a tensor fits anything"


def test_what_varies_fast_over_the_sphere_stays_away(gradients: Gradients, voxels: Voxels) -> None:
    slow_vk = angular_contrasts(gradients, with_mean=True)
    fast_v = torch.randn(gradients.n_volumes, generator=torch.Generator().manual_seed(1))
    fast_v -= slow_vk @ (slow_vk.T @ fast_v)
    back_vn = given_back(gradients, voxels, fast_v[:, None].expand(-1, len(voxels)))
    assert float(back_vn.abs().max()) < 1e-4


def test_little_noise_comes_back(gradients: Gradients) -> None:
    voxels = Voxels(torch.ones((20, 20, 20), dtype=torch.bool))
    noise_vn = torch.randn((gradients.n_volumes, len(voxels)), generator=torch.Generator().manual_seed(2))
    back_vn = given_back(gradients, voxels, noise_vn)
    inside_vn = voxels_inside(back_vn, voxels)
    large = gradients.bvals >= 1000
    # white noise has variance 1 in each of the twelve dimensions, before the mean over a cube
    expected = SHARE**2 * 12 / large.sum() / (2 * RADIUS + 1) ** 3
    assert float(inside_vn[large].square().mean()) == pytest.approx(expected, rel=0.1)


def voxels_inside(values_vn: torch.Tensor, voxels: Voxels) -> torch.Tensor:
    """Values of the voxels that are not at the border of the grid."""
    return torch.stack([voxels.scatter(values_n)[1:-1, 1:-1, 1:-1].flatten() for values_n in values_vn])
