"""Where messages go: short ones to the terminal, all of them to a file."""

from __future__ import annotations

import logging
import logging.handlers
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

LOGGERS = ("dwmri_bidsapp", "nipype", "py.warnings")
"""Our own, the workflow engine's, and the libraries' warnings."""

_FILE_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


@contextmanager
def logging_shown(verbose: int) -> Iterator[Callable[[Path], None]]:
    """Show messages on stderr until the block ends, and write them to a file once there is one.

    Parameters
    ----------
    verbose
        0: our own progress; 1: the workflow engine's too, and warnings; 2: debugging.

    Yields
    ------
    callable
        Takes the file to append to, earlier messages included; its folder is made.
    """
    to_file = logging.handlers.MemoryHandler(0)  # keeps messages until it has a target

    def write_to(log_file: Path) -> None:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        target = logging.FileHandler(log_file, encoding="utf-8")
        target.setFormatter(logging.Formatter(_FILE_FORMAT))
        to_file.setTarget(target)
        to_file.flush()

    to_terminal = logging.StreamHandler(sys.stderr)
    to_terminal.setFormatter(logging.Formatter("%(message)s" if verbose == 0 else _FILE_FORMAT))
    to_terminal.setLevel(logging.DEBUG if verbose > 1 else logging.INFO)
    if verbose == 0:
        to_terminal.addFilter(lambda record: record.name.startswith("dwmri_bidsapp"))
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger.level, logger.propagate) for logger in loggers]
    with warnings.catch_warnings():
        logging.captureWarnings(True)
        for logger in loggers:
            logger.addHandler(to_file)
            logger.addHandler(to_terminal)
            logger.setLevel(logging.DEBUG if verbose > 1 else logging.INFO)
            logger.propagate = False
        try:
            yield write_to
        finally:
            logging.captureWarnings(False)
            for logger, (level, propagate) in zip(loggers, before, strict=True):
                logger.removeHandler(to_file)
                logger.removeHandler(to_terminal)
                logger.setLevel(level)
                logger.propagate = propagate
            target = to_file.target
            to_file.close()
            if target is not None:
                target.close()
