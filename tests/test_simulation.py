"""Phantoms: the same person on every grid, signals as the model says, noise with the right moments."""

from __future__ import annotations

import dataclasses
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from dwmri_bidsapp.errors import UsageError
from dwmri_bidsapp.gradients import Gradients, check_protocol, direction_cosines, load_gradients
from dwmri_bidsapp.metrics import fit_tensor
from dwmri_bidsapp.simulation import (
    Anatomy,
    Phantom,
    add_noise,
    anatomy,
    b0_signal,
    brain_anatomy,
    clean_signal,
    draw_sigma_map,
    make_protocol,
    simulate_phantom,
    write_bids_dataset,
)

SHAPE = (24, 26, 20)


@pytest.fixture(scope="module")
def protocol() -> Gradients:
    return make_protocol(3, {1000: 12, 2500: 12}, np.random.default_rng(0))


@pytest.fixture(scope="module")
def phantom(protocol: Gradients) -> Phantom:
    return simulate_phantom(gradients=protocol, seed=3, shape=SHAPE)


@pytest.fixture(scope="module")
def person() -> Anatomy:
    return brain_anatomy(seed=3, shape=SHAPE)


def test_protocol_spreads_directions_and_b0_volumes() -> None:
    gradients = make_protocol(4, {1000: 30, 2500: 60}, np.random.default_rng(1))
    assert gradients.shell_bvals.tolist() == [0, 1000, 2500]
    assert np.bincount(gradients.shell).tolist() == [4, 30, 60]
    at = np.flatnonzero(gradients.b0)
    assert at[0] == 0
    assert np.ptp(np.diff(at)) <= 1
    assert at[-1] > 0.6 * gradients.n_volumes
    for shell, least_degrees in ((1, 22), (2, 15)):
        cosines = direction_cosines(gradients.select(gradients.shell == shell))
        closest = np.rad2deg(np.arccos((cosines - np.eye(len(cosines))).max()))
        assert closest > least_degrees
    assert (gradients.bvecs[gradients.dwi] @ [0, 0, 1] < 0).any()
    assert check_protocol(gradients) == []


def test_protocol_is_the_generators() -> None:
    first, again, other = (make_protocol(1, {1000: 8}, np.random.default_rng(s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.bvecs, again.bvecs)
    assert not np.allclose(first.bvecs, other.bvecs)


def test_empty_protocol_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one volume"):
        make_protocol(0, {}, np.random.default_rng(0))
    with pytest.raises(UsageError, match="in each shell"):
        make_protocol(1, {1000: -5}, np.random.default_rng(0))


def test_phantom_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    anatomy._load_template.cache_clear()
    assert brain_anatomy(seed=0, shape=(8, 9, 8)).mask_xyz.any()


def test_a_seed_is_a_person(person: Anatomy) -> None:
    again, other = (brain_anatomy(seed=seed, shape=SHAPE) for seed in (3, 4))
    np.testing.assert_array_equal(person.directions_nk3, again.directions_nk3)
    np.testing.assert_array_equal(person.white_n, again.white_n)
    first, second = person.to_volume(person.white_n), other.to_volume(other.white_n)
    assert 0.3 < np.corrcoef(first.ravel(), second.ravel())[0, 1] < 0.9


def test_the_same_person_on_a_finer_grid(person: Anatomy) -> None:
    fine = brain_anatomy(seed=3, shape=(48, 52, 40))
    white_xyz = fine.to_volume(fine.white_n).reshape(24, 2, 26, 2, 20, 2).mean(axis=(1, 3, 5))
    assert np.corrcoef(white_xyz.ravel(), person.to_volume(person.white_n).ravel())[0, 1] > 0.93


def test_voxels_are_full_of_tissue(person: Anatomy) -> None:
    total_n = person.white_n + person.grey_n + person.csf_n + person.lesion_n
    assert total_n.min() > 0.5 - 1e-5
    assert total_n.max() < 1 + 1e-5
    np.testing.assert_allclose(person.fractions_nk.sum(axis=1), 1, atol=1e-5)
    used = person.fractions_nk > 0
    np.testing.assert_allclose(np.linalg.norm(person.directions_nk3[used], axis=1), 1, atol=1e-5)


def test_anatomy_is_not_trivial(person: Anatomy) -> None:
    mean = {name: getattr(person, f"{name}_n").mean() for name in ("white", "grey", "csf", "lesion")}
    assert 0.2 < mean["white"] < 0.6
    assert 0.3 < mean["grey"] < 0.7
    assert 0.02 < mean["csf"] < 0.2
    assert 0 < mean["lesion"] < 0.05
    populations = (person.fractions_nk > 0.1).sum(axis=1)[person.white_n > 0.7]
    assert set(populations) == {1, 2, 3}
    assert 0.15 < person.mask_xyz.mean() < 0.6


def test_grid_can_be_a_whole_brain_or_a_box_of_it() -> None:
    whole = brain_anatomy(seed=1, voxel_size=8.0)
    assert whole.mask_xyz.shape == (19, 24, 20)
    box = brain_anatomy(seed=1, shape=(10, 11, 12), voxel_size=2.0)
    assert box.mask_xyz.shape == (10, 11, 12)
    assert box.mask_xyz.all()
    np.testing.assert_allclose(nib.affines.voxel_sizes(box.affine), 2)
    assert nib.aff2axcodes(box.affine) == ("L", "A", "S")
    middle = nib.affines.apply_affine(box.affine, (np.array(box.mask_xyz.shape) - 1) / 2)
    np.testing.assert_allclose(middle, [0, -16.5, 5.0])


@pytest.mark.parametrize("shape", [(0, 4, 4), (1, 1, 1)])
def test_grid_without_brain_is_refused(shape: tuple[int, int, int]) -> None:
    voxel_size = 0.0 if shape == (1, 1, 1) else 2.0
    with pytest.raises(UsageError, match="grid"):
        brain_anatomy(seed=0, shape=shape, voxel_size=voxel_size)


def one_voxel(**tissue: float) -> Anatomy:
    """One voxel with two crossing fibre populations."""
    values: dict[str, Any] = {
        f"{name}_n": np.array([tissue.get(name, 0.0)], dtype=np.float32)
        for name in ("white", "grey", "csf", "lesion")
    }
    directions = np.array([[[1, 0, 0], [0, 0.6, 0.8]]], dtype=np.float32)
    ones = np.ones(1, dtype=np.float32)
    return Anatomy(
        mask_xyz=np.ones((1, 1, 1), dtype=bool),
        affine=np.eye(4),
        directions_nk3=directions,
        fractions_nk=np.array([[0.7, 0.3]], dtype=np.float32),
        radial_n3=np.array([[0, 0, 1]], dtype=np.float32),
        axonal_n=0.6 * ones,
        diffusivity_n=1.1 * ones,
        brightness_n=0.9 * ones,
        **values,
    )


def test_signal_of_white_matter_is_that_of_its_tensors() -> None:
    """A slow second implementation: full tensors, volume by volume."""
    directions = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0.6, 0, 0.8]])
    gradients = Gradients.from_arrays([0, 1000, 2500, 2500], directions)
    expected = []
    for b, g in zip(gradients.bvals, gradients.bvecs, strict=True):
        total = 0.04 * np.exp(-b * 1.1 * 3.0e-3)
        for share, axis in ((0.7, np.array([1, 0, 0])), (0.3, np.array([0, 0.6, 0.8]))):
            for pool, along, across in ((0.6, 1.9e-3, 0.2e-3), (0.4, 1.6e-3, 0.8e-3)):
                tensor = across * np.eye(3) + (along - across) * np.outer(axis, axis)
                total += 0.96 * share * pool * np.exp(-b * 1.1 * g @ tensor @ g)
        expected.append(900 * total)
    np.testing.assert_allclose(clean_signal(one_voxel(white=1.0), gradients)[0, 0, 0], expected, rtol=1e-5)


def test_signal_of_mixed_voxels_is_the_mean_of_their_tissues() -> None:
    gradients = make_protocol(1, {1000: 3, 3000: 3}, np.random.default_rng(0))
    shares = {"white": 0.4, "grey": 0.3, "csf": 0.2, "lesion": 0.1}
    mixed = clean_signal(one_voxel(**shares), gradients)
    pure = sum(share * clean_signal(one_voxel(**{name: 1.0}), gradients) for name, share in shares.items())
    np.testing.assert_allclose(mixed, pure, rtol=1e-5)


def test_contrast_and_decay_are_those_of_the_brain(phantom: Phantom) -> None:
    clean_vn = phantom.clean_xyzv[phantom.mask_xyz].T
    white_n, csf_n = phantom.white_xyz[phantom.mask_xyz], phantom.csf_xyz[phantom.mask_xyz]
    shell_means = [clean_vn[phantom.gradients.shell == s][:, white_n > 0.9].mean() for s in range(3)]
    rates = -np.diff(np.log(shell_means)) / np.diff(phantom.gradients.shell_bvals)
    assert rates[1] < 0.8 * rates[0]
    b0_n = clean_vn[phantom.gradients.b0].mean(axis=0)
    assert b0_n[csf_n > 0.6].mean() > 1.8 * b0_n[white_n > 0.9].mean()
    assert not phantom.clean_xyzv[~phantom.mask_xyz].any()
    assert phantom.clean_xyzv.dtype == np.float32


def test_signal_does_not_know_the_sign_of_a_direction(person: Anatomy, protocol: Gradients) -> None:
    flipped = Gradients.from_arrays(protocol.bvals, -protocol.bvecs)
    np.testing.assert_allclose(clean_signal(person, flipped), clean_signal(person, protocol), rtol=1e-5)


def test_tensors_point_along_the_fibres(person: Anatomy, phantom: Phantom) -> None:
    """Fibre directions and b-vectors are in one frame."""
    single = (person.white_n > 0.9) & (person.fractions_nk.max(axis=1) > 0.99)
    assert single.sum() > 20
    fibres = person.directions_nk3[single, person.fractions_nk[single].argmax(axis=1)]
    tensor = fit_tensor(phantom.clean_xyzv, phantom.gradients, phantom.mask_xyz)
    cosine = np.abs((tensor.v1_xyzd[phantom.mask_xyz][single] * fibres).sum(axis=1))
    assert np.median(np.rad2deg(np.arccos(np.clip(cosine, 0, 1)))) < 3


def test_projection_fibres_fan_out_on_both_sides_of_the_image(person: Anatomy) -> None:
    """Rising fibres lean away from the midline, in image axes: the first axis runs to the left."""
    from_midline = np.argwhere(person.mask_xyz)[:, 0] - (SHAPE[0] - 1) / 2
    rising = person.directions_nk3[:, 1] * np.sign(person.directions_nk3[:, 1, 2:])
    leaning = (rising[:, 0] * np.sign(from_midline))[np.abs(from_midline) > 3]
    assert (leaning > 0).mean() > 0.75


FLAT = (40, 42, 24, 4)


@pytest.mark.parametrize(("kind", "n_channels"), [("rician", 2), ("chi", 6), ("zero-filled", 2)])
@pytest.mark.parametrize("signal", [0.0, 20.0])
def test_noise_has_the_second_moment_of_its_kind(kind: Any, n_channels: int, signal: float) -> None:
    clean = np.full(FLAT, signal, dtype=np.float32)
    noisy, sigma_xyz = add_noise(clean, sigma=2.0, rng=np.random.default_rng(0), kind=kind, n_coils=3)
    assert noisy.dtype == np.float32
    expected = signal**2 + n_channels * 2.0**2
    np.testing.assert_allclose((noisy.astype(np.float64) ** 2).mean(), expected, rtol=0.02)
    np.testing.assert_array_equal(sigma_xyz, np.full(FLAT[:3], 2.0, dtype=np.float32))
    if signal:
        np.testing.assert_allclose(noisy.std(), 2.0, rtol=0.03)


def test_rician_background_is_a_rayleigh_distribution() -> None:
    noisy, _ = add_noise(np.zeros(FLAT, np.float32), sigma=3.0, rng=np.random.default_rng(1))
    np.testing.assert_allclose(noisy.mean(), 3.0 * np.sqrt(np.pi / 2), rtol=0.01)


@pytest.mark.parametrize(("kind", "correlated"), [("rician", False), ("zero-filled", True)])
def test_only_zero_filled_noise_is_shared_between_neighbours(kind: Any, correlated: bool) -> None:
    noisy, _ = add_noise(np.full(FLAT, 50, np.float32), sigma=1.0, rng=np.random.default_rng(2), kind=kind)
    residual = noisy - noisy.mean()
    along = [
        float(np.corrcoef(a.ravel(), b.ravel())[0, 1])
        for a, b in (
            (residual[1:], residual[:-1]),
            (residual[:, 1:], residual[:, :-1]),
            (residual[:, :, 1:], residual[:, :, :-1]),
        )
    ]
    # sinc(38/48) along x, a wider one along y (partial Fourier), nothing across slices.
    expected = [0.24, 0.40, 0.0] if correlated else [0.0, 0.0, 0.0]
    np.testing.assert_allclose(along, expected, atol=0.06)


def test_noise_follows_its_map() -> None:
    sigma_xyz = np.ones(FLAT[:3], dtype=np.float32)
    sigma_xyz[20:] = 4
    noisy, returned = add_noise(np.full(FLAT, 100, np.float32), sigma=sigma_xyz, rng=np.random.default_rng(3))
    np.testing.assert_allclose([noisy[:20].std(), noisy[20:].std()], [1, 4], rtol=0.03)
    np.testing.assert_array_equal(returned, sigma_xyz)
    assert not np.shares_memory(returned, sigma_xyz)


def test_noise_is_the_generators() -> None:
    clean = np.full((4, 4, 4, 2), 5, np.float32)
    first, again, other = (add_noise(clean, sigma=1.0, rng=np.random.default_rng(s))[0] for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first[..., 0], first[..., 1])


@pytest.mark.parametrize(
    "wrong",
    [{"kind": "gaussian"}, {"sigma": -1.0}, {"sigma": np.nan}, {"sigma": np.ones((2, 2, 2))}, {"n_coils": 0}],
)
def test_noise_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"sigma": 1.0, "rng": np.random.default_rng(0), **wrong}
    with pytest.raises(UsageError, match="expected"):
        add_noise(np.zeros((3, 3, 3, 2), np.float32), **arguments)


@pytest.mark.parametrize("spread", [0.0, 0.5, 2.0])
def test_sigma_map_has_the_mean_it_was_asked_for(phantom: Phantom, spread: float) -> None:
    sigma_xyz = draw_sigma_map(phantom.mask_xyz, 7.0, np.random.default_rng(0), spread=spread)
    np.testing.assert_allclose(sigma_xyz[phantom.mask_xyz].mean(), 7.0, rtol=1e-4)
    assert sigma_xyz.min() > 0
    assert (np.ptp(sigma_xyz) > 1) == (spread > 0)


def test_b0_signal_is_that_of_white_matter(phantom: Phantom) -> None:
    b0_xyz = phantom.clean_xyzv[..., phantom.gradients.b0].mean(axis=-1)
    np.testing.assert_allclose(b0_signal(phantom), b0_xyz[phantom.white_xyz > 0.9].mean(), rtol=1e-6)
    assert 700 < b0_signal(phantom) < 1300
    weighted = dataclasses.replace(phantom, gradients=phantom.gradients.select(phantom.gradients.dwi))
    with pytest.raises(UsageError, match="b=0"):
        b0_signal(weighted)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    tables = [make_protocol(2, {1000: 8}, rng), make_protocol(2, {1000: 6, 2000: 8}, rng)]
    root = tmp_path_factory.mktemp("simulated") / "bids"
    labels = write_bids_dataset(root, n_participants=2, protocol=tables, shape=SHAPE, snr=25.0, seed=5)
    assert labels == ["01", "02"]
    return root


def load_image(path: str) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_filename(path)


def test_dataset_holds_the_truth_and_what_was_made_of_it(dataset: Path) -> None:
    for label, n_volumes in (("01", 10), ("02", 16)):
        raw = dataset / f"sub-{label}/dwi/sub-{label}_dwi"
        truth = dataset / f"derivatives/truth/sub-{label}/dwi/sub-{label}"
        noisy = load_image(f"{raw}.nii.gz")
        clean = load_image(f"{truth}_desc-truth_dwi.nii.gz")
        mask_xyz = load_image(f"{truth}_desc-brain_mask.nii.gz").get_fdata() > 0
        sigma_xyz = load_image(f"{truth}_model-noise_param-sigma_dwimap.nii.gz").get_fdata()
        assert noisy.shape == clean.shape == (*SHAPE, n_volumes)
        assert noisy.get_data_dtype() == np.float32
        np.testing.assert_array_equal(noisy.affine, clean.affine)
        gradients = load_gradients(f"{raw}.bval", f"{raw}.bvec", n_volumes)
        assert gradients.b0.sum() == 2
        error = (noisy.get_fdata() - clean.get_fdata())[..., gradients.b0][mask_xyz]
        np.testing.assert_allclose((error / sigma_xyz[mask_xyz][:, None]).std(), 1, rtol=0.05)


def test_dataset_has_the_snr_it_was_asked_for(dataset: Path, protocol: Gradients) -> None:
    stem = f"{dataset}/derivatives/truth/sub-01/dwi/sub-01"
    mask_xyz = load_image(f"{stem}_desc-brain_mask.nii.gz").get_fdata() > 0
    sigma_xyz = load_image(f"{stem}_model-noise_param-sigma_dwimap.nii.gz").get_fdata()
    same_person = simulate_phantom(gradients=protocol, seed=5, shape=SHAPE)
    assert b0_signal(same_person) / sigma_xyz[mask_xyz].mean() == pytest.approx(25.0, rel=1e-3)


def test_participants_are_different_people(dataset: Path) -> None:
    first, second = (
        load_image(f"{dataset}/derivatives/truth/sub-{s}/dwi/sub-{s}_desc-truth_dwi.nii.gz").dataobj[..., 0]
        for s in ("01", "02")
    )
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] < 0.98


def test_a_folder_in_use_is_left_alone(dataset: Path) -> None:
    before = sorted(dataset.rglob("*"))
    with pytest.raises(UsageError, match="empty folder"):
        write_bids_dataset(dataset, shape=SHAPE)
    assert sorted(dataset.rglob("*")) == before


@pytest.mark.parametrize(
    "wrong", [{"voxel_size": 0.0}, {"motion": -1.0}, {"snr": float("nan")}, {"seed": -1}, {"family": "none"}]
)
def test_a_number_that_makes_no_sense_leaves_the_folder_free(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        write_bids_dataset(tmp_path / "out", n_participants=1, **{"voxel_size": 20.0, **wrong})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("part", [".", "derivatives/truth"])
def test_the_official_validator_finds_no_error(dataset: Path, part: str) -> None:
    validator = Path(sys.executable).parent / "bids-validator-deno"
    if not validator.exists():
        pytest.skip("bids-validator-deno is not installed")
    found = subprocess.run(
        [validator, "--json", dataset / part], capture_output=True, text=True, check=False, timeout=120
    )
    issues = json.loads(found.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []
    assert found.returncode == 0
