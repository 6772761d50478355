"""The denoisers, and how each is run: a process of its own, whose seconds and memory are measured from outside."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

_POLL_SECONDS = 0.02
# the list of children is that of all processes of the machine, which takes time from the method that is timed
_POLLS_PER_LOOK_FOR_CHILDREN = 50
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

OURS: dict[str, dict[str, Any]] = {
    "denoiser-l1": {"model": "denoiser", "loss": "l1", "init": "random"},
    "multiscale-random": {"init": "random"},
    "multiscale-zero-step": {"init": "pretrained", "max_steps": 0},
    "multiscale": {"init": "pretrained"},
}
"""Options of our own methods; what is not named keeps its default."""

PEERS = ("dwidenoise", "mppca", "patch2self", "leave-one-out")
"""Methods of others."""


@dataclass(frozen=True)
class Method:
    """A denoiser.

    Attributes
    ----------
    name
        In tables, and of the files it writes.
    what
        One line for the reader.
    command
        From the folder and the number of threads to the arguments of the process; None for the noisy run itself.
    environment
        Variables of that process.
    """

    name: str
    what: str
    command: Callable[[Path, int], list[str]] | None
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_ours(self) -> bool:
        """Whether it is of this package."""
        return self.command is not None and self.name not in PEERS


@dataclass(frozen=True)
class Used:
    """What a process took, and why it failed if it did."""

    seconds: float
    peak_mb: float
    failure: str = ""


def available_methods(variants: Mapping[str, dict[str, Any]] | None = None) -> dict[str, Method]:
    """Methods that can be run here, by name; ``dwidenoise`` only where MRtrix3 is installed.

    Parameters
    ----------
    variants
        More of our own: names, and fields of DenoiseOptions.
    """
    methods = [Method("noisy", "the input", None)]
    if shutil.which("dwidenoise"):
        methods.append(Method("dwidenoise", "MRtrix3 dwidenoise -mask", _dwidenoise))
    methods += [
        # more threads of OpenBLAS than one let its many small decompositions wait for each other
        Method("mppca", "DIPY mppca", _worker("mppca"), {"OPENBLAS_NUM_THREADS": "1"}),
        Method("patch2self", "DIPY patch2self, padded to a multiple of five volumes", _worker("patch2self")),
        Method("leave-one-out", "least-squares regression over the whole mask", _worker("leave-one-out")),
    ]
    for name, options in {**OURS, **(variants or {})}.items():
        what = "ours: " + ", ".join(f"{key}={value}" for key, value in options.items())
        # as the application sets it: threads that spin long slow a busy machine down
        methods.append(Method(name, what, _worker(name, options), {"GOMP_SPINCOUNT": "3000"}))
    return {method.name: method for method in methods}


def _dwidenoise(folder: Path, threads: int) -> list[str]:
    noise = ["-noise", str(folder / "dwidenoise_sigma.nii")]
    options = ["-quiet", "-force", "-nthreads", str(threads), "-mask", str(folder / "mask.nii")]
    return ["dwidenoise", *options, *noise, str(folder / "noisy.nii"), str(folder / "dwidenoise.nii")]


def _worker(name: str, options: Mapping[str, Any] | None = None) -> Callable[[Path, int], list[str]]:
    def command(folder: Path, threads: int) -> list[str]:
        module = [sys.executable, "-m", "dwmri_bidsapp.benchmark.worker", name, str(folder), str(threads)]
        return module if options is None else [*module, json.dumps(options)]

    return command


def run_method(method: Method, folder: Path, threads: int) -> Used:
    """Run a method on the files of a folder, and measure the whole process with its children."""
    if method.command is None:
        return Used(0.0, 0.0)
    variables = dict.fromkeys(_THREAD_VARIABLES, str(threads))
    environment = {**os.environ, **variables, **method.environment}
    log = folder / f"{method.name}.log"
    start = time.perf_counter()
    with (
        log.open("wb") as output,
        psutil.Popen(
            method.command(folder, threads), env=environment, stdout=output, stderr=subprocess.STDOUT
        ) as process,
    ):
        peak = _watch(process)
    seconds = time.perf_counter() - start
    failure = ""
    if process.returncode:
        lines = log.read_text(errors="replace").strip().splitlines()
        failure = f"exit code {process.returncode}: {lines[-1] if lines else 'no message'}"
    return Used(seconds, peak / 1e6, failure)


def _watch(process: psutil.Popen) -> int:
    """Wait for the end of a process, and return the most resident bytes that it and its children had together.

    What the kernel reports of an ended child would include the memory of the parent it was forked from.
    """
    peak, polls = 0, 0
    family = [process]
    try:
        while process.poll() is None:
            if polls % _POLLS_PER_LOOK_FOR_CHILDREN == 0:
                with contextlib.suppress(psutil.Error):
                    family = [process, *process.children(recursive=True)]
            peak = max(peak, sum(_resident_bytes(member) for member in family))
            polls += 1
            time.sleep(_POLL_SECONDS)
    except BaseException:
        # an interrupted benchmark leaves no method running
        for member in reversed(family):
            with contextlib.suppress(psutil.Error):
                member.kill()
        raise
    return peak


def _resident_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0
