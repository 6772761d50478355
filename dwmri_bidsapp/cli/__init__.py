"""The command line: options, one ``main``, exit codes. The only place that catches everything."""

from __future__ import annotations

from .boundary import main

__all__ = ["main"]
