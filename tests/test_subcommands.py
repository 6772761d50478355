"""The other commands as they are called: simulate, demo, benchmark, train-weights."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nb
import numpy as np
import pytest

from dwmri_bidsapp.cli import boundary, main


def test_subcommands_let_matplotlib_keep_its_cache_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Path] = []

    def benchmark(_: list[str]) -> int:
        seen.append(Path(os.environ["MPLCONFIGDIR"]))
        assert seen[0].is_dir()
        return 0

    monkeypatch.delenv("MPLCONFIGDIR", raising=False)
    monkeypatch.setattr("dwmri_bidsapp.cli.benchmark.benchmark", benchmark)
    assert main(["benchmark"]) == 0
    assert not seen[0].exists()
    assert "MPLCONFIGDIR" not in os.environ


def test_simulate_writes_a_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "simulated"
    arguments = [
        "--n-participants",
        "1",
        "--voxel-size",
        "12",
        "--n-b0",
        "2",
        "--shell",
        "700",
        "6",
        "--shell",
        "2000",
        "8",
        "--family",
        "geometric",
        "--motion",
        "0.5",
    ]
    assert main(["simulate", str(out), *arguments]) == 0
    b_values = np.loadtxt(out / "sub-01/dwi/sub-01_dwi.bval")
    assert {b: int((b_values == b).sum()) for b in (0, 700, 2000)} == {0: 2, 700: 6, 2000: 8}
    assert str(out) in capsys.readouterr().out.splitlines()[-1]
    readme = (out / "README.md").read_text()
    assert "random geometry" in readme
    assert "by 0.5 mm" in readme
    assert main(["simulate", str(out), *arguments]) == 64, "the folder is not empty"


def test_demo_keeps_a_dataset_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []

    def fake_main(arguments: list[str]) -> int:
        calls.append(arguments)
        return 65

    monkeypatch.setattr(boundary, "main", fake_main)
    monkeypatch.setattr("dwmri_bidsapp.cli.demo.DEMO_SHAPE", (14, 16, 14))
    for _ in range(2):
        assert main(["demo", str(tmp_path), "--n-participants", "1", "--max-steps", "7"]) == 65
    bids = tmp_path / "bids"
    assert calls[0][:4] == [str(bids), str(tmp_path / "derivatives"), "participant", "group"]
    assert calls[0][-2:] == ["--max-steps", "7"]
    assert f"truth={bids}/derivatives/truth" in calls[0]
    assert nb.load(bids / "sub-01/dwi/sub-01_dwi.nii.gz").shape == (14, 16, 14, 33)
    assert not (tmp_path / "bids.partial").exists()


def test_shells_given_twice_are_added_up(tmp_path: Path) -> None:
    arguments = ["--n-participants", "1", "--voxel-size", "20", "--n-b0", "1"]
    assert (
        main(["simulate", str(tmp_path / "d"), *arguments, "--shell", "900", "7", "--shell", "900", "6"]) == 0
    )
    b_values = np.loadtxt(tmp_path / "d/sub-01/dwi/sub-01_dwi.bval")
    assert (b_values == 900).sum() == 13


def test_train_weights_says_so_where_every_run_was_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dwi = tmp_path / "d/sub-01/dwi/sub-01_dwi.nii.gz"  # without its tables
    dwi.parent.mkdir(parents=True)
    nb.save(nb.Nifti1Image(np.ones((4, 4, 4, 7), np.int16), np.eye(4)), dwi)
    (tmp_path / "d/dataset_description.json").write_text('{"Name": "d", "BIDSVersion": "1.10.0"}')
    arguments = ["train-weights", str(tmp_path / "w.pt"), "--n-runs", "0", "--bids-dir", str(tmp_path / "d")]
    assert main(arguments) == 65
    output = capsys.readouterr()
    assert "left out" in output.out
    assert "found none that can be used" in output.err
    assert not (tmp_path / "w.pt").exists()
