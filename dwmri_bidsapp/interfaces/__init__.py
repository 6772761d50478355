"""Nipype interfaces: read files, call one function, write files. No science here."""

from __future__ import annotations

from .bids import DerivativesDataSink
from .comparison import DrawMethods, RunBaseline, TakeSeries
from .denoising import DenoiseRun
from .preparation import PrepareRun
from .quality import CollectMetrics, MeasureQuality
from .reporting import DrawFigures, WriteReport

__all__ = [
    "CollectMetrics",
    "DenoiseRun",
    "DerivativesDataSink",
    "DrawFigures",
    "DrawMethods",
    "MeasureQuality",
    "PrepareRun",
    "RunBaseline",
    "TakeSeries",
    "WriteReport",
]
