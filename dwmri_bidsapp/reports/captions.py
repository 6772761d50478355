"""What each figure shows, and how to tell a good one from a bad one."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Caption:
    """Text of a figure.

    Attributes
    ----------
    section
        Heading under which it stands.
    title
        May hold ``{b}``, the b-value in s/mm².
    shows
        What is drawn.
    good, bad
        How it looks when all is well, and when it is not.
    flicker
        Holds two pictures, to be looked at in turn.
    picture
        Drawn on black.
    """

    section: str
    title: str
    shows: str
    good: str
    bad: str
    flicker: bool = False
    picture: bool = False


SECTIONS = (
    "Acquisition",
    "Before, after, residual",
    "Methods side by side",
    "Diffusion tensor",
    "Noise",
    "Signal and residual",
    "Training",
)
"""Order of the sections of a run."""

CAPTIONS: dict[str, Caption] = {
    "gradients": Caption(
        "Acquisition",
        "Gradient scheme",
        "Left: directions seen from above, in world axes; g and −g measure the same, so all are shown on the upper "
        "half. Right: the b-value of each volume.",
        "directions spread evenly over the disc; b=0 volumes spread over time.",
        "directions in a line or in one corner: the tensor cannot be fitted, and few neighbours help a volume.",
    ),
    "brainmask": Caption(
        "Acquisition",
        "Brain mask",
        "Outline of the mask on the mean of the lowest b-value. Inside it was denoised, outside nothing was changed.",
        "the line follows the surface of the brain, a little too far out rather than too far in.",
        "brain left outside, or neck and eyes inside: give a mask with --mask or --derivatives.",
        picture=True,
    ),
    "background": Caption(
        "Acquisition",
        "Background",
        "Mean of the highest b-value, as acquired, over the whole image, so bright that the air is seen.",
        "even grey, brighter where the coils amplify noise.",
        "copies of the head (ghosts), stripes (interference, spikes), a sharp edge or black corners (masked or "
        "filtered by the scanner: the noise level is then hard to estimate).",
        picture=True,
    ),
    "flicker": Caption(
        "Before, after, residual",
        "Before and after, b={b}",
        "One ordinary volume of the shell, same slices, same intensity window. Change between the two with the "
        "buttons, by clicking the picture, or with the keys b, a and f.",
        "grain disappears; borders, vessels and small structures stay where they were, equally sharp.",
        "blurred borders, missing structures, patches or stripes that were not there before.",
        flicker=True,
        picture=True,
    ),
    "residual": Caption(
        "Before, after, residual",
        "Residual, b={b}",
        "What was taken away from that volume, in noise standard deviations; mid-grey is nothing.",
        "salt and pepper, the same all over the brain.",
        "outlines of gyri, ventricles or tracts: anatomy was taken away. Flat grey areas: nothing was denoised there.",
        picture=True,
    ),
    "meanresidual": Caption(
        "Before, after, residual",
        "Mean residual of the shell, b={b}",
        "The residual averaged over the volumes of the shell, times √n, so that pure noise keeps a spread of 1. "
        "Noise averages out here and a systematic change does not: this is the most sensitive picture of the page.",
        "as structureless as the residual of one volume, or paler.",
        "bright or dark anatomy: the denoised signal is too low or too high there. With --bias-correction "
        "rician fluid is bright at high b-values: that is the noise floor, taken away.",
        picture=True,
    ),
    "shellmean": Caption(
        "Before, after, residual",
        "Mean of the shell before and after, b={b}",
        "All volumes of the shell averaged: noise is averaged out in both, so the two should be the same picture.",
        "nothing moves when you flicker.",
        "places that become brighter or darker (bias), or borders that soften (blur). Blurred borders in both: the "
        "head moved between volumes.",
        flicker=True,
        picture=True,
    ),
    "shellstd": Caption(
        "Before, after, residual",
        "Spread over the volumes of the shell, b={b}",
        "Standard deviation over the volumes: noise, and what differs between directions.",
        "darker after, with white matter left bright at high b-values (directions differ there), and even slices.",
        "bright rims around the brain or the ventricles (motion), single bright slices (dropout), ghosts; or white "
        "matter that became as dark as grey matter (directions were made alike).",
        flicker=True,
        picture=True,
    ),
    "methods": Caption(
        "Methods side by side",
        "All methods, b={b}",
        "The same slice by every method: one volume, what was taken away from it, and the mean residual of the shell "
        "times √n, both in noise standard deviations of one noise map.",
        "an image without grain and with sharp borders over two rows of structureless noise.",
        "outlines of anatomy in the residuals (signal was taken away), a grainy image over a flat grey residual "
        "(little was denoised), or a smooth image over bright borders (it was blurred).",
        picture=True,
    ),
    "methodsTensor": Caption(
        "Methods side by side",
        "Tensor maps of all methods",
        "Colour FA (red: left-right, green: front-back, blue: up-down) and mean diffusivity of the same slice.",
        "dark, even grey matter, and tracts as thin and as bright as in the acquired map.",
        "speckle (noise left), or tracts that faded or widened (blur).",
        picture=True,
    ),
    "methodsTraining": Caption(
        "Methods side by side",
        "Courses of the trainings",
        "Squared error against noisy voxels that were never trained on, in units of the noise variance, for every "
        "method that is trained.",
        "both fall and level out close above the dashed line.",
        "one that stays far above the other: its network or loss suits these data less.",
    ),
    "colourfa": Caption(
        "Diffusion tensor",
        "Fractional anisotropy and direction",
        "Red: left-right, green: front-back, blue: up-down, in world axes; bright where anisotropic.",
        "corpus callosum red, cingulum green, corticospinal tract blue; after denoising smoother colours, darker "
        "grey matter, and tracts as thin as before.",
        "wrong colours (b-vectors flipped), speckled grey matter, or tracts that grew wider or merged.",
        flicker=True,
        picture=True,
    ),
    "md": Caption(
        "Diffusion tensor",
        "Mean diffusivity",
        "From 0 (black) to 0.003 mm²/s (white).",
        "white matter even, ventricles bright with sharp borders, both alike before and after.",
        "borders of the ventricles that move or blur, or a brain that is darker or brighter as a whole.",
        flicker=True,
        picture=True,
    ),
    "noisemap": Caption(
        "Noise",
        "Noise level",
        "Standard deviation of the noise in each voxel, in signal units: estimated, or as it was given.",
        "smooth; higher in the middle of the head with many receive coils and acceleration.",
        "anatomy in the map (signal was taken for noise), or values far from those of other runs of the scanner.",
        picture=True,
    ),
    "uncertainty": Caption(
        "Noise",
        "Error that is left",
        "Root mean square of the error expected after denoising, the noise floor included unless it was removed, in "
        "signal units.",
        "well below the noise level, somewhat higher at borders and in tracts that cross.",
        "as high as the noise level: nothing was gained there.",
        picture=True,
    ),
    "signal": Caption(
        "Signal and residual",
        "Mean signal of each volume",
        "Mean in the brain before and after, and its change: by volume, and by shell (right), where the noise of "
        "single volumes averages out.",
        "changes within a fraction of a percent, the same in all volumes of a shell.",
        "a shell that moved as a whole (bias; expected with --bias-correction rician), or single volumes apart "
        "from the others (motion, dropout).",
    ),
    "dwicarpet": Caption(
        "Signal and residual",
        "Carpet of the signal",
        "Every column is a volume, sorted by b-value; every row a voxel, from feet to head: its signal minus its mean "
        "over the shell, in noise standard deviations, before and after. Triangles mark volumes whose mean signal, "
        "residual or likeness to their neighbours is far from those of their shell. Bars: motion of the head since the "
        "volume before in time (framewise displacement in mm), estimated without registration; hatched: not known.",
        "bars far below the dotted line (1 mm); fine grain before, less of it after, no column and no band apart from "
        "the others.",
        "bars above the line, alone (a jerk) or many (a restless head); a bright or dark column (a volume that is "
        "brighter, darker or moved), a band within a column (slices with dropout), a drift from left to right in the "
        "b=0 volumes (the scanner warms up).",
    ),
    "neighbours": Caption(
        "Signal and residual",
        "Volumes and their neighbours",
        "Above: correlation of each volume with the nearest direction of its shell, as in QSIPrep and DSI Studio. "
        "Below: correlation of the residual with the mean denoised image of the shell.",
        "correlations that rise in every volume, to a like level within a shell; residuals inside the band of chance.",
        "single volumes far below the others (motion, dropout); residuals off zero: they hold anatomy.",
    ),
    "carpet": Caption(
        "Signal and residual",
        "Residual of all volumes",
        "Above: spread of the residual of each volume over the noise level. Below: the residual of voxels sampled "
        "through the brain, one column for each volume.",
        "a spread a little below 1 in every volume, and an even carpet.",
        "columns that stand out (outlier volumes), bands (slices with dropout), a spread above 1 (more than noise "
        "was taken away) or near 0 (hardly anything was).",
    ),
    "distribution": Caption(
        "Signal and residual",
        "Distribution of the residual",
        "Histogram of residual over noise level of each shell, against the one of noise alone.",
        "close to the dashed curve, a little narrower, straight down to the tails.",
        "heavy tails (structure or artefacts in the residual), a shifted centre (bias), or much narrower (little "
        "was denoised, or the noise level is too high).",
    ),
    "training": Caption(
        "Training",
        "Training",
        "Squared error against noisy voxels that were never trained on, in units of the noise variance: at 1 only "
        "noise is left to be learnt. Beside it the loss that the optimiser saw, and the learning rate.",
        "falls, then levels out close above 1.",
        "rises again (stopped in time: the best weights are used), still falls at the end (give it more "
        "--max-steps), or levels out far above 1 (noise level too low, or motion).",
    ),
}

_AFTER_ALL_SHELLS = 10**9
_PER_SHELL = re.compile(r"(flicker|residual|meanresidual|shellmean|shellstd|methods)B(\d+)")


def caption_of(figure: str) -> tuple[Caption, str] | None:
    """Return the caption of a figure and its title, or None for a figure that is not known."""
    found = _PER_SHELL.fullmatch(figure)
    kind, b = (found[1], found[2]) if found else (figure, "")
    caption = CAPTIONS.get(kind)
    return None if caption is None else (caption, caption.title.format(b=b))


def figure_order(figure: str) -> tuple[int, int, int]:
    """Return a sort key: by section, then b-value, then kind."""
    found = _PER_SHELL.fullmatch(figure)
    kind, b = (found[1], int(found[2])) if found else (figure, _AFTER_ALL_SHELLS)
    caption = CAPTIONS.get(kind)
    section = SECTIONS.index(caption.section) if caption else len(SECTIONS)
    kinds = list(CAPTIONS)
    return (section, b, kinds.index(kind) if kind in kinds else len(kinds))
