"""``main``: every call ends here, with one line and an exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from .. import __version__
from ..errors import DwmriError, InputOutputError, TryAgainError, WorkflowError
from ..stopping import Stopped, signals_stop

INTERRUPTED = 130
_PROGRAM = "dwmri-bidsapp"
_SUBCOMMANDS = ("demo", "simulate", "benchmark", "train-weights")
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; nothing is raised but by ``--help``, ``--version`` and bad arguments.

    Parameters
    ----------
    argv
        The arguments; those of the process where not given.

    Returns
    -------
    int
        The exit code; see :mod:`dwmri_bidsapp.errors`.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    verbose = sum(word.count("v") for word in arguments if word in ("-v", "-vv", "-vvv", "--verbose"))
    crash_dir = [Path(tempfile.gettempdir())]
    try:
        with signals_stop():
            return _dispatch(arguments, crash_dir)
    except Stopped as stopped:
        by_hand = str(stopped) == signal.SIGINT.name
        _say(
            f"{'interrupted' if by_hand else f'stopped by {stopped}'}: give the same command again to continue"
        )
        return INTERRUPTED if by_hand else TryAgainError.exit_code
    except KeyboardInterrupt:
        _say("interrupted: give the same command again to continue")
        return INTERRUPTED
    except Exception as error:
        if verbose > 1:
            traceback.print_exc()
        known = _as_dwmri_error(error, crash_dir[0])
        _say(f"error: {known}")
        return known.exit_code


def _dispatch(arguments: list[str], crash_dir: list[Path]) -> int:
    """Call what the arguments ask for; ``crash_dir`` gets the log folder once that is known."""
    if arguments[:1] == ["--version"]:  # before the parser, which takes its time to read the defaults
        print(f"{_PROGRAM} {__version__}")
        return 0
    command = arguments[0] if arguments else ""
    if command in _SUBCOMMANDS:
        with _cache_elsewhere():
            return _run_subcommand(command, arguments[1:])
    from .options import make_config
    from .parser import build_parser

    config = make_config(build_parser().parse_args(arguments))
    from .levels import run_levels

    crash_dir[0] = config.log_dir()
    return run_levels(config)


def _run_subcommand(command: str, arguments: list[str]) -> int:
    if command == "benchmark":
        from .benchmark import benchmark

        return benchmark(arguments)
    if command == "train-weights":
        from .train_weights import train_weights_command

        return train_weights_command(arguments)
    from .demo import run_subcommand

    return run_subcommand(command, arguments)


@contextlib.contextmanager
def _cache_elsewhere() -> Iterator[None]:
    """Let matplotlib keep its cache in a temporary folder: nothing is written under the home folder."""
    before = os.environ.get("MPLCONFIGDIR")
    with tempfile.TemporaryDirectory(prefix=f"{_PROGRAM}-", ignore_cleanup_errors=True) as folder:
        os.environ["MPLCONFIGDIR"] = before or folder
        try:
            yield
        finally:
            os.environ.pop("MPLCONFIGDIR", None)
            if before is not None:
                os.environ["MPLCONFIGDIR"] = before


def _as_dwmri_error(error: Exception, crash_dir: Path) -> DwmriError:
    """Return the member of the one family of errors that an exception amounts to."""
    if isinstance(error, DwmriError):
        return error
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch has its own
        return TryAgainError("out of memory", "give more memory, or use --low-mem or fewer --nprocs")
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return InputOutputError(
            f"{error.filename or 'a file'}: no space left", "free some, or use another folder"
        )
    if isinstance(error, OSError) and error.filename is not None:
        return InputOutputError(f"{error.filename}: {error.strerror}")
    crash_file = _write_crash_file(crash_dir)
    where = f"see {crash_file}" if crash_file else "use -vv to see more"
    return WorkflowError(f"{type(error).__name__}: {error}", f"this is a defect of the program; {where}")


def _write_crash_file(crash_dir: Path) -> Path | None:
    for folder in (crash_dir, Path(tempfile.gettempdir())):
        crash_file = folder / "dwmri-bidsapp-crash.txt"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            crash_file.write_text(
                f"{_PROGRAM} {__version__} {sys.argv}\n\n{traceback.format_exc()}", encoding="utf-8"
            )
        except OSError:
            continue
        return crash_file
    return None


def _say(message: str) -> None:
    print(f"{_PROGRAM}: {' '.join(message.split())}", file=sys.stderr, flush=True)
