"""Everything that one call of the program was asked to do, in one frozen object.

The command line makes a :class:`Config` once; the root workflow builder gets it, and leaves
get plain values from it. It is written beside the results as TOML and can be given back with
``--config-file``.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import tomllib
import types
import typing
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from .errors import InputOutputError, UsageError
from .machine import available_cpus, available_memory_mb
from .options import DenoiseOptions

PACKAGE = "dwmri-bidsapp"
BUILT_IN_METHODS = ("mppca", "patch2self", "denoiser")
"""What ``--compare`` can run; any other name is that of derivatives made elsewhere."""
LABELS = {"participant_label": "sub", "session_label": "ses", "acquisition_label": "acq", "run_label": "run"}
"""Keys that hold labels, and the prefix that these may have."""
SECTIONS: dict[str, tuple[str, ...]] = {
    "bids": (
        "bids_dir", "out_dir", "levels", "participant_label", "session_label", "acquisition_label",
        "run_label", "bids_filter_file", "bids_database_dir", "skip_bids_validation", "b0_threshold",
        "mask", "noise_map", "derivatives",
    ),
    "machine": (
        "device", "gpu_ids", "nprocs", "omp_nthreads", "mem_mb", "low_mem", "use_plugin",
        "stop_on_first_crash",
    ),
    "run": (
        "compare", "work_dir", "output_layout", "output_dtype", "reports_only", "boilerplate_only", "write_graph",
        "dry_run", "clean_workdir", "sloppy", "verbose", "run_uuid",
    ),
}  # fmt: skip
"""Keys of each TOML table; the table ``method`` holds the fields of ``DenoiseOptions``."""


def new_run_uuid() -> str:
    """Return a name for this call that sorts by time and never collides."""
    return f"{datetime.now():%Y%m%d-%H%M%S}_{uuid.uuid4()}"


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to process, how, on which machine, and where to write.

    Parameters
    ----------
    bids_dir, out_dir
        The dataset (only read), and the folder of the derivatives.
    levels
        ``"participant"``, ``"group"``, or both, in this order.
    participant_label, session_label, acquisition_label, run_label
        Labels without prefix; empty means all.
    bids_filter_file
        JSON file with more filters (``{"dwi": {"session": null}}``).
    bids_database_dir
        Folder of a pybids database that is made once and used again.
    skip_bids_validation
        Accept a dataset without a valid dataset_description.json and names that break BIDS.
    derivatives
        Name and folder of BIDS derivatives to take masks and noise maps from (``truth``: the
        clean images of a simulation, used by the group level).
    b0_threshold
        Volumes with a b-value at or below it are b=0 volumes, in s/mm².
    mask, noise_map
        Files for the one run that is selected.
    method
        How a run is denoised.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
    gpu_ids
        The CUDA devices to use when the device is ``"cuda"``.
    nprocs, omp_nthreads
        CPUs of the whole workflow and of one node; 0 for ``omp_nthreads`` becomes
        ``min(nprocs, 8)``.
    mem_mb
        Memory that the workflow may fill, in MB.
    low_mem
        One run at a time, in smaller batches; the command line has set the other fields accordingly.
    use_plugin
        Nipype plugin settings (YAML).
    stop_on_first_crash
        Stop everything when one run fails.
    compare
        Other methods to run beside: of :data:`BUILT_IN_METHODS`, or names of ``derivatives`` that hold
        the runs denoised elsewhere.
    work_dir
        Folder for intermediate files, outside ``bids_dir``.
    output_layout, output_dtype
        What is written: BIDS derivatives, or a raw dataset with the denoised series in place of the acquired
        ones; and the data type of the denoised series.
    reports_only, boilerplate_only, write_graph, dry_run
        Do less than, or something beside, the whole job.
    clean_workdir
        Remove the intermediate files of each run that succeeded.
    sloppy
        A few steps only: for tests, never for data.
    verbose
        0, 1 (more messages) or 2 (debugging, stack traces).
    run_uuid
        Name of this call.
    """

    bids_dir: Path
    out_dir: Path
    levels: tuple[str, ...] = ("participant",)
    participant_label: tuple[str, ...] = ()
    session_label: tuple[str, ...] = ()
    acquisition_label: tuple[str, ...] = ()
    run_label: tuple[str, ...] = ()
    bids_filter_file: Path | None = None
    bids_database_dir: Path | None = None
    skip_bids_validation: bool = False
    derivatives: Mapping[str, Path] = field(default_factory=dict)
    b0_threshold: float = 50.0
    mask: Path | None = None
    noise_map: Path | None = None
    method: DenoiseOptions = field(default_factory=DenoiseOptions)
    device: str = "auto"
    gpu_ids: tuple[int, ...] = ()
    nprocs: int = field(default_factory=available_cpus)
    omp_nthreads: int = 0
    mem_mb: int = field(default_factory=available_memory_mb)
    low_mem: bool = False
    use_plugin: Path | None = None
    stop_on_first_crash: bool = False
    compare: tuple[str, ...] = ()
    work_dir: Path = Path("work")
    output_layout: Literal["derivatives", "raw"] = "derivatives"
    output_dtype: Literal["float32", "float64"] = "float32"
    reports_only: bool = False
    boilerplate_only: bool = False
    write_graph: bool = False
    dry_run: bool = False
    clean_workdir: bool = False
    sloppy: bool = False
    verbose: int = 0
    run_uuid: str = field(default_factory=new_run_uuid)

    def __post_init__(self) -> None:
        for key, hint in _hints(Config).items():
            value = getattr(self, key)
            if hint in (Path, Path | None) and value is not None:
                object.__setattr__(self, key, Path(value).absolute())
        paths = {name: Path(path).absolute() for name, path in self.derivatives.items()}
        object.__setattr__(self, "derivatives", paths)
        _check_numbers(self, self.method.settled())
        object.__setattr__(self, "omp_nthreads", self.omp_nthreads or min(self.nprocs, 8))

    def log_dir(self, subject: str | None = None) -> Path:
        """Return this call's log folder of one participant, or of the whole call."""
        parent = self.out_dir / "logs" if subject is None else self.out_dir / f"sub-{subject}" / "log"
        return parent / self.run_uuid

    def to_toml(self) -> str:
        """Return all values as TOML; what is not set is left out."""
        import tomli_w

        document = {
            section: {key: _plain(getattr(self, key)) for key in keys if getattr(self, key) is not None}
            for section, keys in SECTIONS.items()
        }
        document["method"] = dataclasses.asdict(self.method)
        return tomli_w.dumps(document)

    @classmethod
    def from_toml(cls, path: Path) -> Config:
        """Make a Config from a file that :meth:`to_toml` wrote (with all its keys, or fewer).

        Raises
        ------
        UsageError
            For an unknown key, a value of the wrong type, or no ``bids_dir``/``out_dir``.
        InputOutputError
            For a file that cannot be read.
        """
        values = read_toml(path)
        for key in ("bids_dir", "out_dir"):
            if key not in values:
                raise UsageError(f"{path}: the key bids.{key} is missing")
        method = {key: values.pop(key) for key in _hints(DenoiseOptions) if key in values}
        return cls(**values, method=DenoiseOptions(**method))


def read_toml(path: Path) -> dict[str, Any]:
    """Read a configuration file into one flat mapping from key to typed value.

    Raises
    ------
    UsageError
        For an unknown table or key (the nearest valid one is named), or a wrong type.
    InputOutputError
        For a file that cannot be read.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputOutputError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not a TOML file: {error}") from error
    config_hints, method_hints = _hints(Config), _hints(DenoiseOptions)
    known = {section: {key: config_hints[key] for key in keys} for section, keys in SECTIONS.items()}
    known["method"] = method_hints
    values: dict[str, Any] = {}
    for section, table in document.items():
        if section not in known or not isinstance(table, dict):
            raise _unknown_key(path, section, [f"{s}.{k}" for s in known for k in known[s]] + list(known))
        for key, value in table.items():
            if key not in known[section]:
                raise _unknown_key(path, f"{section}.{key}", [f"{s}.{k}" for s in known for k in known[s]])
            try:
                values[key] = typed(value, known[section][key])
            except (TypeError, ValueError) as error:
                raise UsageError(f"{path}: {section}.{key} = {value!r}: {error}") from error
    return values


def check_paths(config: Config) -> None:
    """Check that folders exist and do not overlap in a way that could harm the dataset.

    Raises
    ------
    UsageError
        For a missing or unreadable dataset or file, and for output or work inside the wrong folder.
    """
    bids_dir, out_dir, work_dir = (p.resolve() for p in (config.bids_dir, config.out_dir, config.work_dir))
    if not config.bids_dir.is_dir():
        raise UsageError(f"BIDS_DIR {config.bids_dir}: no such folder", "check the path, or the bind mount")
    if not os.access(config.bids_dir, os.R_OK | os.X_OK):
        raise UsageError(f"BIDS_DIR {config.bids_dir}: no permission to read it")
    if out_dir == bids_dir:
        raise UsageError(
            f"OUT_DIR and BIDS_DIR are the same folder: {config.out_dir}",
            f"use for example {config.bids_dir / 'derivatives' / PACKAGE}",
        )
    if work_dir.is_relative_to(bids_dir):
        raise UsageError(
            f"the work folder {config.work_dir} lies inside BIDS_DIR {config.bids_dir}",
            "give another folder with --work-dir",
        )
    if work_dir == out_dir:
        raise UsageError(f"the work folder and OUT_DIR are the same: {config.out_dir}")
    for option, file in (
        ("--mask", config.mask), ("--noise-map", config.noise_map),
        ("--bids-filter-file", config.bids_filter_file), ("--use-plugin", config.use_plugin),
    ):  # fmt: skip
        if file is not None and not file.is_file():
            raise UsageError(f"{option} {file}: no such file")
    for name, folder in config.derivatives.items():
        if not folder.is_dir():
            raise UsageError(f"--derivatives {name}={folder}: no such folder")


def _check_numbers(config: Config, method: DenoiseOptions) -> None:
    """Raise UsageError for a number out of its range."""
    for option, value, least in (
        ("--nprocs", config.nprocs, 1), ("--omp-nthreads", config.omp_nthreads, 0), ("--mem", config.mem_mb, 1),
        ("--b0-threshold", config.b0_threshold, 0), ("--alpha", method.alpha, 0), ("--beta", method.beta, 0),
        ("--base-filters", method.base_filters, 1), ("--max-steps", method.max_steps, 0),
        ("--batch-size", method.batch_size, 1), ("--block", method.block_edge(1), 1),
        ("--patch-size", method.patch_size, 8),
        ("--accumulation-steps", method.accumulation_steps, 1), ("--random-seed", method.random_seed, 0),
    ):  # fmt: skip
        if not value >= least:  # written so that NaN fails too
            raise UsageError(f"{option} {value}: expected {least} or more")
    if not 0 < method.learning_rate < 1:
        raise UsageError(f"--learning-rate {method.learning_rate}: expected a number between 0 and 1")
    if config.omp_nthreads > config.nprocs:
        raise UsageError(
            f"--omp-nthreads {config.omp_nthreads} is more than --nprocs {config.nprocs}",
            "a node cannot use more CPUs than the workflow has",
        )


def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _unknown_key(path: Path, key: str, known: list[str]) -> UsageError:
    # People misspell the key or forget the table: compare both spellings.
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
    hint = f"the nearest key is {nearest[0]}" if nearest else f"known tables: {', '.join(sorted(SECTIONS))}"
    return UsageError(f"{path}: unknown key {key}", hint)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, Mapping):
        return {key: str(path) for key, path in value.items()}
    return value


def typed(value: Any, hint: Any) -> Any:
    """Return a TOML value as the type of a field.

    Raises
    ------
    TypeError, ValueError
        The value is of another type, or none of those allowed; the message goes after the name of the key.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return typed(value, next(a for a in arguments if a is not types.NoneType))
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"must be one of {', '.join(map(repr, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise TypeError("must be a list")
        if arguments[-1] is not Ellipsis and len(value) != len(arguments):
            raise ValueError(f"must be {len(arguments)} values")
        return tuple(typed(item, arguments[0]) for item in value)
    if origin is Mapping:
        if not isinstance(value, dict):
            raise TypeError("must be a table")
        return {key: typed(item, arguments[1]) for key, item in value.items()}
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise TypeError(f"must be of type {getattr(hint, '__name__', hint)}")
    return value
