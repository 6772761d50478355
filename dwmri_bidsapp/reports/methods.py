"""What was done, in prose, and what to cite for it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup, escape

from .collect import RunRecord
from .render import number


@dataclass(frozen=True)
class Reference:
    """A work to cite."""

    text: str
    url: str


REFERENCES = (
    Reference(
        "Batson J, Royer L. Noise2Self: blind denoising by self-supervision. ICML 2019.",
        "https://arxiv.org/abs/1901.11365",
    ),
    Reference(
        "Fadnavis S, Batson J, Garyfallidis E. Patch2Self: denoising diffusion MRI with self-supervised learning. "
        "NeurIPS 2020.",
        "https://arxiv.org/abs/2011.01355",
    ),
    Reference(
        "Garyfallidis E et al. Dipy, a library for the analysis of diffusion MRI data. Front Neuroinform 2014.",
        "https://doi.org/10.3389/fninf.2014.00008",
    ),
    Reference(
        "Gorgolewski K et al. Nipype: a flexible, lightweight and extensible neuroimaging data processing framework "
        "in Python. Front Neuroinform 2011.",
        "https://doi.org/10.3389/fninf.2011.00013",
    ),
    Reference(
        "Gorgolewski K J et al. The brain imaging data structure. Sci Data 2016.",
        "https://doi.org/10.1038/sdata.2016.44",
    ),
    Reference(
        "Paszke A et al. PyTorch: an imperative style, high-performance deep learning library. NeurIPS 2019.",
        "https://arxiv.org/abs/1912.01703",
    ),
)

_METHOD = Markup(
    "<p>Every volume was first predicted from the other volumes of the same run by local principal component analysis "
    "in which the voxel itself takes no part, so that its own noise cannot come back. A convolutional network, trained "
    "on this run and told where each volume lies in q-space, refined that prediction; its loss compares signed, "
    "linear edges only, so that its minimum is the noise-free image although the targets are noisy. The measurement "
    "was then given back its share where it is the better estimate, and the result was merged with a local principal "
    "component analysis, by a second network that had learnt it on simulated runs where the weights came with one. "
    "Of what the residuals of a shell then had in common, in its mean and in slow contrasts between directions, a "
    "share was given back. Nothing was clipped; grid, orientation, b-values and b-vectors are those of the input.</p>"
)


def read_methods(out_dir: Path) -> tuple[Markup, tuple[Reference, ...]]:
    """Return the description of the method, and the references that it does not bring itself.

    The boilerplate of the call (``logs/CITATION.html`` or ``.md``) is taken where there is one.
    """
    page = out_dir / "logs" / "CITATION.html"
    if page.is_file():
        return _body(page.read_text(encoding="utf-8")), ()
    text = out_dir / "logs" / "CITATION.md"
    if text.is_file():
        return Markup("<pre>{}</pre>").format(text.read_text(encoding="utf-8")), REFERENCES
    return _METHOD, REFERENCES


def story_of(record: RunRecord) -> Markup:
    """Say in a few sentences what was found in a run and what was done with it."""
    preparation, info = record.preparation, record.info
    sentences = []
    if preparation.get("shape"):
        sentences.append(
            f"{preparation['shape'][-1]} volumes were found: {number(preparation.get('n_b0'))} at b=0 and "
            f"{number(preparation.get('n_directions'))} distinct directions."
        )
    if info.get("steps"):
        sentences.append(
            f"The {info.get('model', '')} network was trained for {number(info['steps'])} steps on "
            f"{info.get('device', '')} in {info.get('precision', '')}; the squared error on held-out noisy voxels went "
            f"from {number(info.get('heldout_loss_start'), 4)} to {number(info.get('heldout_loss_end'), 4)} noise "
            "variances."
        )
    passed = info.get("passed_through_volumes")
    if passed:
        sentences.append(
            f"{len(passed)} volume{'s were' if len(passed) > 1 else ' was'} passed through unchanged."
        )
    return escape(" ".join(sentences))


def _body(page: str) -> Markup:
    """The body of a page, without anything that runs, loads or styles."""
    found = re.search(r"<body[^>]*>(.*)</body>", page, flags=re.DOTALL | re.IGNORECASE)
    text = found[1] if found else page
    text = re.sub(r"<(script|style|iframe|object)\b.*?</\1>", "", text, flags=re.DOTALL | re.IGNORECASE)
    text = re.sub(r"<(link|img|meta)\b[^>]*>", "", text, flags=re.IGNORECASE)
    return Markup(re.sub(r"<(/?)h[12]\b", r"<\1h3", text))
