"""Several GPUs, none of which is there: a made-up nvidia-smi, and a PyTorch that says it sees two."""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dwmri_bidsapp.cli import main
from dwmri_bidsapp.denoising import Denoised
from dwmri_bidsapp.gpus import too_small, visible_gpu_memory
from dwmri_bidsapp.interfaces import DenoiseRun
from dwmri_bidsapp.interfaces.denoising import gpu_slot
from dwmri_bidsapp.simulation import make_protocol
from dwmri_bidsapp.simulation.dataset import write_bids_dataset

TWO_GPUS = "0, GPU-aaaa1111-22, 81559\n1, GPU-bbbb3333-44, 16384\n"
LARGE, SMALL = 81559 * 2**20 / 1e9, 16384 * 2**20 / 1e9


def _install_nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, says: str, code: int = 0) -> None:
    program = folder / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{says}END\nexit {code}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, {0: LARGE, 1: SMALL}),
        ("1", {0: SMALL}),
        ("1,0", {0: SMALL, 1: LARGE}),
        ("GPU-bbbb", {0: SMALL}),
        ("GPU-bbbb3333-44, 0", {0: SMALL, 1: LARGE}),
        ("0,7,1", {0: LARGE}),
        ("", {}),
        ("-1", {}),
        ("MIG-1234", {}),
    ],
)
def test_gpus_are_counted_as_cuda_counts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, expected: dict[int, float]
) -> None:
    _install_nvidia_smi(tmp_path, monkeypatch, TWO_GPUS)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_gpu_memory() == expected


@pytest.mark.parametrize(
    ("says", "code"), [("", 9), ("0, GPU-x, [N/A]\n", 0), ("No devices were found\n", 6)]
)
def test_what_nvidia_smi_does_not_tell_is_not_made_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, code: int
) -> None:
    _install_nvidia_smi(tmp_path, monkeypatch, says, code)
    assert visible_gpu_memory() == {}
    assert too_small({"sub-01": 1e6}, (0,)) == []


def test_a_run_that_may_not_fit_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _install_nvidia_smi(tmp_path, monkeypatch, TWO_GPUS)
    needed = {"sub-01": 2.0, "sub-02": 40.0}
    assert too_small(needed, (0,)) == []
    assert too_small({"sub-01": SMALL - 0.1}, (1,)), "CUDA itself needs a part"
    for gpu_ids in ((0, 1), (1,), ()):
        (line,) = too_small(needed, gpu_ids)
        assert line.startswith("sub-02: may need 40.5 GB, and GPU 1 has 17.2 GB")


def test_jobs_that_share_a_work_folder_do_not_wait_for_each_others_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = DenoiseRun(use_gpu=True, gpu_ids=[0], lock_dir=str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    with node._device() as first:
        monkeypatch.setenv("SLURM_JOB_ID", "2")
        with node._device() as second:
            assert (first, second) == ("cuda:0", "cuda:0")


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)


@pytest.mark.end_to_end
@pytest.mark.usefixtures("two_gpus")
def test_every_run_has_a_gpu_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _install_nvidia_smi(tmp_path, monkeypatch, "0, GPU-a, 16\n1, GPU-b, 16384\n")
    for name in list(os.environ):  # what main() sets is taken back
        monkeypatch.setenv(name, os.environ[name])
    bids, uses = tmp_path / "bids", tmp_path / "uses"
    protocol = make_protocol(2, {1000: 10}, np.random.default_rng(0))
    write_bids_dataset(bids, n_participants=3, voxel_size=12.0, protocol=protocol, seed=2)
    uses.mkdir()

    def denoise(dwi_xyzv: Any, *_: Any, device: str, checkpoint_dir: Path, **__: Any) -> Denoised:
        start = time.time()
        name = checkpoint_dir.parent.parent.name
        (uses / f"{name}.start").touch()
        while len(list(uses.glob("*.start"))) < 2 and time.time() < start + 60:  # the other GPU's first run
            time.sleep(0.05)
        record = {"device": device, "start": start, "end": time.time()}
        (uses / f"{name}.json").write_text(json.dumps(record))
        sigma_xyz = np.ones(dwi_xyzv.shape[:3], np.float32)
        row = {"step": 0.0, "learning_rate": 0.0, "training_loss": 1.0, "heldout_loss": 1.0, "seconds": 0.0}
        return Denoised(dwi_xyzv, sigma_xyz, sigma_xyz, [row], {})

    monkeypatch.setattr("dwmri_bidsapp.denoising.denoise", denoise)
    plugin = tmp_path / "plugin.yml"  # only a fork takes the stand-in along
    plugin.write_text("plugin: MultiProc\nplugin_args: {n_procs: 4, n_gpu_procs: 2, mp_context: fork}\n")
    code = main(
        [str(bids), str(tmp_path / "out"), "participant", "-w", str(tmp_path / "work"), "--device", "cuda",
         "--gpu-ids", "0", "1", "--nprocs", "4", "--omp-nthreads", "1", "--use-plugin", str(plugin)]
    )  # fmt: skip
    assert code == 0
    used = [json.loads(path.read_text()) for path in uses.glob("*.json")]
    assert len(used) == 3
    assert {use["device"] for use in used} == {"cuda:0", "cuda:1"}
    for device in ("cuda:0", "cuda:1"):
        times = sorted((use["start"], use["end"]) for use in used if use["device"] == device)
        assert all(one[1] <= other[0] for one, other in itertools.pairwise(times)), "two at once"
    times = sorted((use["start"], use["end"]) for use in used)
    assert times[1][0] < times[0][1], "the two GPUs must work at the same time"
    (log,) = (tmp_path / "out/logs").rglob("dwmri-bidsapp.log")
    assert "may need 1.5 GB, and GPU 0 has 0.0 GB" in log.read_text()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_gpus_are_given_once_each_where_the_work_folder_knows_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    work, temporary = tmp_path / "work", tmp_path / "tmp"
    temporary.mkdir()
    flock = fcntl.flock

    def without_locks(stream: Any, operation: int) -> None:
        if Path(stream.name).is_relative_to(work):
            raise OSError(number, os.strerror(number))
        flock(stream, operation)

    monkeypatch.setattr(fcntl, "flock", without_locks)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with gpu_slot([0, 2], work / "a/host") as first, gpu_slot([0, 2], work / "a/host") as second:
        assert (first, second) == ("cuda:0", "cuda:2")
        with gpu_slot([0], work / "b/host") as of_another_call:
            assert of_another_call == "cuda:0"
