"""Measures of denoised runs against formulas, known tensors, known edges and real signals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import nibabel as nib
import numpy as np
import pytest
from dipy.data import get_fnames
from numpy.typing import NDArray
from scipy import ndimage
from skimage.metrics import structural_similarity

from dwmri_bidsapp.errors import BadDataError
from dwmri_bidsapp.gradients import Gradients, load_gradients
from dwmri_bidsapp.metrics import (
    TensorMaps,
    angular_error,
    dti_kfold_error,
    dwi_range,
    edge_slope,
    edge_width,
    errors_against_truth,
    fa_error,
    fit_tensor,
    md_error,
    neighbouring_dwi_correlation,
    no_reference_metrics,
    psnr,
    psnr_by_volume,
    repeat_spread,
    residual_statistics,
    shell_means,
    ssim,
    tensor_volumes,
)
from dwmri_bidsapp.simulation import add_noise, b0_signal, make_protocol, simulate_phantom
from dwmri_bidsapp.simulation.signal import Phantom

Array = NDArray[np.float32]

GRID = (12, 13, 11)
EVERYWHERE = np.ones(GRID, dtype=bool)


def normal(shape: tuple[int, ...], seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def protocol(n_b0: int = 3, n_directions: int = 20, b: float = 1000.0) -> Gradients:
    return make_protocol(n_b0, {b: n_directions}, np.random.default_rng(7))


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return simulate_phantom(gradients=protocol(n_directions=24, b=2000.0), seed=9, shape=(24, 26, 20))


@pytest.fixture(scope="module")
def noisy(phantom: Phantom) -> tuple[Array, Array]:
    return add_noise(phantom.clean_xyzv, sigma=b0_signal(phantom) / 20, rng=np.random.default_rng(1))


def test_psnr_is_its_formula() -> None:
    truth = normal(GRID)
    mask = truth > 0
    estimate = np.where(mask, truth + 0.5, 1e6).astype(np.float32)
    np.testing.assert_allclose(psnr(estimate, truth, mask, 10.0), 20 * np.log10(10 / 0.5), rtol=1e-6)
    assert psnr(truth, truth, mask, 10.0) == np.inf


def test_psnr_by_volume_finds_the_bad_one() -> None:
    truth = normal((*GRID, 3))
    estimate = truth + np.array([0.1, 1.0, 0.01], dtype=np.float32)
    np.testing.assert_allclose(psnr_by_volume(estimate, truth, EVERYWHERE, 1.0), [20, 0, 40], atol=1e-3)


def test_ssim_is_scikit_images() -> None:
    truth = ndimage.gaussian_filter(normal((20, 22, 18)), 2)
    estimate = truth + 0.05 * normal(truth.shape, 1)
    mask = ndimage.binary_erosion(np.ones(truth.shape, dtype=bool), iterations=4)
    _, expected = structural_similarity(
        truth, estimate, data_range=0.5, full=True, use_sample_covariance=False
    )
    np.testing.assert_allclose(ssim(estimate, truth, mask, 0.5), expected[mask].mean(), atol=1e-4)
    assert ssim(truth, truth, mask, 0.5) == pytest.approx(1)


def test_peak_is_a_percentile_of_the_truth(phantom: Phantom) -> None:
    clean = phantom.clean_xyzv[phantom.mask_xyz]
    dwi, b0 = (np.percentile(clean[:, v], 99.9) for v in (phantom.gradients.dwi, phantom.gradients.b0))
    assert dwi_range(phantom.clean_xyzv, phantom.gradients, phantom.mask_xyz) == pytest.approx(dwi)
    assert dwi_range(phantom.clean_xyzv, phantom.gradients, phantom.mask_xyz, b0=True) == pytest.approx(b0)


def tensor_signal(gradients: Gradients, evals: list[float], v1: Array, s0: float = 100.0) -> Array:
    """Signal on the grid of an axially symmetric tensor around ``v1``; evals are along and across."""
    along, across = evals
    cosines = gradients.bvecs @ v1
    signal_v = s0 * np.exp(-gradients.bvals * (across + (along - across) * cosines**2))
    return np.broadcast_to(signal_v.astype(np.float32), (*GRID, gradients.n_volumes)).copy()


@pytest.mark.parametrize("method", ["OLS", "WLS"])
def test_a_known_tensor_is_found(method: Literal["OLS", "WLS"]) -> None:
    v1 = np.array([0.6, 0.0, 0.8], dtype=np.float32)
    maps = fit_tensor(tensor_signal(protocol(), [1.7e-3, 0.3e-3], v1), protocol(), EVERYWHERE, method=method)
    mean = (1.7 + 0.6) / 3 * 1e-3
    spread = (1.7e-3 - mean) ** 2 + 2 * (0.3e-3 - mean) ** 2
    fa = np.sqrt(1.5 * spread / (1.7e-3**2 + 2 * 0.3e-3**2))
    np.testing.assert_allclose(maps.fa_xyz, fa, rtol=1e-3)
    np.testing.assert_allclose(maps.md_xyz, mean, rtol=1e-3)
    np.testing.assert_allclose(np.abs(maps.v1_xyzd @ v1), 1, atol=1e-4)


def test_tensors_survive_negative_values_and_stay_in_the_mask() -> None:
    gradients = protocol()
    signal = tensor_signal(gradients, [1.0e-3, 0.5e-3], np.array([1, 0, 0], dtype=np.float32))
    signal[0, 0, 0] *= -1
    mask = EVERYWHERE.copy()
    mask[5:] = False
    maps = fit_tensor(signal, gradients, mask)
    for values in (maps.fa_xyz, maps.md_xyz, maps.v1_xyzd):
        assert np.isfinite(values).all()
        assert not values[~mask].any()
    assert maps.fa_xyz[0, 0, 0] <= 1
    assert maps.fa_xyz[1, 1, 1] > 0.3


def test_values_below_the_floor_are_all_the_same_to_a_tensor() -> None:
    gradients = protocol()
    signal = tensor_signal(gradients, [1.0e-3, 0.5e-3], np.array([1, 0, 0], dtype=np.float32))
    found = []
    for value in (0.1, 1e-20, 0.0, -5.0):  # b=0 is 100, so the floor is 0.1
        signal[2, 2, 2, 5] = value
        found.append(fit_tensor(signal, gradients, EVERYWHERE, method="OLS").md_xyz[2, 2, 2])
    np.testing.assert_allclose(found, found[0], rtol=1e-4)


def test_tensors_are_fitted_to_low_b_where_that_is_enough() -> None:
    rng = np.random.default_rng(0)
    cases: list[tuple[Mapping[float, int], list[float]]] = [
        ({1000: 12, 3000: 12}, [0, 1000]),
        ({1000: 4, 3000: 12}, [0, 1000, 3000]),
        ({2500: 12}, [0, 2500]),
    ]
    for shells, used in cases:
        gradients = make_protocol(2, shells, rng)
        chosen = gradients.shell_bvals[np.unique(gradients.shell[tensor_volumes(gradients)])]
        assert chosen.tolist() == used


def test_no_tensor_without_directions_or_b0_or_mask() -> None:
    few = protocol(n_directions=5)
    with pytest.raises(BadDataError, match="found 5"):
        fit_tensor(normal((*GRID, 8)), few, EVERYWHERE)
    no_b0 = protocol(n_b0=0)
    with pytest.raises(BadDataError, match="and 0"):
        fit_tensor(normal((*GRID, 20)), no_b0, EVERYWHERE)
    with pytest.raises(BadDataError, match="empty"):
        fit_tensor(normal((*GRID, 23)), protocol(), ~EVERYWHERE)


def maps_of(fa: float, md: float, v1: list[float]) -> TensorMaps:
    directions = np.broadcast_to(np.array(v1, dtype=np.float32), (*GRID, 3))
    fa_xyz, md_xyz = (np.full(GRID, value, dtype=np.float32) for value in (fa, md))
    return TensorMaps(fa_xyz, md_xyz, directions, EVERYWHERE)


def test_errors_of_maps_are_what_they_were_made() -> None:
    truth, estimate = maps_of(0.5, 0.8e-3, [1, 0, 0]), maps_of(0.4, 0.9e-3, [-np.sqrt(0.75), 0.5, 0])
    assert fa_error(estimate, truth, EVERYWHERE) == pytest.approx(0.1)
    assert md_error(estimate, truth, EVERYWHERE) == pytest.approx(1e-4, rel=1e-4)
    assert angular_error(estimate, truth, EVERYWHERE) == pytest.approx(30, abs=1e-3)
    assert angular_error(truth, truth, EVERYWHERE) == pytest.approx(0)
    assert np.isnan(angular_error(estimate, maps_of(0.1, 1e-3, [1, 0, 0]), EVERYWHERE))


def test_errors_against_truth_of_a_known_error() -> None:
    gradients = make_protocol(2, {1000: 8, 2000: 8}, np.random.default_rng(3))
    truth = 100 + normal((*GRID, 18))
    estimate = truth.copy()
    estimate[..., gradients.shell == 2] += 1
    estimate[..., gradients.shell == 1] *= 1.1
    found = errors_against_truth(estimate, truth, gradients, EVERYWHERE)
    peak = dwi_range(truth, gradients, EVERYWHERE)
    assert found["psnr_b0"] == np.inf
    assert found["psnr_b2000"] == pytest.approx(20 * np.log10(peak), abs=1e-3)
    assert found["bias_b1000"] == pytest.approx(0.1, abs=1e-5)
    assert found["psnr_dwi_worst_volume"] < found["psnr_dwi"] < found["psnr_b2000"]
    assert {"ssim_dwi", "fa_error", "md_error", "angular_error"} <= set(found)


def test_a_protocol_without_tensors_still_has_errors() -> None:
    gradients = protocol(n_directions=5)
    truth = 100 + normal((*GRID, 8))
    found = errors_against_truth(truth + 1, truth, gradients, EVERYWHERE)
    assert "psnr_dwi" in found
    assert "fa_error" not in found


def test_noise_is_worse_than_truth_and_averaging_is_better(
    phantom: Phantom, noisy: tuple[Array, Array]
) -> None:
    second, _ = add_noise(phantom.clean_xyzv, sigma=noisy[1], rng=np.random.default_rng(2))
    once, twice = (
        errors_against_truth(estimate, phantom.clean_xyzv, phantom.gradients, phantom.mask_xyz)
        for estimate in (noisy[0], 0.5 * noisy[0] + 0.5 * second)
    )
    assert 2 < twice["psnr_dwi"] - once["psnr_dwi"] < 3.1
    for name in ("fa_error", "md_error", "angular_error"):
        assert twice[name] < 0.9 * once[name]
    assert twice["ssim_dwi"] > once["ssim_dwi"]


@pytest.mark.parametrize("wrong", ["grid", "mask"])
def test_arrays_that_do_not_fit_are_refused(wrong: str) -> None:
    truth = normal((*GRID, 4))
    estimate = truth[1:] if wrong == "grid" else truth
    mask = EVERYWHERE[1:] if wrong == "mask" else EVERYWHERE
    with pytest.raises(BadDataError, match="one grid"):
        psnr(estimate, truth, mask, 1.0)
    with pytest.raises(BadDataError, match="empty"):
        psnr(truth, truth, ~EVERYWHERE, 1.0)


def test_white_residual_is_recognised() -> None:
    gradients = protocol()
    clean = np.broadcast_to(ndimage.gaussian_filter(normal(GRID, 3), 2)[..., None], (*GRID, 23)) * 500
    sigma = np.linspace(1, 3, GRID[0], dtype=np.float32)[:, None, None] * np.ones(GRID, dtype=np.float32)
    raw = clean + sigma[..., None] * normal(clean.shape, 4)
    found = residual_statistics(raw, clean, sigma, EVERYWHERE, gradients)
    assert found["residual_std"] == pytest.approx(1, abs=0.01)
    assert found["residual_std_b0"] == pytest.approx(1, abs=0.03)
    for name in (
        "residual_mean",
        "residual_edge_correlation",
        *(f"residual_autocorrelation_{a}" for a in "xyz"),
    ):
        assert found[name] == pytest.approx(0, abs=0.015), name


def test_correlated_residual_is_recognised_along_its_axis() -> None:
    gradients = protocol()
    noise = normal((*GRID, 23), 5)
    paired = (noise + np.roll(noise, 1, axis=0)) / np.sqrt(np.float32(2))
    found = residual_statistics(
        paired, np.zeros_like(paired), np.ones(GRID, np.float32), EVERYWHERE, gradients
    )
    along = [found[f"residual_autocorrelation_{axis}"] for axis in "xyz"]
    np.testing.assert_allclose(along, [0.5, 0, 0], atol=0.03)


def test_anatomy_in_the_residual_is_recognised(phantom: Phantom, noisy: tuple[Array, Array]) -> None:
    raw, sigma = noisy
    blurred = ndimage.gaussian_filter(phantom.clean_xyzv, (0.7, 0.7, 0.7, 0))
    clean, blurred = (
        residual_statistics(raw, estimate, sigma, phantom.mask_xyz, phantom.gradients)
        for estimate in (phantom.clean_xyzv, blurred)
    )
    assert abs(clean["residual_edge_correlation"]) < 0.02
    assert blurred["residual_edge_correlation"] > 0.1
    assert blurred["residual_std"] > 1.05 > clean["residual_std"]


def test_residuals_that_are_larger_at_edges_are_recognised_whatever_their_sign() -> None:
    anatomy = 100 * ndimage.gaussian_filter(normal(GRID, 8), 1.5)
    edges = np.linalg.norm(np.gradient(anatomy), axis=0)
    clean = np.repeat(anatomy[..., None], 23, axis=-1)
    raw = clean + normal(clean.shape, 9) * (0.2 + edges / edges.mean())[..., None].astype(np.float32)
    found = residual_statistics(raw, clean, np.ones(GRID, np.float32), EVERYWHERE, protocol())
    assert found["residual_edge_correlation"] > 0.3


def test_shell_means_are_means() -> None:
    gradients = make_protocol(2, {1000: 3, 2000: 4}, np.random.default_rng(0))
    data = np.zeros((*GRID, 9), dtype=np.float32)
    data[:] = 10 * gradients.shell + np.arange(9)
    means = shell_means(data, EVERYWHERE, gradients)
    expected = {
        f"b{b:g}": 10.0 * s + np.flatnonzero(gradients.shell == s).mean()
        for s, b in enumerate(gradients.shell_bvals)
    }
    assert means == pytest.approx(expected)


def test_repeat_spread_is_the_noise_of_b0() -> None:
    gradients = protocol(n_b0=3)
    data = 200 + 4 * normal((*GRID, 23), 6)
    median_of_chi = np.sqrt(2 * np.log(2) / 2)  # two degrees of freedom, unbiased variance
    assert repeat_spread(data, EVERYWHERE, gradients) == pytest.approx(median_of_chi * 4 / 200, rel=0.05)
    data[..., gradients.b0] = 200
    assert repeat_spread(data, EVERYWHERE, gradients) == 0
    assert np.isnan(repeat_spread(data[..., 2:], EVERYWHERE, protocol(n_b0=1)))


def test_neighbouring_correlation_compares_with_the_nearest_direction() -> None:
    directions = np.array([[0, 0, 0], [1, 0, 0], [0.99, 0.1, 0], [0, 1, 0], [0.1, 0.99, 0]])
    gradients = Gradients.from_arrays([0, 1000, 1000, 1000, 1000], directions)
    first, second, noise = normal(GRID, 1), normal(GRID, 2), normal((*GRID, 5), 3)
    data = np.stack([first, first, first, second, second], axis=-1) + noise
    expected = 0.5
    found = neighbouring_dwi_correlation(data, EVERYWHERE, gradients)
    assert found["neighbouring_dwi_correlation"] == pytest.approx(expected, abs=0.05)


def test_shells_are_measured_one_by_one() -> None:
    directions = np.tile([[1, 0, 0], [0.99, 0.1, 0]], (2, 1))
    gradients = Gradients.from_arrays([1000, 1000, 2000, 2000], directions)
    same, noise = normal(GRID, 1), normal((*GRID, 4), 3)
    data = np.stack([same, same, 0 * same, 0 * same], axis=-1) + noise
    found = neighbouring_dwi_correlation(data, EVERYWHERE, gradients)
    assert found["neighbouring_dwi_correlation_b1000"] == pytest.approx(0.5, abs=0.05)
    assert found["neighbouring_dwi_correlation_b2000"] == pytest.approx(0.0, abs=0.05)
    residual = residual_statistics(
        data, data - noise * [1, 1, 2, 2], np.ones(GRID, np.float32), EVERYWHERE, gradients
    )
    assert residual["residual_std_b1000"] == pytest.approx(1, abs=0.05)
    assert residual["residual_std_b2000"] == pytest.approx(2, abs=0.05)


@pytest.mark.parametrize("blur", [1.0, 1.5])
def test_edge_width_is_that_of_a_blurred_step(blur: float) -> None:
    step = np.zeros((48, 30, 30), dtype=np.float32)
    step[24:] = 100
    mask = np.ones(step.shape, dtype=bool)
    edge = ndimage.gaussian_filter(step, blur, mode="nearest")
    guide = edge + normal(edge.shape, 1)
    noisy_edge = edge + normal(edge.shape, 2)
    between_10_and_90 = 2 * 1.2816 * blur
    assert edge_width(noisy_edge, guide, mask) == pytest.approx(between_10_and_90, rel=0.12)


def test_noise_does_not_pass_for_sharpness() -> None:
    """The noisy run and its truth have the same edges, however strong the noise."""
    gradients = protocol(n_b0=1, n_directions=4)
    step = np.zeros((48, 30, 30), dtype=np.float32)
    step[24:] = 100
    edge = 50 + ndimage.gaussian_filter(step, 1.2, mode="nearest")
    clean = np.repeat(edge[..., None], 5, axis=-1)
    raw = clean + 40 * normal(clean.shape, 3)
    mask = np.ones(edge.shape, dtype=bool)
    found = no_reference_metrics(raw, clean, np.full(edge.shape, 40, np.float32), mask, gradients)
    assert found["edge_width_before"] == pytest.approx(found["edge_width_after"], rel=0.05)


def test_edge_width_without_edges_is_nan() -> None:
    assert np.isnan(edge_width(np.ones(GRID, np.float32), np.ones(GRID, np.float32), EVERYWHERE))
    assert np.isnan(edge_width(normal(GRID), normal(GRID), np.zeros(GRID, dtype=bool)))


def test_edge_slope_is_one_for_the_truth_and_more_for_weak_edges() -> None:
    gradients = protocol()
    clean = 20 * ndimage.gaussian_filter(normal((*GRID, 23), 1), (1, 1, 1, 0))
    raw = clean + normal(clean.shape, 2)
    assert edge_slope(raw, raw, EVERYWHERE, gradients) == pytest.approx(1, abs=1e-6)
    assert edge_slope(raw, clean, EVERYWHERE, gradients) == pytest.approx(1, abs=0.03)
    assert edge_slope(raw, (0.8 * clean).astype(np.float32), EVERYWHERE, gradients) == pytest.approx(
        1.25, abs=0.04
    )


def held_out_variance(gradients: Gradients, signal_v: Array, n_folds: int) -> float:
    """Error propagation by hand, in units of the noise: 1 + what the fit adds, for each held-out volume."""
    x, y, z = gradients.bvecs.T
    quadratic = np.stack([x * x, y * y, z * z, 2 * x * y, 2 * x * z, 2 * y * z], axis=1)
    design = np.column_stack([-gradients.bvals[:, None] * quadratic, np.ones(gradients.n_volumes)])
    variances = []
    dwi = np.flatnonzero(gradients.dwi)
    for held in (dwi[k::n_folds] for k in range(n_folds)):
        kept = [v for v in range(gradients.n_volumes) if v not in held]
        for v in held:
            weights = np.linalg.lstsq(design[kept].T, design[v], rcond=None)[0]
            variances.append(1 + ((weights * signal_v[v] / signal_v[kept]) ** 2).sum())
    return float(np.mean(variances))


def test_kfold_error_is_that_of_error_propagation() -> None:
    gradients = protocol(n_b0=4, n_directions=30)
    clean = tensor_signal(gradients, [1.2e-3, 0.5e-3], np.array([0, 1, 0], dtype=np.float32), s0=2000.0)
    raw = clean + 5 * normal(clean.shape, 1)
    sigma = np.full(GRID, 5, dtype=np.float32)
    at_truth = dti_kfold_error(raw, gradients, EVERYWHERE, sigma, fitted_xyzv=clean)
    at_raw = dti_kfold_error(raw, gradients, EVERYWHERE, sigma)
    assert at_truth == pytest.approx(1, abs=0.01)
    assert at_raw == pytest.approx(np.sqrt(held_out_variance(gradients, clean[0, 0, 0], 5)), abs=0.01)


def test_kfold_error_never_sees_the_held_out_volume() -> None:
    """A volume that is wrong only in the fitted data must not help to predict itself."""
    gradients = protocol(n_b0=2, n_directions=12)
    clean = tensor_signal(gradients, [1.0e-3, 0.5e-3], np.array([1, 0, 0], dtype=np.float32))
    sigma = np.ones(GRID, dtype=np.float32)
    raw = clean.copy()
    odd = int(np.flatnonzero(gradients.dwi)[3])
    raw[..., odd] += 10
    held_out = dti_kfold_error(raw, gradients, EVERYWHERE, sigma, fitted_xyzv=raw, n_folds=12)
    from_truth = dti_kfold_error(raw, gradients, EVERYWHERE, sigma, fitted_xyzv=clean, n_folds=12)
    assert from_truth == pytest.approx(10 / np.sqrt(12), rel=1e-3)
    assert held_out > from_truth


def test_kfold_error_needs_directions_beside_each_fold() -> None:
    with pytest.raises(BadDataError, match="beside each fold"):
        dti_kfold_error(
            100 + normal((*GRID, 9)), protocol(n_directions=6), EVERYWHERE, np.ones(GRID, np.float32)
        )


def test_no_reference_metrics_tell_truth_blur_and_nothing_apart(
    phantom: Phantom, noisy: tuple[Array, Array]
) -> None:
    raw, sigma = noisy
    found = {
        name: no_reference_metrics(raw, estimate, sigma, phantom.mask_xyz, phantom.gradients)
        for name, estimate in (
            ("truth", phantom.clean_xyzv),
            ("blur", ndimage.gaussian_filter(raw, (0.7, 0.7, 0.7, 0))),
            ("same", raw),
        )
    }
    for metrics in found.values():
        assert all(isinstance(value, float) and np.isfinite(value) for value in metrics.values())
    truth, blur, same = found["truth"], found["blur"], found["same"]
    assert 0.9 < truth["residual_std"] < 1.02
    assert same["residual_std"] == 0
    assert 0.85 < truth["edge_slope"] < 1.05 < blur["edge_slope"]
    assert blur["edge_width_after"] > 1.15 * blur["edge_width_before"]
    assert truth["edge_width_after"] < 1.05 * truth["edge_width_before"]
    assert truth["neighbouring_dwi_correlation_after"] > truth["neighbouring_dwi_correlation_before"]
    assert truth["dti_kfold_error_after"] < truth["dti_kfold_error_before"]
    for name in [name for name in same if name.endswith("_before")]:
        assert same[name] == same[name.replace("_before", "_after")]
    assert truth["b0_snr"] == pytest.approx(
        truth["mean_signal_b0_before"] / sigma[phantom.mask_xyz].mean(), rel=1e-4
    )


def test_a_single_slice_is_measured(phantom: Phantom, noisy: tuple[Array, Array]) -> None:
    raw, sigma = noisy
    z = raw.shape[2] // 2
    noisy_xyzv, clean_xyzv, sigma_xyz, mask_xyz = (
        array[:, :, z : z + 1] for array in (raw, phantom.clean_xyzv, sigma, phantom.mask_xyz)
    )
    found = no_reference_metrics(noisy_xyzv, clean_xyzv, sigma_xyz, mask_xyz, phantom.gradients)
    assert 0.9 < found["residual_std"] < 1.05
    assert "residual_autocorrelation_x" in found


def test_tensors_that_are_known_are_not_fitted_again(phantom: Phantom, noisy: tuple[Array, Array]) -> None:
    raw, sigma = noisy
    gradients, mask_xyz = phantom.gradients, phantom.mask_xyz
    known = fit_tensor(raw, gradients, mask_xyz), fit_tensor(phantom.clean_xyzv, gradients, mask_xyz)
    found = no_reference_metrics(raw, phantom.clean_xyzv, sigma, mask_xyz, gradients, tensors=known)
    for when, maps in zip(("before", "after"), known, strict=True):
        assert found[f"fa_mean_{when}"] == pytest.approx(maps.fa_xyz[mask_xyz].mean(), rel=1e-5)
    halved = replace(known[0], fa_xyz=0.5 * known[0].fa_xyz)
    other = no_reference_metrics(
        raw, phantom.clean_xyzv, sigma, mask_xyz, gradients, tensors=(halved, known[1])
    )
    assert other["fa_mean_before"] == pytest.approx(0.5 * found["fa_mean_before"])


@pytest.mark.parametrize(("n_b0", "n_directions"), [(1, 7), (2, 2)])
def test_what_a_protocol_cannot_tell_is_left_out(n_b0: int, n_directions: int) -> None:
    gradients = protocol(n_b0=n_b0, n_directions=n_directions)
    raw = 100 + normal((*GRID, gradients.n_volumes))
    found = no_reference_metrics(raw, raw, np.ones(GRID, np.float32), EVERYWHERE, gradients)
    assert ("b0_repeat_spread_before" in found) == (n_b0 > 1)
    assert ("fa_mean_before" in found) == (n_directions >= 6)
    assert "dti_kfold_error_before" not in found


@pytest.mark.parametrize("wrong", ["sigma", "volumes", "noise map"])
def test_no_reference_metrics_refuse_what_does_not_fit(wrong: str) -> None:
    gradients = protocol(n_directions=8, n_b0=1)
    raw = 100 + normal((*GRID, 10 if wrong == "volumes" else 9))
    sigma = np.ones(GRID if wrong != "noise map" else (2, 2, 2), np.float32)
    if wrong == "sigma":
        sigma[3, 3, 3] = 0
    with pytest.raises(BadDataError, match="expected"):
        no_reference_metrics(raw, raw, sigma, EVERYWHERE, gradients)


@pytest.mark.parametrize("name", ["small_64D", "small_101D"])
def test_real_signals_are_measured(name: str) -> None:
    image_file, bval, bvec = get_fnames(name=name)
    raw = nib.Nifti1Image.from_filename(image_file).get_fdata(dtype=np.float32)
    gradients = load_gradients(bval, bvec, raw.shape[3])
    mask = raw[..., 0] > 0
    blurred = ndimage.gaussian_filter(raw, (0.7, 0.7, 0.7, 0))
    sigma = np.full(mask.shape, raw[mask].std() / 20, dtype=np.float32)
    found = no_reference_metrics(raw, blurred, sigma, mask, gradients)
    assert 0 < found["fa_mean_before"] < 1
    assert found["fa_mean_after"] < found["fa_mean_before"]
    assert 2e-4 < found["md_mean_before"] < 3e-3
    assert found["neighbouring_dwi_correlation_after"] > found["neighbouring_dwi_correlation_before"]
    assert found["edge_slope"] > 1.2
