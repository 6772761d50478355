"""The scripts of docs/hpc.md, submitted to the SLURM of this machine (marker ``slurm``).

They run this installation; with DWMRI_SIF (and DWMRI_APPTAINER) set, the array and the group job run the image.
What takes a node down needs a SLURM that belongs to the tests: DWMRI_SLURM_IS_OURS=1.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nb
import numpy as np
import pytest
import torch

from dwmri_bidsapp.simulation import make_protocol
from dwmri_bidsapp.simulation.dataset import write_bids_dataset

MANUAL = Path(__file__).resolve().parents[1] / "docs" / "hpc.md"
PROGRAM = Path(sys.executable).with_name("dwmri-bidsapp")
FAST = "--device cpu --omp-nthreads 1 --base-filters 4 --patch-size 16 --batch-size 2"
IN_APPTAINER = re.compile(r'apptainer run .*?"\$SIF" \\\n\s+/data /out', flags=re.DOTALL)
OURS = os.environ.get("DWMRI_SLURM_IS_OURS") == "1"


def script_of_the_manual(name: str) -> str:
    """Return the code block of docs/hpc.md whose first comment is the name."""
    blocks = re.findall(r"^```(?:bash|yaml)\n(.*?)^```", MANUAL.read_text(), flags=re.MULTILINE | re.DOTALL)
    (block,) = [block for block in blocks if f"# {name}\n" in block]
    return str(block)


def test_the_scripts_of_the_manual_are_shell() -> None:
    for name in ("participant.sbatch", "group.sbatch", "submit.sh"):
        script = script_of_the_manual(name)
        result = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
        assert result.returncode == 0, result.stderr
    for name in ("participant.sbatch", "group.sbatch"):
        assert IN_APPTAINER.search(script_of_the_manual(name))


def _sh(*command: str, cwd: Path | None = None) -> str:
    # SLURM would hand the limits of a surrounding job on to the new one.
    ours = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_"))}
    if "SLURM_CONF" in os.environ:
        ours["SLURM_CONF"] = os.environ["SLURM_CONF"]
    result = subprocess.run(command, cwd=cwd, env=ours, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{command}: {result.stderr}"
    return result.stdout.strip()


@pytest.fixture
def cluster() -> None:
    """A SLURM that answers."""
    if shutil.which("sbatch") is None:
        pytest.skip("SLURM is not installed")
    result = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True, check=False)
    if result.returncode or not re.search("idle|mixed|allocated", result.stdout):
        pytest.skip(f"no SLURM node is up: {(result.stderr or result.stdout).strip()}")


def _dataset(bids: Path, n_participants: int, voxel_size: float) -> Path:
    protocol = make_protocol(2, {1000: 10}, np.random.default_rng(0))
    write_bids_dataset(bids, n_participants=n_participants, voxel_size=voxel_size, protocol=protocol, seed=3)
    return bids


def _scripts(folder: Path, bids: Path, options: str) -> None:
    """Write the manual's scripts with this machine's paths, for short runs."""
    paths = {"/data/my-study": str(bids), "/scratch/my-study-denoised": f"{folder}/out",
             "/scratch/my-study-work": f"{folder}/work"}  # fmt: skip
    has_gpus = "gpu" in _sh("sinfo", "-h", "-o", "%G")
    for name in ("participant.sbatch", "group.sbatch", "submit.sh"):
        script = script_of_the_manual(name)
        for old, new in paths.items():
            script = re.sub(rf"{old}(?![\w-])", new, script)
        script = script.replace("--cpus-per-task=2", "--cpus-per-task=1")
        script = script.replace(
            '--mem "$SLURM_MEM_PER_NODE"', f'--mem "$SLURM_MEM_PER_NODE" {FAST} {options}'
        )
        if not has_gpus:
            script = script.replace("#SBATCH --gres=gpu:1\n", "")
        if image := os.environ.get("DWMRI_SIF"):
            script = script.replace("$PWD/dwmri-bidsapp.sif", image)
            script = script.replace("apptainer run", f"{os.environ.get('DWMRI_APPTAINER', 'apptainer')} run")
        else:
            script = IN_APPTAINER.sub(f'{PROGRAM} "$BIDS" "$OUT"', script).replace("-w /work", '-w "$WORK"')
        (folder / name).write_text(script)


def _wait_until(condition: Callable[[], object], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} took more than {seconds:.0f} s"
        time.sleep(0.2)


def _in_queue(job: str) -> bool:
    result = subprocess.run(["squeue", "-h", "-j", job], capture_output=True, text=True, check=False)
    return bool(result.stdout.strip())


def _wait_for(*jobs: str, seconds: float = 240) -> None:
    for job in jobs:
        _wait_until(lambda job=job: not _in_queue(job), seconds, f"job {job}")  # type: ignore[misc]


def _field(job: str, name: str) -> str:
    match = re.search(rf"\b{name}=(\S+)", _sh("scontrol", "show", "job", job))
    assert match is not None
    return match[1]


def _submit_one(folder: Path) -> str:
    """Submit the array's first task alone, as the manual says for repeating one."""
    (folder / "logs").mkdir()
    script = (folder / "submit.sh").read_text().replace('"1-$n%100"', "1")
    (folder / "one.sh").write_text(script.partition("sbatch --dep")[0] + 'echo "$job"\n')
    return _sh("bash", "one.sh", cwd=folder).splitlines()[-1]


def _start_again(job: str) -> None:
    """Let a task that was put back into the queue start, without the two minutes that SLURM lets it wait."""
    _wait_until(lambda: _field(f"{job}_1", "JobState") == "PENDING", 60, "its end")
    time.sleep(
        3
    )  # within the same second SLURM takes the new start for the old one, whose rights are revoked
    _sh("scontrol", "update", f"JobId={job}_1", "StartTime=now")
    _wait_for(job)


def _logs(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted((folder / "logs").iterdir()))


def _steps(folder: Path) -> list[int]:
    with next((folder / "out").rglob("*_timeseries.tsv")).open() as stream:
        return [int(float(row["step"])) for row in csv.DictReader(stream, delimiter="\t")]


def _checkpoint(folder: Path) -> Path | None:
    return next((folder / "work").rglob("checkpoint.pt"), None)


def _saved_steps(folder: Path) -> int:
    path = _checkpoint(folder)
    return 0 if path is None else int(torch.load(path, weights_only=True)["record"]["steps"])


@pytest.mark.slurm
@pytest.mark.usefixtures("cluster")
def test_the_array_and_the_group_job(tmp_path: Path) -> None:
    bids = _dataset(tmp_path / "bids", 3, 9.0)
    _scripts(tmp_path, bids, "--max-steps 5")
    said = _sh("bash", "submit.sh", cwd=tmp_path)
    group = said.split()[-1]
    _wait_for(group)
    assert (tmp_path / "out/group.html").is_file(), _logs(tmp_path)
    with (tmp_path / "out/group_dwi.tsv").open() as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    assert {row["participant_id"] for row in rows} == {"sub-01", "sub-02", "sub-03"}
    assert _field(group, "ExitCode") == "0:0"
    assert _field(group, "StartTime") >= max(
        _field(f"{int(group) - 1}_{task}", "EndTime") for task in (1, 2, 3)
    )


@pytest.mark.slurm
@pytest.mark.usefixtures("cluster")
@pytest.mark.timeout(400)
def test_the_signal_before_the_time_limit_requeues_the_task(tmp_path: Path) -> None:
    bids = _dataset(tmp_path / "bids", 1, 7.0)
    _scripts(tmp_path, bids, "--max-steps 140")
    job = _submit_one(tmp_path)
    _wait_until(lambda: _checkpoint(tmp_path), 120, "the first checkpoint")
    asked = time.time()
    _sh("scancel", "--signal=USR1", f"{job}_1")  # what --signal=USR1@120 makes SLURM send
    _wait_until(lambda: _field(f"{job}_1", "Restarts") == "1", 60, "the requeue")
    kept = _saved_steps(tmp_path)
    assert 25 <= kept < 140
    checkpoint = _checkpoint(tmp_path)
    assert checkpoint is not None and checkpoint.stat().st_mtime >= asked, "the signal saved nothing"
    assert "dwmri-bidsapp: stopped by SIGUSR1" in _logs(tmp_path)
    _start_again(job)
    assert _steps(tmp_path) == [0, 25, 50, 75, 100, 125, 140], _logs(tmp_path)
    assert "1 run denoised" in _logs(tmp_path)


@pytest.mark.slurm
@pytest.mark.usefixtures("cluster")
@pytest.mark.timeout(400)
@pytest.mark.skipif(not OURS, reason="takes a node down: only with DWMRI_SLURM_IS_OURS=1")
def test_a_task_goes_on_after_its_node_failed(tmp_path: Path) -> None:
    bids = _dataset(tmp_path / "bids", 1, 7.0)
    _scripts(tmp_path, bids, "--max-steps 140")
    job = _submit_one(tmp_path)
    _wait_until(lambda: _checkpoint(tmp_path), 120, "the first checkpoint")
    node = _sh("sinfo", "-h", "-o", "%N")
    # Nothing of the task can write or report anything, as when the power fails.
    for pid in _processes_of(_field(f"{job}_1", "JobId")):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)
    _sh("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    checkpoint = _checkpoint(tmp_path)
    assert checkpoint is not None
    lost = time.time() - checkpoint.stat().st_mtime
    kept = _saved_steps(tmp_path)
    # A node whose daemon lives may have come back by itself, and then refuses this.
    subprocess.run(
        ["scontrol", "update", f"NodeName={node}", "State=RESUME"], capture_output=True, check=False
    )
    _wait_until(lambda: _field(f"{job}_1", "Restarts") == "1", 60, "the requeue")
    _start_again(job)
    assert kept % 25 == 0 and 25 <= kept < 140
    assert _steps(tmp_path) == [0, 25, 50, 75, 100, 125, 140], _logs(tmp_path)
    print(f"steps kept: {kept}; seconds lost: {lost:.1f}")


def _processes_of(job: str) -> list[int]:
    """Return the processes of a job; SLURM's own first, which would report the end of the others."""
    keepers, others = [], []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
        except OSError:  # it has ended
            continue
        if command.startswith(f"slurmstepd: [{job}.".encode()):
            keepers.append(int(folder.name))
        elif f"SLURM_JOB_ID={job}".encode() in environment.split(b"\0"):
            others.append(int(folder.name))
    assert keepers and others
    return keepers + others


@pytest.mark.slurm
@pytest.mark.usefixtures("cluster")
@pytest.mark.timeout(600)
def test_twenty_tasks_at_once_leave_the_common_files_whole(tmp_path: Path) -> None:
    bids = _dataset(tmp_path / "bids", 20, 12.0)
    command = (
        f'{PROGRAM} {bids} {tmp_path}/out participant --participant-label "$(printf %02d $((SLURM_PROCID + 1)))" '
        f"-w {tmp_path}/work --nprocs 1 --max-steps 2 {FAST}"
    )
    script = f"#!/bin/bash\nsrun --overcommit bash -c '{command}'\n"
    (tmp_path / "twenty.sbatch").write_text(script)
    job = _sh(
        "sbatch", "--parsable", "--ntasks=20", "--nodes=1", "--overcommit", f"--output={tmp_path}/log.txt",
        "twenty.sbatch", cwd=tmp_path,
    )  # fmt: skip
    _wait_for(job, seconds=580)
    out = tmp_path / "out"
    assert _field(job, "ExitCode") == "0:0", (tmp_path / "log.txt").read_text()
    assert len(list(out.glob("sub-*.html"))) == 20
    assert len(list(out.glob("sub-*/dwi/*_desc-denoised_dwi.nii.gz"))) == 20
    assert not [path for path in out.rglob(".*") if path.name != ".bidsignore"], "a partial file was left"
    description = json.loads((out / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    ignored = (out / ".bidsignore").read_text().splitlines()
    assert ignored and len(set(ignored)) == len(ignored)
    assert (out / "README").read_text().startswith("# Denoised diffusion MRI")
    for name in ("CITATION.md", "CITATION.html", "CITATION.bib"):
        assert (out / "logs" / name).stat().st_size > 500
    result = _sh(str(PROGRAM), str(bids), str(out), "group", "-w", f"{tmp_path}/work")
    assert result.startswith("dwmri-bidsapp: done")


@pytest.mark.slurm
@pytest.mark.usefixtures("cluster")
@pytest.mark.timeout(400)
def test_one_submission_with_nipypes_plugin(tmp_path: Path) -> None:
    bids = _dataset(tmp_path / "bids", 2, 9.0)
    plugin = script_of_the_manual("slurm.yml").replace("--cpus-per-task=2", "--cpus-per-task=1")
    (tmp_path / "slurm.yml").write_text(plugin)
    said = _sh(
        str(PROGRAM), str(bids), "out", "participant", "group", "-w", "work", "--use-plugin", "slurm.yml",
        "--max-steps", "5", *FAST.split(), cwd=tmp_path,
    )  # fmt: skip
    assert "2 runs denoised" in said
    names = re.findall(r"JobName=(\S+)", _sh("scontrol", "show", "jobs"))
    for subject in ("01", "02"):
        assert any(name.startswith(f"denoise.denoise_wf.sub_{subject}_wf.") for name in names), names
    for subject in ("sub-01", "sub-02"):
        image = nb.load(tmp_path / f"out/{subject}/dwi/{subject}_desc-denoised_dwi.nii.gz")
        assert np.isfinite(np.asarray(image.dataobj)).all()
