"""``--dry-run``: what would be processed, with the memory and time to expect."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import nibabel as nb

from ..bids import find_runs
from ..config import PACKAGE, Config
from ..errors import RunFailed
from ..gpus import too_small
from ..images import IMAGE_ERRORS
from ..options import DenoiseOptions

# Twice what was measured on a CPU with fast 16-bit arithmetic; one without it needs more.
_SECONDS_PER_TRAINED_VOXEL = 3e-6
_SECONDS_PER_VALUE = 3e-6
_SECONDS_PER_RUN = 20.0  # figures, reports, and the start of each process


@dataclass(frozen=True)
class Expectation:
    """What a run of this size will take.

    Attributes
    ----------
    memory_gb
        Most memory of the run.
    minutes
        Rough time on the CPU.
    """

    memory_gb: float
    minutes: float


def dry_run(config: Config) -> int:
    """Print the runs that would be processed, and return the exit code.

    Nothing is written, and neither PyTorch nor Nipype is loaded.
    """
    runs, problems, b0_series = find_runs(config)
    errors = [str(problem) for problem in problems]
    total = 0.0
    memory_gb: dict[str, float] = {}
    print(f"{'run':40} {'shape':>18} {'memory GB':>10} {'minutes':>8}")
    for run in runs:
        try:
            shape = nb.load(run.dwi).shape
        except IMAGE_ERRORS as error:
            errors.append(f"{run.dwi}: cannot be read: {error}")
            continue
        expected = expect(shape, config.method, config.omp_nthreads)
        total += expected.minutes
        memory_gb[run.label] = expected.memory_gb
        size = "x".join(map(str, shape))
        print(f"{run.label:40} {size:>18} {expected.memory_gb:10.1f} {expected.minutes:8.1f}")
    for series in b0_series:
        print(f"{series.dwi.name}: left as it is: holds b=0 volumes only")
    for line in too_small(memory_gb, config.gpu_ids) if config.device != "cpu" else []:
        print(f"{PACKAGE}: warning: {line}")
    for text in errors:
        print(f"{PACKAGE}: error: {' '.join(text.split())}", file=sys.stderr)
    print(
        f"{PACKAGE}: dry run: {len(runs)} runs, about {total:.0f} minutes on the CPU one after the other "
        f"({config.omp_nthreads} threads; a third or three times that, by machine); nothing was written"
    )
    return RunFailed.exit_code if errors else 0


def expect(shape: tuple[int, ...], method: DenoiseOptions, n_threads: int) -> Expectation:
    """Estimate memory and time of a run.

    Memory: four times the series in float32 plus 1 GB, which the tests hold the program to.
    Time: training is proportional to the voxels of all patches, the rest to the values of the run,
    with a constant for figures and reports; a factor of three either way is usual.

    Parameters
    ----------
    shape
        (X, Y, Z, V) of the run.
    method
        How it will be denoised.
    n_threads
        CPU threads.
    """
    method, n_values = method.settled(), math.prod(shape)
    patch_voxels = method.batch_size * method.accumulation_steps * method.patch_size**3
    width = method.base_filters / 16
    seconds = (
        method.max_steps * patch_voxels * _SECONDS_PER_TRAINED_VOXEL * width + n_values * _SECONDS_PER_VALUE
    )
    minutes = (seconds / n_threads + _SECONDS_PER_RUN) / 60
    return Expectation(memory_gb=1 + 4 * n_values * 4e-9, minutes=minutes)
