"""The program as it is called: what it prints, which exit code it gives, what it leaves alone."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel as nb
import numpy as np
import pytest

from dwmri_bidsapp import __version__
from dwmri_bidsapp.bids import DwiRun
from dwmri_bidsapp.cli import main
from dwmri_bidsapp.cli.dry_run import expect
from dwmri_bidsapp.config import Config
from dwmri_bidsapp.errors import BadDataError, TryAgainError
from dwmri_bidsapp.options import DenoiseOptions

HEAVY = {"torch", "nipype", "niworkflows", "bids", "dipy", "numpy", "nibabel", "matplotlib"}


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the program change a copy of this process's environment."""
    monkeypatch.setattr(os, "environ", os.environ.copy())


def make_run(bids_dir: Path, subject: str, shape: tuple[int, ...] = (4, 4, 4, 7)) -> None:
    folder = bids_dir / f"sub-{subject}" / "dwi"
    folder.mkdir(parents=True)
    nb.save(nb.Nifti1Image(np.ones(shape, np.int16), np.eye(4)), folder / f"sub-{subject}_dwi.nii.gz")
    (folder / f"sub-{subject}_dwi.bval").write_text("0 " + "1000 " * 6)
    (folder / f"sub-{subject}_dwi.bvec").write_text(
        "\n".join(["0 1 0 0 1 1 0", "0 0 1 0 1 0 1", "0 0 0 1 0 1 1"])
    )


@pytest.fixture
def bids_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "bids"
    folder.mkdir()
    (folder / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.9.0"}')
    for subject in ("01", "02", "03"):
        make_run(folder, subject)
    return folder


def call(bids_dir: Path, *arguments: str) -> int:
    root = bids_dir.parent
    levels = [a for a in arguments if a in ("participant", "group")] or ["participant"]
    others = [a for a in arguments if a not in levels]
    return main(
        [str(bids_dir), str(root / "out"), *levels, "--device", "cpu", "-w", str(root / "work"), *others]
    )


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    return (captured.err.strip() or captured.out.strip()).splitlines()[-1]


class FakeWorkflows:
    """Stands for dwmri_bidsapp.workflows: every run takes no time; those named in ``errors`` fail."""

    def __init__(self, **errors: tuple[str, int]) -> None:
        self.errors = {name.replace("_", "-", 1): error for name, error in errors.items()}
        self.calls: list[list[str]] = []

    def run_participant_level(self, config: Config, runs: list[DwiRun]) -> list[Any]:
        from dwmri_bidsapp.workflows import RunOutcome

        self.calls.append([run.label for run in runs])
        return [RunOutcome(run, *self.errors.get(run.label, (None, 0))) for run in runs]


@pytest.fixture
def workflows(monkeypatch: pytest.MonkeyPatch) -> FakeWorkflows:
    import dwmri_bidsapp.workflows

    fake = FakeWorkflows()
    monkeypatch.setattr(dwmri_bidsapp.workflows, "run_participant_level", fake.run_participant_level)
    return fake


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_version_loads_nothing() -> None:
    found = python(
        "import sys; from dwmri_bidsapp.cli import main; print(main(['--version'])); print(*sys.modules)"
    )
    version, code, modules = found.stdout.splitlines()
    assert version == f"dwmri-bidsapp {__version__}"
    assert code == "0"
    assert not HEAVY & set(modules.split())
    assert "argparse" not in modules.split()


def test_help_loads_no_library() -> None:
    """Importing PyTorch takes seconds, and would read the number of threads before it is set."""
    found = python(
        "import sys\nfrom dwmri_bidsapp.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit as end: print('MODULES', end.code, *sys.modules)"
    )
    text, _, modules = found.stdout.partition("MODULES ")
    assert "--participant-label" in text
    assert modules.split()[0] == "0"
    assert not HEAVY & set(modules.split())


def test_help_names_the_defaults_of_the_method(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    start, nothing = (DenoiseOptions(init=init).settled() for init in ("pretrained", "random"))
    assert f"(default: {start.max_steps}, or {nothing.max_steps} with --init random)" in text
    assert f"(default: {start.learning_rate:g}, or {nothing.learning_rate:g} with --init random)" in text


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["bids"],
        ["bids", "out", "nonsense"],
        ["b", "o", "group", "--part"],
        ["b", "o", "group", "--alpha", "x"],
    ],
)
def test_bad_arguments_leave_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--compare", "mppca", "dwidenoise"], "--derivatives dwidenoise=PATH"),
        (["--compare", "mppca", "mppca"], "one method twice"),
        (["--compare", "my-own", "-d", "my-own=."], "letters and digits"),
        (["--compare", "acquired", "-d", "acquired=."], "--compare acquired: not a name for files"),
        (["--init", "pretrained", "--base-filters", "7"], "--init pretrained"),
        (["--participant-label", "99"], "01, 02, 03"),
        (["--work-dir", "BIDS/work"], "inside BIDS_DIR"),
        (["--config-file", "CONFIG"], "method.max_steps"),
    ],
)
def test_usage_errors(
    bids_dir: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    config_file = bids_dir.parent / "c.toml"
    config_file.write_text("[method]\nmaxsteps = 1\n")
    places = {"BIDS/work": str(bids_dir / "work"), "CONFIG": str(config_file)}
    assert call(bids_dir, *(places.get(argument, argument) for argument in arguments)) == 64
    captured = capsys.readouterr()
    assert captured.err.startswith("dwmri-bidsapp: error: ")
    assert captured.err.count("\n") == 1
    assert named in captured.err
    assert not (bids_dir.parent / "out").exists()
    assert not (bids_dir / "work").exists()


def test_absent_device_is_an_error(
    bids_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert call(bids_dir, "--device", "cuda") == 64
    assert "finds no CUDA device" in last_line(capsys)
    assert not (bids_dir.parent / "out").exists()


def test_dataset_and_output_in_one_folder(bids_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(bids_dir), str(bids_dir), "participant"]) == 64
    assert "same folder" in last_line(capsys)
    assert main([str(bids_dir / "absent"), str(bids_dir), "participant"]) == 64
    assert "no such folder" in last_line(capsys)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_dataset(bids_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bids_dir.chmod(0)
    try:
        assert call(bids_dir) == 64
    finally:
        bids_dir.chmod(0o755)
    assert "no permission" in last_line(capsys)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (BadDataError("bad.nii: broken", "mend it"), 65, "bad.nii: broken (mend it)"),
        (TryAgainError("killed"), 75, "killed"),
        (MemoryError(), 75, "out of memory"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA"), 75, "out of memory"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), 74, "/x/y: no space left"),
        (OSError(errno.EDQUOT, "Quota", "/x/y"), 74, "/x/y: no space left"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), 74, "/x/y: Permission denied"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ValueError("two\nlines"), 70, "ValueError: two lines"),
    ],
)
def test_every_exception_becomes_a_line_and_a_code(
    bids_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    error: BaseException, code: int, said: str,
) -> None:  # fmt: skip
    def fail(config: Config) -> int:
        raise error

    monkeypatch.setattr("dwmri_bidsapp.cli.levels.run_levels", fail)
    assert call(bids_dir) == code
    text = capsys.readouterr().err
    assert said in text
    assert text.count("\n") == 1
    assert "Traceback" not in text


def test_crash_file_tells_the_developer(
    bids_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(config: Config) -> int:
        raise ValueError("unexpected")

    monkeypatch.setattr("dwmri_bidsapp.cli.levels.run_levels", fail)
    assert call(bids_dir, "-vv") == 70
    text = capsys.readouterr().err
    assert "Traceback" in text, "-vv shows it"
    crash_file = Path(text.strip().splitlines()[-1].rpartition("see ")[2].rstrip(")"))
    assert crash_file.is_relative_to(bids_dir.parent / "out" / "logs")
    assert 'raise ValueError("unexpected")' in crash_file.read_text()


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGTERM, 75, "stopped by SIGTERM"),
        (signal.SIGUSR1, 75, "stopped by SIGUSR1"),
        (signal.SIGINT, 130, "interrupted"),
    ],
)
def test_a_signal_is_a_line_and_a_code(
    bids_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    number: signal.Signals, code: int, said: str,
) -> None:  # fmt: skip
    def wait(config: Config) -> int:
        os.kill(os.getpid(), number)
        time.sleep(5)
        return 0

    monkeypatch.setattr("dwmri_bidsapp.cli.levels.run_levels", wait)
    assert call(bids_dir) == code
    assert capsys.readouterr().err == f"dwmri-bidsapp: {said}: give the same command again to continue\n"


def test_all_runs_done(bids_dir: Path, workflows: FakeWorkflows, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(bids_dir) == 0
    assert workflows.calls == [["sub-01", "sub-02", "sub-03"]]
    out = bids_dir.parent / "out"
    assert capsys.readouterr().out == f"dwmri-bidsapp: done: 3 runs denoised, see {out}/sub-*.html\n"
    for name in (
        "dataset_description.json",
        "README",
        ".bidsignore",
        "logs/CITATION.md",
        "logs/CITATION.html",
    ):
        assert (out / name).is_file()
    for subject in ("01", "02", "03"):
        (config_file,) = out.glob(f"sub-{subject}/log/*/config.toml")
        assert Config.from_toml(config_file).participant_label == ()
        assert (config_file.parent / "provenance.json").is_file()


def test_one_failure_among_others(
    bids_dir: Path, workflows: FakeWorkflows, capsys: pytest.CaptureFixture[str]
) -> None:
    workflows.errors["sub-02"] = ("sub-02_dwi.nii.gz: no b=0 volume", 65)
    assert call(bids_dir) == 1
    lines = capsys.readouterr().err.strip().splitlines()[-2:]
    assert lines[0] == "dwmri-bidsapp: error: sub-02_dwi.nii.gz: no b=0 volume"
    assert "1 of 3 failed" in lines[1]
    assert "2 runs denoised" in lines[1]
    assert "sub-02/log" in lines[1]
    out = bids_dir.parent / "out"
    assert "no b=0 volume" in (out / "sub-02.html").read_text()
    assert "no b=0 volume" not in (out / "sub-01.html").read_text(), "a failure stays with its participant"


@pytest.mark.parametrize(
    "named", ["sub-01_run-1_desc-brain_mask.nii.gz", "sub-01_desc-preproc_dwi.nii.gz", ""]
)
def test_a_failure_stays_with_its_run_whatever_file_it_names(
    bids_dir: Path, workflows: FakeWorkflows, named: str
) -> None:
    folder = bids_dir / "sub-01/dwi"
    for path in sorted(folder.iterdir()):
        for run in ("run-1", "run-2"):
            shutil.copy(path, folder / path.name.replace("_dwi", f"_{run}_dwi"))
        path.unlink()
    workflows.errors["sub-01_run-1"] = (f"{named}: odd values", 65)
    assert call(bids_dir, "--participant-label", "01") == 1
    page = bids_dir.parent / "out/sub-01.html"
    assert "odd values" in page.read_text()
    workflows.errors.clear()
    for run, stays in (("2", True), ("1", False)):
        assert call(bids_dir, "--participant-label", "01", "--run-label", run) == 0
        assert ("odd values" in page.read_text()) == stays


def test_only_failures_keep_their_code(
    bids_dir: Path, workflows: FakeWorkflows, capsys: pytest.CaptureFixture[str]
) -> None:
    workflows.errors["sub-02"] = ("killed", 75)
    assert call(bids_dir, "--participant-label", "02") == 75
    assert "killed" in last_line(capsys)
    workflows.errors["sub-03"] = ("bad", 65)
    assert call(bids_dir, "--participant-label", "02", "03") == 1


def test_an_image_without_its_table_stops_nobody(
    bids_dir: Path, workflows: FakeWorkflows, capsys: pytest.CaptureFixture[str]
) -> None:
    (bids_dir / "sub-01/dwi/sub-01_dwi.bvec").unlink()
    assert call(bids_dir) == 1
    assert workflows.calls == [["sub-02", "sub-03"]]
    assert "sub-01_dwi.bvec" in capsys.readouterr().err
    assert call(bids_dir, "--participant-label", "01") == 65
    text = capsys.readouterr().err
    assert "sub-01_dwi.bvec" in last_line_of(text)
    assert len(workflows.calls) == 1


def last_line_of(text: str) -> str:
    return text.strip().splitlines()[-1]


def test_config_file_of_a_call_repeats_it(bids_dir: Path, workflows: FakeWorkflows) -> None:
    assert call(bids_dir, "--participant-label", "03", "--max-steps", "3", "--no-blend") == 0
    out = bids_dir.parent / "out"
    (first,) = out.glob("sub-03/log/*/config.toml")
    assert call(bids_dir, "--config-file", str(first)) == 0
    assert workflows.calls == [["sub-03"], ["sub-03"]]
    second = max(out.glob("sub-03/log/*/config.toml"), key=lambda path: path.stat().st_mtime)
    assert second != first
    assert Config.from_toml(second).method == DenoiseOptions(max_steps=3, blend=False)


def test_messages_are_kept_in_the_log(bids_dir: Path, workflows: FakeWorkflows) -> None:
    assert call(bids_dir, "--participant-label", "02", "-vv") == 0
    (log,) = (bids_dir.parent / "out").glob("sub-02/log/*/dwmri-bidsapp.log")
    assert "to denoise: 1 of 1 participants, on cpu" in log.read_text()


def test_what_the_search_for_runs_says_is_kept_in_the_log(
    bids_dir: Path, workflows: FakeWorkflows, capsys: pytest.CaptureFixture[str]
) -> None:
    (bids_dir / "sub-04/anat").mkdir(parents=True)
    assert call(bids_dir) == 0
    (log,) = (bids_dir.parent / "out/logs").glob("*/dwmri-bidsapp.log")
    assert log.read_text().count("sub-04: no DWI magnitude image") == 1
    assert "sub-04: no DWI magnitude image" in capsys.readouterr().err


def test_a_group_of_nothing_makes_no_folder(bids_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(bids_dir, "group") == 65
    assert "no such folder" in last_line(capsys)
    assert not (bids_dir.parent / "out").exists()


def test_clean_workdir_removes_what_succeeded(bids_dir: Path, workflows: FakeWorkflows) -> None:
    workflows.errors["sub-02"] = ("bad", 65)
    folders = {s: bids_dir.parent / "work" / "dwmri_wf" / f"sub_{s}_wf" for s in ("01", "02")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    assert call(bids_dir, "--clean-workdir") == 1
    assert not folders["01"].exists()
    assert folders["02"].exists()


def test_dry_run_lists_and_writes_nothing(bids_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(bids_dir.parent.rglob("*"))
    assert call(bids_dir, "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:4]] == [[f"sub-0{i}", "4x4x4x7"] for i in (1, 2, 3)]
    assert "3 runs" in lines[-1]
    assert sorted(bids_dir.parent.rglob("*")) == before
    (bids_dir / "sub-02/dwi/sub-02_dwi.nii.gz").write_bytes(b"not an image")
    assert call(bids_dir, "--dry-run") == 1
    assert "sub-02_dwi.nii.gz: cannot be read" in capsys.readouterr().err


def test_expected_memory_and_time_grow_with_the_work() -> None:
    small = expect((50, 50, 40, 30), DenoiseOptions(), 2)
    assert small.memory_gb == pytest.approx(1 + 4 * 50 * 50 * 40 * 30 * 4 / 1e9)
    assert expect((100, 100, 80, 30), DenoiseOptions(), 2).memory_gb == pytest.approx(
        1 + 8 * (small.memory_gb - 1)
    )
    assert expect((50, 50, 40, 30), DenoiseOptions(max_steps=4000), 2).minutes > 4 * small.minutes
    start = expect((0, 0, 0, 0), DenoiseOptions(max_steps=0), 1).minutes
    assert expect((50, 50, 40, 30), DenoiseOptions(), 4).minutes - start == pytest.approx(
        (small.minutes - start) / 2
    )


def test_reports_only_needs_earlier_results(bids_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(bids_dir, "--reports-only") == 65
    assert "no earlier results" in last_line(capsys)
    (bids_dir.parent / "out" / "sub-02").mkdir(parents=True)
    assert call(bids_dir, "--reports-only") == 0
    assert (bids_dir.parent / "out" / "sub-02.html").is_file()
    assert "1 reports written again" in last_line(capsys)


def test_boilerplate_only_in_an_untouched_home(bids_dir: Path, tmp_path: Path) -> None:
    """In a process of its own, because imports write to HOME too."""
    home = tmp_path / "home"
    home.mkdir(mode=0o555)
    unset = ("TEMPLATEFLOW_HOME", "MPLCONFIGDIR", "NIPYPE_CONFIG_DIR", "NO_ET", "NIPYPE_NO_ET")
    environment = {key: value for key, value in os.environ.items() if key not in unset}
    found = subprocess.run(
        [sys.executable, "-c", "import sys; from dwmri_bidsapp.cli import main; sys.exit(main())", str(bids_dir),
         str(tmp_path / "out"), "participant", "--boilerplate-only", "-w", str(tmp_path / "work")],
        env={**environment, "HOME": str(home)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert found.stdout == f"dwmri-bidsapp: done: methods text written, see {tmp_path}/out/logs/CITATION.md\n"
    assert "[@garyfallidis2014" in (tmp_path / "out/logs/CITATION.md").read_text()
    assert list(home.iterdir()) == []
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["logs"]
