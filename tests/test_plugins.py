"""Nodes in watched processes: what Nipype's own MultiProc cannot survive must end within seconds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dwmri_bidsapp.workflows.plugins import GuardedMultiProcPlugin, make_plugin
from nipype.interfaces.base import BaseInterfaceInputSpec, Str, TraitedSpec, traits
from nipype.pipeline import engine as pe
from nipype.pipeline.plugins import LinearPlugin
from nipype.utils.filemanip import loadpkl

from dwmri_bidsapp.config import Config
from dwmri_bidsapp.errors import BadDataError, DwmriError, RunFailed, TryAgainError, UsageError
from dwmri_bidsapp.interfaces.base import ERROR_FILE, RunInterface


class _InputSpec(BaseInterfaceInputSpec):
    deed = Str(mandatory=True)
    number = traits.Int(0, usedefault=True)


class _OutputSpec(TraitedSpec):
    number = traits.Int()
    pid = traits.Int()


class Act(RunInterface):
    """Do what no worker should."""

    input_spec = _InputSpec
    output_spec = _OutputSpec

    def _work(self, folder: Path) -> dict[str, Any]:
        deed = self.inputs.deed
        if deed.startswith("SIG"):
            os.kill(os.getpid(), getattr(signal, deed))
        if deed == "leave a child":
            if os.fork() == 0:  # it holds the pipe open
                time.sleep(30)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)
        if deed == "exit":
            os._exit(3)
        if deed == "bad data":
            raise BadDataError("dwi.nii.gz: expected this, found that", "do something")
        if deed == "memory":
            raise MemoryError
        if deed == "bug":
            raise KeyError("oops")
        if deed == "sleep":
            (folder.parent / "asleep").write_text(str(os.getpid()))
            time.sleep(60)
        return {"number": self.inputs.number + 1, "pid": os.getpid()}


def _workflow(tmp_path: Path, deeds: dict[str, str], edges: Sequence[tuple[str, str]] = ()) -> pe.Workflow:
    workflow = pe.Workflow("wf", base_dir=str(tmp_path))
    workflow.config["execution"].update(
        poll_sleep_duration="0.05", crashdump_dir=str(tmp_path / "crash"), crashfile_format="txt"
    )
    nodes = {name: pe.Node(Act(deed=deed), name=name) for name, deed in deeds.items()}
    workflow.add_nodes(list(nodes.values()))
    for source, target in edges:
        workflow.connect(nodes[source], "number", nodes[target], "number")
    return workflow


def _run(workflow: pe.Workflow, n_procs: int = 2) -> tuple[dict[str, str], Exception | None]:
    """Return the last status of each node, and what was raised."""
    status: dict[str, str] = {}
    plugin = GuardedMultiProcPlugin(
        {
            "n_procs": n_procs,
            "memory_gb": 4.0,
            "status_callback": lambda node, s: status.__setitem__(node.name, s),
        }
    )
    try:
        workflow.run(plugin=plugin)
    except RuntimeError as error:
        return status, error
    return status, None


def _error(tmp_path: Path, name: str) -> dict[str, Any]:
    return json.loads((tmp_path / "wf" / name / ERROR_FILE).read_text())


def test_values_travel_between_processes(tmp_path: Path) -> None:
    workflow = _workflow(tmp_path, {"a": "good", "b": "good"}, [("a", "b")])
    status, error = _run(workflow)
    assert error is None
    assert status == {"a": "end", "b": "end"}
    first, second = (loadpkl(tmp_path / "wf" / name / f"result_{name}.pklz").outputs for name in "ab")
    assert second.number == 2
    assert len({first.pid, second.pid, os.getpid()}) == 3


@pytest.mark.parametrize(
    ("deed", "expected"),
    [
        ("SIGKILL", TryAgainError),
        ("SIGTERM", TryAgainError),
        ("leave a child", TryAgainError),
        ("SIGSEGV", RunFailed),
        ("exit", RunFailed),
    ],
)
@pytest.mark.timeout(60)
def test_a_killed_node_ends_alone_and_soon(tmp_path: Path, deed: str, expected: type[DwmriError]) -> None:
    workflow = _workflow(
        tmp_path, {"victim": deed, "after": "good", "other": "good", "last": "good"},
        [("victim", "after"), ("other", "last")],
    )  # fmt: skip
    started = time.monotonic()
    status, error = _run(workflow)
    assert time.monotonic() - started < 20
    assert error is not None
    assert status == {"victim": "exception", "other": "end", "last": "end"}
    assert _error(tmp_path, "victim")["exit_code"] == expected.exit_code
    assert len(list((tmp_path / "crash").glob("crash-*victim*.txt"))) == 1


@pytest.mark.parametrize(("deed", "code"), [("bad data", 65), ("memory", 75), ("bug", 1)])
def test_errors_keep_their_exit_code(tmp_path: Path, deed: str, code: int) -> None:
    status, error = _run(_workflow(tmp_path, {"node": deed}))
    assert error is not None
    assert status == {"node": "exception"}
    assert _error(tmp_path, "node")["exit_code"] == code


def test_the_nodes_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_plugins as t; from pathlib import Path\n"
        "if __name__ == '__main__': t._run(t._workflow(Path(sys.argv[2]), {'node': 'sleep'}))\n"
    )
    (tmp_path / "main.py").write_text(script)
    command = [sys.executable, str(tmp_path / "main.py"), str(Path(__file__).parent), str(tmp_path)]
    parent = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    asleep = tmp_path / "wf" / "asleep"
    _wait_until(lambda: asleep.exists() and asleep.read_text() != "")
    child = int(asleep.read_text())
    parent.kill()
    parent.wait()
    _wait_until(lambda: _has_ended(child))


def test_the_first_crash_can_end_everything(tmp_path: Path) -> None:
    workflow = _workflow(
        tmp_path, {"sleeper": "sleep", "first": "good", "victim": "bug"}, [("first", "victim")]
    )
    workflow.config["execution"]["stop_on_first_crash"] = "true"
    started = time.monotonic()
    _, error = _run(workflow)
    assert error is not None
    assert time.monotonic() - started < 30
    assert _has_ended(int((tmp_path / "wf" / "asleep").read_text()))


def _has_ended(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return not status.exists() or "zombie" in status.read_text()


def _wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.05)


def _config(tmp_path: Path, **settings: Any) -> Config:
    return Config(bids_dir=tmp_path, out_dir=tmp_path / "out", work_dir=tmp_path / "work", **settings)


def test_one_cpu_needs_no_processes(tmp_path: Path) -> None:
    assert isinstance(make_plugin(_config(tmp_path, nprocs=1)), LinearPlugin)


def test_resources_reach_the_plugin(tmp_path: Path) -> None:
    plugin = make_plugin(_config(tmp_path, nprocs=3, mem_mb=5000, gpu_ids=(1, 2)))
    assert isinstance(plugin, GuardedMultiProcPlugin)
    assert (plugin.processors, plugin.memory_gb, plugin.n_gpu_procs) == (3, 5.0, 2)


def test_a_plugin_file_wins(tmp_path: Path) -> None:
    file = tmp_path / "plugin.yml"
    file.write_text("plugin: MultiProc\nplugin_args: {n_procs: 7, mp_context: spawn}\n")
    plugin = make_plugin(_config(tmp_path, nprocs=1, use_plugin=file))
    assert isinstance(plugin, GuardedMultiProcPlugin)
    assert plugin.processors == 7


@pytest.mark.parametrize(
    "text",
    ["plugin: [", "MultiProc", "plugin: Nonsense", "plugin: SLURMGraph", "plugin: MultiProc\nargs: {}"],
)
def test_a_bad_plugin_file_is_a_usage_error(tmp_path: Path, text: str) -> None:
    file = tmp_path / "plugin.yml"
    file.write_text(text)
    with pytest.raises(UsageError, match=r"plugin\.yml"):
        make_plugin(_config(tmp_path, use_plugin=file))


def test_a_process_that_ends_while_it_is_looked_at_has_a_result(tmp_path: Path) -> None:
    """Between one look and the next it sends its result and ends."""
    sent = False

    def poll() -> bool:
        nonlocal sent
        before, sent = sent, True
        return before

    process = SimpleNamespace(is_alive=lambda: not sent)
    receiver = SimpleNamespace(poll=poll, recv=lambda: None)
    plugin = SimpleNamespace(_task_obj={1: SimpleNamespace(process=process, receiver=receiver)})
    get_result = GuardedMultiProcPlugin._get_result
    assert get_result(plugin, 1) is None  # type: ignore[arg-type]
    assert get_result(plugin, 1) == {"result": None, "traceback": None, "taskid": 1}  # type: ignore[arg-type]
