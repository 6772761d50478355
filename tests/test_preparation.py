"""What is checked before a run is denoised: every kind of bad file, and the brain mask."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path
from typing import Any

import nibabel as nb
import numpy as np
import pytest
from dwmri_bidsapp.workflows.base import series_gb
from numpy.typing import NDArray

from dwmri_bidsapp import preparation
from dwmri_bidsapp.brain_mask import brain_mask
from dwmri_bidsapp.errors import BadDataError
from dwmri_bidsapp.preparation import load_noise_map, open_series, prepare_run, read_series
from dwmri_bidsapp.simulation import add_noise, b0_signal, make_protocol, simulate_phantom

SHAPE = (24, 26, 20)
GRADIENTS = make_protocol(2, {1000: 8}, np.random.default_rng(0))
AFFINE = np.diag([-3.0, 3.0, 3.0, 1.0])


def _ball() -> NDArray[np.bool_]:
    grid = np.indices(SHAPE) - (np.array(SHAPE) - 1).reshape(3, 1, 1, 1) / 2
    return np.linalg.norm(grid, axis=0) < 8


def _series() -> NDArray[np.float32]:
    """A bright ball in Rayleigh noise."""
    rng = np.random.default_rng(1)
    signal_xyzv = _ball()[..., None] * 1000 * np.exp(-GRADIENTS.bvals * 0.7e-3)
    noise = rng.normal(scale=20, size=(2, *SHAPE, GRADIENTS.n_volumes))
    return np.hypot(signal_xyzv + noise[0], noise[1]).astype(np.float32)


def _write(folder: Path, data: NDArray[Any] | None = None, name: str = "sub-01_dwi.nii.gz") -> dict[str, Any]:
    files = {"dwi_file": folder / name, "bval_file": folder / "dwi.bval", "bvec_file": folder / "dwi.bvec"}
    nb.Nifti1Image(_series() if data is None else data, AFFINE).to_filename(files["dwi_file"])
    np.savetxt(files["bval_file"], GRADIENTS.bvals[None], fmt="%g")
    np.savetxt(files["bvec_file"], GRADIENTS.bvecs.T, fmt="%.8f")
    return files


def _save_map(folder: Path, data: NDArray[Any], affine: NDArray[Any] = AFFINE) -> Path:
    path = folder / "map.nii.gz"
    nb.Nifti1Image(data, affine).to_filename(path)
    return path


def test_a_good_run_is_described(tmp_path: Path) -> None:
    prepared = prepare_run(**_write(tmp_path), b0_threshold=20)
    assert prepared.report["b0_threshold"] == 20
    assert prepared.report["shape"] == [*SHAPE, 10]
    assert prepared.report["shells"] == [
        {"b_value": 0.0, "n_volumes": 2},
        {"b_value": 1000.0, "n_volumes": 8},
    ]
    assert prepared.report["orientation"] == "LAS"
    assert prepared.report["negative_values"] == 0
    overlap = (prepared.mask_xyz & _ball()).sum() * 2 / (prepared.mask_xyz.sum() + _ball().sum())
    assert overlap > 0.9


@pytest.mark.parametrize("chunk_bytes", [1, 3 * 4 * int(np.prod(SHAPE)), 2**40])
def test_the_parts_of_a_series_make_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    data = (_series() - 100).astype(np.int16)
    files = _write(tmp_path, data)
    monkeypatch.setattr(preparation, "CHUNK_BYTES", chunk_bytes)
    image = open_series(files["dwi_file"])
    np.testing.assert_array_equal(read_series(image, files["dwi_file"]), data)
    survey = preparation.survey_series(image, GRADIENTS, files["dwi_file"])
    np.testing.assert_allclose(survey.mean_b0_xyz, data[..., GRADIENTS.b0].mean(axis=3), rtol=1e-6)
    np.testing.assert_array_equal(survey.highest_dwi_xyz, data[..., GRADIENTS.dwi].max(axis=3))
    assert survey.n_negative == (data < 0).sum()


def test_a_header_of_unknown_values_is_a_damaged_file(tmp_path: Path) -> None:
    """nibabel has errors of its own for it; the workflow of the other runs must be built all the same."""
    file = _write(tmp_path, name="sub-01_dwi.nii")["dwi_file"]
    content = bytearray(file.read_bytes())
    content[70:72] = (9999).to_bytes(2, "little")
    file.write_bytes(content)
    with pytest.raises(BadDataError, match=r"sub-01_dwi\.nii: expected a readable NIfTI file"):
        open_series(file)
    assert series_gb(file) == 0.5


def test_a_map_that_ends_early_is_named(tmp_path: Path) -> None:
    files = _write(tmp_path)
    mask = tmp_path / "mask.nii"
    nb.Nifti1Image(_ball().astype(np.uint8), AFFINE).to_filename(mask)
    mask.write_bytes(mask.read_bytes()[:-1000])
    with pytest.raises(BadDataError, match=r"mask\.nii: expected values of shape"):
        prepare_run(**files, mask_file=mask)


def test_scale_factors_of_the_header_are_applied(tmp_path: Path) -> None:
    image = nb.Nifti1Image((_series()).astype(np.int16), AFFINE)
    image.header.set_slope_inter(0.5, 3)
    files = _write(tmp_path)
    # An image that is made from memory forgets its factors: write them with the raw numbers.
    with open(tmp_path / "scaled.nii", "wb") as stream:
        image.header.write_to(stream)
        stream.write(b"\0" * (352 - stream.tell()))
        stream.write(np.asarray(image.dataobj).tobytes(order="F"))
    read = read_series(open_series(tmp_path / "scaled.nii"), files["dwi_file"])
    np.testing.assert_allclose(read, np.asarray(image.dataobj) * 0.5 + 3)


def test_odd_values_are_counted_and_kept(tmp_path: Path) -> None:
    data = _series()
    centre = tuple(n // 2 for n in SHAPE)
    data[0, 0, 0, 3] = -5
    data[(*centre, 4)] = 5000
    data[..., 7] = 0
    report = prepare_run(**_write(tmp_path, data)).report
    assert report["negative_values"] == 1
    assert report["dwi_above_b0_voxels"] == 1
    assert report["empty_volumes"] == [7]
    assert any("negative" in warning for warning in report["warnings"])
    assert any("empty volumes" in warning for warning in report["warnings"])


def test_the_mask_does_not_depend_on_the_diffusion_weighted_volumes(tmp_path: Path) -> None:
    data = _series()
    before = prepare_run(**_write(tmp_path, data)).mask_xyz
    data[..., GRADIENTS.dwi] = np.random.default_rng(2).uniform(0, 1e4, data[..., GRADIENTS.dwi].shape)
    np.testing.assert_array_equal(prepare_run(**_write(tmp_path, data)).mask_xyz, before)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda data: data[..., 0],
            r"sub-01_dwi\.nii\.gz: expected a 4D series .* found 3D of shape \(24, 26, 20\)",
        ),
        (
            lambda data: data[..., :1],
            r"sub-01_dwi\.nii\.gz: expected a series of volumes, found a single one",
        ),
        (lambda data: data[..., :9], r"dwi\.bval: expected 9 b-values.* found 10"),
        (
            lambda data: data.astype(np.complex64),
            r"sub-01_dwi\.nii\.gz: expected real numbers, found complex64",
        ),
        (
            lambda data: data * (GRADIENTS.bvals > 0),
            r"sub-01_dwi\.nii\.gz: expected signal in the b=0 volumes",
        ),
    ],
)
def test_an_unusable_image_is_refused(tmp_path: Path, change: Any, expected: str) -> None:
    with pytest.raises(BadDataError, match=expected):
        prepare_run(**_write(tmp_path, change(_series())))


def test_values_that_are_not_finite_are_counted(tmp_path: Path) -> None:
    data = _series()
    data[1, 2, 3, 4] = np.nan
    data[5, 6, 7, 8] = np.inf
    with pytest.raises(
        BadDataError, match=r"found 2 NaN or infinite ones in 2 of 10 volumes \(first: volume 4"
    ) as info:
        prepare_run(**_write(tmp_path, data))
    assert info.value.hint


@pytest.mark.parametrize("name", ["sub-01_dwi.nii.gz", "sub-01_dwi.nii"])
@pytest.mark.parametrize("damage", ["truncate", "garbage", "missing", "empty"])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, name: str, damage: str) -> None:
    files = _write(tmp_path, name=name)
    path = files["dwi_file"]
    if damage == "truncate":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "garbage":
        path.write_bytes(b"this is no image" * 100)
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    with pytest.raises(BadDataError, match=name.replace(".", r"\.")):
        prepare_run(**files)


def test_a_wrong_checksum_is_noticed(tmp_path: Path) -> None:
    files = _write(tmp_path)
    content = bytearray(gzip.compress(gzip.decompress(files["dwi_file"].read_bytes())))
    content[-8] ^= 1
    files["dwi_file"].write_bytes(content)
    with pytest.raises(BadDataError, match="CRC"):
        prepare_run(**files)


def test_a_protocol_that_cannot_be_denoised_names_its_file(tmp_path: Path) -> None:
    files = _write(tmp_path)
    np.savetxt(files["bval_file"], np.full((1, 10), 1000.0), fmt="%g")
    np.savetxt(files["bvec_file"], np.tile([[1.0], [0], [0]], 10))
    with pytest.raises(BadDataError, match=r"dwi\.bval: expected at least one b=0 volume"):
        prepare_run(**files)


def test_a_given_mask_is_taken_as_it_is(tmp_path: Path) -> None:
    given = np.zeros(SHAPE, np.uint8)
    given[3:9, 4:8, 5:7] = 1
    prepared = prepare_run(**_write(tmp_path), mask_file=_save_map(tmp_path, given))
    np.testing.assert_array_equal(prepared.mask_xyz, given > 0)
    assert prepared.report["mask_source"].endswith("map.nii.gz")


@pytest.mark.parametrize(
    ("shape", "affine", "expected"),
    [
        ((24, 26, 19), AFFINE, r"expected shape \(24, 26, 20\).* found \(24, 26, 19\)"),
        (SHAPE, AFFINE * [[1], [1], [-1], [1]], ".*found a corner 114.0 mm away"),
        (SHAPE, AFFINE + np.eye(4, k=3) * 2, ".*found a corner 2.0 mm away"),
    ],
)
def test_a_mask_on_another_grid_is_refused(
    tmp_path: Path, shape: tuple[int, ...], affine: NDArray[Any], expected: str
) -> None:
    files = _write(tmp_path)
    with pytest.raises(BadDataError, match=r"map\.nii\.gz: " + expected):
        prepare_run(**files, mask_file=_save_map(tmp_path, np.ones(shape, np.uint8), affine))


def test_an_empty_mask_is_refused(tmp_path: Path) -> None:
    files = _write(tmp_path)
    with pytest.raises(BadDataError, match="no voxel above"):
        prepare_run(**files, mask_file=_save_map(tmp_path, np.zeros(SHAPE, np.uint8)))


@pytest.mark.parametrize(
    ("value", "expected"), [(np.nan, "24 voxels that are"), (-1, "24 voxels that are"), (0, "zeros")]
)
def test_an_unusable_noise_map_is_refused(tmp_path: Path, value: float, expected: str) -> None:
    noise = np.full(SHAPE, 0 if value == 0 else 20, np.float32)
    noise[:, 0, 0] = value
    image = open_series(_write(tmp_path)["dwi_file"])
    with pytest.raises(BadDataError, match=expected):
        load_noise_map(_save_map(tmp_path, noise), image)


def test_the_input_is_not_changed(tmp_path: Path) -> None:
    files = _write(tmp_path)
    copies = {name: shutil.copy(path, tmp_path / f"copy-{path.name}") for name, path in files.items()}
    prepare_run(**files)
    assert all(path.read_bytes() == Path(copies[name]).read_bytes() for name, path in files.items())


@pytest.mark.parametrize("snr", [10.0, 40.0])
def test_the_mask_of_a_phantom_is_its_brain(snr: float) -> None:
    rng = np.random.default_rng(3)
    phantom = simulate_phantom(voxel_size=4.0, gradients=make_protocol(2, {1000: 6}, rng), seed=5)
    noisy_xyzv, _ = add_noise(phantom.clean_xyzv, sigma=b0_signal(phantom) / snr, kind="rician", rng=rng)
    mask_xyz, source, warnings = brain_mask(noisy_xyzv[..., :2].mean(axis=3))
    overlap = 2 * (mask_xyz & phantom.mask_xyz).sum() / (mask_xyz.sum() + phantom.mask_xyz.sum())
    assert overlap > 0.95
    assert source == "median_otsu"
    assert not warnings


@pytest.mark.parametrize(
    ("mean_b0_xyz", "expected_voxels", "n_warnings"),
    [
        (
            np.pad(np.full((5, 10, 10), 1500, np.float32), ((0, 5), (0, 0), (0, 0)), constant_values=100),
            1000,
            1,
        ),
        (np.where(_ball(), 500, 0).astype(np.float32), int(_ball().sum()), 0),
        (np.full(SHAPE, 7, np.float32), int(np.prod(SHAPE)), 1),
    ],
    ids=["a crop", "masked before", "flat"],
)
def test_the_mask_is_never_empty(
    mean_b0_xyz: NDArray[np.float32], expected_voxels: int, n_warnings: int
) -> None:
    mask_xyz, _, warnings = brain_mask(mean_b0_xyz)
    assert mask_xyz.sum() == expected_voxels
    assert len(warnings) == n_warnings


def test_a_slab_of_one_slice_keeps_its_brain() -> None:
    slab_xyz = _series()[..., :2].mean(axis=3)[:, :, 10:11]
    mask_xyz, source, _ = brain_mask(np.repeat(np.repeat(slab_xyz, 3, axis=0), 3, axis=1))
    assert source == "median_otsu"
    assert 0.2 < mask_xyz.mean() < 0.5


@pytest.mark.parametrize("air", [1.0, 0.0], ids=["quiet air", "air set to zero by the scanner"])
def test_scalp_is_no_brain(air: float) -> None:
    """Raw images of most scanners: air is far darker than skull and scalp, and these are darker than the brain."""
    rng = np.random.default_rng(6)
    grid = np.indices((48, 52, 44)) - np.array([23.5, 25.5, 21.5])[:, None, None, None]
    radius_xyz = np.linalg.norm(grid, axis=0)
    brain_xyz = radius_xyz < 14
    signal_xyz = np.select([brain_xyz, radius_xyz < 16, radius_xyz < 18], [1000.0, 60.0, 200.0], 0.0)
    noise = rng.normal(scale=8, size=(2, *radius_xyz.shape))
    image_xyz = np.hypot(signal_xyz + noise[0], noise[1]) * np.where(radius_xyz < 18, 1.0, air)
    mask_xyz, source, _ = brain_mask(image_xyz.astype(np.float32))
    assert source == "median_otsu"
    assert 2 * (mask_xyz & brain_xyz).sum() / (mask_xyz.sum() + brain_xyz.sum()) > 0.97


def test_bright_fluid_does_not_cost_dark_tissue() -> None:
    rng = np.random.default_rng(5)
    signal_xyz = np.where(_ball(), 300, 0)
    signal_xyz[9:15, 10:16, 7:13] = 4000
    noise = rng.normal(scale=40, size=(2, *SHAPE))
    mask_xyz, _, _ = brain_mask(np.hypot(signal_xyz + noise[0], noise[1]).astype(np.float32))
    assert mask_xyz[_ball()].mean() > 0.8
    assert mask_xyz[~_ball()].mean() < 0.02
