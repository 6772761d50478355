"""From arrays to the pictures and charts of the report: matplotlib in, SVG text and files out."""

from .frames import colour_fa, fsl_to_world
from .methods import make_method_figures, method_colours
from .run import make_run_figures
from .slices import SlicePlan, plan_slices

__all__ = [
    "SlicePlan",
    "colour_fa",
    "fsl_to_world",
    "make_method_figures",
    "make_run_figures",
    "method_colours",
    "plan_slices",
]
