"""Where messages go: short ones to the terminal, all of them to a file."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOGGERS = ("dwmri_bidsapp", "nipype", "py.warnings")
"""Our own, the workflow engine's, and the libraries' warnings."""

_FILE_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


@contextmanager
def logging_to(log_file: Path, verbose: int) -> Iterator[None]:
    """Show messages on stderr, and write them to a file, until the block ends.

    Parameters
    ----------
    log_file
        File to append to; its folder is made.
    verbose
        0: our own progress; 1: the workflow engine's too, and warnings; 2: debugging.
    """
    log_file.parent.mkdir(parents=True, exist_ok=True)
    to_file = logging.FileHandler(log_file, encoding="utf-8")
    to_file.setFormatter(logging.Formatter(_FILE_FORMAT))
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
            yield
        finally:
            logging.captureWarnings(False)
            for logger, (level, propagate) in zip(loggers, before, strict=True):
                logger.removeHandler(to_file)
                logger.removeHandler(to_terminal)
                logger.setLevel(level)
                logger.propagate = propagate
            to_file.close()
