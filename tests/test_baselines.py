"""Other denoisers: they get what they should, give back what they should, and lower the error."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from dwmri_bidsapp.denoising.baselines import BASELINES, patch_radius
from dwmri_bidsapp.gradients import Gradients

SHAPE = (12, 12, 10)
SIGMA = 10.0


def smooth_run(
    seed: int = 0,
) -> tuple[NDArray[np.float32], NDArray[np.float32], Gradients, NDArray[np.bool_]]:
    """Signals of few components, so that a local PCA and a regression can find them."""
    rng = np.random.default_rng(seed)
    bvecs = rng.standard_normal((24, 3))
    gradients = Gradients.from_arrays([0] * 4 + [1000] * 20, bvecs / np.linalg.norm(bvecs, axis=1)[:, None])
    parts_3v = rng.uniform(50, 150, (3, 24))
    weights_xyz3 = rng.uniform(0, 1, (*SHAPE, 3))
    clean = (weights_xyz3 @ parts_3v).astype(np.float32)
    mask = np.zeros(SHAPE, dtype=bool)
    mask[1:-1, 1:-1, 1:-1] = True
    return clean, clean + rng.normal(0, SIGMA, clean.shape).astype(np.float32), gradients, mask


@pytest.mark.parametrize("name", BASELINES)
def test_the_error_falls_inside_and_nothing_changes_outside(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    clean, noisy, gradients, mask = smooth_run()
    before = noisy.copy()
    denoised = BASELINES[name](noisy, gradients, mask)
    assert denoised.shape == noisy.shape
    assert denoised.dtype == np.dtype("float32")
    np.testing.assert_array_equal(noisy, before, err_msg="the input was changed")
    np.testing.assert_array_equal(denoised[~mask], noisy[~mask])
    dwi = gradients.dwi
    error = float((denoised - clean)[mask][:, dwi].std())
    assert error < 0.8 * SIGMA, f"{name}: {error}"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("n_volumes", [20, 22, 24])  # all, all but two, all but four of DIPY's fifths
def test_patch2self_gives_every_volume_back_in_its_place(n_volumes: int) -> None:
    clean, noisy, gradients, mask = smooth_run()
    kept = np.arange(n_volumes)
    denoised = BASELINES["patch2self"](noisy[..., kept], gradients.select(kept), mask)
    error_v = (denoised - clean[..., kept])[mask].std(axis=0)
    assert (error_v[4:] < SIGMA).all(), error_v.round(1)


def test_patch2self_is_told_which_volumes_are_b0() -> None:
    _, noisy, gradients, mask = smooth_run()
    low = Gradients.from_arrays(np.where(gradients.b0, 30.0, 40.0), gradients.bvecs + 1e-9, b0_threshold=35)
    high = Gradients.from_arrays(np.where(gradients.b0, 0.0, 1000.0), gradients.bvecs + 1e-9)
    np.testing.assert_array_equal(low.b0, high.b0)
    np.random.seed(0)  # noqa: NPY002 (DIPY draws its sketch from the global generator)
    one = BASELINES["patch2self"](noisy, low, mask)
    np.random.seed(0)  # noqa: NPY002
    np.testing.assert_allclose(one, BASELINES["patch2self"](noisy, high, mask), rtol=1e-5)


def test_a_patch_holds_more_voxels_than_there_are_volumes() -> None:
    assert [patch_radius(n) for n in (6, 124, 125, 342, 343)] == [2, 2, 3, 3, 4]
