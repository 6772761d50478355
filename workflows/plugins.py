"""How the nodes of a workflow are executed: one after the other, or in processes that are watched.

Nipype's own MultiProc waits forever for a worker that was killed (out of memory, for example).
"""

from __future__ import annotations

import logging
import multiprocessing as mp
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from traceback import format_exception
from typing import Any

from nipype.pipeline import plugins as nipype_plugins
from nipype.pipeline.plugins.base import PluginBase
from nipype.pipeline.plugins.multiproc import MultiProcPlugin

from ..config import Config
from ..errors import DwmriError, RunFailed, TryAgainError, UsageError
from ..interfaces.base import write_error
from ..stopping import GRACE_S

_NIPYPE_LOGGERS = ("nipype.workflow", "nipype.interface", "nipype.utils")
# Imported once, before the nodes' processes are forked off; none of it starts threads or touches a GPU.
_PRELOADED = [
    "nipype.pipeline.engine",
    "dwmri_bidsapp.interfaces",
    "dwmri_bidsapp.denoising",
    "dwmri_bidsapp.metrics",
    "dwmri_bidsapp.figures",
    "dwmri_bidsapp.reports",
]
_ENDED_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM)


@dataclass(frozen=True)
class _Task:
    """A node that runs in a process of its own."""

    process: Any
    receiver: Connection
    node: Any


class GuardedMultiProcPlugin(MultiProcPlugin):
    """Nipype's MultiProc, with one process per node instead of a pool of workers.

    A process that ends without an answer fails its own node, and no other. When this process
    ends, for whatever reason, the nodes end too. Memory goes back after each node.

    Parameters
    ----------
    plugin_args
        As of MultiProc, and ``log_level``: what the processes log.
    """

    def __init__(self, plugin_args: dict[str, Any] | None = None) -> None:
        super().__init__(plugin_args=plugin_args)
        self.pool.shutdown()
        self._context = _start_context(self.plugin_args.get("mp_context") or "forkserver")

    def run(self, graph: Any, config: Any, updatehash: bool = False) -> None:
        """Run a graph of nodes; whatever happens, no process is left."""
        try:
            super().run(graph, config, updatehash=updatehash)
        finally:
            for task in self._task_obj.values():
                if task.process.is_alive():
                    task.process.terminate()
            for task in self._task_obj.values():
                _kill_unless_ended(task)

    def _submit_job(self, node: Any, updatehash: bool = False) -> int:
        self._taskid += 1
        receiver, sender = self._context.Pipe(duplex=False)
        level = self.plugin_args.get("log_level", logging.INFO)
        process = self._context.Process(target=_run_node, args=(sender, node, updatehash, level))
        process.start()
        sender.close()  # so that the pipe ends when the process does
        self._task_obj[self._taskid] = _Task(process, receiver, node)
        return self._taskid

    def _get_result(self, taskid: int) -> dict[str, Any] | None:
        task = self._task_obj[taskid]
        lives = task.process.is_alive()  # first, since it may send its result and end at any time
        if task.receiver.poll():
            try:
                return {"result": None, "traceback": task.receiver.recv(), "taskid": taskid}
            except EOFError:
                pass
        elif lives:
            return None
        error = _unexpected_end(task)
        write_error(error, Path(task.node.output_dir()))
        return {"result": None, "traceback": [f"{error}\n"], "taskid": taskid}

    def _sort_jobs(self, jobids: Any, scheduler: str = "tsort") -> list[int]:
        """Finish the run that is furthest before another one is begun."""
        turns: dict[str, int] = {}
        for node in self.procs:
            turns.setdefault(_run_of(node), len(turns))
        return sorted(jobids, key=lambda job: turns[_run_of(self.procs[job])])

    def _clear_task(self, taskid: int) -> None:
        _end(self._task_obj.pop(taskid))


def make_plugin(config: Config, status_callback: Callable[[Any, str], None] | None = None) -> PluginBase:
    """Return the plugin that a configuration asks for.

    Parameters
    ----------
    config
        ``use_plugin`` wins over ``nprocs``, ``mem_mb`` and ``gpu_ids``.
    status_callback
        Called with a node and ``"start"``, ``"end"`` or ``"exception"``.

    Raises
    ------
    UsageError
        The plugin file is not understood, or its plugin cannot be used.
    """
    arguments: dict[str, Any] = {
        "n_procs": config.nprocs,
        "memory_gb": config.mem_mb / 1000,
        "n_gpu_procs": len(config.gpu_ids),
        # Nipype logs whole tracebacks as errors; the user gets one line at the end.
        "log_level": {0: logging.CRITICAL, 1: logging.INFO}.get(config.verbose, logging.DEBUG),
        # A node that asks for more than there is gets all there is.
        "raise_insufficient": False,
    }
    name = "Linear" if config.nprocs == 1 else "MultiProc"
    if config.use_plugin is not None:
        name, changed = _read_plugin_file(config.use_plugin)
        arguments |= changed
    arguments["status_callback"] = status_callback
    if name == "MultiProc":
        return GuardedMultiProcPlugin(arguments)
    return getattr(nipype_plugins, f"{name}Plugin")(plugin_args=arguments)


def _read_plugin_file(path: Path) -> tuple[str, dict[str, Any]]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or set(content) - {"plugin", "plugin_args"} or "plugin" not in content:
        raise UsageError(f"{path}: expected the keys plugin and plugin_args", "for example plugin: MultiProc")
    name, arguments = content["plugin"], content.get("plugin_args") or {}
    known = [k[: -len("Plugin")] for k in vars(nipype_plugins) if k.endswith("Plugin")]
    # The graph plugins return before their jobs have ended.
    usable = sorted(k for k in known if not k.endswith("Graph") and k not in ("Debug", "LegacyMultiProc"))
    if name not in usable or not isinstance(arguments, dict):
        raise UsageError(f"{path}: plugin {name!r} cannot be used", f"use one of {', '.join(usable)}")
    return name, arguments


def _start_context(method: str) -> Any:
    # Never fork: a copy of a process that has used torch may hang.
    context = mp.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(_PRELOADED)
    return context


def _run_of(node: Any) -> str:
    """Return the name of the run's workflow that a node belongs to."""
    return ".".join(node.fullname.split(".")[:2])


def _run_node(sender: Connection, node: Any, updatehash: bool, log_level: int) -> None:
    """Run a node in its own process, and send its traceback, or None."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for name in _NIPYPE_LOGGERS:
        logging.getLogger(name).setLevel(log_level)
    traceback = None
    try:
        node.run(updatehash=updatehash)
    except BaseException:
        traceback = format_exception(*sys.exc_info())
    sender.send(traceback)
    sender.close()


def _end_with_parent() -> None:
    parent = mp.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _unexpected_end(task: _Task) -> DwmriError:
    task.process.join(timeout=5)
    code = task.process.exitcode
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        if -code in _ENDED_FROM_OUTSIDE:
            return TryAgainError(
                f"{task.node.fullname}: killed by {name}, probably out of memory",
                "give more memory (--mem), or run fewer at a time (--nprocs, --low-mem)",
            )
        return RunFailed(f"{task.node.fullname}: crashed with {name}")
    return RunFailed(f"{task.node.fullname}: ended without a result (exit code {code})")


def _end(task: _Task) -> None:
    if task.process.is_alive():
        task.process.join(timeout=1)
    if task.process.is_alive():
        task.process.terminate()
    _kill_unless_ended(task)


def _kill_unless_ended(task: _Task) -> None:
    # A training that was told to stop writes its checkpoint first.
    task.process.join(timeout=GRACE_S + 2)
    if task.process.is_alive():
        task.process.kill()
        task.process.join()
    task.receiver.close()
    task.process.close()
