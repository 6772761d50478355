"""Motion of the head: known moves are found again, a head at rest rests, eddy currents are no motion."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from dwmri_bidsapp.gradients import Gradients
from dwmri_bidsapp.metrics import estimate_motion, framewise_displacement, motion_measures
from dwmri_bidsapp.simulation import Phantom, make_protocol, simulate_phantom

VOXEL_MM = 3.5


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    gradients = make_protocol(4, {2500.0: 40}, np.random.default_rng(0))
    return simulate_phantom(gradients=gradients, seed=1, voxel_size=VOXEL_MM)


def acquire(phantom: Phantom, motion_v6: NDArray[np.float64], snr: float = 10.0) -> NDArray[np.float32]:
    """Move the head and add Rician noise."""
    rng = np.random.default_rng(3)
    b0 = phantom.gradients.b0
    sigma = float(phantom.clean_xyzv[..., b0][phantom.mask_xyz].mean()) / snr
    middle = np.argwhere(phantom.mask_xyz).mean(axis=0)
    acquired = np.empty_like(phantom.clean_xyzv)
    for v, motion in enumerate(motion_v6):
        turn = Rotation.from_rotvec(motion[3:]).as_matrix()
        offset = middle - turn @ middle + motion[:3] / VOXEL_MM
        moved = ndimage.affine_transform(phantom.clean_xyzv[..., v], turn, offset, order=3, mode="nearest")
        acquired[..., v] = np.hypot(
            moved + sigma * rng.standard_normal(moved.shape), sigma * rng.standard_normal(moved.shape)
        )
    return acquired


def displacement(phantom: Phantom, motion_v6: NDArray[np.float64]) -> NDArray[np.float64]:
    acquired = acquire(phantom, motion_v6)
    found = estimate_motion(acquired, phantom.gradients, phantom.mask_xyz, [VOXEL_MM] * 3)
    return framewise_displacement(found)[1:]


def test_framewise_displacement_is_that_of_power() -> None:
    motion = np.array([[0, 0, 0, 0, 0, 0], [1, -0.5, 0, 0, 0.01, 0], [1, -0.5, 0, 0, 0.01, -0.02]])
    np.testing.assert_allclose(framewise_displacement(motion), [np.nan, 1 + 0.5 + 50 * 0.01, 50 * 0.02])


def test_a_head_at_rest_rests_in_spite_of_noise(phantom: Phantom) -> None:
    moved = displacement(phantom, np.zeros((44, 6)))
    assert moved.max() < 0.3
    assert moved.mean() < 0.15


def test_a_known_move_is_found_again(phantom: Phantom) -> None:
    motion = np.zeros((44, 6))
    motion[20:] = [0.6, -0.9, 0.5, 0.01, -0.006, 0.012]
    found = estimate_motion(
        acquire(phantom, motion), phantom.gradients, phantom.mask_xyz, np.full(3, VOXEL_MM)
    )
    step = np.median(found[21:], axis=0) - np.median(found[:19], axis=0)
    np.testing.assert_allclose(step[:3], motion[20, :3], atol=0.2)
    np.testing.assert_allclose(step[3:], motion[20, 3:], atol=0.003)
    moved = framewise_displacement(found)[1:]
    assert np.argmax(moved) == 19
    assert moved[19] == pytest.approx(framewise_displacement(motion)[20], rel=0.35)
    assert np.median(np.delete(moved, 19)) < 0.3


def test_a_restless_head_is_not_taken_for_noise(phantom: Phantom) -> None:
    rng = np.random.default_rng(5)
    motion = rng.normal(0, [0.3] * 3 + [0.006] * 3, (44, 6))
    true = framewise_displacement(motion)[1:]
    found = displacement(phantom, motion)
    assert 0.25 * true.mean() < found.mean() < true.mean()
    assert found.mean() > 0.5  # the warning comes


def test_eddy_currents_are_not_motion(phantom: Phantom) -> None:
    shift = np.zeros((44, 6))
    shift[:, 1] = phantom.gradients.bvecs @ [1.0, 0.5, -0.8]
    assert framewise_displacement(shift)[1:].mean() > 0.8
    assert displacement(phantom, shift).mean() < 0.25


def test_too_few_directions_say_nothing() -> None:
    gradients = make_protocol(1, {1000.0: 15}, np.random.default_rng(0))
    signal = np.random.default_rng(1).normal(500, 10, (24, 24, 24, 16)).astype(np.float32)
    found = estimate_motion(signal, gradients, np.ones((24, 24, 24), dtype=bool), [2, 2, 2])
    assert np.isnan(found).all()
    assert motion_measures(framewise_displacement(found)) == {}


def test_measures_are_given_where_most_volumes_are_known() -> None:
    known = motion_measures(np.array([np.nan, 0.2, 0.4, 0.9, np.nan]))
    assert known == {"fd_mean": pytest.approx(0.5), "fd_max": pytest.approx(0.9)}
    assert motion_measures(np.array([np.nan, 0.2, np.nan, np.nan, np.nan])) == {}


def test_volumes_without_signal_do_not_break_it() -> None:
    rng = np.random.default_rng(2)
    bvecs = rng.standard_normal((24, 3))
    gradients = Gradients.from_arrays([0, 0] + [1000] * 22, bvecs / np.linalg.norm(bvecs, axis=1)[:, None])
    signal = rng.normal(500, 10, (24, 24, 24, 24)).astype(np.float32)
    signal[..., 7] = 0
    assert np.isfinite(estimate_motion(signal, gradients, np.ones((24, 24, 24), dtype=bool), [2, 2, 2])).all()
