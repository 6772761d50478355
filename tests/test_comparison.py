"""``--compare`` on a small simulated dataset: every method leaves files, measures and a place in both reports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nibabel as nb
import numpy as np
import pytest
from report_helpers import Page, data_of, table_of

from dwmri_bidsapp.cli import main
from dwmri_bidsapp.simulation import make_protocol
from dwmri_bidsapp.simulation.dataset import write_bids_dataset

FAST = [
    "--device", "cpu", "--nprocs", "1", "--max-steps", "60", "--base-filters", "4", "--patch-size", "16",
    "--batch-size", "2", "--learning-rate", "0.01",
    "--block", "4",  # so few steps improve nothing on the better base of smaller blocks: both networks would keep it
]  # fmt: skip

pytestmark = pytest.mark.end_to_end

METHODS = ["mppca", "patch2self", "denoiser", "elsewhere"]


@pytest.fixture(scope="module", autouse=True)
def _environment() -> Iterator[None]:
    """The program sets its process's environment: give it back."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one call with every kind of method; the second participant was not denoised elsewhere."""
    root = tmp_path_factory.mktemp("compared")
    protocol = make_protocol(2, {1000: 12}, np.random.default_rng(0))
    write_bids_dataset(root / "bids", n_participants=2, voxel_size=8.0, protocol=protocol, snr=15, seed=3)
    source = nb.load(root / "bids/sub-01/dwi/sub-01_dwi.nii.gz")
    folder = root / "elsewhere/sub-01/dwi"
    folder.mkdir(parents=True)
    half = nb.Nifti1Image(source.get_fdata(dtype=np.float32) / 2, source.affine, source.header)
    half.to_filename(folder / "sub-01_desc-preproc_dwi.nii.gz")
    places = [f"truth={root}/bids/derivatives/truth", f"elsewhere={root}/elsewhere"]
    code = main([str(root / "bids"), str(root / "out"), "participant", "group", "-w", str(root / "work"), *FAST,
                 "--compare", *METHODS, "--derivatives", *places])  # fmt: skip
    assert code == 0
    return root


def test_every_method_leaves_files_beside_the_applications_own(root: Path) -> None:
    folder = root / "out/sub-01/dwi"
    for method in METHODS:
        for end in ("dwi.nii.gz", "dwi.json", "dwi.bval", "dwi.bvec", "metrics.json", "metrics.tsv"):
            assert (folder / f"sub-01_desc-{method}_{end}").is_file(), f"{method} {end}"
    assert (folder / "sub-01_desc-denoiser_timeseries.tsv").is_file()
    own = nb.load(folder / "sub-01_desc-denoised_dwi.nii.gz")
    other = nb.load(folder / "sub-01_desc-denoiser_dwi.nii.gz")
    assert not np.array_equal(own.get_fdata(), other.get_fdata())
    taken = nb.load(folder / "sub-01_desc-elsewhere_dwi.nii.gz").get_fdata(dtype=np.float32)
    source = nb.load(root / "bids/sub-01/dwi/sub-01_dwi.nii.gz").get_fdata(dtype=np.float32)
    np.testing.assert_allclose(taken, source / 2, rtol=1e-5)
    sidecar = json.loads((folder / "sub-01_desc-elsewhere_dwi.json").read_text())
    assert sidecar["Sources"] == ["bids:elsewhere:sub-01/dwi/sub-01_desc-preproc_dwi.nii.gz"]


def test_all_methods_are_measured_with_one_noise_level(root: Path) -> None:
    levels = {
        json.loads(path.read_text())["metrics"]["sigma_mean"]
        for path in (root / "out/sub-01/dwi").glob("*_metrics.json")
    }
    assert len(levels) == 1


def test_the_reports_show_them_side_by_side(root: Path) -> None:
    page = Page(root / "out/sub-01.html")
    for name in ("methodsB0", "methodsB1000", "methodsTensor", "methodsTraining"):
        assert f"sub-01-{name}" in page.ids
    assert (root / "out/sub-01.html").stat().st_size < 15e6
    group = Page(root / "out/group.html")
    data = data_of(group)
    assert set(data["methods"]) == {"acquired", "denoised", *METHODS}
    rows = table_of(root / "out/group_dwi.tsv")
    error = {(row["participant_id"], row["method"]): float(row["true_psnr_dwi_after"]) for row in rows}
    assert error["sub-01", "mppca"] > float(rows[0]["true_psnr_dwi_before"])
    assert error["sub-01", "elsewhere"] < error["sub-01", "mppca"]
    assert ("sub-02", "elsewhere") not in error
    assert ("sub-02", "mppca") in error
    assert "desc-elsewhere" not in " ".join(path.name for path in (root / "out/sub-02/dwi").iterdir())


def test_both_trainings_can_be_followed_with_tensorboard(root: Path) -> None:
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    logs = EventMultiplexer().AddRunsFromDirectory(str(root / "work"))
    logs.Reload()
    runs = {name: found["scalars"] for name, found in logs.Runs().items()}
    assert len(runs) == 4, "two participants, two trainings"
    assert sum("/denoiser/" in name for name in runs) == 2
    for scalars in runs.values():
        assert {"training_loss", "heldout_loss", "learning_rate"} <= set(scalars)


def test_the_validator_finds_no_error(root: Path) -> None:
    validator = Path(sys.executable).with_name("bids-validator-deno")
    if not validator.exists():
        pytest.skip("bids-validator-deno is not installed")
    command = [str(validator), str(root / "out"), "--format", "json"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    issues = json.loads(result.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []


def test_a_series_of_another_grid_is_refused_by_name(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "other/sub-01/dwi"
    folder.mkdir(parents=True)
    nb.Nifti1Image(np.ones((4, 4, 4, 14), np.float32), np.eye(4)).to_filename(
        folder / "sub-01_desc-x_dwi.nii.gz"
    )
    code = main([str(root / "bids"), str(tmp_path / "out"), "participant", "-w", str(root / "work"), *FAST,
                 "--participant-label", "01", "--compare", "other", "-d", f"other={tmp_path}/other"])  # fmt: skip
    assert code == 65
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "sub-01_desc-x_dwi.nii.gz: expected the grid of" in last
    assert (tmp_path / "out/sub-01/dwi/sub-01_desc-denoised_dwi.nii.gz").exists(), "the own result is kept"
