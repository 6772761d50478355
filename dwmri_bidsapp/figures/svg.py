"""From matplotlib figures to SVG that follows the page: its ink, its dark mode, its neighbours.

Charts are drawn in :data:`INK`, which becomes ``currentColor``: inlined in HTML they take the colour
of the text around them. Rasters are embedded pixel by pixel and enlarged by the browser.
"""

from __future__ import annotations

import base64
import io
import re
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from PIL import Image

INK = "#0b0c0d"
"""Colour of text and axes; becomes ``currentColor``."""

GRID = "#8c8c8c"
"""Lines that must be visible, and no more, on white and on black."""

BEFORE, AFTER, AFTER_ON_BLACK = "#e69f00", "#0072b2", "#56b4e9"
"""Acquired and denoised (Okabe & Ito's palette, safe for colour-blind readers)."""

_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "dwmri-bidsapp",
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.4,
    "axes.formatter.limits": (-3, 5),
    "legend.frameon": False,
    "legend.labelcolor": INK,
}

# Verdana has the widths of the font that laid the figure out, and more machines have it.
_FONTS = "Verdana, 'DejaVu Sans', sans-serif"


_RASTER = re.compile(r'"data:image/png;base64,([^"]*)"')

_HOVER = """<style type="text/css">
@keyframes dwmri-flicker { 0% { opacity: 1; } 100% { opacity: 0; } }
.foreground-svg { animation: 1s ease-in-out 0s alternate none infinite paused dwmri-flicker; }
.foreground-svg:hover { animation-play-state: running; }
</style>"""


def style() -> Any:
    """Return the context in which every figure of this package is drawn."""
    return mpl.rc_context(_STYLE)


def to_svg(figure: Figure, name: str, label: str) -> str:
    """Return a figure as one ``<svg>`` element that can stand in a page among others.

    Parameters
    ----------
    figure
        Drawn inside :func:`style`.
    name
        Put before every id, so that two figures of a page never share one.
    label
        What a screen reader says.
    """
    buffer = io.StringIO()
    with style():
        figure.savefig(buffer, format="svg", facecolor=figure.get_facecolor(), metadata={"Date": None})
    return _label(_clean(buffer.getvalue(), name), label)


def flicker(before: Figure, after: Figure, name: str, label: str) -> str:
    """Return two figures of one size as one SVG, the second on top.

    The layers have the class names of the NiPreps' flicker (their ``compose_view`` is being moved out of
    niworkflows, and takes only private types in nireports). The page toggles ``foreground-svg``; opened
    alone, hovering does.
    """
    below, above = (
        to_svg(figure, f"{name}-{layer}", "") for figure, layer in ((before, "before"), (after, "after"))
    )
    head = re.match(r"<svg[^>]*>", below)
    assert head is not None
    layers = [
        f'<g class="{kind}-svg">{_inside(text)}</g>'
        for kind, text in (("background", below), ("foreground", above))
    ]
    return _label("\n".join([head[0], _HOVER, *layers, "</svg>\n"]), label)


def _inside(svg: str) -> str:
    return svg[svg.index(">") + 1 : svg.rindex("</svg>")]


def _clean(svg: str, name: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style type=\"text/css\">\*\{.*?\}</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    svg = _RASTER.sub(_repack, svg)
    svg = re.sub(r"font-family: [^;\"]*", f"font-family: {_FONTS}", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", rf"font: \1 {_FONTS}", svg)
    # In a dark page the dark blue would be hard to see: the page may give a brighter one.
    return svg.replace(INK, "currentColor").replace(AFTER, f"var(--after, {AFTER})")


def _repack(found: re.Match[str]) -> str:
    """Store a raster without the channels that it does not use: a third of the size, the same pixels."""
    picture = Image.open(io.BytesIO(base64.b64decode(found[1]))).convert("RGB")
    red, green, blue = picture.split()
    if red.tobytes() == green.tobytes() == blue.tobytes():
        picture = red
    buffer = io.BytesIO()
    picture.save(buffer, "png", optimize=True)
    return f'"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"'


def _label(svg: str, label: str) -> str:
    """Put the label on the outer element, and let the page decide its size."""
    head, rest = svg.split(">", 1)
    head = re.sub(r'\s(width|height|role|aria-label)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{_escape(label)}">{rest}'


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
