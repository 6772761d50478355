"""What there is to process: one :class:`DwiRun` for each diffusion-weighted magnitude image.

pybids indexes the dataset: only the participants asked for, and only what belongs to DWI, so that
nobody waits for the 1,000 other participants. Nothing is ever written to the dataset.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .config import BUILT_IN_METHODS, Config
from .errors import BadDataError, UsageError
from .filters import PREFIXES, matches, read_filters, read_json
from .gradients import are_of_one_image, holds_b0_only
from .images import IMAGE_ERRORS
from .indexing import database_layout, make_layout

if TYPE_CHECKING:
    from bids import BIDSLayout

LOGGER = logging.getLogger(__name__)

IMAGE_EXTENSIONS = (".nii.gz", ".nii")
GRID_SPACES = (None, "dwi", "orig")
"""``space`` labels of derivatives that lie on the grid of the run."""


def label_of(dwi: Path) -> str:
    """Name of a DWI image without suffix, such as ``sub-01_ses-test_run-1``: what the run is called everywhere."""
    return dwi.name.partition("_dwi.")[0]


@dataclass(frozen=True, kw_only=True)
class DwiRun:
    """One DWI image with everything that belongs to it.

    Parameters
    ----------
    dwi, bval, bvec
        The image and its gradient table (inherited files included).
    entities
        BIDS entities of the image by long name, with labels as the file has them, such as
        ``{"subject": "01", "run": "02"}``.
    metadata
        The JSON sidecars, merged by inheritance.
    mask
        Brain mask from a derivatives folder or ``--mask``.
    noise_map
        Noise standard deviation per voxel, likewise.
    compared
        The run as it was denoised elsewhere, by the name of the derivatives.
    """

    dwi: Path
    bval: Path
    bvec: Path
    entities: Mapping[str, str]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    mask: Path | None = None
    noise_map: Path | None = None
    compared: Mapping[str, Path] = field(default_factory=dict)

    @property
    def subject(self) -> str:
        """Label of the participant, without ``sub-``."""
        return self.entities["subject"]

    @property
    def label(self) -> str:
        """See :func:`label_of`."""
        return label_of(self.dwi)


@dataclass(frozen=True, kw_only=True)
class B0Series:
    """A DWI image of b=0 volumes alone, such as one of reversed phase encoding: there is nothing to denoise.

    Parameters
    ----------
    dwi
        The image.
    tables
        Its ``.bval``, and its ``.bvec`` where there is one of as many volumes (inherited files included).
    metadata
        The JSON sidecars, merged by inheritance.
    subject
        Label of the participant, without ``sub-``.
    """

    dwi: Path
    tables: tuple[Path, ...]
    subject: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _File:
    """A file called ``*_dwi.*`` and the entities of its name."""

    path: Path
    entities: Mapping[str, str]
    extension: str


class UnusableImage(BadDataError):
    """An image, or all images of a participant, that cannot be processed.

    Parameters
    ----------
    message, hint
        See :class:`DwmriError`.
    subject
        Label of the participant, without ``sub-``.
    """

    def __init__(self, message: str, hint: str = "", *, subject: str) -> None:
        super().__init__(message, hint)
        self.subject = subject


class Found(NamedTuple):
    """What a dataset holds of what the options select.

    Attributes
    ----------
    runs
        What can be processed, sorted by participant and name.
    problems
        One error for each image, or participant asked for, that cannot be processed.
    b0_series
        Images of b=0 volumes alone, of participants with other images: left as they are.
    """

    runs: list[DwiRun]
    problems: list[UnusableImage]
    b0_series: list[B0Series]


def find_runs(config: Config) -> Found:
    """Find the runs that the options select, and what is wrong with the others.

    Raises
    ------
    UsageError
        For labels that do not exist, a bad filter file, or ``--mask``/``--noise-map`` with
        more than one run.
    BadDataError
        When the dataset as a whole cannot be used, or holds nothing to process.
    """
    check_dataset(config)
    filters = read_filters(config)
    runs: list[DwiRun] = []
    problems: list[UnusableImage] = []
    b0_series: list[B0Series] = []
    for participant, files in _index(config, select_participants(config)).items():
        images = [file for file in files if _is_magnitude_image(file)]
        selected = [file for file in images if matches(file.entities, filters)]
        if config.bids_database_dir and _is_missing(config.bids_dir / f"sub-{participant}", files):
            problems.append(_newer_than_database(config, participant))
        elif not selected:
            nothing = _nothing_selected(config.bids_dir, participant, images, filters)
            LOGGER.info("%s", nothing)
            if participant in config.participant_label:
                problems.append(nothing)
        passed_by: list[B0Series] = []
        for image in selected:
            try:
                if series := _b0_series(config, image, files):
                    passed_by.append(series)
                else:
                    runs.append(_run(config, image, files))
            except BadDataError as error:
                problems.append(UnusableImage(error.message, error.hint, subject=participant))
        if len(passed_by) < len(selected):
            b0_series += passed_by
        else:
            problems += [_nothing_to_denoise(series) for series in passed_by]
    n_named = Counter(run.label for run in runs)
    problems += [_named_twice(run) for run in runs if n_named[run.label] > 1]
    runs = [run for run in runs if n_named[run.label] == 1]
    if not runs and not problems:
        raise BadDataError(
            f"{config.bids_dir}: no DWI image found in any participant that the options select",
            "images are expected as sub-*/[ses-*/]dwi/*_dwi.nii.gz",
        )
    if len(runs) > 1 and (config.mask or config.noise_map):
        raise UsageError(
            f"--mask and --noise-map are for one run, and {len(runs)} are selected: {runs[0].label}, …",
            "select one run, or give a derivatives folder with --derivatives NAME=PATH",
        )
    return Found(runs, problems, b0_series)


def check_dataset(config: Config) -> None:
    """Check that the folder is a BIDS dataset with participants.

    Raises
    ------
    BadDataError
        Without a valid dataset_description.json (unless validation is skipped) or ``sub-*`` folder.
    """
    description = config.bids_dir / "dataset_description.json"
    hint = "if this is a BIDS dataset all the same, use --skip-bids-validation"
    if not config.skip_bids_validation:
        if not description.is_file():
            raise BadDataError(f"{description}: no such file: every BIDS dataset has one", hint)
        content = read_json(description)
        for key in ("Name", "BIDSVersion"):
            if key not in content:
                raise BadDataError(f"{description}: the key {key} is missing", hint)
    if not participants_of(config.bids_dir):
        raise BadDataError(f"{config.bids_dir}: no participant found: expected folders called sub-<label>")


def participants_of(folder: Path) -> list[str]:
    """Return the labels of the ``sub-*`` folders, sorted."""
    return sorted(path.name[4:] for path in folder.glob("sub-*") if path.is_dir())


def files_below(folder: Path, within: tuple[str, ...] = ()) -> list[Path]:
    """Return the files in a folder and below it; links to folders are followed, names with a dot in front left out.

    ``within`` is for the function itself: the real folders it is in, against links that lead back into one.
    """
    real = os.path.realpath(folder)
    if real in within or not folder.is_dir():
        return []
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except PermissionError:
        LOGGER.warning("%s: no permission to read this folder: passed over", folder)
        return []
    found: list[Path] = []
    for entry in entries:
        if entry.name.startswith("."):
            continue
        below = folder / entry.name
        found += files_below(below, (*within, real)) if entry.is_dir() else [below]
    return found


def select_participants(config: Config) -> list[str]:
    """Return the participants to process: those asked for, or all.

    Raises
    ------
    UsageError
        For a label that the dataset does not have; the message names what it has.
    """
    present = participants_of(config.bids_dir)
    for label in config.participant_label:
        if label not in present:
            shown = ", ".join(present[:10]) + (f", … ({len(present)} in all)" if len(present) > 10 else "")
            raise UsageError(f"--participant-label {label}: not in {config.bids_dir}", f"there are: {shown}")
    return [label for label in present if not config.participant_label or label in config.participant_label]


def _index(config: Config, participants: Sequence[str]) -> dict[str, list[_File]]:
    """Return the DWI files of each participant, those they can inherit from the root included."""
    if config.bids_database_dir is None:
        labels = "|".join(map(re.escape, participants)) if config.participant_label else "[^/]+"
        name = r"(?:[^/]*_)?dwi\.[^/]*"
        wanted = rf"{name}|sub-(?:{labels})(?:/ses-[^/]+)?(?:/dwi(?:/{name})?|/{name})?"
        layout = make_layout(config.bids_dir, ignore=re.compile(rf"^/(?!(?:{wanted})$)"))
    else:
        layout = database_layout(config.bids_dir, config.bids_database_dir)
    files = _dwi_files(config.bids_dir, layout)
    shared = [file for file in files if "subject" not in file.entities]
    index = {participant: list(shared) for participant in participants}
    for file in files:
        if file.entities.get("subject") in index:
            index[file.entities["subject"]].append(file)
    return index


def _dwi_files(bids_dir: Path, layout: BIDSLayout) -> list[_File]:
    """Return the files called ``*_dwi.*`` with their entities, sorted.

    The entities are parsed anew: pybids' table holds those of the absolute path, so a dataset
    that lies in a folder such as ``/data/ses-1`` would get that session for all its files.
    """
    files = []
    for path in sorted(Path(name) for name in layout.get(suffix="dwi", return_type="filename")):
        inside = path.relative_to(layout.root)  # a database may know the dataset by another path
        path = bids_dir / inside
        parsed = layout.parse_file_entities(f"/{inside}")
        extension = parsed.pop("extension")
        entities = {key: str(value) for key, value in parsed.items() if key not in ("suffix", "datatype")}
        files.append(_File(path, entities, extension))
    return files


def _is_magnitude_image(file: _File) -> bool:
    in_place = file.path.parent.name == "dwi" and "subject" in file.entities
    return in_place and file.extension in IMAGE_EXTENSIONS and file.entities.get("part", "mag") == "mag"


def _nothing_selected(
    bids_dir: Path, subject: str, images: Sequence[_File], filters: Mapping[str, Sequence[Any]]
) -> UnusableImage:
    folder = bids_dir / f"sub-{subject}"
    if not images:
        hint = "expected [ses-*/]dwi/*_dwi.nii.gz"
        return UnusableImage(f"{folder}: no DWI magnitude image", hint, subject=subject)
    asked = ", ".join(f"{entity} {'/'.join(map(str, values))}" for entity, values in filters.items())
    present = ", ".join(image.path.name for image in images[:5])
    return UnusableImage(f"{folder}: no DWI image with {asked}", f"there are: {present}", subject=subject)


def _run(config: Config, image: _File, files: Sequence[_File]) -> DwiRun:
    """Put together everything that belongs to one image, or raise BadDataError."""
    if not image.path.exists():
        raise BadDataError(f"{image.path}: a link to a file that is not there", "get it first (datalad get)")
    _check_name(config, image, files)
    found = {}
    for extension in (".bval", ".bvec"):
        candidates = _inherited(image, files, extension)
        if not candidates:
            expected = image.path.name.removesuffix(image.extension) + extension
            raise BadDataError(
                f"{image.path}: no {extension[1:]} file: expected {expected} beside it, or one to inherit"
            )
        found[extension] = candidates[0]
    return DwiRun(
        dwi=image.path,
        bval=found[".bval"],
        bvec=found[".bvec"],
        entities=image.entities,
        metadata=_metadata(image, files),
        mask=config.mask or _derivative(config, image, "mask", {"desc": ("brain",)}),
        noise_map=config.noise_map or _derivative(config, image, "dwimap", {"param": ("sigma", "noise")}),
        compared=_denoised_elsewhere(config, image),
    )


def _b0_series(config: Config, image: _File, files: Sequence[_File]) -> B0Series | None:
    """The image, if its b-values are all those of b=0."""
    bvals = _inherited(image, files, ".bval")[:1]
    if not (bvals and holds_b0_only(bvals[0], _n_volumes(image.path), config.b0_threshold)):
        return None
    # such a series often has none, and would inherit those of its neighbour
    bvecs = [path for path in _inherited(image, files, ".bvec")[:1] if are_of_one_image(bvals[0], path)]
    return B0Series(
        dwi=image.path,
        tables=(*bvals, *bvecs),
        subject=image.entities["subject"],
        metadata=_metadata(image, files),
    )


def _n_volumes(path: Path) -> int:
    """Volumes by the header; none if that cannot be read."""
    import nibabel as nb

    try:
        shape = nb.load(path).shape
    except IMAGE_ERRORS:
        return 0
    return int(shape[3]) if len(shape) == 4 else 1


def _is_missing(folder: Path, files: Sequence[_File]) -> bool:
    """Tell whether none of a participant's images is among the files that a database knows."""
    if any("subject" in file.entities for file in files):
        return False
    return any(path.match("dwi/*_dwi.nii*") for path in files_below(folder))


def _newer_than_database(config: Config, subject: str) -> UnusableImage:
    return UnusableImage(
        f"{config.bids_dir / f'sub-{subject}'}: --bids-database-dir {config.bids_database_dir} is older than this "
        "participant",
        "remove that folder",
        subject=subject,
    )


def _named_twice(run: DwiRun) -> UnusableImage:
    return UnusableImage(
        f"{run.dwi}: another image has the same file name, by which the outputs are told apart",
        "rename one, with ses-<label> or run-<index> for example",
        subject=run.subject,
    )


def _nothing_to_denoise(series: B0Series) -> UnusableImage:
    return UnusableImage(
        f"{series.dwi}: holds b=0 volumes only, and the participant has no other run: nothing to denoise",
        "leave the participant out, or lower --b0-threshold if some are diffusion-weighted",
        subject=series.subject,
    )


def _metadata(image: _File, files: Sequence[_File]) -> dict[str, Any]:
    """The JSON sidecars of an image, the nearest on top."""
    metadata: dict[str, Any] = {}
    for sidecar in reversed(_inherited(image, files, ".json")):
        metadata |= read_json(sidecar)
    return metadata


def _denoised_elsewhere(config: Config, image: _File) -> dict[str, Path]:
    """Return the run in the derivatives that are to be compared; the log tells where there is none."""
    found = {}
    for name in config.compare:
        if name in BUILT_IN_METHODS:
            continue
        series = _derivative(config, image, "dwi", {}, only=name)
        if series is None:
            LOGGER.warning(
                "%s: no such run in --derivatives %s=%s", image.path.name, name, config.derivatives[name]
            )
        else:
            found[name] = series
    return found


def _check_name(config: Config, image: _File, files: Sequence[_File]) -> None:
    twins = [file for file in files if file.extension in IMAGE_EXTENSIONS and file.entities == image.entities]
    if len(twins) > 1:
        raise BadDataError(
            f"{image.path}: one image twice: {', '.join(file.path.name for file in twins)}", "remove one"
        )
    own = {part.partition("-")[0] for part in image.path.name.split("_")[:-1]}
    if unknown := sorted(own - set(PREFIXES.values())):
        # the names of the outputs, and the reports, tell images apart by these alone
        raise BadDataError(
            f"{image.path}: {', '.join(unknown)} in the name: BIDS knows {', '.join(PREFIXES.values())} for DWI",
            "rename it, with acq-<label> for example",
        )
    if config.skip_bids_validation:
        return
    from bids_validator import BIDSValidator

    if not BIDSValidator().is_bids(f"/{image.path.relative_to(config.bids_dir)}"):
        raise BadDataError(
            f"{image.path}: the name breaks the rules of BIDS (order of entities, or another folder's label)",
            "rename it, or use --skip-bids-validation",
        )


def _inherited(image: _File, files: Sequence[_File], extension: str) -> list[Path]:
    """Return the files that apply to an image by BIDS' inheritance principle, nearest first.

    ``BIDSLayout.get_bval`` is not used: it takes files with entities that the image lacks, so
    the table of ``acq-x`` would be paired with the image that has no ``acq``.
    """
    applicable = [
        file
        for file in files
        if file.extension == extension
        and image.path.is_relative_to(file.path.parent)
        and file.entities.items() <= image.entities.items()
    ]
    applicable.sort(key=lambda file: (len(file.path.parts), len(file.entities)), reverse=True)
    return [file.path for file in applicable]


def _derivative(
    config: Config, image: _File, suffix: str, required: Mapping[str, Sequence[str]], only: str = ""
) -> Path | None:
    """Return the one file of the given derivatives (or of one of them) that lies on the grid of an image, if any.

    The folder called ``truth`` holds the answers of a simulation: it is never an input.
    """
    names = {PREFIXES.get(entity, entity): label for entity, label in image.entities.items()}
    found: list[tuple[int, Path]] = []
    for name, folder in config.derivatives.items():
        if name == "truth" or (only and name != only):
            continue
        for path in files_below(folder / f"sub-{image.entities['subject']}"):
            if not path.match(f"dwi/*_{suffix}.nii*"):
                continue
            labels = dict(part.split("-", 1) for part in path.name.split("_")[:-1] if "-" in part)
            own = {key: label for key, label in labels.items() if key in PREFIXES.values()}
            if (
                own.items() <= names.items()
                and labels.get("space") in GRID_SPACES
                and all(labels.get(key) in allowed for key, allowed in required.items())
            ):
                found.append((len(own), path))
    best = [path for n_shared, path in found if n_shared == max(n for n, _ in found)]
    if len(best) > 1:
        raise BadDataError(f"{image.path}: more than one {suffix}: {best[0]} and {best[1]}", "remove one")
    return best[0] if best else None
