"""The whole application on BIDS datasets: simulated ones, real signals, and everything that can be wrong."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nb
import numpy as np
import pytest
from numpy.typing import NDArray

from dwmri_bidsapp.cli import main
from dwmri_bidsapp.denoising import Denoised
from dwmri_bidsapp.errors import BadDataError
from dwmri_bidsapp.interfaces.base import ERROR_FILE, write_error
from dwmri_bidsapp.simulation import make_protocol
from dwmri_bidsapp.simulation.dataset import write_bids_dataset

pytestmark = pytest.mark.end_to_end

FAST = [
    "--device", "cpu", "--nprocs", "1", "--max-steps", "10", "--base-filters", "4", "--patch-size", "16",
    "--batch-size", "2",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _environment() -> Iterator[None]:
    """The program sets its process's environment: give it back."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module", autouse=True)
def _no_network() -> Iterator[None]:
    """Let every connection beyond this machine's own pipes fail."""
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX:
            raise AssertionError(f"a connection to {address} was tried")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", lambda *args, **_: refuse(socket.socket(), args[0]))
        yield


def _fingerprint(folder: Path) -> dict[str, tuple[str, float, int]]:
    """Return checksum, time of change and number of links of every file."""
    return {
        str(path.relative_to(folder)): (
            _checksum(path), path.stat().st_mtime, path.stat().st_nlink
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }  # fmt: skip


def _checksum(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _data(path: Path) -> NDArray[np.float32]:
    return nb.load(path).get_fdata(dtype=np.float32)


@dataclass(frozen=True)
class Call:
    """A call of the program that has ended."""

    bids: Path
    out: Path
    work: Path
    code: int
    changed: bool
    home_changed: bool


def _run(bids: Path, root: Path, *arguments: str) -> Call:
    home = Path(os.environ["HOME"])
    before, home_before = _fingerprint(bids), _fingerprint(home)
    levels = [argument for argument in arguments if argument in ("participant", "group")] or ["participant"]
    options = [argument for argument in arguments if argument not in levels]
    code = main([str(bids), str(root / "out"), *levels, "--work-dir", str(root / "work"), *FAST, *options])
    return Call(
        bids, root / "out", root / "work", code,
        changed=_fingerprint(bids) != before, home_changed=_fingerprint(home) != home_before,
    )  # fmt: skip


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    bids = tmp_path_factory.mktemp("simulated") / "bids"
    protocol = make_protocol(2, {1000: 15}, np.random.default_rng(0))
    write_bids_dataset(bids, n_participants=2, voxel_size=6.0, protocol=protocol, snr=15, seed=11)
    # What outputs must keep: codes that differ, an oblique affine, a time unit.
    path = bids / "sub-02/dwi/sub-02_dwi.nii.gz"
    image = nb.load(path)
    image.set_qform(image.affine, code=3)
    image.set_sform(None, code=0)
    image.to_filename(path)
    return bids


@pytest.fixture(scope="module")
def done(simulated: Path, tmp_path_factory: pytest.TempPathFactory) -> Call:
    root = tmp_path_factory.mktemp("done")
    return _run(simulated, root, "participant", "group", "-d", f"truth={simulated}/derivatives/truth")


def test_it_succeeds_and_leaves_dataset_and_home_alone(done: Call) -> None:
    assert done.code == 0
    assert not done.changed
    assert not done.home_changed


def test_the_files_are_those_of_the_manual(done: Call) -> None:
    for subject in ("sub-01", "sub-02"):
        found = {path.name.removeprefix(f"{subject}_") for path in (done.out / subject / "dwi").iterdir()}
        assert found == {
            "desc-denoised_dwi.nii.gz", "desc-denoised_dwi.json", "desc-denoised_dwi.bval", "desc-denoised_dwi.bvec",
            "desc-brain_mask.nii.gz", "desc-brain_mask.json",
            "model-noise_param-sigma_dwimap.nii.gz", "model-noise_param-sigma_dwimap.json",
            "model-noise_param-uncertainty_dwimap.nii.gz", "model-noise_param-uncertainty_dwimap.json",
            "desc-denoised_metrics.tsv", "desc-denoised_metrics.json",
            "desc-training_timeseries.tsv", "desc-training_timeseries.json",
            "desc-confounds_timeseries.tsv", "desc-confounds_timeseries.json",
        }  # fmt: skip
        assert len(list((done.out / subject / "figures").glob(f"{subject}_desc-*_dwi.svg"))) > 8
        assert (done.out / f"{subject}.html").stat().st_size > 10_000
    for name in ("dataset_description.json", "README", ".bidsignore", "group.html", "group_dwi.tsv"):
        assert (done.out / name).is_file(), name


@pytest.mark.parametrize("subject", ["sub-01", "sub-02"])
def test_the_grid_is_that_of_the_input(done: Call, subject: str) -> None:
    source = nb.load(done.bids / subject / f"dwi/{subject}_dwi.nii.gz")
    folder = done.out / subject / "dwi"
    for path in folder.glob("*.nii.gz"):
        image = nb.load(path)
        assert image.shape == (source.shape if path.name.endswith("_dwi.nii.gz") else source.shape[:3])
        np.testing.assert_array_equal(image.affine, source.affine)
        assert image.header.get_xyzt_units() == source.header.get_xyzt_units()
        assert image.header.get_zooms() == source.header.get_zooms()[: len(image.shape)]
        for code in ("sform_code", "qform_code"):
            assert image.header[code] == source.header[code]
        assert image.get_data_dtype() == (np.uint8 if "mask" in path.name else np.float32)
    for suffix in ("bval", "bvec"):
        copy = folder / f"{subject}_desc-denoised_dwi.{suffix}"
        original = done.bids / subject / f"dwi/{subject}_dwi.{suffix}"
        assert copy.read_bytes() == original.read_bytes()
        assert not copy.samefile(original)


@pytest.mark.parametrize("subject", ["sub-01", "sub-02"])
def test_the_error_against_the_truth_is_smaller(done: Call, subject: str) -> None:
    truth = _data(done.bids / f"derivatives/truth/{subject}/dwi/{subject}_desc-truth_dwi.nii.gz")
    before = _data(done.bids / subject / f"dwi/{subject}_dwi.nii.gz")
    after = _data(done.out / subject / f"dwi/{subject}_desc-denoised_dwi.nii.gz")
    mask = _data(done.out / subject / f"dwi/{subject}_desc-brain_mask.nii.gz") > 0
    np.testing.assert_array_equal(after[~mask], before[~mask])
    error_before, error_after = (((data - truth)[mask] ** 2).mean(axis=0) for data in (before, after))
    assert (error_after < error_before).all(), "worse than the input in some volume"
    assert error_after.mean() < 0.7 * error_before.mean()
    sigma = _data(done.out / subject / f"dwi/{subject}_model-noise_param-sigma_dwimap.nii.gz")[mask]
    residual = (before - truth)[mask].std()
    assert 0.7 * residual < np.sqrt((sigma**2).mean()) < 1.4 * residual


def test_sidecars_carry_what_belongs_to_the_image(done: Call) -> None:
    folder = done.out / "sub-01/dwi"
    source = json.loads((done.bids / "sub-01/dwi/sub-01_dwi.json").read_text())
    sidecar = json.loads((folder / "sub-01_desc-denoised_dwi.json").read_text())
    assert source.items() <= sidecar.items()
    assert sidecar["SkullStripped"] is False
    assert sidecar["Sources"][0] == "bids:raw:sub-01/dwi/sub-01_dwi.nii.gz"
    links = json.loads((done.out / "dataset_description.json").read_text())["DatasetLinks"]
    assert links["raw"] == done.bids.as_uri()
    assert "RepetitionTime" not in json.loads((folder / "sub-01_desc-brain_mask.json").read_text())
    for table in ("training", "confounds"):
        columns = (folder / f"sub-01_desc-{table}_timeseries.tsv").read_text().splitlines()[0].split("\t")
        assert set(columns) == set(json.loads((folder / f"sub-01_desc-{table}_timeseries.json").read_text()))


def test_the_validator_finds_no_error(done: Call) -> None:
    validator = Path(sys.executable).with_name("bids-validator-deno")
    if not validator.exists():
        pytest.skip("bids-validator-deno is not installed")
    command = [str(validator), str(done.out), "--format", "json"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    issues = json.loads(result.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []


def test_the_same_seed_gives_the_same_bytes(done: Call, tmp_path: Path) -> None:
    again = _run(done.bids, tmp_path, "--participant-label", "02")
    assert again.code == 0
    assert not (again.out / "sub-01").exists()
    for path in (again.out / "sub-02/dwi").glob("*.nii.gz"):
        assert path.read_bytes() == (done.out / "sub-02/dwi" / path.name).read_bytes(), path.name


def test_a_finished_run_is_not_denoised_again(done: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = done.out / "sub-01/dwi/sub-01_desc-denoised_dwi.nii.gz"
    content = lost.read_bytes()
    lost.unlink()

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("denoised again")

    monkeypatch.setattr("dwmri_bidsapp.denoising.denoise", fail)
    assert _run(done.bids, done.out.parent, "--participant-label", "01").code == 0
    assert lost.read_bytes() == content


def _copy_run(bids: Path, subject: str, source: Path) -> Path:
    """Copy a participant's run under another label, and return its image."""
    folder = bids / f"sub-{subject}/dwi"
    folder.mkdir(parents=True)
    for path in source.iterdir():
        shutil.copyfile(path, folder / path.name.replace(source.parent.name, f"sub-{subject}"))
    return folder / f"sub-{subject}_dwi.nii.gz"


def _rewrite(image: Path, data: NDArray[Any]) -> None:
    nb.Nifti1Image(data, nb.load(image).affine).to_filename(image)


def _break(image: Path, how: str) -> None:
    """Make a run unusable in one way."""
    bval, bvec = (image.with_name(image.name.replace("nii.gz", suffix)) for suffix in ("bval", "bvec"))
    if how == "nobvec":
        bvec.unlink()
    elif how == "truncated":
        image.write_bytes(image.read_bytes()[:20_000])
    elif how == "garbage":
        image.write_bytes(gzip.compress(b"not an image" * 1000))
    elif how == "volumes":
        _rewrite(image, _data(image)[..., :-1])
    elif how == "single":
        _rewrite(image, _data(image)[..., :1])
        bval.write_text("0\n")
        bvec.write_text("0\n0\n0\n")
    elif how == "threed":
        _rewrite(image, _data(image)[..., 0])
    elif how == "nan":
        data = _data(image)
        data[3, 3, 3, 2] = np.nan
        _rewrite(image, data)
    elif how == "nob0":
        b, table = np.loadtxt(bval), np.loadtxt(bvec)
        table[0, b == 0] = 1
        b[b == 0] = 1000
        np.savetxt(bval, b[None], fmt="%g")
        np.savetxt(bvec, table)
    elif how == "zeronorm":
        table = np.loadtxt(bvec)
        table[:, 5] = 0
        np.savetxt(bvec, table)


BROKEN = {
    "nobvec": (65, r"sub-nobvec\S*: .*bvec"),
    "truncated": (65, r"sub-truncated_dwi\.nii\.gz: expected a readable NIfTI file"),
    "garbage": (65, r"sub-garbage_dwi\.nii\.gz: expected a readable NIfTI file"),
    "volumes": (65, r"sub-volumes_dwi\.bval: expected 11 b-values.* found 12"),
    "single": (65, r"sub-single_dwi\.nii\.gz: holds b=0 volumes only"),
    "threed": (65, r"sub-threed_dwi\.nii\.gz: expected a 4D series .* found 3D"),
    "nan": (65, r"sub-nan_dwi\.nii\.gz: expected finite values, found 1 NaN"),
    "nob0": (65, r"sub-nob0_dwi\.bval: expected at least one b=0 volume"),
    "zeronorm": (65, r"sub-zeronorm_dwi\.bvec: .*length zero.* volumes 5"),
    "unreadable": (74, r"sub-unreadable_dwi\.nii\.gz: cannot be read: Permission denied"),
}
"""What is wrong with each participant's run: exit code, and what the line says."""


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    bids = tmp_path_factory.mktemp("broken") / "bids"
    protocol = make_protocol(2, {1000: 10}, np.random.default_rng(0))
    write_bids_dataset(bids, n_participants=1, voxel_size=9.0, protocol=protocol, seed=2)
    for how in BROKEN:
        _break(_copy_run(bids, how, bids / "sub-01/dwi"), how)
    rows = (bids / "participants.tsv").read_text().splitlines()[0]
    (bids / "participants.tsv").write_text(rows + "\n")
    return bids


def _errors(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if line.startswith("dwmri-bidsapp: error:")]


@pytest.fixture(autouse=True)
def _unreadable_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse to open one file, even to root."""
    open_path = Path.open

    def refuse(self: Path, *args: Any, **settings: Any) -> Any:
        if self.name == "sub-unreadable_dwi.nii.gz" and "w" not in "".join(args):
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return open_path(self, *args, **settings)

    monkeypatch.setattr(Path, "open", refuse)


@pytest.mark.parametrize("how", BROKEN)
def test_a_bad_run_is_one_line_and_an_exit_code(
    broken: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], how: str
) -> None:
    code, says = BROKEN[how]
    call = _run(broken, tmp_path, "--participant-label", how)
    stderr = capfd.readouterr().err
    assert call.code == code
    (line,) = _errors(stderr)
    assert re.search(says, line), line
    assert "Traceback" not in stderr
    assert not call.changed
    assert not (call.out / f"sub-{how}/dwi").exists()


def test_the_others_are_finished(broken: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    call = _run(broken, tmp_path)
    lines = _errors(capfd.readouterr().err)
    assert call.code == 1
    assert (call.out / "sub-01/dwi/sub-01_desc-denoised_dwi.nii.gz").exists()
    for how in BROKEN:
        assert sum(bool(re.search(BROKEN[how][1], line)) for line in lines) == 1, how
    assert f"{len(BROKEN)} of {len(BROKEN) + 1} failed" in lines[-1]
    logs = list((call.out / "sub-nan/log").glob("*/crash-*.txt"))
    assert len(logs) == 1
    assert "NaN" in logs[0].read_text()


def test_the_first_failure_can_stop_everything(
    broken: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    call = _run(broken, tmp_path, "--participant-label", "nan", "threed", "--stop-on-first-crash")
    first, second, _ = _errors(capfd.readouterr().err)
    assert call.code == 1
    assert "NaN" in first
    assert "sub-threed_dwi.nii.gz: not finished: an earlier run failed" in second


def test_an_error_of_an_earlier_call_is_not_told_again(
    broken: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "work/dwmri_wf/sub_nan_wf/denoise_wf/denoise"
    write_error(BadDataError("an old story"), folder)
    os.utime(folder / ERROR_FILE, (0, 0))
    assert _run(broken, tmp_path, "--participant-label", "nan").code == 65
    (line,) = _errors(capfd.readouterr().err)
    assert "NaN" in line


def test_a_killed_worker_fails_its_run_only(
    simulated: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def denoise(dwi_xyzv: Any, *_: Any, checkpoint_dir: Path, **__: Any) -> Denoised:
        if "sub_01" in str(checkpoint_dir):
            os.kill(os.getpid(), signal.SIGKILL)
        sigma_xyz = np.ones(dwi_xyzv.shape[:3], np.float32)
        row = {"step": 0.0, "learning_rate": 0.0, "training_loss": 1.0, "heldout_loss": 1.0, "seconds": 0.0}
        return Denoised(dwi_xyzv, sigma_xyz, sigma_xyz, [row], {})

    monkeypatch.setattr("dwmri_bidsapp.denoising.denoise", denoise)
    # Only a fork takes the patch along.
    plugin = tmp_path / "plugin.yml"
    plugin.write_text("plugin: MultiProc\nplugin_args: {n_procs: 2, mp_context: fork}\n")
    call = _run(simulated, tmp_path, "--use-plugin", str(plugin))
    first, last = _errors(capfd.readouterr().err)
    assert call.code == 1
    assert re.search(r"sub-01_dwi\.nii\.gz: .*denoise: killed by SIGKILL, probably out of memory", first)
    assert "1 of 2 failed" in last
    assert (call.out / "sub-02/dwi/sub-02_desc-denoised_dwi.nii.gz").exists()
    assert len(list((call.out / "sub-01/log").glob("*/crash-*.txt"))) == 1


def test_an_empty_dataset(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bids = tmp_path / "bids"
    bids.mkdir()
    assert _run(bids, tmp_path).code == 65
    (bids / "dataset_description.json").write_text('{"Name": "empty", "BIDSVersion": "1.10.0"}')
    assert _run(bids, tmp_path).code == 65
    for line in _errors(capfd.readouterr().err):
        assert str(bids) in line
    assert not (tmp_path / "out").exists()


def test_an_unknown_participant(broken: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    call = _run(broken, tmp_path, "--participant-label", "nobody")
    assert call.code == 64
    (line,) = _errors(capfd.readouterr().err)
    assert "nobody" in line


def test_a_work_folder_inside_the_dataset(broken: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = _fingerprint(broken)
    assert (
        main([str(broken), str(broken.parent / "o"), "participant", "-w", str(broken / "work"), *FAST]) == 64
    )
    (line,) = _errors(capfd.readouterr().err)
    assert "inside BIDS_DIR" in line
    assert _fingerprint(broken) == before


def _real_signals(bids: Path) -> None:
    """Make a dataset of the two small series that DIPY ships."""
    from dipy.data import get_fnames

    bids.mkdir()
    (bids / "dataset_description.json").write_text('{"Name": "real", "BIDSVersion": "1.10.0"}')
    for name in ("64D", "101D"):
        image, bval, bvec = (Path(path) for path in get_fnames(name=f"small_{name}"))
        folder = bids / f"sub-{name}/dwi"
        folder.mkdir(parents=True)
        nb.load(image).to_filename(folder / f"sub-{name}_dwi.nii.gz")
        shutil.copyfile(bval, folder / f"sub-{name}_dwi.bval")
        shutil.copyfile(bvec, folder / f"sub-{name}_dwi.bvec")


def test_real_signals(tmp_path: Path) -> None:
    _real_signals(tmp_path / "bids")
    call = _run(tmp_path / "bids", tmp_path, "participant", "group")
    assert call.code == 0
    for name, n_volumes in (("64D", 65), ("101D", 102)):
        before = _data(call.bids / f"sub-{name}/dwi/sub-{name}_dwi.nii.gz")
        after = _data(call.out / f"sub-{name}/dwi/sub-{name}_desc-denoised_dwi.nii.gz")
        known = json.loads((call.out / f"sub-{name}/dwi/sub-{name}_desc-denoised_metrics.json").read_text())
        assert after.shape[3] == n_volumes
        assert np.isfinite(after).all()
        sigma = known["metrics"]["sigma_mean"]
        residual = (before - after)[..., 1:].std()
        assert 0.3 * sigma < residual < 1.3 * sigma, "as much must be taken away as there is noise"
        assert abs(after.mean() / before.mean() - 1) < 0.02
        assert known["preparation"]["mask_fraction"] == 1


def _can_unshare() -> bool:
    if not shutil.which("unshare"):
        return False
    return subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False).returncode == 0


def test_the_program_without_a_network_and_with_a_read_only_home(simulated: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(stat.S_IRUSR | stat.S_IXUSR)
    program = [sys.executable, "-c", "from dwmri_bidsapp.cli import main; raise SystemExit(main())"]
    if not _can_unshare():
        pytest.skip("this machine cannot take the network away from a process")
    environment = {"PATH": os.environ["PATH"], "HOME": str(home)}
    command = [
        "unshare", "-rn", *program, str(simulated), str(tmp_path / "out"), "participant", "group",
        "-w", str(tmp_path / "work"), *FAST, "--nprocs", "2", "--omp-nthreads", "1",
    ]  # fmt: skip
    result = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    assert list(home.iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {"home", "out", "work"}
    assert result.stdout.strip().splitlines()[-1].startswith("dwmri-bidsapp: done: 2 runs denoised")
