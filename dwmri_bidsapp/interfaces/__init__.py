"""Nipype interfaces: read files, call one function, write files. No science here."""

from __future__ import annotations

from .bids import DerivativesDataSink
from .denoising import DenoiseRun
from .preparation import PrepareRun
from .quality import CollectMetrics, MeasureQuality
from .reporting import DrawFigures, WriteReport

__all__ = [
    "CollectMetrics",
    "DenoiseRun",
    "DerivativesDataSink",
    "DrawFigures",
    "MeasureQuality",
    "PrepareRun",
    "WriteReport",
]
