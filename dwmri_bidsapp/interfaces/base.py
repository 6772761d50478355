"""What all interfaces share: errors that survive the worker, and small files in one format.

Nipype turns every exception of a node into text. So that a :class:`~dwmri_bidsapp.errors.DwmriError`
keeps its exit code on the way to the command line, it is also written as ``error.json`` into the
folder of the node.
"""

from __future__ import annotations

import abc
import contextlib
import csv
import dataclasses
import errno
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nb
import numpy as np
from nipype.interfaces.base import SimpleInterface
from numpy.typing import NDArray

from ..errors import DwmriError, InputOutputError, RunFailed, TryAgainError
from ..stopping import Stopped

ERROR_FILE = "error.json"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, errno.EFBIG)


class RunInterface(SimpleInterface, abc.ABC):
    """An interface whose work is one method from a folder to its outputs."""

    def _run_interface(self, runtime: Any) -> Any:
        folder = Path(runtime.cwd)
        with recorded_errors(folder):
            self._results.update(self._work(folder))
        return runtime

    @abc.abstractmethod
    def _work(self, folder: Path) -> dict[str, Any]:
        """Do the work in ``folder``, and return the outputs by name."""


@contextlib.contextmanager
def recorded_errors(folder: Path) -> Iterator[None]:
    """Write an exception of the block to ``error.json`` in ``folder``, and let it pass."""
    try:
        yield
    except Stopped as signal:
        write_error(TryAgainError(f"stopped by {signal}", "give the same command again to continue"), folder)
        raise
    except Exception as error:
        known = as_dwmri_error(error)
        write_error(known, folder)
        if known is error:
            raise
        raise known from error


def as_dwmri_error(error: BaseException) -> DwmriError:
    """Return the member of the one family of errors that an exception amounts to."""
    if isinstance(error, DwmriError):
        return error
    text = " ".join(str(error).split()) or "no message"
    # PyTorch has an error of its own for GPUs, and a plain RuntimeError for the CPU.
    out_of_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if out_of_memory or "can't allocate memory" in text:
        return TryAgainError(f"out of memory: {text[:200]}", "give more memory, or fewer --nprocs")
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return InputOutputError(text, "check the free space and the permissions of that folder")
    return RunFailed(f"{type(error).__name__}: {text[:300]}", "the crash file tells more")


def write_error(error: DwmriError, folder: Path) -> None:
    """Write an error for :func:`read_error`; a full disk must not hide the error itself, nor keep a part of it."""
    record = {"message": error.message, "hint": error.hint, "exit_code": error.exit_code}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(record, folder / ERROR_FILE)
    except OSError:
        with contextlib.suppress(OSError):
            (folder / ERROR_FILE).unlink(missing_ok=True)


def read_error(path: Path) -> DwmriError:
    """Return what :func:`write_error` wrote."""
    record = json.loads(path.read_text(encoding="utf-8"))
    known = {cls.exit_code: cls for cls in DwmriError.__subclasses__()}
    return known.get(record["exit_code"], RunFailed)(record["message"], record["hint"])


def write_json(content: Mapping[str, Any], path: Path) -> Path:
    """Write JSON; NaN and infinity, which JSON does not know, become null."""
    path.write_text(json.dumps(plain(content), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return path


def write_tsv(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Write rows with the same keys as a BIDS table; what is missing or not finite is ``n/a``."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            writer.writerow([_cell(plain(row.get(column))) for column in columns])
    return path


def _cell(value: Any) -> Any:
    if value is None:
        return "n/a"
    return f"{value:.10g}" if isinstance(value, float) else value


def read_tsv(path: Path) -> list[dict[str, float]]:
    """Read a table of numbers that :func:`write_tsv` wrote; ``n/a`` becomes NaN."""
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    return [{key: math.nan if value == "n/a" else float(value) for key, value in row.items()} for row in rows]


def save_image(data: NDArray[Any], like: nb.Nifti1Image, path: Path, dtype: str = "float32") -> Path:
    """Write an array with another image's affine, orientation codes and units.

    Parameters
    ----------
    data : (X, Y, Z) or (X, Y, Z, V) array
        Values on the grid of ``like``.
    like
        Where the header comes from.
    path
        File to write; one that exists is replaced, not changed, because the results may be links to it.
    dtype
        Data type of the file.
    """
    header = like.header.copy()
    header.set_data_dtype(dtype)
    header.set_slope_inter(1, 0)
    header["cal_max"] = header["cal_min"] = 0
    path.unlink(missing_ok=True)
    # No affine is given: that would set the codes anew.
    type(like)(np.asarray(data, dtype), None, header).to_filename(path)
    return path


def plain(value: Any) -> Any:
    """Return a value as JSON has it: no NumPy types, no paths, no NaN."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool | None) else str(value)
