"""Interfaces: headers, names and errors as they leave; what is computed is tested where it is computed."""

from __future__ import annotations

import errno
import gzip
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import nibabel as nb
import numpy as np
import pytest
from numpy.typing import NDArray

from dwmri_bidsapp.errors import BadDataError, DwmriError, InputOutputError, RunFailed, TryAgainError
from dwmri_bidsapp.interfaces import CollectMetrics, DenoiseRun, DerivativesDataSink, PrepareRun
from dwmri_bidsapp.interfaces.base import (
    ERROR_FILE,
    as_dwmri_error,
    plain,
    read_error,
    read_tsv,
    recorded_errors,
    save_image,
    write_json,
    write_tsv,
)
from dwmri_bidsapp.interfaces.denoising import gpu_slot
from dwmri_bidsapp.options import DenoiseOptions
from dwmri_bidsapp.simulation import add_noise, make_protocol, simulate_phantom

OBLIQUE = np.array([[-1.9, 0.3, 0.1, 40], [0.3, 1.9, -0.2, -50], [0.1, 0.2, 2.2, -30], [0, 0, 0, 1.0]])


def _image(kind: str) -> nb.Nifti1Image:
    """An image with one of the headers that exist in the wild."""
    data = np.random.default_rng(0).integers(0, 1000, (5, 6, 7, 3)).astype(np.int16)
    cls = nb.Nifti2Image if kind == "nifti2" else nb.Nifti1Image
    image = cls(data, OBLIQUE)
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_zooms((*image.header.get_zooms()[:3], 3.3))
    if kind == "qform only":
        image.set_sform(None, code=0)
        image.set_qform(np.diag([2.0, 2, 2, 1]), code=1)
    elif kind == "no form":
        image.set_sform(None, code=0)
        image.set_qform(None, code=0)
    elif kind == "two forms":
        image.set_sform(OBLIQUE, code=2)
        image.set_qform(np.diag([2.0, 2, 2, 1]), code=1)
    elif kind == "no units":
        image.header.set_xyzt_units("unknown", "unknown")
    elif kind == "scaled":
        image.header.set_slope_inter(2, 10)
        image.header["cal_max"] = 55
    return image


@pytest.mark.parametrize(
    "kind", ["plain", "qform only", "no form", "two forms", "no units", "scaled", "nifti2"]
)
@pytest.mark.parametrize("n_dims", [3, 4])
def test_a_saved_image_keeps_the_header_of_its_source(tmp_path: Path, kind: str, n_dims: int) -> None:
    _image(kind).to_filename(tmp_path / "in.nii.gz")
    source = nb.load(tmp_path / "in.nii.gz")
    data = np.random.default_rng(1).normal(size=source.shape[:n_dims]).astype(np.float32) * 1e4
    saved = nb.load(save_image(data, source, tmp_path / "out.nii.gz"))
    assert type(saved) is type(source)
    assert saved.get_data_dtype() == np.float32
    np.testing.assert_array_equal(np.asarray(saved.dataobj), data)
    np.testing.assert_array_equal(saved.affine, source.affine)
    assert saved.header.get_zooms() == source.header.get_zooms()[:n_dims]
    kept = (
        "qform_code",
        "sform_code",
        "xyzt_units",
        "quatern_b",
        "quatern_c",
        "quatern_d",
        "srow_x",
        "srow_z",
    )
    for field in kept:
        np.testing.assert_array_equal(saved.header[field], source.header[field], err_msg=field)
    assert saved.header["cal_max"] == 0


def test_saving_replaces_a_link_instead_of_writing_through_it(tmp_path: Path) -> None:
    source = _image("plain")
    save_image(np.zeros(source.shape, np.float32), source, tmp_path / "a.nii")
    os.link(tmp_path / "a.nii", tmp_path / "b.nii")
    save_image(np.ones(source.shape, np.float32), source, tmp_path / "a.nii")
    assert nb.load(tmp_path / "b.nii").get_fdata().max() == 0


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (BadDataError("a file", "a way out"), BadDataError),
        (MemoryError(), TryAgainError),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"), TryAgainError),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), InputOutputError),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), InputOutputError),
        (ValueError("two\nlines"), RunFailed),
    ],
)
def test_an_error_is_recorded_with_its_exit_code(tmp_path: Path, error: Exception, expected: type) -> None:
    with pytest.raises(expected), recorded_errors(tmp_path):
        raise error
    read = read_error(tmp_path / ERROR_FILE)
    assert type(read) is expected
    assert "\n" not in str(read)
    assert str(read) == str(as_dwmri_error(error))


def test_no_error_leaves_no_record(tmp_path: Path) -> None:
    with recorded_errors(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_json_has_no_nan_and_no_numpy(tmp_path: Path) -> None:
    content = {
        "array": np.array([1.5, np.nan]), "scalar": np.float32(2), "path": Path("/x"), "set": (1, np.int64(2)),
        "flag": np.bool_(True), "options": DenoiseOptions(max_steps=3),
    }  # fmt: skip
    read = json.loads(write_json(content, tmp_path / "x.json").read_text())
    assert {k: read[k] for k in ("array", "scalar", "path", "set", "flag")} == {
        "array": [1.5, None], "scalar": 2.0, "path": "/x", "set": [1, 2], "flag": True,
    }  # fmt: skip
    assert read["options"]["max_steps"] == 3
    assert plain(math.inf) is None


def test_a_table_comes_back(tmp_path: Path) -> None:
    rows = [{"step": 0.0, "loss": math.nan}, {"step": 10.0, "loss": 0.125}]
    path = write_tsv(rows, tmp_path / "x.tsv")
    assert path.read_text() == "step\tloss\n0\tn/a\n10\t0.125\n"
    read = read_tsv(path)
    assert math.isnan(read[0]["loss"])
    assert read[1] == rows[1]


def _write_run(folder: Path) -> tuple[dict[str, Any], NDArray[np.int16]]:
    """Write a small phantom as int16, obliquely."""
    rng = np.random.default_rng(0)
    gradients = make_protocol(2, {1000: 8}, rng)
    phantom = simulate_phantom(voxel_size=8.0, gradients=gradients, seed=1)
    noisy_xyzv, _ = add_noise(phantom.clean_xyzv, sigma=30.0, kind="rician", rng=rng)
    data = noisy_xyzv.astype(np.int16)
    image = nb.Nifti1Image(data, OBLIQUE)
    image.header.set_xyzt_units("mm", "sec")
    image.to_filename(folder / "dwi.nii.gz")
    (folder / "dwi.bval").write_text("  ".join(f"{b:g}" for b in gradients.bvals))
    np.savetxt(folder / "dwi.bvec", gradients.bvecs.T)
    files = {"dwi_file": "dwi.nii.gz", "bval_file": "dwi.bval", "bvec_file": "dwi.bvec"}
    return {name: str(folder / file) for name, file in files.items()}, data


def test_prepare_and_denoise_from_file_to_file(tmp_path: Path) -> None:
    files, data = _write_run(tmp_path)
    (tmp_path / "work").mkdir()
    prepared = PrepareRun(**files).run(cwd=str(tmp_path / "work")).outputs
    for field in ("bval_file", "bvec_file"):
        copy, source = Path(getattr(prepared, field)), Path(files[field])
        assert copy.read_bytes() == source.read_bytes()
        assert not copy.samefile(source)
    mask = nb.load(prepared.mask_file)
    assert mask.get_data_dtype() == np.uint8

    denoised = (
        DenoiseRun(
            dwi_file=files["dwi_file"],
            gradients_file=prepared.gradients_file,
            mask_file=prepared.mask_file,
            options={"max_steps": 2, "init": "random", "base_filters": 2, "patch_size": 8, "batch_size": 1},
            checkpoint_dir=str(tmp_path / "checkpoints"),
        )
        .run(cwd=str(tmp_path / "work"))
        .outputs
    )
    after = nb.load(denoised.denoised_file)
    assert after.get_data_dtype() == np.float32
    np.testing.assert_array_equal(after.affine, mask.affine)
    outside = ~(mask.get_fdata() > 0)
    np.testing.assert_array_equal(after.get_fdata()[outside], data[outside])
    assert (after.get_fdata()[~outside] != data[~outside]).mean() > 0.9
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1
    assert read_tsv(Path(denoised.timeseries_file))[-1]["step"] == 2


def test_other_inputs_have_other_checkpoints(tmp_path: Path) -> None:
    files, _ = _write_run(tmp_path)
    inputs = {
        "dwi_file": files["dwi_file"],
        "gradients_file": files["bval_file"],
        "mask_file": files["bvec_file"],
    }

    def folder(**changed: Any) -> Path | None:
        settings = {**inputs, "options": {"max_steps": 2}, "checkpoint_dir": str(tmp_path), **changed}
        return DenoiseRun(**settings)._checkpoint_dir()

    assert folder() == folder(num_threads=2)
    assert folder() != folder(options={"max_steps": 3})
    assert folder() != folder(mask_file=files["dwi_file"])


def test_gpu_slots_are_given_once_each(tmp_path: Path) -> None:
    with gpu_slot([0, 2], tmp_path) as first, gpu_slot([0, 2], tmp_path) as second:
        assert (first, second) == ("cuda:0", "cuda:2")
    with gpu_slot([2], tmp_path) as again:
        assert again == "cuda:2"


def test_a_gpu_slot_is_waited_for(tmp_path: Path) -> None:
    taken: list[str] = []

    def take() -> None:
        with gpu_slot([1], tmp_path) as device:
            taken.append(device)

    thread = threading.Thread(target=take)
    with gpu_slot([1], tmp_path):
        thread.start()
        time.sleep(0.3)
        assert taken == []
    thread.join(timeout=10)
    assert taken == ["cuda:1"]


def test_an_error_gives_the_gpu_back(tmp_path: Path) -> None:
    with pytest.raises(BlockingIOError), gpu_slot([0], tmp_path):
        raise BlockingIOError
    with gpu_slot([0], tmp_path) as device:
        assert device == "cuda:0"


SOURCE = "bids/sub-01/ses-a/dwi/sub-01_ses-a_acq-b_dir-AP_run-02_part-mag_dwi.nii.gz"
STEM = "sub-01_ses-a_acq-b_dir-AP_run-02_part-mag"


@pytest.mark.parametrize(
    ("file", "names", "expected"),
    [
        ("x.nii", {"desc": "denoised", "suffix": "dwi", "compress": True}, "_desc-denoised_dwi.nii.gz"),
        ("x.bval", {"desc": "denoised", "suffix": "dwi"}, "_desc-denoised_dwi.bval"),
        ("x.nii", {"desc": "brain", "suffix": "mask", "compress": True}, "_desc-brain_mask.nii.gz"),
        (
            "x.nii",
            {"model": "noise", "param": "sigma", "suffix": "dwimap", "compress": True},
            "_model-noise_param-sigma_dwimap.nii.gz",
        ),
        ("x.tsv", {"desc": "training", "suffix": "timeseries"}, "_desc-training_timeseries.tsv"),
        ("x.tsv", {"desc": "confounds", "suffix": "timeseries"}, "_desc-confounds_timeseries.tsv"),
        ("x.json", {"desc": "denoised", "suffix": "metrics"}, "_desc-denoised_metrics.json"),
    ],
)
def test_names_of_the_derivatives(tmp_path: Path, file: str, names: dict[str, Any], expected: str) -> None:
    source = tmp_path / file
    if file.endswith(".nii"):
        _image("two forms").to_filename(source)
    else:
        source.write_text(" 0   1000\n")
    sink = DerivativesDataSink(
        base_directory=str(tmp_path / "out"), source_file=str(tmp_path / SOURCE), **names
    )
    sink.inputs.in_file = str(source)
    sink.run(cwd=str(tmp_path))
    written = tmp_path / "out/sub-01/ses-a/dwi" / (STEM + expected)
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [written]
    content = gzip.decompress(written.read_bytes()) if written.suffix == ".gz" else written.read_bytes()
    if names["suffix"] != "mask":
        assert content == source.read_bytes()


def test_magnitude_and_phase_do_not_collide(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text("a\n1\n")
    for part in ("mag", "phase"):
        sink = DerivativesDataSink(base_directory=str(tmp_path / "out"), desc="denoised", suffix="metrics")
        sink.inputs.source_file = f"/bids/sub-1/dwi/sub-1_part-{part}_dwi.nii.gz"
        sink.inputs.in_file = str(tmp_path / "x.tsv")
        sink.run(cwd=str(tmp_path))
    assert len(list((tmp_path / "out/sub-1/dwi").iterdir())) == 2


def test_figures_stand_beside_the_sessions(tmp_path: Path) -> None:
    for name in ("carpet", "flickerB0"):
        (tmp_path / f"{name}.svg").write_text(name)
    sink = DerivativesDataSink(base_directory=str(tmp_path / "out"), datatype="figures", suffix="dwi")
    sink.inputs.source_file = str(tmp_path / SOURCE)
    sink.inputs.in_file = [str(tmp_path / f"{name}.svg") for name in ("carpet", "flickerB0")]
    sink.inputs.desc = ["carpet", "flickerB0"]
    sink.run(cwd=str(tmp_path))
    folder = tmp_path / "out/sub-01/figures"
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        f"{STEM}_desc-carpet_dwi.svg": "carpet",
        f"{STEM}_desc-flickerB0_dwi.svg": "flickerB0",
    }


def test_a_sink_does_not_read_its_source_to_know_whether_it_is_done(tmp_path: Path) -> None:
    source, table = tmp_path / "sub-1_dwi.nii.gz", tmp_path / "x.tsv"
    source.write_text("gigabytes")
    table.write_text("a\n1\n")
    sink = DerivativesDataSink(base_directory=str(tmp_path / "out"), desc="denoised", suffix="metrics")
    sink.inputs.source_file, sink.inputs.in_file = str(source), str(table)

    def hashed() -> str:
        _, found = sink.inputs.get_hashval(hash_method="content")
        return str(found)

    before = hashed()
    source.write_text("other gigabytes")
    assert hashed() == before
    table.write_text("a\n2\n")
    assert hashed() != before


def test_a_full_disk_while_sinking_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("niworkflows.interfaces.bids._copy_any", fail)
    (tmp_path / "x.tsv").write_text("a\n1\n")
    sink = DerivativesDataSink(base_directory=str(tmp_path / "out"), desc="denoised", suffix="metrics")
    sink.inputs.source_file, sink.inputs.in_file = str(tmp_path / SOURCE), str(tmp_path / "x.tsv")
    with pytest.raises(DwmriError):
        sink.run(cwd=str(tmp_path))
    assert read_error(tmp_path / ERROR_FILE).exit_code == 74


def test_a_sink_that_is_stopped_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_a_part(_: str, target: str) -> None:
        Path(target).write_bytes(b"par")
        raise KeyboardInterrupt

    out_dir = tmp_path / "out"
    for name in ("old", "new"):
        (tmp_path / f"{name}.tsv").write_text(f"a\n{name}\n")
    sink = DerivativesDataSink(base_directory=str(out_dir), desc="denoised", suffix="metrics", EchoTime=0.1)
    sink.inputs.source_file, sink.inputs.in_file = str(tmp_path / SOURCE), str(tmp_path / "old.tsv")
    sink.run(cwd=str(tmp_path))
    files = {path: path.read_bytes() for path in out_dir.rglob("*") if path.is_file()}
    assert sorted(path.suffix for path in files) == [".json", ".tsv"]

    monkeypatch.setattr("niworkflows.interfaces.bids._copy_any", write_a_part)
    sink.inputs.in_file = str(tmp_path / "new.tsv")
    with pytest.raises(KeyboardInterrupt):
        sink.run(cwd=str(tmp_path))
    assert {path: path.read_bytes() for path in out_dir.rglob("*") if path.is_file()} == files


KILLED = """
import os, signal, sys
import niworkflows.interfaces.bids
from dwmri_bidsapp.interfaces import DerivativesDataSink
niworkflows.interfaces.bids._copy_any = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
sink = DerivativesDataSink(base_directory="out", in_file="x.tsv", desc="denoised", suffix="metrics")
sink.inputs.source_file = sys.argv[1]
sink.run(cwd=os.getcwd())
"""


def test_a_sink_that_was_killed_tidies_up_when_it_runs_again(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text("a\n1\n")
    command = [sys.executable, "-c", KILLED, str(tmp_path / SOURCE)]
    assert subprocess.run(command, cwd=tmp_path, check=False).returncode == -signal.SIGKILL
    assert next((tmp_path / "out").iterdir()).name.startswith(".partial-")
    sink = DerivativesDataSink(base_directory=str(tmp_path / "out"), desc="denoised", suffix="metrics")
    sink.inputs.source_file, sink.inputs.in_file = str(tmp_path / SOURCE), str(tmp_path / "x.tsv")
    sink.run(cwd=str(tmp_path))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["sub-01"]


def test_everything_known_about_a_run_is_collected(tmp_path: Path) -> None:
    parts: dict[str, dict[str, Any]] = {
        "metrics": {"residual_std": 0.99},
        "info": {"steps": 3},
        "preparation": {"warnings": ["odd"]},
    }
    files = {
        f"{name}_file": str(write_json(part, tmp_path / f"{name}-in.json")) for name, part in parts.items()
    }
    outputs = (
        CollectMetrics(**files, sources={"dwi": "bids:raw:x"}, versions={"torch": "1"})
        .run(cwd=str(tmp_path))
        .outputs
    )
    expected = {**parts, "sources": {"dwi": "bids:raw:x"}, "versions": {"torch": "1"}}
    assert json.loads(Path(outputs.json_file).read_text()) == expected
    assert Path(outputs.tsv_file).read_text() == "residual_std\n0.99\n"
