"""The index of a dataset by pybids, in memory or as a database that is made once."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import InputOutputError, UsageError

if TYPE_CHECKING:
    from bids import BIDSLayout


def database_layout(bids_dir: Path, folder: Path) -> BIDSLayout:
    """Open the database in a folder, or make it of the DWI files of all participants."""
    if folder.resolve().is_relative_to(bids_dir.resolve()):
        raise UsageError(f"--bids-database-dir {folder} lies inside BIDS_DIR, which is only read")
    other = re.compile(r"^/(?!sub-)[^/]+/|/(?!dwi$)[a-z]+$")  # any data type but dwi
    database = folder / "layout_index.sqlite"
    if not database.exists():
        # One that was interrupted must not be taken for a whole one.
        partial = folder / f"partial-{uuid.uuid4().hex}"
        try:
            make_layout(bids_dir, ignore=other, database_path=partial)
            os.replace(partial / database.name, database)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    layout = make_layout(bids_dir, ignore=other, database_path=folder)
    if Path(layout.root).resolve() != bids_dir.resolve():
        raise UsageError(
            f"--bids-database-dir {folder} was made of another dataset: {layout.root}",
            "give an empty folder, or the right one",
        )
    return layout


def make_layout(bids_dir: Path, *, ignore: re.Pattern[str], database_path: Path | None = None) -> BIDSLayout:
    """Index a dataset, without what ``ignore`` matches."""
    from bids import BIDSLayout
    from bids.layout import BIDSLayoutIndexer

    indexer = BIDSLayoutIndexer(validate=False, index_metadata=False, ignore=[ignore])
    try:
        return BIDSLayout(
            bids_dir, validate=False, derivatives=False, database_path=database_path, indexer=indexer
        )
    except OSError as error:
        raise InputOutputError(f"{bids_dir}: cannot be indexed: {error}") from error
