"""The fusion of the estimates: what it sees, what becomes of the result with it, and that it helps."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from dwmri_bidsapp.workflows.denoise import init_denoise_wf
from numpy.typing import NDArray

from dwmri_bidsapp.denoising import DenoiseOptions, denoise
from dwmri_bidsapp.denoising.blind import bounding_box
from dwmri_bidsapp.denoising.denoise import make_model, to_snr_units
from dwmri_bidsapp.denoising.fusion import FUSION, SINGLE_B0, Estimates, make_fusion
from dwmri_bidsapp.denoising.local_pca import angular_contrasts, overcomplete_local_pca
from dwmri_bidsapp.denoising.reconstruct import (
    LEAST_PCA_SHARE,
    PCA_SHARE_PER_ERROR,
    fused_pca_share,
)
from dwmri_bidsapp.denoising.voxels import Voxels, signals_of
from dwmri_bidsapp.simulation import Phantom, add_noise, b0_signal, make_protocol, simulate_phantom

START = DenoiseOptions(init="random", base_filters=4, max_steps=0, mixed_precision=False)


def noisy_phantom(
    snr: float = 20, n_dwi: int = 12, shape: tuple[int, int, int] = (16, 18, 14), voxel_size: float = 5
) -> tuple[Phantom, NDArray[np.float32], NDArray[np.float32]]:
    rng = np.random.default_rng(11)
    gradients = make_protocol(1, {1000.0: n_dwi}, rng)
    phantom = simulate_phantom(gradients=gradients, seed=11, shape=shape, voxel_size=voxel_size)
    data, sigma_xyz = add_noise(phantom.clean_xyzv, sigma=b0_signal(phantom) / snr, rng=rng)
    return phantom, data, sigma_xyz


def weights_file(folder: Path, bias: float | None) -> str:
    """Weights of an untrained network; given a constant, also of fusions that add it, twice that to a single b=0."""
    weights = dict(make_model(START).state_dict())
    if bias is not None:
        for prefix, constant in ((FUSION, bias), (SINGLE_B0, 2 * bias)):
            fusion = make_fusion(0, prefix)
            torch.nn.init.constant_(fusion.correct.bias, constant)
            weights |= {prefix + name: value for name, value in fusion.state_dict().items()}
    path = folder / "weights.pt"
    torch.save(weights, path)
    return str(path)


def test_inputs_are_the_estimates_of_a_box() -> None:
    mask = torch.rand((7, 6, 5), generator=torch.Generator().manual_seed(0)) > 0.3
    voxels = Voxels(mask)
    values = torch.arange(3 * 4 * len(voxels), dtype=torch.float32).view(3, 4, -1) + 1
    seen = Estimates(voxels, lambda v: list(values[v]), torch.tensor([0, 2]))
    boxes = [(slice(1, 5), slice(0, 4), slice(2, 5)), (slice(2, 6), slice(2, 6), slice(0, 3))]
    inputs, coordinates = seen.inputs([2, 0], boxes)
    assert inputs.shape == (2, 4, 4, 4, 3) and len(coordinates) == 2
    for sample, volume, box in zip(inputs, (2, 0), boxes, strict=True):
        for channel in range(4):
            assert torch.equal(sample[channel], voxels.scatter(values[volume, channel])[box])


def test_result_is_the_fused_estimate_and_a_share_of_the_local_pca(tmp_path: Path) -> None:
    """A fusion that adds one noise unit to the mean: the result is that, moved towards the local PCA by the error."""
    phantom, data, sigma_xyz = noisy_phantom()
    mask_xyz, gradients = phantom.mask_xyz, phantom.gradients

    def result(*left_out: str) -> tuple[NDArray[np.float32], dict]:
        options = dataclasses.replace(
            START, init=weights_file(tmp_path, 1.0), leave_out=("twicing", *left_out)
        )
        found = denoise(data, gradients, mask_xyz, options, sigma_xyz=sigma_xyz, device="cpu")
        return found.dwi_xyzv[mask_xyz] / sigma_xyz[mask_xyz][:, None], found.info

    mean_nv, without = result("fusion")
    found_nv, info = result()
    snr = to_snr_units(signals_of(data, mask_xyz), sigma_xyz[mask_xyz])
    mask = torch.from_numpy(mask_xyz[bounding_box(mask_xyz)])
    pca_nv = overcomplete_local_pca(snr, mask, angular_contrasts(gradients)).float().T.numpy()
    b0 = int(np.flatnonzero(gradients.b0)[0])
    # results are held in 16 bits: near 60 the step is 0.03
    np.testing.assert_allclose(mean_nv[:, b0], pca_nv[:, b0], atol=0.02, rtol=1e-3)
    np.testing.assert_allclose(
        found_nv[:, b0], pca_nv[:, b0] + 2, atol=0.02, rtol=1e-3, err_msg="nothing predicts a single b=0"
    )
    mean_nv, found_nv, pca_nv = (values[:, gradients.dwi] for values in (mean_nv, found_nv, pca_nv))
    share = info["local_pca_share"]["1000"]
    error = (without["local_pca_share"]["1000"] - LEAST_PCA_SHARE) / PCA_SHARE_PER_ERROR
    assert share == pytest.approx(fused_pca_share(error), abs=1e-3)
    assert 0.02 < share < 1 and (without["fusion"], info["fusion"]) == (False, True)
    expected_nv = mean_nv + 1 + share * (pca_nv - mean_nv - 1)
    # the share of a single volume is not that of the whole shell
    assert np.abs(found_nv - expected_nv).mean() < 0.03
    assert np.abs(found_nv - mean_nv).mean() > 0.1


@pytest.mark.parametrize("left_out", ["fusion", "local-pca"])
def test_weights_may_come_without_a_fusion(tmp_path: Path, left_out: str) -> None:
    phantom, data, _ = noisy_phantom()

    def result(bias: float | None) -> NDArray[np.float32]:
        options = dataclasses.replace(START, init=weights_file(tmp_path, bias), leave_out=(left_out,))
        return denoise(data, phantom.gradients, phantom.mask_xyz, options, device="cpu").dwi_xyzv

    assert np.array_equal(result(None), result(1.0))


@pytest.mark.parametrize(("snr", "n_dwi"), [(10, 24), (25, 12)])
def test_shipped_fusion_beats_the_mean_on_a_brain(snr: float, n_dwi: int) -> None:
    phantom, data, sigma_xyz = noisy_phantom(snr, n_dwi, (30, 34, 20), 2.5)
    squares = {}
    for left_out in ((), ("fusion",)):
        options = DenoiseOptions(max_steps=0, leave_out=left_out)
        found = denoise(data, phantom.gradients, phantom.mask_xyz, options, sigma_xyz=sigma_xyz, device="cpu")
        errors = (found.dwi_xyzv - phantom.clean_xyzv)[phantom.mask_xyz]
        squares[left_out] = np.square(errors).mean(axis=0)
    ours, mean = squares[()], squares[("fusion",)]
    dwi = phantom.gradients.dwi
    assert ours[dwi].mean() < 0.98 * mean[dwi].mean()
    assert ours[~dwi].mean() < 0.85 * mean[~dwi].mean(), "the local PCA leaves a single b=0 most of its noise"


FUSED = "were fused by a second, small network"
OF_ITS_OWN = "without a prediction, by a third such network"
GIVEN_BACK = "averaged over neighbouring voxels, a share was added"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, {FUSED, OF_ITS_OWN, GIVEN_BACK}),
        ({"init": "random"}, {GIVEN_BACK}),
        ({"leave_out": ("fusion",)}, {GIVEN_BACK}),
        ({"leave_out": ("twicing",)}, {FUSED, OF_ITS_OWN}),
        ({"blend": False}, set()),
    ],
)
def test_methods_text_tells_of_fusion_and_twicing_where_there_are_any(
    tmp_path: Path, changes: dict, told: set
) -> None:
    workflow = init_denoise_wf(
        method=DenoiseOptions(**changes),
        given_noise_map=False,
        output_dtype="float32",
        gpu_ids=(),
        omp_nthreads=1,
        n_procs=1,
        mem_gb=1.0,
        lock_dir=tmp_path,
        checkpoint_dir=tmp_path,
    )
    text = workflow.visit_desc()
    assert {words for words in (FUSED, OF_ITS_OWN, GIVEN_BACK) if words in text} == told
