"""From facts to HTML: the page around everything, figures put inline, links, numbers."""

from __future__ import annotations

import functools
import json
import math
import os
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from .. import __version__
from ..derivatives import atomic_write
from ..errors import InputOutputError

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_TEMPLATES = Path(__file__).parent / "templates"


def render_page(
    template: str,
    *,
    title: str,
    sections: list[tuple[str, str]],
    scripts: Sequence[str] = (),
    **content: Any,
) -> str:
    """Return a whole page; everything but markup made here is escaped.

    Parameters
    ----------
    template
        File name in ``templates/``.
    title
        Of the page.
    sections
        Anchor and text of the links on top.
    scripts
        File names in ``templates/`` that the page runs after ``page.js``.
    content
        What the template asks for.
    """
    return (
        _environment()
        .get_template(template)
        .render(
            title=title,
            sections=sections,
            css=Markup((_TEMPLATES / "style.css").read_text(encoding="utf-8")),
            scripts=[
                Markup((_TEMPLATES / name).read_text(encoding="utf-8")) for name in ("page.js", *scripts)
            ],
            version=__version__,
            date=f"{datetime.now():%Y-%m-%d %H:%M}",
            **content,
        )
    )


@functools.cache
def plotly_tag() -> Markup:
    """Return plotly.js as a script element that the page unpacks: a third of its size, and no network."""
    import base64
    import gzip

    from plotly.offline import get_plotlyjs

    packed = base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()
    return Markup(f'<script type="text/plain" id="plotly">{packed}</script>')


def embedded_json(data: Any) -> Markup:
    """Return data as JSON that can stand in a ``<script>``: nothing in it can end that element."""
    return Markup(json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c"))


def inline_svg(svg: str, place: str) -> Markup:
    """Return a figure of this package as markup, with ids of its own.

    Parameters
    ----------
    svg
        Text of the file.
    place
        Put before every id: the same figure of two runs would else share clipping paths.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\bid="', f'id="{place}-', svg)
    svg = re.sub(r"url\(#", f"url(#{place}-", svg)
    svg = re.sub(r'href="#', f'href="#{place}-', svg)
    return Markup(svg)


def link_to(path: Path, root: Path) -> str:
    """Return the relative URL of a file, as seen from a page in ``root``."""
    return quote(os.path.relpath(path, root).replace(os.sep, "/"))


def number(value: Any, digits: int = 3) -> str:
    """Return a number for readers: few digits, a real minus, an empty text for what is missing."""
    if value is None or isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    if not math.isfinite(value):
        return ""
    if isinstance(value, int) or (value == int(value) and abs(value) < 1e6):
        return f"{int(value):,}".replace("-", "−")
    text = f"{value:.{digits}g}"
    if abs(value) >= 10**digits:
        text = f"{value:,.0f}"
    mantissa, _, exponent = text.partition("e")
    if exponent:
        mantissa += "·10" + str(int(exponent)).translate(_SUPERSCRIPT)
    return mantissa.replace("-", "−")


def seconds(value: Any) -> str:
    """Return a duration for readers."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return ""
    minutes, rest = divmod(round(value), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{value:.3g} s"


def write_text(path: Path, text: str) -> Path:
    """Write a file in one move; see :func:`~dwmri_bidsapp.derivatives.atomic_write`.

    Raises
    ------
    InputOutputError
        It could not be written.
    """
    try:
        return atomic_write(path, text)
    except OSError as error:
        raise InputOutputError(
            f"{path}: cannot be written: {error.strerror}", "free some space, or look at the permissions"
        ) from error


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    environment.filters["seconds"] = seconds
    return environment
