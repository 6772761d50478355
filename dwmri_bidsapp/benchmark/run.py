"""The benchmark: every case, every method, one table."""

from __future__ import annotations

import shutil
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from .. import __version__
from ..errors import InputOutputError
from .cases import Case, Run, make_run, write_run
from .figures import error_figure, gain_figure
from .methods import Method, Used, run_method
from .scores import Estimate, Row, Scorer
from .tables import summary_text, write_summary, write_table

Say = Callable[[str], None]


def run_benchmark(
    out_dir: Path,
    cases: Sequence[Case],
    methods: Sequence[Method],
    *,
    threads: int = 2,
    repeats: int = 1,
    call: str = "",
    say: Say = print,
) -> list[Row]:
    """Run every method on every case, one process at a time, and write tables and figures.

    Parameters
    ----------
    out_dir
        Gets ``benchmark.tsv``, ``benchmark.json``, ``summary.md`` and ``figures/``; the tables are
        written anew after each case, so that an interrupted call leaves what it had.
    cases, methods
        What on what.
    threads
        Of every process.
    repeats
        Runs of each method, in turn; the seconds are their median, the results those of the first.
    call
        The command line, for the summary.
    say
        Told what happens.

    Returns
    -------
    list of dict
        The rows of ``benchmark.tsv``.

    Raises
    ------
    InputOutputError
        The folder cannot be written.
    """
    rows: list[Row] = []
    try:
        (out_dir / "figures").mkdir(parents=True, exist_ok=True)
        for number, case in enumerate(cases, start=1):
            say(f"case {number} of {len(cases)}: {case}")
            run = make_run(case)
            rows += _run_case(case, run, methods, threads, repeats, out_dir / "figures", say)
            write_table(out_dir, rows)
            write_summary(out_dir, rows, methods, call=call, threads=threads, version=__version__)
        for measure in ("psnr", "fa_error", "v1_angle"):
            figure = gain_figure(rows, measure)
            if figure is not None:
                figure.savefig(out_dir / "figures" / f"{measure}.png", dpi=110)
    except OSError as error:
        raise InputOutputError(f"{error.filename or out_dir}: {error.strerror or error}") from error
    say(summary_text(rows))
    return rows


def _run_case(
    case: Case, run: Run, methods: Sequence[Method], threads: int, repeats: int, figures: Path, say: Say
) -> list[Row]:
    """Rows of one case."""
    rows: list[Row] = []
    scorer = Scorer(run)
    examples = {}
    with tempfile.TemporaryDirectory(prefix="dwmri-benchmark-") as name:
        folder = Path(name)
        write_run(run, folder)
        used = _run_in_turn(methods, folder, threads, repeats, say)
        for method in methods:
            common: Row = {**case.columns(), "method": method.name, "threads": threads}
            if used[method.name].failure:
                rows.append({**common, "status": f"failed: {used[method.name].failure}"})
                continue
            estimate = _read_estimate(method, run, folder)
            examples[method.name] = estimate.dwi_xyzv
            for row in scorer.score(estimate):
                if (row["comparison"], row["shell"]) == ("truth", "dwi") and method.command:
                    row |= {
                        "seconds": used[method.name].seconds,
                        "peak_mb": used[method.name].peak_mb,
                        "run_mb": run.noisy_xyzv.nbytes / 1e6,
                    }
                rows.append({**common, "status": "done", **row})
    error_figure(run, examples, title=str(case)).savefig(figures / f"{_slug(case)}.png", dpi=110)
    return rows


def _run_in_turn(
    methods: Sequence[Method], folder: Path, threads: int, repeats: int, say: Say
) -> dict[str, Used]:
    """Every method, then every method again: a slow minute of the machine hits all of them."""
    uses: dict[str, list[Used]] = {method.name: [] for method in methods}
    for repeat in range(repeats):
        for method in methods:
            if repeat and (method.command is None or uses[method.name][0].failure):
                continue
            target = folder if repeat == 0 else _copy_of_inputs(folder)
            found = run_method(method, target, threads)
            uses[method.name].append(found)
            if found.failure:
                say(f"  {method.name}: {found.failure}")
            elif method.command:
                say(f"  {method.name}: {found.seconds:.1f} s, {found.peak_mb:.0f} MB")
    return {
        name: Used(
            statistics.median(one.seconds for one in found if one.failure == found[0].failure),
            max(one.peak_mb for one in found),
            found[0].failure,
        )
        for name, found in uses.items()
    }


def _copy_of_inputs(folder: Path) -> Path:
    """A folder for a repeat, so that the first results stay."""
    again = folder / "again"
    again.mkdir(exist_ok=True)
    for name in ("noisy.nii", "mask.nii", "bval", "bvec"):
        if not (again / name).exists():
            shutil.copy(folder / name, again / name)
    return again


def _read_estimate(method: Method, run: Run, folder: Path) -> Estimate:
    if method.command is None:
        return Estimate(run.noisy_xyzv)
    maps: dict[str, Any] = {}
    for name in ("sigma", "uncertainty"):
        path = folder / f"{method.name}_{name}.nii"
        maps[name] = _read(path) if path.exists() else None
    return Estimate(_read(folder / f"{method.name}.nii"), maps["sigma"], maps["uncertainty"])


def _read(path: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
    return nib.Nifti1Image.from_filename(path).get_fdata(dtype=np.float32)


def _slug(case: Case) -> str:
    anatomy = f"{case.file.name.removesuffix('.gz').removesuffix('.nii')}_seed" if case.file else case.family
    return f"{anatomy}{case.seed}_{case.protocol}_snr{case.snr:g}_{case.noise}"
