"""Which images the options select: labels and the BIDS filter file."""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .config import Config
from .errors import BadDataError, UsageError

LOGGER = logging.getLogger(__name__)

PREFIXES = {
    "subject": "sub", "session": "ses", "acquisition": "acq", "reconstruction": "rec",
    "direction": "dir", "run": "run", "part": "part", "chunk": "chunk",
}  # fmt: skip
"""Entities that tell one DWI image from another, with their prefixes."""


def read_filters(config: Config) -> dict[str, list[Any]]:
    """Gather the filters of the options and of the filter file: allowed values of each entity.

    ``None`` among the values stands for an absent entity, ``"*"`` for any label.

    Raises
    ------
    UsageError
        For an entity that no DWI image has, or when phase images are asked for.
    BadDataError
        For a filter file that cannot be read.
    """
    filters: dict[str, list[Any]] = {}
    known = [entity for entity in PREFIXES if entity != "subject"]
    if config.bids_filter_file is not None:
        queries = read_json(config.bids_filter_file)
        if not isinstance(queries.get("dwi"), dict):
            raise UsageError(f"{config.bids_filter_file}: expected a query called dwi, found {list(queries)}")
        for entity, value in queries["dwi"].items():
            if entity in ("suffix", "datatype") and value == "dwi":
                continue
            if entity not in known:
                near = difflib.get_close_matches(entity, known, n=1) or [", ".join(known)]
                raise UsageError(f"{config.bids_filter_file}: unknown entity {entity}", f"known: {near[0]}")
            values = value if isinstance(value, list) else [value]
            filters[entity] = [_without_prefix(label, entity) for label in values]
        if others := sorted(set(queries) - {"dwi"}):
            LOGGER.warning("%s: only dwi is used, not %s", config.bids_filter_file, ", ".join(others))
    for entity in ("session", "acquisition", "run"):
        if labels := getattr(config, f"{entity}_label"):
            filters[entity] = list(labels)
    if set(filters.get("part", ())) - {None, "mag", "*"}:
        raise UsageError(
            f"{config.bids_filter_file}: part {filters['part']}", "only magnitude images can be denoised"
        )
    return filters


def _without_prefix(label: Any, entity: str) -> Any:
    return label.removeprefix(f"{PREFIXES[entity]}-") if isinstance(label, str) else label


def matches(entities: Mapping[str, str], filters: Mapping[str, Sequence[Any]]) -> bool:
    """Tell whether a file's entities are among those that the filters allow."""
    return all(
        any(_same_label(entities.get(entity), wanted) for wanted in values)
        for entity, values in filters.items()
    )


def _same_label(label: str | None, wanted: Any) -> bool:
    if label is None or wanted is None:
        return label is wanted
    if wanted == "*":
        return True
    # Indices are numbers: run 1 is run 01.
    both = (label, str(wanted))
    return both[0] == both[1] or (all(text.isdecimal() for text in both) and int(label) == int(wanted))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; any failure is a BadDataError that names the file.

    What converters leave is read too: a byte order mark, Latin-1, and NaN, which becomes null.
    """
    try:
        data = path.read_bytes()
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("latin-1")
        content = json.loads(text, parse_constant=lambda _: None)
    except (OSError, json.JSONDecodeError) as error:
        raise BadDataError(f"{path}: not a readable JSON file: {error}") from error
    if not isinstance(content, dict):
        raise BadDataError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content
