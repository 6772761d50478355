"""From arrays to the pictures and charts of the report: matplotlib in, SVG text and files out."""

from .frames import colour_fa, fsl_to_world
from .run import make_run_figures
from .slices import SlicePlan, plan_slices

__all__ = ["SlicePlan", "colour_fa", "fsl_to_world", "make_run_figures", "plan_slices"]
