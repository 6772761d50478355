"""The files at the root of OUT_DIR, and the record of each call.

Many jobs may write one OUT_DIR at the same time: every file is replaced in one move, and one that
has its content already is left alone.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import uuid
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from . import __version__
from .boilerplate import bibliography, markdown_to_html
from .config import PACKAGE, Config
from .errors import UsageError

BIDS_VERSION = "1.10.0"
VERSIONS_OF = (
    "torch", "nipype", "niworkflows", "nireports", "pybids", "nibabel", "dipy", "numpy", "scipy",
)  # fmt: skip
"""Packages whose versions are recorded."""

# The validator asks for bval and bvec beside a derived dwi yet rejects their names, and knows no dwimap;
# a folder with a trailing slash would not match.
BIDSIGNORE = (
    "*.html", "logs", "log", "figures", "group*", "*_dwi.bval", "*_dwi.bvec", "*_dwimap.*",
    "*_timeseries.*", "*_metrics.*",
)  # fmt: skip

_CREDITS = (
    "License", "Authors", "Acknowledgements", "HowToAcknowledge", "Funding", "EthicsApprovals", "ReferencesAndLinks",
)  # fmt: skip

_README = """# Denoised diffusion MRI

Written by dwmri-bidsapp. For each run of the source dataset:

- `*_desc-denoised_dwi.nii.gz`: the denoised run, on the grid of the input
- `*_desc-brain_mask.nii.gz`: where it was denoised; outside, the values are those of the input
- `*_model-noise_param-sigma_dwimap.nii.gz`: noise level, in signal units
- `*_model-noise_param-uncertainty_dwimap.nii.gz`: root mean square of the error to expect, the noise
  floor included unless it was removed
- `*_desc-denoised_metrics.tsv`, `.json`: measures of quality, and how the run was processed
- `*_desc-training_timeseries.tsv`: course of the training
- `*_desc-confounds_timeseries.tsv`: motion of the head by volume, an estimate

Open `sub-*.html` for each participant, and `group.html` for all of them.
`logs/CITATION.md` holds a methods text with references; `sub-*/log/` what each call was asked to do.
"""


def atomic_write(path: Path, text: str) -> Path:
    """Write a text file in one move: readers see the old content or the new, never a part.

    Parameters
    ----------
    path
        File to write; its folder is made. A file with this very content is left alone.
    text
        Content, written as UTF-8; surrogate escapes, which stand for other bytes, as those bytes.

    Returns
    -------
    Path
        The same path.
    """
    content = text.encode(errors="surrogateescape")
    if path.is_file() and path.read_bytes() == content:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile: its files can be read by their owner only, and the group shares OUT_DIR.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def check_out_dir(out_dir: Path, layout: str = "derivatives") -> None:
    """Check that no other dataset is described in OUT_DIR, and that what is there is in this layout.

    Raises
    ------
    UsageError
        When it holds another dataset, or the other layout.
    """
    description = out_dir / "dataset_description.json"
    if not description.is_file():
        return
    try:
        content = json.loads(description.read_text(encoding="utf-8"))
        names = [generator["Name"] for generator in content.get("GeneratedBy", [])]
    except (ValueError, TypeError, KeyError, AttributeError):
        names = []
    if PACKAGE not in names:
        raise UsageError(
            f"{description}: OUT_DIR holds another dataset ({', '.join(names) or 'not a derivative'})",
            "give a folder of its own",
        )
    if (content.get("DatasetType") == "raw") != (layout == "raw"):
        raise UsageError(
            f"--output-layout {layout}: {out_dir} was written in the other layout", "give a folder of its own"
        )


def write_root_files(config: Config) -> None:
    """Write dataset_description.json, README and .bidsignore; a README that is there is kept."""
    atomic_write(config.out_dir / "dataset_description.json", _json(dataset_description(config)))
    if not (config.out_dir / "README").exists():
        atomic_write(config.out_dir / "README", _README)
    ignore = config.out_dir / ".bidsignore"
    present = ignore.read_text(encoding="utf-8").splitlines() if ignore.is_file() else []
    lines = [*present, *(line for line in BIDSIGNORE if line not in present)]
    atomic_write(ignore, "\n".join(lines) + "\n")


def dataset_description(config: Config) -> dict[str, Any]:
    """Return the content of dataset_description.json.

    ``DatasetLinks`` holds ``raw``, and the derivatives that masks and noise maps came from.
    """
    raw = _source_description(config.bids_dir)
    generator: dict[str, Any] = {"Name": PACKAGE, "Version": __version__}
    if container := _container():
        generator["Container"] = container
    source = {"URL": config.bids_dir.as_uri()}
    if doi := raw.get("DatasetDOI"):
        source["DOI"] = str(doi)
    links = {"raw": config.bids_dir} | {k: p for k, p in config.derivatives.items() if k != "truth"}
    return {
        "Name": f"Denoised diffusion MRI of: {raw.get('Name', config.bids_dir.name)}",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "License": str(raw.get("License", "n/a")),
        "GeneratedBy": [generator],
        "SourceDatasets": [source],
        "DatasetLinks": {name: path.as_uri() for name, path in links.items()},
        "HowToAcknowledge": "See logs/CITATION.md",
    }


def dataset_description_of_raw(bids_dir: Path) -> dict[str, Any]:
    """Return dataset_description.json of a raw dataset with denoised series: that of the source, and who changed it."""
    raw = _source_description(bids_dir)
    kept: dict[str, Any] = {key: raw[key] for key in _CREDITS if key in raw}
    source = {"URL": bids_dir.as_uri()}
    if doi := raw.get("DatasetDOI"):
        source["DOI"] = str(doi)
    return {
        "Name": f"{raw.get('Name', bids_dir.name)}, with denoised diffusion MRI",
        "BIDSVersion": str(raw.get("BIDSVersion", BIDS_VERSION)),
        "DatasetType": "raw",
        **kept,
        "GeneratedBy": [{"Name": PACKAGE, "Version": __version__}],
        "SourceDatasets": [source],
    }


def write_config(config: Config, subject: str | None = None) -> Path:
    """Write the configuration that is in effect to the log folder, to be given back with ``--config-file``."""
    return atomic_write(config.log_dir(subject) / "config.toml", config.to_toml())


def write_provenance(config: Config, subject: str, content: Mapping[str, Any]) -> Path:
    """Write what a call did to the participant's log folder as ``provenance.json``.

    Parameters
    ----------
    config
        The configuration in effect.
    subject
        Label of the participant, without ``sub-``.
    content
        What to add to versions, machine and device: seconds, peak memory, failures.
    """
    record = {
        "command": sys.argv,
        "run_uuid": config.run_uuid,
        "device": config.device,
        "gpu_ids": list(config.gpu_ids),
        "versions": versions(),
        "machine": {"system": platform.platform(), "host": platform.node(), "nprocs": config.nprocs,
                    "omp_nthreads": config.omp_nthreads, "mem_mb": config.mem_mb},
        **content,
    }  # fmt: skip
    return atomic_write(config.log_dir(subject) / "provenance.json", _json(record))


def write_boilerplate(out_dir: Path, text: str) -> list[Path]:
    """Write the methods text as ``logs/CITATION.{md,html,bib}``.

    Parameters
    ----------
    out_dir
        Root of the derivatives.
    text
        Markdown with citations such as ``[@garyfallidis2014]``.

    Raises
    ------
    KeyError
        For a citation that the bibliography does not have.
    """
    logs = out_dir / "logs"
    return [
        atomic_write(logs / "CITATION.md", text.strip() + "\n"),
        atomic_write(logs / "CITATION.html", markdown_to_html(text)),
        atomic_write(logs / "CITATION.bib", bibliography()),
    ]


def versions() -> dict[str, str]:
    """Return the versions of this package, Python, and the packages that do the work."""
    found = {PACKAGE: __version__, "python": platform.python_version()}
    for name in VERSIONS_OF:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _source_description(bids_dir: Path) -> dict[str, Any]:
    try:
        content = json.loads((bids_dir / "dataset_description.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # --skip-bids-validation allows that
        return {}
    return content if isinstance(content, dict) else {}


def _container() -> dict[str, str] | None:
    """Return type and tag of the container that this process runs in, where it says so."""
    for variable in ("APPTAINER_CONTAINER", "SINGULARITY_CONTAINER"):
        if image := os.environ.get(variable):
            return {"Type": variable.partition("_")[0].lower(), "Tag": Path(image).name}
    # Set by our own Dockerfile; the traces that docker leaves do not tell which image it is.
    if tag := os.environ.get("DWMRI_BIDSAPP_IMAGE"):
        return {"Type": "docker", "Tag": tag}
    return None


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, default=str) + "\n"
