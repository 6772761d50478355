"""Signals that end the program (time limit, preemption, ``docker stop``, Ctrl-C): save what can be continued first.

While a run is denoised, a signal waits until the training loop asks for it between two steps, so that
the checkpoint is whole; at any other time it ends the program at once.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# docker stop kills after 10 s, SLURM after 30 s: a step of training is shorter, and nothing else is worth a wait.
GRACE_S = 6.0


class Stopped(KeyboardInterrupt):
    """A signal came, whose name is the message: to be continued by the same command."""


class _State:
    """Of this process, as signal handlers are."""

    holding = False
    waiting: str | None = None
    overdue = False
    raised: str | None = None


@contextmanager
def signals_stop() -> Iterator[None]:
    """Let the signals raise :class:`Stopped` in this block, once; only the main thread can do that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _stop) for number in SIGNALS}
    if _stop not in before.values():  # not within another such block
        _State.raised = None
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def signals_wait_for_checkpoint() -> Iterator[None]:
    """Like :func:`signals_stop`, but a signal waits for :func:`stop_if_asked`, at most ``GRACE_S`` seconds."""
    with signals_stop():
        _State.holding, _State.waiting, _State.overdue = True, None, False
        try:
            yield
            stop_if_asked(lambda: None)
        finally:
            _State.holding, _State.waiting = False, None


def stop_if_asked(save: Callable[[], None]) -> None:
    """Between two steps of a training: when a signal waits, save the state and raise :class:`Stopped`."""
    if _State.waiting is not None:
        save()
        _raise(_State.waiting)


def raise_if_stopped() -> None:
    """Raise :class:`Stopped` again, where it was taken for a mere failure: Nipype takes it so."""
    if _State.raised is not None:
        raise Stopped(_State.raised)


def _stop(number: int, _: FrameType | None) -> None:
    name = signal.Signals(number).name
    if not _State.holding or _State.overdue:
        _raise(name)
    elif _State.waiting is None:
        _State.waiting = name
        timer = threading.Timer(GRACE_S, _insist, [number])
        timer.daemon = True
        timer.start()


def _raise(name: str) -> None:
    # A scheduler may send several signals: a second one must not break off the cleaning up after the first.
    if _State.raised is None:
        _State.raised = name
        raise Stopped(name)


def _insist(number: int) -> None:
    if _State.waiting is not None:
        _State.overdue = True
        os.kill(os.getpid(), number)
