"""``--output-layout raw``: a raw BIDS dataset with the denoised series in place of the acquired ones.

A pipeline such as QSIPrep takes it as its input. The derivatives themselves (maps, measures, reports) lie in
``derivatives/dwmri-bidsapp`` of it.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .bids import B0Series, DwiRun, files_below
from .config import PACKAGE
from .derivatives import atomic_write, dataset_description_of_raw
from .errors import InputOutputError

LOGGER = logging.getLogger(__name__)

DERIVATIVES = Path("derivatives") / PACKAGE
"""Where the derivatives lie in the raw dataset."""

_OF_DERIVATIVES_ONLY = ("Sources", "SpatialReference", "SkullStripped", "Description")
_NOT_COPIED = ("dataset_description.json", ".bidsignore", "README", "README.md", "README.txt", "README.rst")


def write_raw_dataset(
    bids_dir: Path, out_dir: Path, runs: Iterable[DwiRun], b0_series: Iterable[B0Series] = ()
) -> list[Path]:
    """Write the raw dataset of the runs that have been denoised.

    Everything else of their participants is copied, but for other DWI series with diffusion-weighted volumes: one
    that was not denoised must not be taken for one that was. Links are followed, so that the dataset can be mounted
    alone.

    Parameters
    ----------
    bids_dir
        The source dataset.
    out_dir
        Root of the raw dataset; it holds the derivatives in :data:`DERIVATIVES`.
    runs
        The runs that were denoised.
    b0_series
        Series of b=0 volumes alone; those of the same participants are copied.

    Returns
    -------
    list of Path
        The denoised images.

    Raises
    ------
    InputOutputError
        A file could not be written.
    """
    runs = list(runs)
    try:
        written = [_write_run(run, bids_dir, out_dir) for run in runs]
        subjects = {run.subject for run in runs}
        for series in b0_series:
            if series.subject in subjects:
                _copy_b0_series(series, bids_dir, out_dir)
        for subject in sorted(subjects):
            _copy_others(bids_dir, out_dir, bids_dir / f"sub-{subject}")
        _write_root(bids_dir, out_dir)
    except OSError as error:
        raise InputOutputError(
            f"{error.filename or out_dir}: the raw dataset cannot be written: {error.strerror or error}",
            "check the free space and the permissions of that folder",
        ) from error
    return written


def _write_run(run: DwiRun, bids_dir: Path, out_dir: Path) -> Path:
    """Put the denoised image, its gradient table and its metadata under the names of the source."""
    folder = run.dwi.parent.relative_to(bids_dir)
    denoised = out_dir / DERIVATIVES / folder / f"{run.label}_desc-denoised_dwi"
    target = out_dir / folder / f"{run.label}_dwi"
    for extension in (".nii.gz", ".bval", ".bvec"):
        _link(Path(f"{denoised}{extension}"), Path(f"{target}{extension}"))
    metadata = json.loads(Path(f"{denoised}.json").read_text(encoding="utf-8"))
    kept = {key: value for key, value in metadata.items() if key not in _OF_DERIVATIVES_ONLY}
    atomic_write(Path(f"{target}.json"), json.dumps(kept, indent=2) + "\n")
    return Path(f"{target}.nii.gz")


def _copy_b0_series(series: B0Series, bids_dir: Path, out_dir: Path) -> None:
    """Copy the image, and give it tables and metadata of its own, inherited ones included."""
    folder = out_dir / series.dwi.parent.relative_to(bids_dir)
    label = series.dwi.name.partition(".")[0]
    _copy(series.dwi, folder / series.dwi.name)
    for table in series.tables:
        _copy(table, folder / f"{label}{table.suffix}")
    if series.metadata:
        atomic_write(folder / f"{label}.json", _json(_intended_for_denoised(series.metadata, out_dir)))


def _link(source: Path, target: Path) -> None:
    """Make one file appear under two names of our own dataset; a copy where the file system knows no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _copy_others(bids_dir: Path, out_dir: Path, subject_dir: Path) -> None:
    files = files_below(subject_dir)
    lost = [path for path in files if path.is_symlink() and not path.exists()]
    if lost:
        LOGGER.warning(
            "not in the raw dataset: %d files of %s, links to what is not there, such as %s (datalad get)",
            len(lost), subject_dir.name, lost[0],
        )  # fmt: skip
    for source in (path for path in files if path.is_file()):
        target = out_dir / source.relative_to(bids_dir)
        # DWI series are written, or left out on purpose; sbref and the like are copied.
        is_series = source.name.partition(".")[0].endswith("_dwi")
        if is_series and (source.parent.name == "dwi" or source.suffix in (".bval", ".bvec")):
            continue
        if source.name.endswith("_scans.tsv"):
            atomic_write(target, _scans_that_exist(source, target))
        elif source.suffix == ".json":
            _copy_json(source, target, out_dir)
        else:
            _copy(source, target)


def _copy(source: Path, target: Path) -> None:
    known = target.stat() if target.is_file() else None
    there = source.stat()
    if known and (known.st_size, int(known.st_mtime)) == (there.st_size, int(there.st_mtime)):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        shutil.copy2(source, temporary)
        temporary.chmod(0o644 | temporary.stat().st_mode)  # a read-only source must not be inherited
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _copy_json(source: Path, target: Path, out_dir: Path) -> None:
    try:
        content = json.loads(_read_text(source))
    except ValueError:
        content = None
    renamed = _intended_for_denoised(content, out_dir) if isinstance(content, dict) else content
    if renamed == content:
        _copy(source, target)
    else:
        atomic_write(target, json.dumps(renamed, indent=2, ensure_ascii=False) + "\n")


def _intended_for_denoised(metadata: Mapping[str, Any], out_dir: Path) -> dict[str, Any]:
    """Metadata that are intended for uncompressed series which were denoised, with the new names of these."""
    intended = metadata.get("IntendedFor")
    names = intended if isinstance(intended, list) else [intended]
    renamed = [_compressed(name, out_dir) if isinstance(name, str) else name for name in names]
    changed = {"IntendedFor": renamed if isinstance(intended, list) else renamed[0]}
    return {**metadata, **(changed if renamed != names else {})}


def _compressed(name: str, out_dir: Path) -> str:
    """What ``IntendedFor`` has to call a series: by its place in the dataset (``bids::``) or in its participant."""
    inside = name.removeprefix("bids::")
    folder = out_dir / Path(name).name.partition("_")[0] if inside == name else out_dir
    other = inside.endswith("_dwi.nii") and _name_in_target(folder, folder, inside) == f"{inside}.gz"
    return f"{name}.gz" if other else name


def _scans_that_exist(source: Path, target: Path) -> str:
    """Return a scans table without the rows of files that are left out."""
    text = _read_text(source)
    rows = [line.split("\t") for line in text.split("\n") if line.strip()]
    place = rows[0].index("filename") if rows and "filename" in rows[0] else None
    if place is None:
        return text
    present = [rows[0]]
    for row in rows[1:]:
        name = _name_in_target(source.parent, target.parent, row[place]) if len(row) > place else ""
        if name:
            present.append([*row[:place], name, *row[place + 1 :]])
    return "".join("\t".join(row) + "\n" for row in present)


def _name_in_target(source_dir: Path, target_dir: Path, name: str) -> str:
    """What a file of a scans table is called in the raw dataset; nothing if it is left out."""
    if not Path(name).name.partition(".")[0].endswith("_dwi"):
        return name if (source_dir / name).exists() else ""
    names = (name, f"{name}.gz")  # a denoised series is compressed
    return next((one for one in names if (target_dir / one).exists()), "")


def _read_text(path: Path) -> str:
    """Read a text that is to be written again, whatever its encoding: other bytes than UTF-8 come through."""
    return path.read_text(encoding="utf-8-sig", errors="surrogateescape")


def _write_root(bids_dir: Path, out_dir: Path) -> None:
    """Copy the files of the root (participants, inherited sidecars), and describe the dataset."""
    for source in sorted(path for path in bids_dir.iterdir() if path.is_file()):
        if source.name in _NOT_COPIED or source.name.startswith("."):
            continue
        if source.name.startswith("participants.tsv"):
            atomic_write(out_dir / source.name, _participants_that_exist(source, out_dir))
        # Gradient tables stand beside each image now: inherited ones would only be found a second time.
        elif source.suffix == ".json":
            _copy_json(source, out_dir / source.name, out_dir)
        elif source.suffix not in (".bval", ".bvec"):
            _copy(source, out_dir / source.name)
    atomic_write(out_dir / "README", _readme(bids_dir))
    atomic_write(out_dir / "dataset_description.json", _json(dataset_description_of_raw(bids_dir)))
    ignored = bids_dir / ".bidsignore"
    if ignored.is_file():
        _copy(ignored, out_dir / ".bidsignore")


def _participants_that_exist(source: Path, out_dir: Path) -> str:
    rows = [line.split("\t") for line in _read_text(source).split("\n") if line.strip()]
    if not rows:
        return ""
    column = rows[0].index("participant_id") if "participant_id" in rows[0] else 0
    kept = [row for row in rows[1:] if len(row) > column and (out_dir / row[column]).is_dir()]
    return "".join("\t".join(row) + "\n" for row in (rows[0], *kept))


def _readme(bids_dir: Path) -> str:
    own = (
        f"The diffusion-weighted series (*_dwi.nii.gz) of this dataset were denoised by {PACKAGE}: switch denoising\n"
        "off in what processes them next. Everything else is a copy of the source dataset. Measures, noise maps and\n"
        f"reports are in {DERIVATIVES.as_posix()}.\n"
    )
    for name in ("README", "README.md", "README.txt", "README.rst"):
        if (bids_dir / name).is_file():
            return f"{own}\nThe README of the source dataset:\n\n" + _read_text(bids_dir / name)
    return own


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"
