"""What a call says of a run that failed on a full disk."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
from dwmri_bidsapp.workflows.base import TOP
from dwmri_bidsapp.workflows.execution import _error_of

from dwmri_bidsapp.bids import DwiRun
from dwmri_bidsapp.config import Config
from dwmri_bidsapp.errors import InputOutputError
from dwmri_bidsapp.interfaces.base import ERROR_FILE, write_error


def test_a_full_disk_leaves_no_part_of_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_part(content: Any, path: Path) -> None:
        path.write_text("{")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("dwmri_bidsapp.interfaces.base.write_json", write_part)
    write_error(InputOutputError("full"), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("record", ["", "{}", "[]"])
def test_the_crash_file_speaks_where_the_record_cannot_be_read(tmp_path: Path, record: str) -> None:
    config = Config(bids_dir=tmp_path / "bids", out_dir=tmp_path / "out", work_dir=tmp_path / "work")
    run = DwiRun(dwi=tmp_path / "sub-01_dwi.nii.gz", bval=tmp_path, bvec=tmp_path, entities={"subject": "01"})
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / ERROR_FILE).write_text(record)
    crash_dir = config.log_dir("01")
    crash_dir.mkdir(parents=True)
    (crash_dir / "crash-1.txt").write_text(
        f"Node: {TOP}.sub_01_wf.denoise\nOSError: [Errno 28] No space left on device\n"
    )
    error = _error_of(run, tmp_path / "work", config, None)
    assert error.exit_code == 74
    assert "No space left" in str(error)
    (tmp_path / "work" / ERROR_FILE).write_text(
        json.dumps({"message": "sub-01: odd", "hint": "", "exit_code": 65})
    )
    assert _error_of(run, tmp_path / "work", config, None).exit_code == 65
