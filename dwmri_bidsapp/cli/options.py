"""From the parsed options and the configuration file to one Config."""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
from pathlib import Path
from typing import Any

from ..config import BUILT_IN_METHODS, LABELS, Config, read_toml
from ..errors import UsageError
from ..machine import available_cpus
from ..options import NETWORK_PARTS, STARTS, DenoiseOptions, shipped_weights, weights_file

SLOPPY: dict[str, Any] = {
    "init": "random",
    "max_steps": 10,
    "batch_size": 2,
    "patch_size": 16,
    "base_filters": 8,
}
"""What ``--sloppy`` stands for, where the options do not say otherwise."""

_MEANINGS = {
    "sloppy": set(SLOPPY),
    "low_mem": {"batch_size", "accumulation_steps", "omp_nthreads"},
}
"""Settings that a switch changes."""

_TAKEN_NAMES = ("acquired", "denoised", "brain", "training", "truth")
_ONLY_COMMAND_LINE = ("bids_dir", "out_dir", "levels", "run_uuid")
_METHOD_FIELDS = {field.name for field in dataclasses.fields(DenoiseOptions)}


def make_config(namespace: argparse.Namespace) -> Config:
    """Merge the command line over the configuration file.

    Raises
    ------
    UsageError
        For options that contradict each other, ask for what is not there, or do not work yet.
    """
    given = vars(namespace).copy()
    file = given.pop("config_file", None)
    values = read_toml(file) if file is not None else {}
    for key in (*_ONLY_COMMAND_LINE, *_overruled(given, values)):
        values.pop(key, None)
    for key, prefix in LABELS.items():
        if key in values:
            values[key] = tuple(label.removeprefix(f"{prefix}-") for label in values[key])
    values |= given
    if isinstance(values.get("derivatives"), list):
        values["derivatives"] = _derivatives(values["derivatives"])
    if values.get("init", "random") not in STARTS:
        values["init"] = str(Path(values["init"]).absolute())  # nodes run in folders of their own
    if values.get("sloppy"):
        values = SLOPPY | values
    if values.get("low_mem"):
        values = _low_memory(values) | values
    for key, value in values.items():
        values[key] = tuple(value) if isinstance(value, list) else value
    values["levels"] = tuple(level for level in ("participant", "group") if level in values["levels"])
    chosen = {key: values.pop(key) for key in _METHOD_FIELDS & set(values)}
    if set(chosen.get("leave_out", ())) & set(NETWORK_PARTS):
        chosen = {"init": "random"} | chosen
    method = DenoiseOptions(**chosen)
    if "init" not in chosen and not weights_file(method).is_file():
        method = DenoiseOptions(**{"init": "random"} | chosen)  # a network that no weights come with
    config = Config(**values, method=method)
    _check(config)
    return config


def _overruled(given: dict[str, Any], values: dict[str, Any]) -> set[str]:
    """What a configuration file says that an option of the command line, which wins, stands for as a whole."""
    overruled: set[str] = set()
    for switch, meaning in _MEANINGS.items():
        if switch in given and (given[switch] or values.get(switch)):
            overruled |= meaning
    if "device" in given:
        overruled |= {"gpu_ids"}
    if values.get("omp_nthreads", 0) > given.get("nprocs", math.inf):
        overruled |= {"omp_nthreads"}
    return overruled


def _low_memory(values: dict[str, Any]) -> dict[str, Any]:
    """Return what ``--low-mem`` stands for: one run at a time, and the same steps in smaller batches."""
    changed: dict[str, Any] = {"omp_nthreads": values.get("nprocs", available_cpus())}
    if not {"batch_size", "accumulation_steps"} & set(values):
        batch = DenoiseOptions().batch_size
        changed["batch_size"] = max(1, batch // 4)
        changed["accumulation_steps"] = batch // changed["batch_size"]
    return changed


def _derivatives(texts: list[str]) -> dict[str, Path]:
    folders = {}
    for text in texts:
        name, equals, folder = text.partition("=")
        named = bool(equals) and "/" not in name  # otherwise that sign is one of the path
        path = Path(folder if named else text)
        folders[name if named else path.absolute().name] = path
    if len(folders) < len(texts):
        raise UsageError(f"--derivatives {' '.join(texts)}: two folders of one name", "use NAME=PATH")
    return folders


def _check(config: Config) -> None:
    _check_compared(config)
    init = config.method.init
    if init not in STARTS and not Path(init).is_file():
        raise UsageError(
            f"--init {init}: no such file", "use pretrained, random, or the path of a weights file"
        )
    if init == "pretrained":
        shipped_weights(config.method)
    if not re.fullmatch(r"auto|cpu|cuda|cuda:\d+", config.device):
        raise UsageError(f"--device {config.device}: expected auto, cpu, cuda or cuda:N")
    if config.device.startswith("cuda:") and config.gpu_ids:
        raise UsageError(f"--device {config.device} with --gpu-ids", "use --device cuda with --gpu-ids")
    lesser = [name for name in ("reports_only", "boilerplate_only", "dry_run") if getattr(config, name)]
    if len(lesser) > 1:
        options = " and ".join(f"--{name.replace('_', '-')}" for name in lesser)
        raise UsageError(f"{options} cannot be used together")
    if lesser and "participant" not in config.levels:
        raise UsageError(f"--{lesser[0].replace('_', '-')} needs the participant level")


def _check_compared(config: Config) -> None:
    for name in config.compare:
        if name not in BUILT_IN_METHODS and name not in config.derivatives:
            raise UsageError(
                f"--compare {name}: no such method",
                f"there are {', '.join(BUILT_IN_METHODS)}, and derivatives made elsewhere: add "
                f"--derivatives {name}=PATH",
            )
        # It becomes the desc entity of the files.
        if not re.fullmatch(r"[A-Za-z0-9]+", name) or name in _TAKEN_NAMES:
            raise UsageError(f"--compare {name}: not a name for files", "use letters and digits, as in mppca")
    if len(set(config.compare)) < len(config.compare):
        raise UsageError(f"--compare {' '.join(config.compare)}: one method twice")
