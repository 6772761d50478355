"""A scheduler's signal: the training is saved where it stands, the exit code is 75, and the same command goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nibabel as nb
import numpy as np
import pytest
import torch

from dwmri_bidsapp import stopping
from dwmri_bidsapp.errors import TryAgainError
from dwmri_bidsapp.interfaces.base import ERROR_FILE, read_error, recorded_errors
from dwmri_bidsapp.simulation import make_protocol
from dwmri_bidsapp.simulation.dataset import write_bids_dataset

PROGRAM = [sys.executable, "-c", "from dwmri_bidsapp.cli import main; raise SystemExit(main())"]
LONG = [
    "--device", "cpu", "--max-steps", "140", "--base-filters", "4", "--patch-size", "16", "--batch-size", "4",
]  # fmt: skip
SIGNALS = pytest.mark.parametrize("number", stopping.SIGNALS, ids=lambda s: s.name)


def _send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # a signal is handled between two lines


@SIGNALS
def test_a_signal_ends_the_block_and_handlers_come_back(number: signal.Signals) -> None:
    def wait() -> None:
        with stopping.signals_stop():
            _send(number)
            time.sleep(5)

    before = signal.getsignal(number)
    started = time.monotonic()
    with pytest.raises(stopping.Stopped, match=number.name):
        wait()
    assert time.monotonic() - started < 3
    assert signal.getsignal(number) is before


@SIGNALS
def test_a_training_is_saved_between_two_steps(number: signal.Signals) -> None:
    done: list[str] = []

    def train() -> None:
        with stopping.signals_wait_for_checkpoint():
            for _ in range(3):
                stopping.stop_if_asked(lambda: done.append("saved"))
                done.append("first half")
                if len(done) == 3:
                    _send(number)
                    _send(number)  # schedulers repeat themselves
                done.append("second half")

    with pytest.raises(stopping.Stopped, match=number.name):
        train()
    assert done == ["first half", "second half", "first half", "second half", "saved"]


def test_a_second_signal_does_not_break_off_the_cleaning_up() -> None:
    cleaned = []

    def work() -> None:
        with stopping.signals_stop():
            try:
                _send(signal.SIGUSR1)
            finally:
                _send(signal.SIGTERM)
                cleaned.append(True)

    with pytest.raises(stopping.Stopped, match="SIGUSR1"):
        work()
    assert cleaned
    with pytest.raises(stopping.Stopped), stopping.signals_stop():
        _send(signal.SIGTERM)


def test_what_never_asks_is_ended_after_a_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "GRACE_S", 0.2)

    def predict() -> None:
        with stopping.signals_wait_for_checkpoint():
            _send(signal.SIGTERM)
            time.sleep(10)

    started = time.monotonic()
    with pytest.raises(stopping.Stopped):
        predict()
    assert 0.2 <= time.monotonic() - started < 5


def test_a_signal_in_the_last_moment_is_not_forgotten() -> None:
    with pytest.raises(stopping.Stopped), stopping.signals_wait_for_checkpoint():
        _send(signal.SIGTERM)


def test_other_threads_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work() -> None:
        with stopping.signals_wait_for_checkpoint():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_the_node_records_that_it_can_be_tried_again(tmp_path: Path) -> None:
    with pytest.raises(stopping.Stopped), recorded_errors(tmp_path):
        raise stopping.Stopped("SIGTERM")
    error = read_error(tmp_path / ERROR_FILE)
    assert isinstance(error, TryAgainError)
    assert "SIGTERM" in error.message


@pytest.fixture(scope="module")
def bids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    bids = tmp_path_factory.mktemp("stopping") / "bids"
    protocol = make_protocol(2, {1000: 10}, np.random.default_rng(0))
    write_bids_dataset(bids, n_participants=1, voxel_size=7.0, protocol=protocol, seed=3)
    return bids


def _command(bids: Path, root: Path, n_procs: int) -> list[str]:
    machine = ["--nprocs", str(n_procs), "--omp-nthreads", "1"]
    return [*PROGRAM, str(bids), str(root / "out"), "participant", "-w", str(root / "work"), *LONG, *machine]


def _denoised(root: Path) -> bytes:
    return np.asarray(nb.load(root / "out/sub-01/dwi/sub-01_desc-denoised_dwi.nii.gz").dataobj).tobytes()


@pytest.fixture(scope="module")
def uninterrupted(bids: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    root = tmp_path_factory.mktemp("uninterrupted")
    subprocess.run(_command(bids, root, 1), check=True, capture_output=True, timeout=200)
    return _denoised(root)


def _steps(checkpoint: Path) -> int:
    return int(torch.load(checkpoint, weights_only=True)["record"]["steps"])


def _wait_for_checkpoint(work: Path, process: subprocess.Popen[str]) -> Path:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if found := list(work.rglob("checkpoint.pt")):
            return found[0]
        time.sleep(0.02)
    pytest.fail("no checkpoint was written")


@pytest.mark.end_to_end
@pytest.mark.parametrize(("number", "n_procs"), [(signal.SIGUSR1, 1), (signal.SIGTERM, 2)])
def test_the_same_command_goes_on_from_where_the_signal_came(
    bids: Path, uninterrupted: bytes, tmp_path: Path, number: signal.Signals, n_procs: int
) -> None:
    command = _command(bids, tmp_path, n_procs)
    with subprocess.Popen(command, text=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        checkpoint = _wait_for_checkpoint(tmp_path / "work", process)
        before = _steps(checkpoint)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == TryAgainError.exit_code, stderr
    assert f"stopped by {number.name}: give the same command again to continue" in stderr.splitlines()[-1]
    assert "Traceback" not in stderr
    kept = _steps(checkpoint)
    assert before <= kept < 140
    assert not list((tmp_path / "out").rglob("*desc-denoised_dwi.nii.gz"))
    subprocess.run(command, check=True, capture_output=True, timeout=200)
    table = (tmp_path / "out/sub-01/dwi/sub-01_desc-training_timeseries.tsv").read_text()
    steps = [int(float(line.split("\t")[0])) for line in table.splitlines()[1:]]
    assert steps == [0, 25, 50, 75, 100, 125, 140], "it was continued, not begun anew"
    assert _denoised(tmp_path) == uninterrupted
