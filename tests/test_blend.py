"""Blending: it helps where the prediction is worse than the measurement, and hardly costs anything elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dwmri_bidsapp.denoising.blend import USUAL_SCALE, Blend, box_mean, calibrate, error_variance
from dwmri_bidsapp.denoising.blind import BlindBase
from dwmri_bidsapp.denoising.context import build_context
from dwmri_bidsapp.denoising.hardware import Precision
from dwmri_bidsapp.denoising.model import DenoiserNet
from dwmri_bidsapp.denoising.reconstruct import LEAST_PCA_SHARE, Reconstruction
from dwmri_bidsapp.simulation import make_protocol

SHAPE = (16, 15, 14)
MASK = torch.ones(SHAPE, dtype=torch.bool)
LESION = (slice(4, 10), slice(4, 10), slice(4, 10))
SIGNAL = 40.0


def reconstruct(
    base_error: torch.Tensor, expected: float, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, Reconstruction]:
    """Squared errors (V, X, Y, Z) of measurement and blend, for a base that is wrong by a given map."""
    gradients = make_protocol(1, {1000.0: 6}, np.random.default_rng(0))
    generator = torch.Generator().manual_seed(seed)
    n = gradients.n_volumes
    snr = (SIGNAL + torch.randn((n, *SHAPE), generator=generator)).half()
    base_vxyz = (SIGNAL + base_error.expand(n, *SHAPE)).half()
    precision = torch.full((n, 6, 5, 5), 1 / (1 + expected))
    base = BlindBase(base_vxyz.flatten(1), [precision], 3)
    context = build_context(
        snr.flatten(1), base.base_vn, MASK, gradients, np.flatnonzero(gradients.dwi).tolist()
    )
    # without the overcomplete PCA: the blend alone is judged
    untrained = DenoiserNet(9, 1, 4).eval()
    nothing = torch.zeros(int(MASK.sum()))
    run = Reconstruction(context, base, untrained, Precision(None), local_pca=False)
    run.predict()
    blended = {v: run.values(v, nothing).reshape(SHAPE) for v in context.targets.tolist()}
    found = torch.stack([blended[v] for v in sorted(blended)])
    measured = torch.stack([snr[v].float() for v in sorted(blended)])
    return (measured - SIGNAL).square(), (found - SIGNAL).square(), run


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_perfect_prediction_stays(seed: int) -> None:
    noisy, blended, _ = reconstruct(torch.zeros(1), expected=0.1, seed=seed)
    assert float(blended.mean()) < 0.03 * float(noisy.mean())


@pytest.mark.parametrize("size", [0.3, 1.0, 3.0, 10.0])
def test_never_worse_than_the_measurement_in_any_volume(size: float) -> None:
    """White errors of the prediction, small and large: the calibration finds their size."""
    error = size * torch.randn((7, *SHAPE), generator=torch.Generator().manual_seed(3))
    noisy, blended, _ = reconstruct(error, expected=1.0)
    per_volume = blended.mean(dim=(1, 2, 3)) / noisy.mean(dim=(1, 2, 3))
    assert float(per_volume.max()) < 1.0
    # the best linear estimate has v/(v + n) of the noise
    assert float(per_volume.mean()) < 1.25 * size**2 / (1 + size**2) + 0.02


def test_lesion_that_the_prediction_misses_returns_to_the_measurement() -> None:
    error = torch.zeros(SHAPE)
    error[LESION] = 12.0
    noisy, blended, _ = reconstruct(error, expected=0.1)
    inner = (slice(None), slice(5, 9), slice(5, 9), slice(5, 9))
    assert float(blended[inner].mean()) < 1.3 * float(noisy[inner].mean())
    far = (slice(None), slice(13, 16))
    assert float(blended[far].mean()) < 0.2 * float(noisy[far].mean())


def test_lesion_without_the_local_term_would_stay_wrong() -> None:
    """The regular part alone knows nothing of a lesion: what the local excess is for."""
    prediction = torch.full(SHAPE, SIGNAL)
    prediction[LESION] += 12
    measured = SIGNAL + torch.randn(SHAPE, generator=torch.Generator().manual_seed(4))
    ones = torch.ones(SHAPE)
    variance = error_variance(
        measured, prediction, 0.1 * ones, ones, MASK, box_mean(MASK.float()), Blend(1.0, 1.0)
    )
    assert float(variance[6, 6, 6]) == pytest.approx(144, rel=0.15)
    torch.testing.assert_close(variance[13:], torch.full_like(variance[13:], 0.1))


def test_chance_is_not_believed() -> None:
    generator = torch.Generator().manual_seed(5)
    measured, ones = torch.randn(SHAPE, generator=generator), torch.ones(SHAPE)
    variance = error_variance(
        measured, torch.zeros(SHAPE), torch.zeros(SHAPE), ones, MASK, box_mean(MASK.float()), Blend(1.0, 1.0)
    )
    assert float((variance > 0).float().mean()) < 0.02


@pytest.mark.parametrize("scale", [0.0, 0.4, 1.0, 2.5])
def test_calibration_recovers_the_scale(scale: float) -> None:
    generator = torch.Generator().manual_seed(6)
    residuals = []
    for _ in range(5):
        expected = torch.rand(20_000, generator=generator)
        noise = 0.5 + 0.5 * torch.rand(20_000, generator=generator)
        square = (scale * expected + noise) * torch.randn(20_000, generator=generator).square()
        residuals.append((square, noise, expected))
    assert calibrate(residuals).scale == pytest.approx(scale, abs=0.05)


def test_calibration_is_bounded() -> None:
    ones = torch.ones(10)
    assert calibrate([(0.5 * ones, ones, ones)]).scale == 0.0
    assert calibrate([(50 * ones, ones, ones)]).scale == 4.0
    assert calibrate([(2 * ones, ones, 0 * ones)]).scale == 4.0


@pytest.mark.parametrize("wrong", [0.97, 1.03])
def test_wrong_noise_variance_does_not_make_the_uncertainty_too_low(wrong: float) -> None:
    """3% of the noise are a third of the error of such a prediction; too high an uncertainty is not lowered."""
    generator = torch.Generator().manual_seed(7)
    ones = torch.ones(200_000)
    square = (USUAL_SCALE * 0.1 + 1.0) * torch.randn(200_000, generator=generator).square()
    found = calibrate([(square, wrong * ones, 0.1 * ones)])
    assert found.scale == pytest.approx(USUAL_SCALE + 10 * (1 - wrong), abs=0.05)
    assert found.likely_scale == max(USUAL_SCALE, found.scale)


@pytest.mark.parametrize(("scale", "likely"), [(0.1, 0.2), (0.8, 0.85), (3.0, 3.0)])
def test_uncertainty_follows_residuals_that_noise_cannot_explain(scale: float, likely: float) -> None:
    ones = torch.ones(10)
    # 4% of the noise, in units of the expected error
    found = calibrate([((scale * 0.4 + 1.0) * ones, ones, 0.4 * ones)])
    assert found.scale == pytest.approx(scale, abs=1e-3)
    assert found.likely_scale == pytest.approx(likely, abs=1e-3)


def test_uncertainty_is_the_error_of_the_blend() -> None:
    error = torch.randn((7, *SHAPE), generator=torch.Generator().manual_seed(3))
    _, blended, run = reconstruct(error, expected=1.0)
    assert float(run.uncertainty().square().mean()) == pytest.approx(float(blended.mean()), rel=0.05)
    assert run.blends.keys() == {1}


def test_uncertainty_of_a_prediction_alone_is_its_error() -> None:
    error = torch.randn((7, *SHAPE), generator=torch.Generator().manual_seed(3))
    _, _, run = reconstruct(error, expected=1.0)
    blind = Reconstruction(run.context, run.base, run.model, Precision(None), blend=False)
    blind.blends = run.blends
    squares = []
    for v in run.context.targets.tolist():
        found = blind.values(v, torch.zeros(int(MASK.sum())))
        squares.append((found - run.context.base_vn[v].float()).square().mean())
    assert float(sum(squares)) == 0
    blended = float(run.uncertainty().square().mean())
    # a blend of an error and a noise of variance 1 each has half of it
    assert float(blind.uncertainty().square().mean()) == pytest.approx(2 * blended, rel=0.2)


def test_local_pca_gets_more_where_the_prediction_is_worse() -> None:
    """Its share grows with the error that the blend leaves, and the result is the mean with that share."""
    shares = []
    for size in (0.0, 0.5, 1.0, 3.0):
        error = size * torch.randn((7, *SHAPE), generator=torch.Generator().manual_seed(3))
        _, _, alone = reconstruct(error, expected=1.0)
        both = Reconstruction(alone.context, alone.base, alone.model, Precision(None))
        both.blends = alone.blends
        v = int(alone.context.targets[0])
        own = alone.values(v, torch.zeros(int(MASK.sum())))
        found = both.values(v, own + 10.0)
        shares.append(both.pca_shares[v])
        torch.testing.assert_close(found - own, torch.full_like(own, 10.0 * shares[-1]), atol=1e-4, rtol=0)
    assert shares[0] == pytest.approx(LEAST_PCA_SHARE, abs=0.03)
    assert np.all(np.diff(shares) > 0.05) and shares[-1] <= 1.0


def test_without_the_pca_the_result_is_the_blind_prediction() -> None:
    _, _, run = reconstruct(torch.ones(1), expected=0.1)
    blind = Reconstruction(run.context, run.base, run.model, Precision(None), blend=False)
    before = run.base.base_vn.float()
    blind.predict()
    for v in run.context.targets.tolist():
        torch.testing.assert_close(blind.values(v, before[v] + 9), before[v], atol=0.02, rtol=0)
    # predictions without error, where an error of 0.1 was expected, and nothing taken from the measurement
    assert blind.blends.keys() == {1}


@pytest.mark.parametrize("shape", [(9, 8, 7), (4, 2, 1)])
def test_box_mean_counts_what_lies_outside_as_zero(shape: tuple[int, int, int]) -> None:
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(image[None, None], (2,) * 6)
    expected = torch.nn.functional.avg_pool3d(padded, 5, 1)[0, 0]
    torch.testing.assert_close(box_mean(image), expected)
