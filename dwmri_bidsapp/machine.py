"""The machine: what it has, and an environment in which no library misbehaves."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import InputOutputError, UsageError

if TYPE_CHECKING:
    from .config import Config

CGROUP = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


def available_cpus() -> int:
    """Return how many CPUs this process may use: affinity and container quota included."""
    n_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (CGROUP / "cpu.max").read_text().split()
        return max(1, min(n_cpus, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup v2 here, or the quota reads "max"
        return n_cpus


def available_memory_mb() -> int:
    """Return 90% of the memory that this process may use, in MB: a container's or a job's limit included."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit_file in _memory_limits():
        try:
            total = min(total, int(limit_file.read_text()))
        except (OSError, ValueError):  # no such cgroup, or the limit reads "max"
            continue
    return int(0.9 * total / 1e6)


def _memory_limits() -> list[Path]:
    """Where the limits of this process's cgroup and of those around it may be, in both versions of cgroups."""
    top_v1 = CGROUP / "memory"
    files = [CGROUP / "memory.max", top_v1 / "memory.limit_in_bytes"]
    with contextlib.suppress(OSError):
        for line in OWN_CGROUP.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers in ("", "memory"):
                top, name = (top_v1, "memory.limit_in_bytes") if controllers else (CGROUP, "memory.max")
                own = top / path.lstrip("/")
                files += [folder / name for folder in (own, *own.parents) if folder.is_relative_to(top)]
    return files


class PeakMemory:
    """Watches how much memory this process and all below it hold together, while a block runs.

    Pages that processes share are counted once. Jobs on other machines are not seen.

    Attributes
    ----------
    megabytes
        The most that was seen, in MB.
    """

    def __init__(self, interval_s: float = 0.5) -> None:
        self.megabytes = 0.0
        self._interval_s = interval_s
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        import psutil

        this = psutil.Process()
        while True:
            held = 0
            for process in (this, *this.children(recursive=True)):
                # Processes end between being listed and being asked.
                with contextlib.suppress(psutil.Error):
                    held += process.memory_full_info().pss
            self.megabytes = max(self.megabytes, round(held / 1e6, 1))
            if self._end.wait(self._interval_s):
                return


def set_environment(config: Config) -> None:
    """Set this process's environment; call it before numpy, nipype or niworkflows are imported.

    No library may reach for the network or write under the home folder, and none may start
    more threads than asked for. Everything that insists on a folder of its own gets one in the
    work folder (or a new temporary one, where the work folder cannot be written).
    """
    folder = _environment_folder(config.work_dir)
    # templateflow fills an empty folder from a 11-second download kit at import: not this one.
    stub = folder / "templateflow" / "README"
    stub.parent.mkdir(exist_ok=True)
    stub.write_text("No templates are used: this folder only has to be non-empty.\n")
    os.environ.update(
        NO_ET="1",
        NIPYPE_NO_ET="1",
        TEMPLATEFLOW_HOME=str(stub.parent),
        TEMPLATEFLOW_AUTOUPDATE="0",
        MPLBACKEND="Agg",
        MPLCONFIGDIR=str(folder / "matplotlib"),
        NIPYPE_CONFIG_DIR=str(folder / "nipype"),
        DIPY_HOME=str(folder / "dipy"),
        XDG_CACHE_HOME=str(folder / "cache"),
        # After an interrupt, Python's own clean-up would have the last word.
        PYTHONWARNINGS=",".join(filter(None, [os.environ.get("PYTHONWARNINGS"), "ignore:resource_tracker"])),
        PYTORCH_NVML_BASED_CUDA_CHECK="1",  # asks for GPUs without starting CUDA in this process
        **{f"{name}_NUM_THREADS": str(config.omp_nthreads) for name in ("OMP", "MKL", "NUMEXPR")},
        OPENBLAS_NUM_THREADS="1",  # DIPY's mppca stalls with more
    )
    # threads that spin long while they wait slow a busy machine down several times; none at all is as bad for eigh
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    os.environ.setdefault("LOGNAME", "unknown")  # nipype's SLURM plugin fails without it


def resolve_device(config: Config) -> Config:
    """Return the Config with the device that will be used: ``"cpu"``, or ``"cuda"`` and ``gpu_ids``.

    Raises
    ------
    UsageError
        When CUDA, or one of the devices, is asked for and absent.
    """
    if config.device == "cpu":
        if config.gpu_ids:
            raise UsageError(f"--gpu-ids {list(config.gpu_ids)} with --device cpu", "leave one of them out")
        return config
    import torch

    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if config.device == "auto" and n_gpus == 0 and not config.gpu_ids:
        return dataclasses.replace(config, device="cpu")
    if n_gpus == 0:
        raise UsageError(
            f"--device {config.device}: PyTorch {torch.__version__} finds no CUDA device here",
            "use --device cpu, or start the container with --gpus all (docker) or --nv (apptainer)",
        )
    asked = (int(config.device[5:]),) if config.device.startswith("cuda:") else config.gpu_ids or (0,)
    absent = sorted(set(asked) - set(range(n_gpus)))
    if absent:
        raise UsageError(f"CUDA device {absent[0]} was asked for, and there are {n_gpus}: 0 to {n_gpus - 1}")
    return dataclasses.replace(config, device="cuda", gpu_ids=asked)


def _environment_folder(work_dir: Path) -> Path:
    folder = work_dir / "environment"
    try:
        for name in ("matplotlib", "nipype", "dipy", "cache"):
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if work_dir.exists() and not os.access(work_dir, os.W_OK):
            raise InputOutputError(f"the work folder {work_dir} cannot be written") from error
        raise InputOutputError(
            f"the work folder {work_dir} cannot be made: {error.strerror}",
            f"give a folder that can be written, for example --work-dir {tempfile.gettempdir()}/work",
        ) from error
    return folder
