"""Losses whose best prediction from noisy targets is the clean mean, and named alternatives.

Axis letters: b batch, c channel, x y z space. All losses have the signature
``(prediction_bcxyz, target_bcxyz, mask_bcxyz=None)``, take means over the voxels of the mask, are
0 when it is empty, and are computed in float32 whatever the precision of their inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

# 4 · 4 from the smoothing, 2 from the central difference: a slope of one per voxel gives one
SOBEL_SCALE = 32.0


def sobel(image_bcxyz: Tensor, axis: int) -> Tensor:
    """Signed 3D Sobel derivative along one spatial axis.

    Parameters
    ----------
    image_bcxyz
        ``(B, C, X, Y, Z)``.
    axis
        0, 1 or 2 for x, y or z.

    Returns
    -------
    Tensor
        ``(B, C, X-2, Y-2, Z-2)``, where the whole stencil lies inside the image: change per
        voxel, that is ``scipy.ndimage.sobel`` smoothed along both other axes, over 32.
        Empty if an axis is shorter than 3.
    """
    if min(image_bcxyz.shape[2:]) < 3:
        return image_bcxyz.new_empty((*image_bcxyz.shape[:2], 0, 0, 0))
    for each in range(3):
        image_bcxyz = _derive(image_bcxyz, each) if each == axis else _smooth(image_bcxyz, each)
    return image_bcxyz / SOBEL_SCALE


def forward_difference(image_bcxyz: Tensor, axis: int) -> Tensor:
    """Difference of each voxel to the next one along a spatial axis (0, 1 or 2).

    Parameters
    ----------
    image_bcxyz
        ``(B, C, X, Y, Z)``.
    axis
        0, 1 or 2 for x, y or z.

    Returns
    -------
    Tensor
        Change per voxel; one shorter along the axis.
    """
    return image_bcxyz.diff(dim=2 + axis)


def _taps(image_bcxyz: Tensor, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """The voxel before, the voxel itself and the one after, where all three exist."""
    n = image_bcxyz.shape[2 + axis]
    before, here, after = (image_bcxyz.narrow(2 + axis, start, n - 2) for start in range(3))
    return before, here, after


def _smooth(image_bcxyz: Tensor, axis: int) -> Tensor:
    """Weights 1, 2, 1 along an axis."""
    before, here, after = _taps(image_bcxyz, axis)
    return torch.add(before + after, here, alpha=2)


def _derive(image_bcxyz: Tensor, axis: int) -> Tensor:
    """Weights -1, 0, 1 along an axis."""
    before, _, after = _taps(image_bcxyz, axis)
    return after - before


def _inside(mask_bcxyz: Tensor, axes: Sequence[int], size: int) -> Tensor:
    """Where a stencil of ``size`` voxels along each of ``axes`` lies inside the mask (0 or 1)."""
    for axis in axes:
        n = max(mask_bcxyz.shape[2 + axis] - size + 1, 0)
        whole = mask_bcxyz.narrow(2 + axis, 0, n)
        for start in range(1, min(size, mask_bcxyz.shape[2 + axis] + 1)):
            whole = whole * mask_bcxyz.narrow(2 + axis, start, n)
        mask_bcxyz = whole
    return mask_bcxyz


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the mask; 0, with a gradient of 0, over nothing."""
    if not values.numel():
        return values.sum()
    if mask is None:
        return values.mean()
    return (values * mask).sum() / mask.sum().clamp_min(1)


def _prepare(
    prediction_bcxyz: Tensor, target_bcxyz: Tensor, mask_bcxyz: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Checked inputs in float32; prediction and target are zero outside the mask.

    Raises
    ------
    ValueError
        If the shapes differ or the mask does not broadcast to them.
    """
    if prediction_bcxyz.ndim != 5 or prediction_bcxyz.shape != target_bcxyz.shape:
        raise ValueError(
            "expected prediction and target of one shape (B, C, X, Y, Z), "
            f"found {tuple(prediction_bcxyz.shape)} and {tuple(target_bcxyz.shape)}"
        )
    prediction, target = prediction_bcxyz.float(), target_bcxyz.float()
    if mask_bcxyz is None:
        return prediction, target, None
    try:
        inside = (mask_bcxyz != 0).expand(prediction.shape)
    except RuntimeError:
        raise ValueError(
            f"expected a mask that broadcasts to {tuple(prediction.shape)}, found {tuple(mask_bcxyz.shape)}"
        ) from None
    # a product with a zero weight would keep NaN and infinity
    return prediction.where(inside, 0), target.where(inside, 0), inside.float()


class MSELoss(nn.Module):
    """Mean squared difference over the mask.

    Notes
    -----
    **Shape** prediction and target ``(B, C, X, Y, Z)``, mask broadcastable to it; result a scalar.
    """

    def forward(
        self, prediction_bcxyz: Tensor, target_bcxyz: Tensor, mask_bcxyz: Tensor | None = None
    ) -> Tensor:
        """The loss, a scalar in squared units of the inputs."""
        prediction, target, mask = _prepare(prediction_bcxyz, target_bcxyz, mask_bcxyz)
        return _mean((prediction - target).square(), mask)


class L1Loss(nn.Module):
    """Mean absolute difference over the mask; its best prediction is the median, not the mean.

    Notes
    -----
    **Shape** prediction and target ``(B, C, X, Y, Z)``, mask broadcastable to it; result a scalar.
    """

    def forward(
        self, prediction_bcxyz: Tensor, target_bcxyz: Tensor, mask_bcxyz: Tensor | None = None
    ) -> Tensor:
        """The loss, a scalar in units of the inputs."""
        prediction, target, mask = _prepare(prediction_bcxyz, target_bcxyz, mask_bcxyz)
        return _mean((prediction - target).abs(), mask)


class EdgeAwareLoss(nn.Module):
    """Squared error of the image, of its edges and of its gradient.

    ``MSE + alpha · edge + beta · gradient``: edge is the squared difference of the signed Sobel
    derivatives, gradient that of the forward differences, each the mean over voxels and summed
    over the three axes. All three are squared differences of *linear* operators D, so with a
    noisy target y of mean x the best prediction is still x: E‖D(p − y)‖² = ‖D(p − x)‖² + const.

    Parameters
    ----------
    alpha
        Weight of the edge term.
    beta
        Weight of the gradient term.
    magnitudes
        Compare magnitudes of the gradient over the axes instead of signed derivatives.

        .. warning:: This rewards noise. Noise makes gradients longer, E|∇y| > |∇x|, so the best
           prediction from noisy targets is rougher than the truth. Only for clean targets.

    Raises
    ------
    ValueError
        If a weight is negative; at a call for shapes that do not fit.

    Notes
    -----
    **Shape** prediction and target ``(B, C, X, Y, Z)``, mask broadcastable to it; result a scalar.

    A derivative counts only where all voxels of its stencil are inside the mask: nothing outside
    it has any influence. Both derivatives are in units of change per voxel.
    """

    def __init__(self, alpha: float = 0.5, beta: float = 0.1, *, magnitudes: bool = False) -> None:
        super().__init__()
        if alpha < 0 or beta < 0:
            raise ValueError(f"expected weights of at least 0, found alpha={alpha} and beta={beta}")
        self.alpha, self.beta, self.magnitudes = alpha, beta, magnitudes

    def forward(
        self, prediction_bcxyz: Tensor, target_bcxyz: Tensor, mask_bcxyz: Tensor | None = None
    ) -> Tensor:
        """The loss, a scalar in squared units of the inputs."""
        prediction, target, mask = _prepare(prediction_bcxyz, target_bcxyz, mask_bcxyz)
        loss = _mean((prediction - target).square(), mask)
        terms = self._magnitude_terms if self.magnitudes else self._signed_terms
        edge, gradient = terms(prediction, target, mask)
        return loss + self.alpha * edge + self.beta * gradient

    def _signed_terms(self, prediction: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Edge and gradient term; the operators are linear, so they see the difference only."""
        difference = prediction - target
        cube = None if mask is None else _inside(mask, (0, 1, 2), 3)
        edge = gradient = difference.new_zeros(())
        for axis in range(3):
            edge = edge + _mean(sobel(difference, axis).square(), cube)
            pair = None if mask is None else _inside(mask, (axis,), 2)
            gradient = gradient + _mean(forward_difference(difference, axis).square(), pair)
        return edge, gradient

    def _magnitude_terms(
        self, prediction: Tensor, target: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Edge and gradient term between lengths of the gradient."""
        cube = None if mask is None else _inside(mask, (0, 1, 2), 3)
        corner = None if mask is None else _inside(mask, (0, 1, 2), 2)
        edge = _length(prediction, sobel) - _length(target, sobel)
        gradient = _length(prediction, _corner_difference) - _length(target, _corner_difference)
        return _mean(edge.square(), cube), _mean(gradient.square(), corner)


def _corner_difference(image_bcxyz: Tensor, axis: int) -> Tensor:
    """Forward difference where those along all three axes exist: one shorter along each."""
    for other in range(3):
        if other != axis:
            image_bcxyz = image_bcxyz.narrow(2 + other, 0, max(image_bcxyz.shape[2 + other] - 1, 0))
    return forward_difference(image_bcxyz, axis)


def _length(image_bcxyz: Tensor, derivative: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Length of the gradient; the small constant keeps its own gradient finite at zero."""
    squares = [derivative(image_bcxyz, axis).square() for axis in range(3)]
    return (squares[0] + squares[1] + squares[2] + 1e-12).sqrt()


LOSSES = ("edge-aware", "l1", "mse")


def make_loss(name: str, alpha: float = 0.5, beta: float = 0.1) -> nn.Module:
    """Make a loss by the name that the command line uses.

    Parameters
    ----------
    name
        ``"edge-aware"``, ``"l1"`` or ``"mse"``.
    alpha, beta
        Weights of :class:`EdgeAwareLoss`; the others have none.

    Raises
    ------
    ValueError
        If there is no loss of this name.
    """
    if name == "edge-aware":
        return EdgeAwareLoss(alpha, beta)
    if name == "l1":
        return L1Loss()
    if name == "mse":
        return MSELoss()
    raise ValueError(f"expected a loss of {', '.join(LOSSES)}, found {name!r}")
