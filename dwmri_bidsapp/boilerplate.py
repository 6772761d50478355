"""The methods text: Markdown with citations, turned into a page with references."""

from __future__ import annotations

import html
import re
from functools import cache
from importlib import resources

_ENTRY = re.compile(r"^@\w+\{(?P<key>[^,]+),\n(?P<fields>.*?)^\}", re.MULTILINE | re.DOTALL)
_FIELD = re.compile(r"^\s*(\w+) = \{(.*)\},?$", re.MULTILINE)
_CITATION = re.compile(r"\[(@[\w-]+(?:\s*;\s*@[\w-]+)*)\]|(?<![\w.])@([\w-]+)")
_CODE = re.compile(r"(`[^`]*`)")

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Methods text</title>
<meta name="color-scheme" content="light dark">
<style>body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 44rem; margin: 2rem auto; padding: 0 1rem }}</style>
</head><body>
{body}
<h2>References</h2>
<ul>
{references}
</ul>
</body></html>
"""


def bibliography() -> str:
    """Return the BibTeX file of this package."""
    return (resources.files("dwmri_bidsapp") / "data" / "boilerplate.bib").read_text(encoding="utf-8")


@cache
def references() -> dict[str, dict[str, str]]:
    """Return the fields of each entry of the bibliography, by key."""
    return {entry["key"]: dict(_FIELD.findall(entry["fields"])) for entry in _ENTRY.finditer(bibliography())}


def cited_keys(text: str) -> list[str]:
    """Return the keys that a text cites, each once, in the order of the text."""
    keys = [
        key for match in _CITATION.finditer(_CODE.sub("", text)) for key in re.findall(r"[\w-]+", match[0])
    ]
    return list(dict.fromkeys(keys))


def markdown_to_html(text: str) -> str:
    """Return a self-contained page of headings, paragraphs, emphasis and citations.

    Raises
    ------
    KeyError
        For a citation that the bibliography does not have.
    """
    keys = cited_keys(text)
    entries = {key: references()[key] for key in keys}
    blocks = [_block(block) for block in re.split(r"\n\s*\n", text.strip()) if block.strip()]
    items = [f'<li id="{key}">{_reference(entry)}</li>' for key, entry in sorted(entries.items())]
    return _PAGE.format(body="\n".join(blocks), references="\n".join(items))


def _block(block: str) -> str:
    parts = _CODE.split(html.escape(" ".join(block.split()), quote=False))
    parts[::2] = [_inline(part) for part in parts[::2]]
    parts[1::2] = [f"<code>{part[1:-1]}</code>" for part in parts[1::2]]
    block = "".join(parts)
    if heading := re.match(r"(#+) (.*)", block):
        level = len(heading[1])
        return f"<h{level}>{heading[2]}</h{level}>"
    return f"<p>{block}</p>"


def _inline(text: str) -> str:
    text = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", text)
    text = re.sub(r"\*(.+?)\*", r"<em>\1</em>", text)
    return _CITATION.sub(_cite, text)


def _cite(match: re.Match[str]) -> str:
    links = [f'<a href="#{key}">{_short(references()[key])}</a>' for key in re.findall(r"[\w-]+", match[0])]
    return f"({'; '.join(links)})"


def _short(entry: dict[str, str]) -> str:
    authors = entry["author"].split(" and ")
    name = authors[0].partition(",")[0]
    return f"{html.escape(name)}{' et al.' if len(authors) > 1 else ''}, {entry['year']}"


def _reference(entry: dict[str, str]) -> str:
    where = entry.get("journal") or entry.get("booktitle") or entry.get("publisher", "")
    authors = entry["author"].replace(" and ", "; ")
    text = f"{html.escape(authors)} ({entry['year']}). {html.escape(entry['title'])}. "
    if where:
        text += f"<em>{html.escape(where)}</em>. "
    if doi := entry.get("doi"):
        text += f'<a href="https://doi.org/{doi}">doi:{doi}</a>'
    elif url := entry.get("url"):
        text += f'<a href="{url}">{url}</a>'
    return text
