"""The front door: the invariant end to end, gain over the noisy input, determinism, bad input."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dwmri_bidsapp.denoising import Denoised, denoise
from dwmri_bidsapp.denoising.blind import bounding_box
from dwmri_bidsapp.denoising.denoise import make_model, to_snr_units
from dwmri_bidsapp.denoising.local_pca import angular_contrasts, overcomplete_local_pca
from dwmri_bidsapp.denoising.voxels import signals_of
from dwmri_bidsapp.errors import BadDataError, UsageError
from dwmri_bidsapp.gradients import Gradients
from dwmri_bidsapp.options import AUTOMATIC, DenoiseOptions
from dwmri_bidsapp.simulation import Phantom, add_noise, b0_signal, make_protocol, simulate_phantom

QUICK = DenoiseOptions(
    init="random",
    base_filters=4,
    max_steps=20,
    batch_size=2,
    patch_size=12,
    learning_rate=3e-3,
    mixed_precision=False,
)
UNTRAINED = dataclasses.replace(QUICK, max_steps=0)
BLIND = dataclasses.replace(UNTRAINED, blend=False)


def make_phantom(shape: tuple[int, int, int] = (21, 25, 17), n_b0: int = 2, n_dwi: int = 20) -> Phantom:
    gradients = make_protocol(n_b0, {1500.0: n_dwi}, np.random.default_rng(0))
    return simulate_phantom(gradients=gradients, seed=3, shape=shape)


def noisy_run(phantom: Phantom, snr: float, seed: int = 0) -> tuple[NDArray[np.float32], float]:
    sigma = b0_signal(phantom) / snr
    return add_noise(phantom.clean_xyzv, sigma=sigma, rng=np.random.default_rng(seed))[0], sigma


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return make_phantom()


@pytest.fixture(scope="module")
def noisy(phantom: Phantom) -> NDArray[np.float32]:
    return noisy_run(phantom, 20)[0]


@pytest.fixture(scope="module")
def sigma_xyz(phantom: Phantom) -> NDArray[np.float32]:
    return np.full(phantom.mask_xyz.shape, b0_signal(phantom) / 20, dtype=np.float32)


@pytest.fixture(scope="module")
def quick(phantom: Phantom, noisy: NDArray[np.float32]) -> Denoised:
    return denoise(noisy, phantom.gradients, phantom.mask_xyz, QUICK, device="cpu")


@pytest.fixture(scope="module")
def trained_weights(
    tmp_path_factory: pytest.TempPathFactory, phantom: Phantom, noisy: NDArray[np.float32]
) -> str:
    """Weights of a real, short training on the noisy run, then held fixed."""
    folder = tmp_path_factory.mktemp("weights")
    options = dataclasses.replace(QUICK, max_steps=40, learning_rate=1e-2)
    denoise(noisy, phantom.gradients, phantom.mask_xyz, options, device="cpu", checkpoint_dir=folder)
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    torch.save(state["best_weights"], folder / "weights.pt")
    assert float(state["best_weights"]["correct.weight"].abs().max()) > 0
    return str(folder / "weights.pt")


def errors(estimate: NDArray[np.float32], phantom: Phantom) -> NDArray[np.float64]:
    """Mean squared error of each volume in the brain."""
    return ((estimate - phantom.clean_xyzv)[phantom.mask_xyz].astype(np.float64) ** 2).mean(axis=0)


def sensitivities(
    options: DenoiseOptions, phantom: Phantom, noisy: NDArray[np.float32], sigma_xyz: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Change of the prediction of v at a voxel per change of the measurement of v there; 8 voxels and volumes."""

    def predict(data: NDArray[np.float32]) -> NDArray[np.float32]:
        return denoise(
            data, phantom.gradients, phantom.mask_xyz, options, sigma_xyz=sigma_xyz, device="cpu"
        ).dwi_xyzv

    rng = np.random.default_rng(4)
    step = np.float32(8 * sigma_xyz[0, 0, 0])
    before = predict(noisy)
    inside = np.argwhere(phantom.mask_xyz)
    edge = inside[[0, len(inside) - 1]]
    found = []
    for x, y, z in np.vstack([edge, inside[rng.choice(len(inside), 6, replace=False)]]):
        v = int(rng.integers(noisy.shape[3]))
        changed = noisy.copy()
        changed[x, y, z, v] += step
        after = predict(changed)
        assert not np.array_equal(before, after), "the change must be seen somewhere"
        found.append(float(after[x, y, z, v] - before[x, y, z, v]) / float(step))
    return np.array(found)


def test_prediction_that_looks_at_its_voxel_only_does_not_know_its_own_measurement(
    phantom: Phantom, noisy: NDArray[np.float32], sigma_xyz: NDArray[np.float32]
) -> None:
    """Mask, scaling, noise level (given), base and an untrained network, whose correction is 0: exactly nothing."""
    assert sensitivities(BLIND, phantom, noisy, sigma_xyz).tolist() == [0.0] * 8


@pytest.mark.parametrize("weights", ["trained", "random"])
def test_own_measurement_reaches_the_prediction_through_neighbouring_covariances_only(
    phantom: Phantom,
    noisy: NDArray[np.float32],
    sigma_xyz: NDArray[np.float32],
    trained_weights: str,
    weights: str,
    tmp_path: Path,
) -> None:
    """A network of fixed weights sees the base around the voxel, and the base of the *neighbouring* blocks knows the
    value through its covariance, a statistic over hundreds of voxels: small, but not zero. Three other statistics
    depend on the voxel and are held fixed here: the estimated noise level, a mask made from the b=0 volumes, and
    the weights where they are trained on the run. Blending uses the value on purpose and is off.

    Measured: mean 0.0004, largest 0.0015 with trained weights; 0.0023 and 0.0073 with large random ones.
    """
    if weights == "random":
        state = make_model(QUICK).state_dict()
        torch.nn.init.normal_(state["correct.weight"], std=0.3, generator=torch.Generator().manual_seed(1))
        torch.save(state, tmp_path / "random.pt")
    init = trained_weights if weights == "trained" else str(tmp_path / "random.pt")
    found = np.abs(sensitivities(dataclasses.replace(BLIND, init=init), phantom, noisy, sigma_xyz))
    print(
        f"{weights}: mean {found.mean():.5f} and largest {found.max():.5f} |d prediction / d own measurement|"
    )
    assert found.mean() < 0.01
    assert found.max() < 0.04


def test_with_blending_the_own_measurement_counts(
    phantom: Phantom, noisy: NDArray[np.float32], sigma_xyz: NDArray[np.float32]
) -> None:
    """The measure of the invariant would notice a leak."""
    assert np.abs(sensitivities(UNTRAINED, phantom, noisy, sigma_xyz)).mean() > 0.05


@pytest.mark.parametrize("snr", [10, 20, 40])
def test_every_volume_gets_better(phantom: Phantom, snr: float) -> None:
    data, sigma = noisy_run(phantom, snr, seed=int(snr))
    found = denoise(data, phantom.gradients, phantom.mask_xyz, QUICK, device="cpu")
    assert np.median(found.sigma_xyz[phantom.mask_xyz]) == pytest.approx(sigma, rel=0.15)
    ratio = errors(found.dwi_xyzv, phantom) / errors(data, phantom)
    assert ratio.max() < 1.0
    assert ratio[phantom.gradients.dwi].mean() < 0.75


def test_form_of_the_result(phantom: Phantom, noisy: NDArray[np.float32], quick: Denoised) -> None:
    outside = ~phantom.mask_xyz
    for array, shape in (
        (quick.dwi_xyzv, noisy.shape),
        (quick.sigma_xyz, outside.shape),
        (quick.uncertainty_xyz, outside.shape),
    ):
        assert array.shape == shape and array.dtype == np.float32 and np.isfinite(array).all()
    assert np.array_equal(quick.dwi_xyzv[outside], noisy[outside])
    assert (quick.sigma_xyz > 0).all()
    inside = quick.uncertainty_xyz[phantom.mask_xyz]
    assert (inside > 0).any() and (inside <= quick.sigma_xyz[phantom.mask_xyz] * 1.001).all()
    assert quick.info["steps"] == 20 and quick.info["stop_reason"] == "max-steps"
    assert 0 <= quick.info["data_loading_share"] < 0.5
    assert quick.info["warnings"] == []


def test_same_seed_same_bits_and_the_input_is_not_touched(
    phantom: Phantom, noisy: NDArray[np.float32], quick: Denoised
) -> None:
    torch.manual_seed(77)
    state = torch.get_rng_state()
    data = noisy.copy()
    again = denoise(data, phantom.gradients, phantom.mask_xyz, QUICK, device="cpu")
    assert np.array_equal(data, noisy)
    assert np.array_equal(again.dwi_xyzv, quick.dwi_xyzv)
    assert torch.equal(state, torch.get_rng_state()), "nothing may be drawn from, or seeded, globally"
    # larger blocks, a worse start, and more steps: with QUICK none may improve on the start, which is the same for all
    learning = dataclasses.replace(QUICK, block=4, max_steps=60)
    one, other = (
        denoise(
            data,
            phantom.gradients,
            phantom.mask_xyz,
            dataclasses.replace(learning, random_seed=seed),
            device="cpu",
        )
        for seed in (0, 1)
    )
    assert not np.array_equal(other.dwi_xyzv, one.dwi_xyzv)


def test_convolutions_in_float32_are_not_rounded_to_tf32() -> None:
    """The flag counts on GPUs only, and is seen anywhere."""
    data, gradients, mask = small_input()
    options = dataclasses.replace(QUICK, max_steps=1, patch_size=8)
    seen: list[bool] = []

    def look(*_: object) -> None:
        seen.append(torch.backends.cudnn.allow_tf32)

    before = torch.backends.cudnn.allow_tf32
    denoise(data, gradients, mask, options, device="cpu", progress=look)
    assert seen and not any(seen)
    assert torch.backends.cudnn.allow_tf32 == before, "others may want it"


def test_overwriting_gives_the_same_in_the_given_array(phantom: Phantom, noisy: NDArray[np.float32]) -> None:
    data = noisy.copy()
    expected = denoise(noisy, phantom.gradients, phantom.mask_xyz, UNTRAINED, device="cpu")
    found = denoise(data, phantom.gradients, phantom.mask_xyz, UNTRAINED, device="cpu", overwrite=True)
    assert found.dwi_xyzv is data
    assert np.array_equal(found.dwi_xyzv, expected.dwi_xyzv)


@pytest.mark.parametrize("blend", [True, False])
def test_single_b0(blend: bool) -> None:
    """With blending the local PCA denoises it; a blind prediction of it has nothing to go by."""
    phantom = make_phantom(n_b0=1)
    data, _ = noisy_run(phantom, 15)
    options = dataclasses.replace(UNTRAINED, blend=blend)
    found = denoise(data, phantom.gradients, phantom.mask_xyz, options, device="cpu")
    b0 = int(np.flatnonzero(phantom.gradients.b0)[0])
    if blend:
        assert found.info["local_pca_only_volumes"] == [b0] and found.info["passed_through_volumes"] == []
        assert (errors(found.dwi_xyzv, phantom) < errors(data, phantom)).all()
    else:
        assert found.info["passed_through_volumes"] == [b0]
        assert np.array_equal(found.dwi_xyzv[..., b0], data[..., b0])


def test_the_result_is_the_mean_with_the_local_pca(
    phantom: Phantom, noisy: NDArray[np.float32], sigma_xyz: NDArray[np.float32]
) -> None:
    """Without it, without its second look, and with both: the three differ by what was left out."""

    def result(*left_out: str) -> NDArray[np.float32]:
        options = dataclasses.replace(UNTRAINED, leave_out=(*left_out, "twicing"))
        found = denoise(
            noisy, phantom.gradients, phantom.mask_xyz, options, sigma_xyz=sigma_xyz, device="cpu"
        )
        shares.append(found.info["local_pca_share"])
        return found.dwi_xyzv[phantom.mask_xyz] / sigma_xyz[phantom.mask_xyz][:, None]

    shares: list[dict[str, float]] = []

    mask = torch.from_numpy(phantom.mask_xyz[bounding_box(phantom.mask_xyz)])
    snr = to_snr_units(signals_of(noisy, phantom.mask_xyz), sigma_xyz[phantom.mask_xyz])
    own = result("local-pca")
    for left_out, contrasts in ((["second-look"], None), ([], angular_contrasts(phantom.gradients))):
        pca = overcomplete_local_pca(snr, mask, contrasts).float().T.numpy()
        found = result(*left_out)
        for shell, share in shares[-1].items():
            volumes = phantom.gradients.shell_bvals[phantom.gradients.shell] == float(shell)
            # one share per volume, and their mean over the shell
            offset, moved = (found - own)[:, volumes], (pca - own)[:, volumes]
            each = (offset * moved).sum(axis=0) / (moved**2).sum(axis=0)
            np.testing.assert_allclose(offset, each * moved, atol=0.05)
            assert each.mean() == pytest.approx(share, abs=0.01) and 0.3 <= share <= 1.0
    assert shares[0] == {} and len(shares[1]) == len(phantom.gradients.shell_bvals)
    assert np.abs(result() - result("second-look")).mean() > 0.01


def test_twicing_changes_weighted_volumes_that_are_blended(
    phantom: Phantom, noisy: NDArray[np.float32]
) -> None:
    def result(blend: bool, *left_out: str) -> NDArray[np.float32]:
        options = dataclasses.replace(UNTRAINED, blend=blend, leave_out=left_out)
        return denoise(noisy, phantom.gradients, phantom.mask_xyz, options, device="cpu").dwi_xyzv

    found, without = result(True), result(True, "twicing")
    b0 = phantom.gradients.b0
    assert np.array_equal(found[..., b0], without[..., b0])
    changed = (found != without)[phantom.mask_xyz][:, ~b0]
    assert changed.mean() > 0.9
    assert errors(found, phantom)[~b0].mean() < 1.01 * errors(without, phantom)[~b0].mean()
    assert np.array_equal(result(False), result(False, "twicing")), "a blind result stays blind"


@pytest.mark.parametrize(("n_dwi", "edge"), [(57, 2), (58, 3)])
def test_runs_of_few_volumes_have_smaller_blocks(n_dwi: int, edge: int) -> None:
    phantom = make_phantom((14, 15, 13), n_b0=2, n_dwi=n_dwi)
    data = noisy_run(phantom, 20)[0]

    def result(block: int) -> NDArray[np.float32]:
        options = dataclasses.replace(BLIND, block=block)
        return denoise(data, phantom.gradients, phantom.mask_xyz, options, device="cpu").dwi_xyzv

    open_choice = result(AUTOMATIC)
    assert np.array_equal(open_choice, result(edge))
    assert not np.array_equal(open_choice, result(5 - edge))


def test_few_volumes_are_predicted_mirrored_as_well_which_lowers_the_error(
    monkeypatch: pytest.MonkeyPatch, phantom: Phantom, noisy: NDArray[np.float32]
) -> None:
    assert DenoiseOptions().mirrored(59) and not DenoiseOptions().mirrored(60)

    def error() -> float:
        options = DenoiseOptions(max_steps=0)
        found = denoise(noisy, phantom.gradients, phantom.mask_xyz, options, device="cpu").dwi_xyzv
        return float(errors(found, phantom)[phantom.gradients.dwi].mean())

    mirrored = error()
    monkeypatch.setattr(DenoiseOptions, "mirrored", lambda self, n_volumes: False)
    assert mirrored < 0.998 * error()


@pytest.mark.parametrize(
    ("n_volumes", "block", "grids"),
    [
        (59, AUTOMATIC, 2),
        (60, AUTOMATIC, 1),
        (79, 2, 1),
        (80, AUTOMATIC, 2),
        (59, 3, 2),
        (59, 1, 1),
        (200, 1, 1),
    ],
)
def test_volumes_are_predicted_on_two_grids_unless_it_takes_too_long_or_they_are_the_same(
    n_volumes: int, block: int, grids: int
) -> None:
    assert DenoiseOptions(block=block).block_grids(n_volumes) == grids


def test_b0_volumes_can_be_left_alone(phantom: Phantom, noisy: NDArray[np.float32]) -> None:
    options = dataclasses.replace(UNTRAINED, b0_denoising=False)
    found = denoise(noisy, phantom.gradients, phantom.mask_xyz, options, device="cpu")
    b0 = phantom.gradients.b0
    assert found.info["passed_through_volumes"] == np.flatnonzero(b0).tolist()
    assert np.array_equal(found.dwi_xyzv[..., b0], noisy[..., b0])
    assert not np.array_equal(found.dwi_xyzv[..., ~b0], noisy[..., ~b0])


def test_empty_volumes_stay_empty(phantom: Phantom, noisy: NDArray[np.float32]) -> None:
    empty = [int(np.flatnonzero(phantom.gradients.dwi)[5]), int(np.flatnonzero(phantom.gradients.b0)[1])]
    dwi_xyzv = noisy.copy()
    dwi_xyzv[..., empty] = 0
    found = denoise(dwi_xyzv, phantom.gradients, phantom.mask_xyz, UNTRAINED)
    assert not found.dwi_xyzv[..., empty].any()
    assert found.info["passed_through_volumes"] == sorted(empty)
    assert len(found.info["local_pca_only_volumes"]) == 1, "a single b=0 is left"


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused(
    phantom: Phantom, noisy: NDArray[np.float32], wrong: float
) -> None:
    dwi_xyzv = noisy.copy()
    dwi_xyzv[(*np.argwhere(phantom.mask_xyz)[7], 3)] = wrong
    with pytest.raises(BadDataError, match="finite"):
        denoise(dwi_xyzv, phantom.gradients, phantom.mask_xyz, UNTRAINED)


def test_bias_correction_lowers_the_bias(phantom: Phantom) -> None:
    data, _ = noisy_run(phantom, 8)
    inside, dwi = phantom.mask_xyz, phantom.gradients.dwi
    bias = []
    for kind in ("none", "rician"):
        options = dataclasses.replace(UNTRAINED, bias_correction=kind)
        found = denoise(data, phantom.gradients, inside, options, device="cpu").dwi_xyzv
        bias.append(float((found - phantom.clean_xyzv)[inside][:, dwi].mean()))
    assert bias[0] > 0
    assert abs(bias[1]) < 0.4 * bias[0]


def test_uncertainty_of_corrected_values_holds_the_slope_of_the_correction() -> None:
    """Near the floor the correction takes small errors far apart; 95% of the intervals are to hold the signal."""
    gradients = make_protocol(3, {3000.0: 30}, np.random.default_rng(0))
    phantom = simulate_phantom(gradients=gradients, seed=5, shape=(21, 25, 17))
    data, _ = noisy_run(phantom, 15)
    options = dataclasses.replace(UNTRAINED, bias_correction="rician")
    found = denoise(data, gradients, phantom.mask_xyz, options, device="cpu")
    off_nv = np.abs(found.dwi_xyzv - phantom.clean_xyzv)[phantom.mask_xyz][:, gradients.dwi]
    held = np.mean(off_nv <= 1.96 * found.uncertainty_xyz[phantom.mask_xyz][:, None])
    assert 0.9 < held < 0.98


def test_noise_map_of_the_user_is_used(
    phantom: Phantom, noisy: NDArray[np.float32], sigma_xyz: NDArray[np.float32]
) -> None:
    given = sigma_xyz * 1.25
    found = denoise(noisy, phantom.gradients, phantom.mask_xyz, UNTRAINED, sigma_xyz=given, device="cpu")
    np.testing.assert_array_equal(found.sigma_xyz, given)
    with pytest.raises(BadDataError, match="noise map has shape"):
        denoise(noisy, phantom.gradients, phantom.mask_xyz, UNTRAINED, sigma_xyz=given[1:], device="cpu")


def test_data_without_noise_are_named_and_hardly_changed(phantom: Phantom) -> None:
    """Exactly low rank: the signal of a coarse phantom is not, and its finest part passes for some noise."""
    attenuation = np.exp(-phantom.gradients.bvals / 1500) * np.linspace(0.8, 1.2, 22)
    clean = (1000 * phantom.mask_xyz[..., None] * attenuation).astype(np.float32)
    clean[:8] *= 1.5
    found = denoise(clean, phantom.gradients, phantom.mask_xyz, UNTRAINED, device="cpu")
    np.testing.assert_allclose(found.dwi_xyzv, clean, rtol=5e-3)
    assert any("hardly any noise" in warning for warning in found.info["warnings"])


def test_one_bright_voxel_does_not_speak_for_the_noise_of_others(phantom: Phantom) -> None:
    data, sigma = noisy_run(phantom, 20)
    bright, fill = (tuple(np.argwhere(phantom.mask_xyz)[place]) for place in (500, 900))
    data[bright] *= 1e4
    data[(*fill, 3)] = -1e5 * sigma  # more than 16 bits hold
    found = denoise(data, phantom.gradients, phantom.mask_xyz, UNTRAINED, device="cpu")
    assert np.median(found.sigma_xyz[phantom.mask_xyz]) == pytest.approx(sigma, rel=0.15)
    assert found.info["warnings"] == []
    assert np.isfinite(found.dwi_xyzv).all()


def test_volumes_that_are_passed_through_are_not_corrected_either(
    phantom: Phantom, noisy: NDArray[np.float32]
) -> None:
    options = dataclasses.replace(UNTRAINED, b0_denoising=False, bias_correction="rician")
    found = denoise(noisy, phantom.gradients, phantom.mask_xyz, options, device="cpu")
    b0 = phantom.gradients.b0
    assert np.array_equal(found.dwi_xyzv[..., b0], noisy[..., b0])
    assert (found.dwi_xyzv[..., ~b0] != noisy[..., ~b0])[phantom.mask_xyz].mean() > 0.9


def test_clean_phantom_is_hardly_changed(phantom: Phantom) -> None:
    clean = phantom.clean_xyzv
    found = denoise(clean, phantom.gradients, phantom.mask_xyz, UNTRAINED, device="cpu")
    change = (found.dwi_xyzv - clean)[phantom.mask_xyz]
    assert np.sqrt((change**2).mean()) < 0.01 * b0_signal(phantom)


@pytest.mark.parametrize(
    ("shape", "n_b0", "n_dwi"), [((21, 25, 17), 1, 6), ((9, 31, 8), 2, 12), ((13, 12, 11), 3, 150)]
)
def test_odd_grids_few_and_many_volumes(shape: tuple[int, int, int], n_b0: int, n_dwi: int) -> None:
    """Seven volumes in all; flat grids; more volumes than a window of the local PCA has voxels."""
    phantom = make_phantom(shape, n_b0, n_dwi)
    data, _ = noisy_run(phantom, 12)
    options = dataclasses.replace(QUICK, max_steps=2)
    found = denoise(data, phantom.gradients, phantom.mask_xyz, options, device="cpu")
    assert np.isfinite(found.dwi_xyzv).all()
    assert errors(found.dwi_xyzv, phantom).mean() < errors(data, phantom).mean()


def small_input() -> tuple[NDArray[np.float32], Gradients, NDArray[np.bool_]]:
    gradients = make_protocol(1, {1000.0: 6}, np.random.default_rng(0))
    data = 100 + np.random.default_rng(0).normal(size=(6, 5, 4, 7))
    return data.astype(np.float32), gradients, np.ones((6, 5, 4), dtype=bool)


def test_wrong_shapes_are_refused() -> None:
    data, gradients, mask = small_input()
    with pytest.raises(BadDataError, match=r"expected data of shape \(X, Y, Z, 7\), found \(6, 5, 4, 6\)"):
        denoise(data[..., :6], gradients, mask)
    with pytest.raises(BadDataError, match=r"found \(6, 5, 4\)"):
        denoise(data[..., 0], gradients, mask)
    with pytest.raises(BadDataError, match=r"mask of shape \(6, 5, 4\) with voxels in it, found \(6, 5, 3\)"):
        denoise(data, gradients, mask[..., :3])
    with pytest.raises(BadDataError, match="with 0"):
        denoise(data, gradients, np.zeros_like(mask))
    with pytest.raises(BadDataError, match="only zeros"):
        denoise(np.zeros_like(data), gradients, mask)


@pytest.mark.parametrize("content", ["missing", "text", "empty", "other-network", "other-size", "a-tensor"])
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "weights.pt"
    if content == "text":
        path.write_text("these are no weights\n")
    elif content == "empty":
        path.touch()
    elif content == "other-network":
        torch.save(make_model(dataclasses.replace(QUICK, model="denoiser")).state_dict(), path)
    elif content == "other-size":
        torch.save(make_model(dataclasses.replace(QUICK, base_filters=8)).state_dict(), path)
    elif content == "a-tensor":
        torch.save(torch.zeros(3), path)
    with pytest.raises(
        UsageError, match=r"weights\.pt: expected weights of the multiscale network with 4 base"
    ):
        make_model(dataclasses.replace(QUICK, init=str(path)))


def test_weights_are_loaded_and_models_depend_on_the_seed(tmp_path: Path) -> None:
    one, other = (make_model(dataclasses.replace(QUICK, random_seed=seed)) for seed in (0, 1))
    assert not torch.equal(one.state_dict()["stem.weight"], other.state_dict()["stem.weight"])
    torch.save(other.state_dict(), tmp_path / "w.pt")
    loaded = make_model(dataclasses.replace(QUICK, init=str(tmp_path / "w.pt")))
    assert torch.equal(loaded.state_dict()["stem.weight"], other.state_dict()["stem.weight"])
