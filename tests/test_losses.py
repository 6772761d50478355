"""The losses: derivatives against SciPy, masks that hide, and where the minimum lies."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from dwmri_bidsapp.denoising.losses import (
    EdgeAwareLoss,
    L1Loss,
    MSELoss,
    forward_difference,
    make_loss,
    sobel,
)

LOSSES = [EdgeAwareLoss(0.5, 0.1), EdgeAwareLoss(0.5, 0.1, magnitudes=True), L1Loss(), MSELoss()]


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _ball(*shape: int) -> Tensor:
    """A mask (1, 1, X, Y, Z) with a hole in it."""
    axes = [torch.linspace(-1, 1, n) for n in shape]
    radius = sum(axis.square() for axis in torch.meshgrid(*axes, indexing="ij"))
    mask = torch.as_tensor(radius) < 0.9
    mask[tuple(n // 2 for n in shape)] = False
    return mask[None, None]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_sobel_is_scipys_along_each_axis_over_32(axis: int) -> None:
    image = _random(2, 3, 6, 7, 9)
    for sample, channel in np.ndindex(2, 3):
        expected = ndimage.sobel(image[sample, channel].double().numpy(), axis)[1:-1, 1:-1, 1:-1] / 32
        np.testing.assert_allclose(sobel(image, axis)[sample, channel], expected, atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_derivative_of_a_slope_is_the_slope_of_that_axis_alone(axis: int) -> None:
    slopes = [0.5, -2.0, 3.0]
    x, y, z = torch.meshgrid(torch.arange(5.0), torch.arange(6.0), torch.arange(7.0), indexing="ij")
    image = (slopes[0] * x + slopes[1] * y + slopes[2] * z)[None, None]
    for derivative in (sobel(image, axis), forward_difference(image, axis)):
        torch.testing.assert_close(derivative, torch.full_like(derivative, slopes[axis]))


def _edge_aware_in_numpy(difference: np.ndarray, mask: np.ndarray, alpha: float, beta: float) -> float:
    """The signed loss for one image (X, Y, Z), voxel by voxel and by SciPy."""
    loss = float((difference[mask] ** 2).mean())
    cube = ndimage.binary_erosion(mask, np.ones((3, 3, 3)))
    for axis in range(3):
        loss += alpha * float(((ndimage.sobel(difference, axis) / 32)[cube] ** 2).mean())
        steps = []
        for index in np.argwhere(mask):
            after = index.copy()
            after[axis] += 1
            if after[axis] < mask.shape[axis] and mask[tuple(after)]:
                steps.append(difference[tuple(after)] - difference[tuple(index)])
        loss += beta * float(np.mean(np.square(steps)))
    return loss


@pytest.mark.parametrize("masked", [True, False])
def test_edge_aware_loss_equals_a_slow_one_voxel_by_voxel(masked: bool) -> None:
    prediction, target = _random(1, 1, 8, 9, 7, seed=1), _random(1, 1, 8, 9, 7, seed=2)
    mask = _ball(8, 9, 7) if masked else torch.ones(1, 1, 8, 9, 7, dtype=torch.bool)
    difference = (prediction - target)[0, 0].double().numpy()
    expected = _edge_aware_in_numpy(difference, mask[0, 0].numpy(), 0.7, 0.3)
    loss = EdgeAwareLoss(0.7, 0.3)(prediction, target, mask if masked else None)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_magnitudes_compare_lengths_of_gradients() -> None:
    """A slope down has the length of a slope up: only the voxels differ."""
    up = torch.arange(6.0)[None, None, :, None, None].expand(1, 1, 6, 5, 4)
    assert EdgeAwareLoss(1, 0, magnitudes=True)(up, -up).item() == pytest.approx(MSELoss()(up, -up).item())
    assert EdgeAwareLoss(0, 1, magnitudes=True)(up, -up).item() == pytest.approx(MSELoss()(up, -up).item())
    # signed slopes differ by 2 per voxel
    assert EdgeAwareLoss(1, 0)(up, -up).item() == pytest.approx(MSELoss()(up, -up).item() + 4)
    # slopes of 3 and 1 along different axes
    across = 3 * torch.arange(5.0)[None, None, None, :, None].expand(1, 1, 6, 5, 4)
    for loss in (EdgeAwareLoss(1, 0, magnitudes=True), EdgeAwareLoss(0, 1, magnitudes=True)):
        assert loss(up, across).item() == pytest.approx(MSELoss()(up, across).item() + 4, rel=1e-5)


def _clean(size: int = 10) -> Tensor:
    """A signal with a border and a slope, in SNR units."""
    x, y, z = torch.meshgrid(*[torch.arange(float(size))] * 3, indexing="ij")
    return (2.0 * (x > 4.5) + 0.1 * y + torch.sin(z / 3))[None, None]


def _best_prediction(loss: nn.Module, clean: Tensor, start: Tensor, draws: int = 48) -> Tensor:
    """What gradient descent on the loss against many noisy targets ends at."""
    noisy = clean + _random(draws, *clean.shape[1:], seed=3)
    noisy += clean - noisy.mean(dim=0)  # the mean of these draws is exactly the clean signal
    prediction = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([prediction], 0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 150)
    for _ in range(150):
        optimizer.zero_grad()
        loss(prediction.expand_as(noisy), noisy).backward()
        optimizer.step()
        schedule.step()
    return prediction.detach()


@pytest.mark.parametrize("weights", [(0.5, 0.1), (4.0, 2.0)])
def test_from_noisy_targets_the_best_prediction_is_the_clean_mean(weights: tuple[float, float]) -> None:
    clean = _clean()
    start = clean + 0.5 * _random(*clean.shape, seed=4)
    best = _best_prediction(EdgeAwareLoss(*weights), clean, start)
    assert (best - clean).abs().max() < 0.02


def test_magnitudes_reward_noise() -> None:
    """With magnitudes a rougher prediction than the truth is the best, though started at the truth."""
    clean = _clean()
    start = clean + 0.01 * _random(*clean.shape, seed=4)
    best = _best_prediction(EdgeAwareLoss(0.5, 0.1, magnitudes=True), clean, start)
    assert (best - clean).square().mean().sqrt() > 0.05
    rough = [
        float(forward_difference(image, axis).square().mean())
        for image in (best, clean)
        for axis in (0, 1, 2)
    ]
    assert sum(rough[:3]) > 1.05 * sum(rough[3:])


@pytest.mark.parametrize("magnitudes", [True, False])
def test_expected_loss_over_a_family_of_predictions(magnitudes: bool) -> None:
    """p = clean + t · noise: the signed loss is lowest at t = 0, that of magnitudes elsewhere."""
    clean, roughness = _clean(12), _random(1, 1, 12, 12, 12, seed=5)
    loss = EdgeAwareLoss(4.0, 2.0, magnitudes=magnitudes)
    noisy = clean + _random(64, *clean.shape[1:], seed=6)
    # the same draws with their signs turned: the noise has a mean of exactly zero
    noisy = torch.cat([noisy, 2 * clean - noisy])
    amounts = torch.linspace(-1, 1, 21)
    losses = [loss((clean + t * roughness).expand_as(noisy), noisy).item() for t in amounts]
    best = abs(float(amounts[int(np.argmin(losses))]))
    assert best > 0.25 if magnitudes else best < 1e-6


@pytest.mark.parametrize("loss", LOSSES)
def test_nothing_outside_the_mask_has_any_influence(loss: nn.Module) -> None:
    prediction, target, mask = _random(2, 1, 9, 8, 10), _random(2, 1, 9, 8, 10, seed=1), _ball(9, 8, 10)
    expected = loss(prediction, target, mask)
    outside = ~mask.expand_as(prediction)
    for anything in (1e6, math.nan, math.inf):
        spoilt = prediction.masked_fill(outside, anything).requires_grad_()
        found = loss(spoilt, target.masked_fill(outside, -anything), mask)
        found.backward()
        assert found.item() == expected.item()
        assert spoilt.grad is not None
        assert (spoilt.grad[outside] == 0).all()
        assert spoilt.grad.isfinite().all()
        assert (spoilt.grad[~outside] != 0).any()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("empty", ["mask", "one voxel", "thin image"])
def test_empty_masks_and_stencils_cost_nothing_and_stay_finite(loss: nn.Module, empty: str) -> None:
    shape = (1, 1, 2, 5, 1) if empty == "thin image" else (1, 1, 5, 5, 5)
    prediction, target = _random(*shape).requires_grad_(), _random(*shape, seed=1)
    mask = torch.zeros(shape) if empty != "thin image" else torch.ones(shape)
    if empty == "one voxel":
        mask[0, 0, 2, 2, 2] = 1
    value = loss(prediction, target, mask)
    value.backward()
    assert prediction.grad is not None
    assert prediction.grad.isfinite().all()
    if empty == "mask":
        assert value.item() == 0
        assert (prediction.grad == 0).all()
    if empty == "one voxel":
        difference = (prediction - target)[0, 0, 2, 2, 2].item()
        assert value.item() == pytest.approx(abs(difference) if isinstance(loss, L1Loss) else difference**2)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_thin_image_has_the_same_loss_with_and_without_a_full_mask(loss: nn.Module) -> None:
    for shape in [(1, 1, 2, 5, 1), (2, 1, 1, 1, 1), (1, 2, 4, 2, 6), (1, 1, 5, 5, 5)]:
        prediction, target = _random(*shape), _random(*shape, seed=1)
        whole = loss(prediction, target)
        assert whole.item() == pytest.approx(loss(prediction, target, torch.ones(shape)).item(), rel=1e-6)
        assert whole > 0


@pytest.mark.parametrize("loss", LOSSES)
def test_a_perfect_prediction_costs_nothing_and_has_a_finite_gradient(loss: nn.Module) -> None:
    target = torch.zeros(1, 1, 5, 5, 5)
    prediction = target.clone().requires_grad_()
    value = loss(prediction, target)
    value.backward()
    assert value.item() == 0
    assert prediction.grad is not None
    assert prediction.grad.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_masks_broadcast_and_may_be_of_any_type(loss: nn.Module) -> None:
    prediction, target, mask = _random(3, 2, 8, 8, 8), _random(3, 2, 8, 8, 8, seed=1), _ball(8, 8, 8)
    expected = loss(prediction, target, mask.expand_as(prediction)).item()
    for other in (mask, mask.float(), mask[0, 0], mask.byte()):
        assert loss(prediction, target, other).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(loss: nn.Module, precision: torch.dtype) -> None:
    prediction, target, mask = _random(2, 1, 8, 8, 8), _random(2, 1, 8, 8, 8, seed=1), _ball(8, 8, 8)
    with torch.autocast("cpu", precision):
        assert torch.equal(loss(prediction, target, mask), loss(prediction.float(), target, mask))
    rounded = prediction.to(precision)
    value = loss(rounded, target, mask)
    assert value.dtype == torch.float32
    assert value.item() == loss(rounded.float(), target, mask).item()


def test_gradients_are_those_of_finite_differences() -> None:
    prediction, target, mask = _random(1, 1, 5, 5, 5), _random(1, 1, 5, 5, 5, seed=1), _ball(5, 5, 5)
    step = 1e-3  # float32 allows no smaller one
    for loss in LOSSES:
        leaf = prediction.clone().requires_grad_()
        loss(leaf, target, mask).backward()
        assert leaf.grad is not None
        direction = _random(*prediction.shape, seed=2)
        ahead, behind = (loss(prediction + s * step * direction, target, mask).item() for s in (1, -1))
        slope = (leaf.grad * direction).sum().item()
        assert (ahead - behind) / (2 * step) == pytest.approx(slope, rel=0.02, abs=1e-3)


def test_losses_by_name() -> None:
    edge_aware = make_loss("edge-aware", 0.2, 0.3)
    assert isinstance(edge_aware, EdgeAwareLoss)
    assert (edge_aware.alpha, edge_aware.beta, edge_aware.magnitudes) == (0.2, 0.3, False)
    assert isinstance(make_loss("l1"), L1Loss)
    assert isinstance(make_loss("mse"), MSELoss)
    with pytest.raises(ValueError, match="expected a loss of edge-aware, l1, mse, found 'huber'"):
        make_loss("huber")


def test_without_weights_only_the_squared_error_remains() -> None:
    prediction, target = _random(1, 1, 6, 6, 6), _random(1, 1, 6, 6, 6, seed=1)
    assert EdgeAwareLoss(0, 0)(prediction, target).item() == ((prediction - target) ** 2).mean().item()
    assert L1Loss()(prediction, target).item() == (prediction - target).abs().mean().item()


def test_bad_input_says_what_was_expected_and_found() -> None:
    image = torch.zeros(1, 1, 5, 5, 5)
    with pytest.raises(
        ValueError, match=r"one shape \(B, C, X, Y, Z\), found \(1, 1, 5, 5, 5\) and \(1, 1, 5, 5, 4\)"
    ):
        EdgeAwareLoss()(image, image[..., :4])
    with pytest.raises(ValueError, match="one shape"):
        MSELoss()(image[0], image[0])
    with pytest.raises(ValueError, match=r"broadcasts to \(1, 1, 5, 5, 5\), found \(4, 5, 5\)"):
        L1Loss()(image, image, torch.ones(4, 5, 5))
    with pytest.raises(ValueError, match="found alpha=-1 and beta=0"):
        EdgeAwareLoss(-1, 0)
