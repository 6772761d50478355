"""One Config from defaults, file and command line; the file gives the same Config back."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from dwmri_bidsapp.workflows.comparison import denoiser_options

from dwmri_bidsapp.cli.options import SLOPPY, make_config
from dwmri_bidsapp.cli.parser import build_parser
from dwmri_bidsapp.config import SECTIONS, Config, check_paths, read_toml
from dwmri_bidsapp.errors import InputOutputError, UsageError
from dwmri_bidsapp.machine import (
    PeakMemory,
    available_cpus,
    available_memory_mb,
    resolve_device,
    set_environment,
)
from dwmri_bidsapp.options import DenoiseOptions


def configure(*arguments: str) -> Config:
    return make_config(build_parser().parse_args(["/data/bids", "/data/out", "participant", *arguments]))


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the variables back that set_environment sets."""
    for name, value in os.environ.items():
        monkeypatch.setenv(name, value)
    for name in ("NIPYPE_CONFIG_DIR", "DIPY_HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR", "TEMPLATEFLOW_AUTOUPDATE",
                 "PYTORCH_NVML_BASED_CUDA_CHECK", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS",
                 "OPENBLAS_NUM_THREADS", "LOGNAME", "PYTHONWARNINGS"):  # fmt: skip
        monkeypatch.setenv(name, os.environ.get(name, ""))


EVERYTHING = Config(
    bids_dir=Path('/data/with "quotes" \\ and ümlaut'),
    out_dir=Path("relative/out"),
    levels=("participant", "group"),
    participant_label=("01", "x2"),
    session_label=("a",),
    acquisition_label=("b",),
    run_label=("1",),
    bids_filter_file=Path("/f.json"),
    bids_database_dir=Path("/db"),
    skip_bids_validation=True,
    derivatives={"qsiprep": Path("/q"), "with space": Path("/w = s")},
    b0_threshold=12.5,
    mask=Path("/m.nii.gz"),
    noise_map=Path("/n.nii.gz"),
    method=DenoiseOptions(
        model="denoiser", loss="mse", alpha=0.1, max_steps=0, init="/w.pt", blend=False, leave_out=("base",)
    ),
    device="cuda",
    gpu_ids=(0, 3),
    nprocs=7,
    omp_nthreads=3,
    mem_mb=1234,
    low_mem=True,
    use_plugin=Path("/p.yml"),
    stop_on_first_crash=True,
    compare=("mppca", "qsiprep"),
    work_dir=Path("/w"),
    output_layout="raw",
    output_dtype="float64",
    reports_only=True,
    boilerplate_only=True,
    write_graph=True,
    dry_run=True,
    clean_workdir=True,
    sloppy=True,
    verbose=2,
)


def test_toml_gives_the_same_config_back(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(EVERYTHING.to_toml(), encoding="utf-8")
    assert Config.from_toml(file) == EVERYTHING
    default = Config(bids_dir=Path("b"), out_dir=Path("o"))
    changed = {
        f.name for f in dataclasses.fields(Config) if getattr(EVERYTHING, f.name) != getattr(default, f.name)
    }
    assert changed == {f.name for f in dataclasses.fields(Config)}, "a field was not tried"


def test_every_field_is_in_the_file_and_on_the_command_line() -> None:
    fields = {field.name for field in dataclasses.fields(Config)} - {"method"}
    assert sorted(key for keys in SECTIONS.values() for key in keys) == sorted(fields)
    options = {action.dest for action in build_parser()._actions}
    assert options >= fields - {"run_uuid"}
    assert options >= {field.name for field in dataclasses.fields(DenoiseOptions)}


def test_nothing_typed_gives_the_defaults() -> None:
    config = configure()
    assert config.method == DenoiseOptions()
    assert config == Config(bids_dir=Path("/data/bids"), out_dir=Path("/data/out"), run_uuid=config.run_uuid)


@pytest.mark.parametrize(
    ("arguments", "key", "value"),
    [
        (["--max-steps", "0"], "max_steps", 0),
        (["--schedule", "plateau"], "schedule", "plateau"),
        (["--no-blend"], "blend", False),
        (["--no-mixed-precision"], "mixed_precision", False),
        (["--no-b0-denoising"], "b0_denoising", False),
        (["--bias-correction", "rician"], "bias_correction", "rician"),
        (["--loss", "l1"], "loss", "l1"),
        (["--learning-rate", "1e-4"], "learning_rate", 1e-4),
        (["--leave-out", "base", "second-look"], "leave_out", ("base", "second-look")),
    ],
)
def test_method_options_reach_the_method(arguments: list[str], key: str, value: Any) -> None:
    assert configure(*arguments).method == dataclasses.replace(DenoiseOptions(), **{key: value})


def test_a_network_that_no_weights_come_with_starts_from_nothing() -> None:
    assert configure("--model", "denoiser").method == DenoiseOptions(init="random", model="denoiser")
    assert configure("--base-filters", "8", "--max-steps", "5").method == DenoiseOptions(
        init="random", base_filters=8, max_steps=5
    )
    pretrained = DenoiseOptions().settled()
    chosen = ["--max-steps", str(pretrained.max_steps), "--learning-rate", str(pretrained.learning_rate)]
    assert configure("--model", "denoiser", *chosen).method == dataclasses.replace(
        pretrained, init="random", model="denoiser"
    )


def test_a_network_without_a_part_starts_from_nothing() -> None:
    expected = DenoiseOptions(init="random", leave_out=("encoding", "base"))
    assert configure("--leave-out", "encoding", "base").method == expected
    assert configure("--leave-out", "base").method.init == "pretrained"


def test_parts_of_the_file_are_checked(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[method]\nleave_out = ['second-look', 'wheels']\n")
    with pytest.raises(UsageError, match=r"found wheels"):
        configure("--config-file", str(tmp_path / "c.toml"))


def test_weights_need_fewer_and_smaller_steps() -> None:
    start, nothing = (DenoiseOptions(init=init).settled() for init in ("pretrained", "random"))
    assert start.max_steps < nothing.max_steps and start.learning_rate < nothing.learning_rate
    given = DenoiseOptions(max_steps=7, learning_rate=0.5)
    assert given.settled() == given


@pytest.mark.parametrize("typed", [(), ("--max-steps", "100", "--learning-rate", "0.001")])
def test_a_compared_network_takes_what_was_typed_even_if_it_is_the_default(
    tmp_path: Path, typed: tuple[str, ...]
) -> None:
    """And so does it when the written file repeats the call."""
    file = tmp_path / "config.toml"
    file.write_text(configure(*typed).to_toml())
    nothing = DenoiseOptions(init="random").settled()
    for config in (configure(*typed), configure("--config-file", str(file))):
        other = denoiser_options(config.method).settled()
        expected = (100, 0.001) if typed else (nothing.max_steps, nothing.learning_rate)
        assert (other.max_steps, other.learning_rate) == expected


@pytest.mark.parametrize(
    ("arguments", "key", "value"),
    [
        (["--participant-label", "sub-01", "02"], "participant_label", ("01", "02")),
        (["--session-label", "ses-a"], "session_label", ("a",)),
        (["--n-cpus", "1"], "nprocs", 1),
        (["--mem", "4000"], "mem_mb", 4000),
        (["--gpu-ids", "0", "1", "--device", "cuda"], "gpu_ids", (0, 1)),
        (["-vv"], "verbose", 2),
        (
            ["-d", "a=/x", "/deriv/qsiprep"],
            "derivatives",
            {"a": Path("/x"), "qsiprep": Path("/deriv/qsiprep")},
        ),
        (["-d", "a=/x", "-d", "b=/y"], "derivatives", {"a": Path("/x"), "b": Path("/y")}),
        (
            ["-d", "a=/x/run=1/y", "/x/run=2/z"],
            "derivatives",
            {"a": Path("/x/run=1/y"), "z": Path("/x/run=2/z")},
        ),
        (["--init", "/dev/../etc/hostname"], "method", DenoiseOptions(init="/dev/../etc/hostname")),
    ],
)
def test_other_options_reach_the_config(arguments: list[str], key: str, value: Any) -> None:
    assert getattr(configure(*arguments), key) == value


def test_levels_come_in_their_order_and_once() -> None:
    parser = build_parser()
    config = make_config(parser.parse_args(["b", "o", "group", "participant", "group"]))
    assert config.levels == ("participant", "group")


def test_labels_of_the_file_may_have_their_prefix(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[bids]\nparticipant_label = ['sub-01', '02']\nrun_label = ['run-1']\n")
    config = configure("--config-file", str(file))
    assert (config.participant_label, config.run_label) == (("01", "02"), ("1",))


def test_command_line_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(
        "[bids]\nbids_dir = '/other'\nsession_label = ['a']\n[method]\nmax_steps = 5\nblend = false\n"
        "alpha = 2\n[machine]\nlow_mem = true\n[run]\nrun_uuid = 'old'\n"
    )
    config = configure("--config-file", str(file), "--max-steps", "7", "--no-low-mem")
    assert config.method == DenoiseOptions(max_steps=7, blend=False, alpha=2.0)
    assert config.session_label == ("a",)
    assert config.low_mem is False
    assert config.bids_dir == Path("/data/bids")
    assert config.run_uuid != "old"


def test_the_written_file_repeats_the_call(tmp_path: Path) -> None:
    first = configure("--sloppy", "--participant-label", "01", "--no-blend", "-w", "/scratch/w")
    file = tmp_path / "config.toml"
    file.write_text(first.to_toml())
    again = configure("--config-file", str(file))
    assert dataclasses.replace(again, run_uuid=first.run_uuid) == first


def test_options_that_stand_for_others_win_over_the_file_as_a_whole(tmp_path: Path) -> None:
    """The file that a call writes holds every value."""
    file = tmp_path / "config.toml"
    file.write_text(
        dataclasses.replace(configure("--nprocs", "8", "--omp-nthreads", "8"), gpu_ids=(0, 1)).to_toml()
    )
    given = ["--config-file", str(file)]
    assert configure(*given).gpu_ids == (0, 1)
    assert configure(*given, "--device", "cuda:1").gpu_ids == ()
    assert configure(*given, "--nprocs", "2").omp_nthreads == 2
    assert configure(*given, "--sloppy").method == configure("--sloppy").method
    assert configure(*given, "--sloppy", "--max-steps", "7").method.max_steps == 7
    assert configure(*given, "--low-mem").method == configure("--low-mem").method
    assert configure(*given, "--no-sloppy", "--nprocs", "16").omp_nthreads == 8
    file.write_text(configure("--sloppy", "--low-mem").to_toml())
    assert configure(*given, "--no-sloppy", "--no-low-mem").method == DenoiseOptions()


def test_sloppy_leaves_alone_what_was_typed() -> None:
    config = configure("--sloppy", "--max-steps", "3")
    assert config.method.max_steps == 3
    assert config.method.base_filters == SLOPPY["base_filters"] < DenoiseOptions().base_filters


def test_low_memory_is_one_run_at_a_time_in_smaller_batches() -> None:
    usual, low = configure("--nprocs", "32"), configure("--nprocs", "32", "--low-mem")
    assert usual.omp_nthreads == 8
    assert low.omp_nthreads == 32, "nothing is left for a second run"
    assert low.method.batch_size < usual.method.batch_size
    assert low.method.batch_size * low.method.accumulation_steps == usual.method.batch_size
    assert configure("--low-mem", "--batch-size", "5", "--nprocs", "2").method == DenoiseOptions(batch_size=5)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[method]\nmax_step = 5\n", ["method.max_step", "method.max_steps"]),
        ("max_steps = 5\n", ["max_steps", "method.max_steps"]),
        ("[methods]\nmax_steps = 5\n", ["methods", "method"]),
        ("[machine]\nn_procs = 5\n", ["machine.n_procs", "machine.nprocs"]),
        ("[method]\nmax_steps = 'many'\n", ["method.max_steps", "many", "int"]),
        ("[method]\nmodel = 'unet'\n", ["method.model", "unet", "multiscale"]),
        ("[machine]\nlow_mem = 1\n", ["machine.low_mem", "bool"]),
        ("[bids]\nsession_label = 'a'\n", ["bids.session_label", "list"]),
        ("[bids]\nderivatives = 'a'\n", ["bids.derivatives", "table"]),
        ("[bids\n", ["not a TOML file"]),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path: Path, text: str, named: list[str]) -> None:
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_toml(file)
    for word in [str(file), *named]:
        assert word in str(caught.value)


def test_missing_file_is_input_output(tmp_path: Path) -> None:
    with pytest.raises(InputOutputError, match=r"nothing\.toml"):
        read_toml(tmp_path / "nothing.toml")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--compare", "dwidenoise"], ["--init", "pretrained", "--model", "denoiser"],
        ["--init", "/nothing/here.pt"], ["--device", "gpu"], ["--device", "cuda:x"],
        ["--device", "cuda:1", "--gpu-ids", "0"], ["--nprocs", "0"], ["--omp-nthreads", "3", "--nprocs", "2"],
        ["--alpha", "-1"], ["--alpha", "nan"], ["--learning-rate", "0"], ["--patch-size", "4"],
        ["--leave-out", "skip", "half-resolution"], ["--leave-out", "detail", "--init", "pretrained"],
        ["--dry-run", "--reports-only"], ["-d", "a=/x", "a=/y"], ["--mem", "0"], ["--b0-threshold", "-5"],
    ],
)  # fmt: skip
def test_rejected_options(arguments: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        configure(*arguments)
    assert arguments[0].lstrip("-") in str(caught.value) or arguments[0] == "-d"


def test_threads_of_a_node_follow_the_processors() -> None:
    assert configure("--nprocs", "20").omp_nthreads == 8
    assert configure("--nprocs", "3").omp_nthreads == 3
    assert configure("--nprocs", "20", "--omp-nthreads", "12").omp_nthreads == 12


def test_container_limits_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dwmri_bidsapp.machine.CGROUP", tmp_path)
    without = available_cpus()
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert available_cpus() == without
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert available_cpus() == 1
    (tmp_path / "memory.max").write_text("2000000000\n")
    assert available_memory_mb() == 1800


@pytest.mark.parametrize(
    ("line", "folder", "name"),
    [
        ("0::/slurm/job_1/step_0", "slurm/job_1", "memory.max"),
        ("9:memory:/slurm/uid_5/job_1/step_0", "memory/slurm/uid_5/job_1", "memory.limit_in_bytes"),
    ],
)
def test_the_memory_of_a_job_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, folder: str, name: str
) -> None:
    """The limit stands at the job, and the process is in a step of it."""
    (tmp_path / "own").write_text(f"12:cpuset:/\n{line}\n")
    monkeypatch.setattr("dwmri_bidsapp.machine.CGROUP", tmp_path)
    monkeypatch.setattr("dwmri_bidsapp.machine.OWN_CGROUP", tmp_path / "own")
    (tmp_path / folder / "step_0").mkdir(parents=True)
    (tmp_path / folder / "step_0" / name).write_text("max\n")
    (tmp_path / folder / name).write_text("2000000000\n")
    assert available_memory_mb() == 1800


def test_peak_memory_sees_the_processes_below() -> None:
    held_mb = 300
    with PeakMemory(interval_s=0.02) as alone:
        time.sleep(0.1)
    with PeakMemory(interval_s=0.02) as together:
        code = f"import time; x = b'x' * {held_mb * 10**6}; time.sleep(0.3)"
        subprocess.run(
            [
                sys.executable,
                "-c",
                f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])",
            ],
            check=True,
        )
    assert together.megabytes - alone.megabytes == pytest.approx(held_mb, abs=60)


def test_paths_that_could_harm_the_dataset(tmp_path: Path) -> None:
    bids = tmp_path / "bids"
    bids.mkdir()
    (tmp_path / "link").symlink_to(bids)
    good: dict[str, Any] = {
        "bids_dir": bids,
        "out_dir": bids / "derivatives" / "x",
        "work_dir": tmp_path / "work",
    }
    check_paths(Config(**good))
    changes: tuple[tuple[dict[str, Any], str], ...] = (
        ({"out_dir": tmp_path / "link"}, "same folder"),
        ({"work_dir": bids / "work"}, "inside BIDS_DIR"),
        ({"work_dir": tmp_path / "link" / "work"}, "inside BIDS_DIR"),
        ({"bids_dir": tmp_path / "absent"}, "no such folder"),
        ({"work_dir": bids / "derivatives" / "x", "bids_dir": tmp_path / "link"}, "inside BIDS_DIR"),
        ({"out_dir": tmp_path / "work"}, "are the same"),
        ({"mask": tmp_path / "mask.nii"}, "--mask"),
        ({"derivatives": {"a": tmp_path / "a"}}, "a="),
    )
    for change, message in changes:
        with pytest.raises(UsageError, match=message):
            check_paths(Config(**{**good, **change}))


@pytest.mark.usefixtures("clean_environment")
def test_environment_keeps_libraries_in_the_work_folder(tmp_path: Path) -> None:
    work = tmp_path / "work"
    set_environment(
        Config(bids_dir=tmp_path, out_dir=tmp_path / "o", work_dir=work, nprocs=4, omp_nthreads=3)
    )
    for name in ("TEMPLATEFLOW_HOME", "MPLCONFIGDIR", "NIPYPE_CONFIG_DIR", "DIPY_HOME", "XDG_CACHE_HOME"):
        assert Path(os.environ[name]).is_relative_to(work)
        assert Path(os.environ[name]).is_dir()
    assert any(Path(os.environ["TEMPLATEFLOW_HOME"]).iterdir()), "templateflow would fill an empty folder"
    assert os.environ["NO_ET"] == os.environ["NIPYPE_NO_ET"] == "1"
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert os.environ["OPENBLAS_NUM_THREADS"] == "1"
    assert os.environ["GOMP_SPINCOUNT"] == "3000"
    assert os.environ["MPLBACKEND"] == "Agg"


@pytest.mark.usefixtures("clean_environment")
def test_work_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = Config(bids_dir=tmp_path, out_dir=tmp_path / "o", work_dir=tmp_path / "file" / "work")
    with pytest.raises(InputOutputError, match="--work-dir"):
        set_environment(config)


def with_device(device: str, *gpu_ids: int) -> Config:
    return Config(bids_dir=Path("b"), out_dir=Path("o"), device=device, gpu_ids=gpu_ids)


def test_device_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert resolve_device(with_device("auto")).device == "cpu"
    assert resolve_device(with_device("cpu")).device == "cpu"
    for absent in (with_device("cuda"), with_device("cuda:0"), with_device("auto", 0), with_device("cpu", 0)):
        with pytest.raises(UsageError):
            resolve_device(absent)


def test_device_with_two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for config, gpu_ids in (
        (with_device("auto"), (0,)), (with_device("cuda"), (0,)), (with_device("cuda:1"), (1,)),
        (with_device("cuda", 0, 1), (0, 1)), (with_device("auto", 1), (1,)),
    ):  # fmt: skip
        resolved = resolve_device(config)
        assert (resolved.device, resolved.gpu_ids) == ("cuda", gpu_ids)
    assert resolve_device(with_device("cpu")).gpu_ids == ()
    with pytest.raises(UsageError, match="device 2"):
        resolve_device(with_device("cuda", 0, 2))
    with pytest.raises(UsageError, match="device 5"):
        resolve_device(with_device("cuda:5"))
