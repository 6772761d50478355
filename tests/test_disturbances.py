"""What spoils a clean run: the mean of its noise, and volumes out of line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dwmri_bidsapp.denoising.noise import correct_rician_bias, rician_mean
from dwmri_bidsapp.errors import UsageError
from dwmri_bidsapp.simulation import (
    Phantom,
    add_noise,
    expected_magnitude,
    invert_expected_magnitude,
    make_protocol,
    move_volumes,
    simulate_phantom,
)


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    gradients = make_protocol(2, {1000: 6, 2000: 6}, np.random.default_rng(0))
    return simulate_phantom(gradients=gradients, seed=3, shape=(24, 26, 20), voxel_size=3.0)


@pytest.mark.parametrize("kind", ["rician", "chi", "zero-filled"])
@pytest.mark.parametrize("signal", [0.0, 1.5, 4.0, 12.0, 90.0])
def test_expected_magnitude_is_the_mean_of_the_noise(kind: Any, signal: float) -> None:
    clean = np.full((40, 40, 40, 4), signal, dtype=np.float32)
    noisy, sigma_xyz = add_noise(clean, sigma=2.0, rng=np.random.default_rng(0), kind=kind, n_coils=3)
    expected = expected_magnitude(clean, sigma_xyz[..., None], kind, 3)
    assert expected.dtype == np.float32
    # zero-filled noise has fewer independent values
    assert abs(noisy.mean(dtype=np.float64) - expected.mean(dtype=np.float64)) < 0.02


def test_expected_magnitude_of_one_coil_is_the_rician_mean() -> None:
    snr = np.linspace(0, 29, 300).astype(np.float32)
    np.testing.assert_allclose(expected_magnitude(snr, 1.0), rician_mean(snr), atol=1e-4)
    np.testing.assert_allclose(expected_magnitude(snr, 1.0, "chi", 1), rician_mean(snr), atol=1e-4)


@pytest.mark.parametrize("kind", ["rician", "chi"])
def test_inverse_gives_the_signal_back(kind: Any) -> None:
    signal = np.linspace(0.5, 300, 2000).astype(np.float32)
    back = invert_expected_magnitude(expected_magnitude(signal, 2.0, kind), 2.0, kind)
    np.testing.assert_allclose(back, signal, atol=0.01)
    assert invert_expected_magnitude(np.zeros(1, np.float32), 2.0, kind) == 0
    no_noise = invert_expected_magnitude(np.array([100, 3], np.float32), np.zeros(2, np.float32), kind)
    assert no_noise.tolist() == [100, 3]
    if kind == "rician":
        np.testing.assert_allclose(back, correct_rician_bias(expected_magnitude(signal, 2.0), 2.0), atol=0.05)


def test_no_motion_changes_nothing(phantom: Phantom) -> None:
    still = move_volumes(phantom.clean_xyzv, phantom.gradients, 3.0, 0.0, np.random.default_rng(0))
    np.testing.assert_array_equal(still, phantom.clean_xyzv)


def test_motion_moves_each_volume_on_its_own(phantom: Phantom) -> None:
    """By about what was asked for, measured by the centre of mass."""
    gradients = phantom.gradients
    moved = move_volumes(phantom.clean_xyzv, gradients, 3.0, 1.5, np.random.default_rng(1))
    np.testing.assert_array_equal(moved[..., 0], phantom.clean_xyzv[..., 0])
    assert moved.min() >= 0

    def centre(volume_xyz: np.ndarray) -> np.ndarray:
        return (
            np.array([(np.indices(volume_xyz.shape)[a] * volume_xyz).sum() for a in range(3)])
            / volume_xyz.sum()
        )

    shifts_mm = [
        3.0 * (centre(moved[..., v]) - centre(phantom.clean_xyzv[..., v]))
        for v in range(1, gradients.n_volumes)
    ]
    assert 0.5 < np.std(shifts_mm) < 2.5
    assert np.abs(np.corrcoef(shifts_mm)).mean() < 0.9


def test_distortion_follows_the_direction_and_the_b_value(phantom: Phantom) -> None:
    """Without shift and turn, b=0 volumes stay, and the second axis alone is distorted."""

    class NoShift(np.random.Generator):
        """Draws the distortion, and zeros for whatever has three numbers."""

        def normal(self, loc: Any = 0.0, scale: Any = 1.0, size: Any = None) -> Any:
            return np.zeros(3) if size == 3 else super().normal(loc, scale, size)

    columns = np.zeros((24, 26, 20, phantom.gradients.n_volumes), dtype=np.float32)
    columns[..., :] = np.arange(24, dtype=np.float32)[:, None, None, None]
    moved = move_volumes(columns, phantom.gradients, 3.0, 3.0, NoShift(np.random.PCG64(0)))
    inside = (slice(None), slice(8, 18), slice(6, 14))
    np.testing.assert_allclose(moved[inside], columns[inside], atol=0.2)
    rows = np.moveaxis(columns, 0, 1)
    moved = move_volumes(rows, phantom.gradients, 3.0, 3.0, NoShift(np.random.PCG64(0)))
    change = np.abs(moved - rows)[8:16, 8:16, 8:12].mean(axis=(0, 1, 2))
    np.testing.assert_allclose(change[phantom.gradients.b0], 0, atol=1e-4)
    assert change[phantom.gradients.shell == 2].mean() > 1.3 * change[phantom.gradients.shell == 1].mean()


def test_motion_is_the_seeds(phantom: Phantom) -> None:
    first, again = (
        simulate_phantom(gradients=phantom.gradients, seed=3, shape=(12, 12, 10), motion=1.0)
        for _ in range(2)
    )
    np.testing.assert_array_equal(first.clean_xyzv, again.clean_xyzv)
    still = simulate_phantom(gradients=phantom.gradients, seed=3, shape=(12, 12, 10))
    np.testing.assert_array_equal(first.mask_xyz, still.mask_xyz)
    assert not np.allclose(first.clean_xyzv[..., 1:], still.clean_xyzv[..., 1:])
    with pytest.raises(UsageError, match="0 mm or more"):
        move_volumes(still.clean_xyzv, phantom.gradients, 2.0, -1.0, np.random.default_rng(0))
