"""Settings that must stand before anything heavy is imported, and keep the tests off the user's HOME."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

_HOME = Path(tempfile.mkdtemp(prefix="dwmri-tests-home-"))


def _isolate_environment(home: Path) -> None:
    # templateflow fills an empty home at import (11 s) and leaves one that holds a file alone.
    templateflow_home = home / "templateflow"
    templateflow_home.mkdir()
    (templateflow_home / "README").write_text("A stub: the tests use no templates.\n")
    for name in [name for name in os.environ if name.startswith("XDG_")]:
        del os.environ[name]
    os.environ.update(
        HOME=str(home),
        TEMPLATEFLOW_HOME=str(templateflow_home),
        MPLBACKEND="Agg",
        NO_ET="1",
        NIPYPE_NO_ET="1",
        OMP_NUM_THREADS="2",
        GOMP_SPINCOUNT="3000",
        TQDM_DISABLE="1",
    )


_isolate_environment(_HOME)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the temporary HOME."""
    shutil.rmtree(_HOME, ignore_errors=True)
