"""The one family of errors: each knows its exit code and gives the user a way out.

Exit codes: 1 a run failed, 64 usage, 65 bad data, 70 the workflow could not be built,
74 input/output, 75 try again (argparse itself leaves with 2, an interrupt with 130).
"""

from __future__ import annotations


class DwmriError(Exception):
    """An error that is shown to the user as one line.

    Parameters
    ----------
    message
        What is wrong: the file, what was expected, what was found.
    hint
        What the user can do about it.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class RunFailed(DwmriError):
    """One or more runs failed; the others were finished."""

    exit_code = 1


class UsageError(DwmriError):
    """The options contradict each other, or ask for what is not there."""

    exit_code = 64


class BadDataError(DwmriError):
    """A file of the dataset cannot be used."""

    exit_code = 65


class WorkflowError(DwmriError):
    """The workflow could not be built."""

    exit_code = 70


class InputOutputError(DwmriError):
    """A file could not be read or written (disk full, permissions)."""

    exit_code = 74


class TryAgainError(DwmriError):
    """Out of memory or killed from outside: may work with other resources."""

    exit_code = 75
