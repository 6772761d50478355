"""Blocks of the networks: encoding of q-space, attention, detail enhancement.

Axis letters: b batch, c channel, x y z space, k coordinate. Nothing here normalises over a batch or pools over a whole
volume.
"""

from __future__ import annotations

import itertools
import math
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

SLOPE = 0.1
LAYOUT = torch.channels_last_3d

Layer = TypeVar("Layer", nn.Conv3d, nn.Linear)


def activate(features_bcxyz: Tensor) -> Tensor:
    """Leaky ReLU in place: at full resolution each pass over memory counts."""
    return functional.leaky_relu_(features_bcxyz, SLOPE)


def convolution(input_channels: int, output_channels: int, kernel_size: int = 3) -> nn.Conv3d:
    """A 'same' convolution with He weights and no bias at the start."""
    layer = nn.Conv3d(input_channels, output_channels, kernel_size, padding=kernel_size // 2)
    for name, parameter in layer.named_parameters():
        if name == "weight":
            nn.init.kaiming_normal_(parameter, a=SLOPE)
        else:
            nn.init.zeros_(parameter)
    return layer


def convolve_to_one(features_bcxyz: Tensor, layer: nn.Conv3d) -> Tensor:
    """A 'same' convolution of 3 x 3 x 3 voxels to one channel, in a third of the time that it takes on a CPU.

    A single output channel leaves most lanes of a processor idle. So the eight voxels of each block of 2 x 2 x 2 are
    computed as eight channels of a convolution of stride 2, whose kernel holds the weights at eight places.
    """
    weight = layer.weight.new_zeros((2, 2, 2, layer.in_channels, 4, 4, 4))
    for x, y, z in itertools.product((0, 1), repeat=3):
        weight[x, y, z, :, x : x + 3, y : y + 3, z : z + 3] = layer.weight[0]
    assert layer.bias is not None
    sizes = features_bcxyz.shape[2:]
    padding = [edge for size in reversed(sizes) for edge in (0, size % 2)]
    even = functional.pad(features_bcxyz, padding) if any(padding) else features_bcxyz
    blocks = functional.conv3d(even, weight.flatten(0, 2), layer.bias.expand(8), stride=2, padding=1)
    image = (
        blocks.unflatten(1, (2, 2, 2)).permute(0, 4, 1, 5, 2, 6, 3).flatten(5, 6).flatten(3, 4).flatten(1, 2)
    )
    return image[:, None, : sizes[0], : sizes[1], : sizes[2]]


def zeroed(layer: Layer) -> Layer:
    """The same layer, with an output of exactly zero at the start."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def lay_out(module: nn.Module) -> None:
    """Keep weights with their channels last, as convolutions like them."""
    for parameter in module.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.contiguous(memory_format=LAYOUT)


def against_base(inputs: Tensor) -> Tensor:
    """The first channel, and the difference of each other channel to it.

    A correction is made of such differences: without them, the network first has to learn to
    cancel the anatomy that all channels share. Taken before any rounding to half precision.
    """
    others = inputs.new_ones((1, inputs.shape[1], 1, 1, 1))
    others[:, 0] = 0.0
    return torch.addcmul(inputs, inputs[:, :1], others, value=-1.0).contiguous(memory_format=LAYOUT)


def own_precision(tensor: Tensor) -> torch.autocast:
    """Context for what autocast does in float32 on a CPU, though the values are the same."""
    return torch.autocast(tensor.device.type, enabled=False)


def modulate(features_bcxyz: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Features times scale plus shift (two passes: addcmul is slower than both on a CPU)."""
    return (features_bcxyz * scale).add_(shift)


class BoxAverage(nn.Module):
    """Average over boxes, as a convolution with fixed weights.

    Parameters
    ----------
    channels
        Features, averaged each for itself.
    size
        Edges of the box in voxels.
    stride
        Step from box to box; boxes of a stride above 1 start at the first voxel, others are
        centred.

    Notes
    -----
    **Shape** ``(B, channels, X, Y, Z)`` in; ``(B, channels, X/stride, Y/stride, Z/stride)`` out.
    What lies outside the input counts as zero.

    A dense convolution wastes sums but is ten times faster than ``avg_pool3d``, which does not
    know bf16 on a CPU, and than the gradient of a depthwise convolution.
    """

    weight: Tensor

    def __init__(self, channels: int, size: tuple[int, int, int], stride: int = 1) -> None:
        super().__init__()
        identity = torch.eye(channels)[:, :, None, None, None] / math.prod(size)
        self.register_buffer("weight", identity.repeat(1, 1, *size), persistent=False)
        self.stride = stride
        self.padding = tuple(edge // 2 for edge in size) if stride == 1 else (0, 0, 0)

    def forward(self, features_bcxyz: Tensor) -> Tensor:
        """The averages."""
        return functional.conv3d(features_bcxyz, self.weight, stride=self.stride, padding=self.padding)


def check_channels(input_channels: int, output_channels: int, base_filters: int) -> None:
    """Raise ValueError when no network of these sizes exists."""
    if min(input_channels, output_channels, base_filters) < 1:
        raise ValueError(
            "expected input_channels, output_channels and base_filters of at least 1, "
            f"found {input_channels}, {output_channels} and {base_filters}"
        )
    if output_channels > input_channels:
        raise ValueError(
            "the output corrects the first input channels: expected output_channels of at most "
            f"input_channels ({input_channels}), found {output_channels}"
        )


def check_inputs(inputs: Tensor, input_channels: int) -> None:
    """Raise ValueError unless the inputs are (B, input_channels, X, Y, Z), none of them empty."""
    if inputs.ndim != 5 or inputs.shape[1] != input_channels or 0 in inputs.shape:
        raise ValueError(
            f"expected inputs of shape (B, {input_channels}, X, Y, Z) with no empty axis, "
            f"found {tuple(inputs.shape)}"
        )


class SinusoidalVolumeEncoder(nn.Module):
    """Encode real coordinates by sines and cosines at geometric frequencies.

    Parameters
    ----------
    dimensions
        Values per coordinate, even: half of them sines, half cosines.
    shortest_wavelength, longest_wavelength
        Ends of the geometric series of wavelengths, in units of the coordinate. The shortest one
        is no divisor of an integer by default, so that no dimension is constant over indices.

    Raises
    ------
    ValueError
        If ``dimensions`` is odd or not positive, or the wavelengths are not positive and ordered.

    Notes
    -----
    **Shape** coordinates ``(...)`` of any type; result ``(..., dimensions)`` in float32.

    The sinusoids are those of Vaswani et al. 2017 (arXiv:1706.03762), with wavelengths that fit
    the coordinates of this problem instead of 2π to 20000π.
    """

    wavenumbers: Tensor

    def __init__(
        self, dimensions: int = 16, *, shortest_wavelength: float = 0.7, longest_wavelength: float = 40.0
    ) -> None:
        super().__init__()
        if dimensions < 2 or dimensions % 2:
            raise ValueError(f"expected an even, positive number of dimensions, found {dimensions}")
        if not 0 < shortest_wavelength <= longest_wavelength:
            raise ValueError(
                "expected 0 < shortest_wavelength <= longest_wavelength, "
                f"found {shortest_wavelength} and {longest_wavelength}"
            )
        self.dimensions = dimensions
        ends = math.log(longest_wavelength), math.log(shortest_wavelength)
        wavelengths = torch.linspace(*ends, dimensions // 2).exp()
        self.register_buffer("wavenumbers", 2 * math.pi / wavelengths, persistent=False)

    def forward(self, coordinates: Tensor) -> Tensor:
        """Encode coordinates of shape ``(...)`` as ``(..., dimensions)``."""
        # bf16 has 8 bits: the phases of short wavelengths need float32
        phases = coordinates.to(torch.float32).unsqueeze(-1) * self.wavenumbers.to(torch.float32)
        return torch.cat([phases.sin(), phases.cos()], dim=-1)


class FilmProjection(nn.Module):
    """Project the coordinates of all channels to a scale and a shift of several stages.

    Parameters
    ----------
    n_coordinates
        Coordinates per sample: channels times coordinates per channel.
    stage_channels
        Features of each modulated stage.
    hidden
        Width of the hidden layer.
    dimensions
        Sinusoids per coordinate.
    longest_wavelength
        Longest wavelength of the encoding, in units of the coordinates.

    Notes
    -----
    **Shape** coordinates ``(B, n_coordinates)``; result: for each stage a pair of scale (around
    1) and shift (around 0), each ``(B, channels, 1, 1, 1)``. Both are exactly 1 and 0 at the
    start. Feature-wise linear modulation: Perez et al. 2018 (arXiv:1709.07871).
    """

    def __init__(
        self,
        n_coordinates: int,
        stage_channels: tuple[int, ...],
        *,
        hidden: int = 32,
        dimensions: int = 16,
        longest_wavelength: float = 40.0,
    ) -> None:
        super().__init__()
        self.stage_channels = stage_channels
        self.encoder = SinusoidalVolumeEncoder(dimensions, longest_wavelength=longest_wavelength)
        self.hidden = nn.Linear(n_coordinates * dimensions, hidden)
        self.project = zeroed(nn.Linear(hidden, 2 * sum(stage_channels)))

    def forward(self, coordinates_bk: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Scale and shift of each stage, ``(B, channels, 1, 1, 1)`` each."""
        encoded = self.encoder(coordinates_bk).flatten(1).to(self.hidden.weight.dtype)
        parameters = self.project(functional.leaky_relu(self.hidden(encoded), SLOPE))
        sizes = [channels for channels in self.stage_channels for _ in range(2)]
        parts = parameters[:, :, None, None, None].split(sizes, dim=1)
        return [(1 + scale, shift) for scale, shift in zip(parts[::2], parts[1::2], strict=True)]


class ChannelAttention(nn.Module):
    """Weigh channels by what a window around each voxel contains.

    Parameters
    ----------
    channels
        Features.
    reduced
        Features of the bottleneck.
    window
        Edge of the pooling window in voxels of this resolution, odd.

    Raises
    ------
    ValueError
        If the window is even.

    Notes
    -----
    **Shape** ``(B, channels, X, Y, Z)`` in; weights in (0, 1) of the same shape out.

    NOTE: departs from CBAM (Woo et al. 2018, arXiv:1807.06521) twice. Pooling is over a fixed
    window, since pooling over the whole input changes between patch and brain. The first layer
    of the shared perceptron comes before pooling: cheaper, and the same for the mean.
    """

    def __init__(self, channels: int, reduced: int, window: int = 5) -> None:
        super().__init__()
        if window < 1 or window % 2 == 0:
            raise ValueError(f"expected a window of an odd number of voxels, found {window}")
        # a box is separable: 3 times 5 values per voxel instead of 125
        self.boxes = [(window, 1, 1), (1, window, 1), (1, 1, window)]
        self.reduce = convolution(channels, reduced, 1)
        self.average = nn.Sequential(*(BoxAverage(reduced, box) for box in self.boxes))
        self.expand = convolution(reduced, channels, 1)

    def forward(self, features_bcxyz: Tensor) -> Tensor:
        """Weights of the features."""
        reduced = highest = self.reduce(features_bcxyz)
        with own_precision(reduced):
            for box in self.boxes:
                highest = _line_maximum(highest, box)
        # voxels of the window that lie outside the input are left out of the mean
        coverage = self.average(torch.ones_like(reduced[:1]))
        mean = self.average(reduced) / coverage
        return torch.sigmoid(self.expand(activate(mean) + functional.leaky_relu(highest, SLOPE)))


def _line_maximum(features_bcxyz: Tensor, box: tuple[int, int, int]) -> Tensor:
    """Maximum over a window of an odd number of voxels along one axis: the only one along which the box is longer."""
    if features_bcxyz.requires_grad:
        # its gradient takes an eighth of the time that of the other way takes
        return functional.max_pool3d(features_bcxyz, box, 1, [edge // 2 for edge in box])
    # a quarter of the time of pooling on a CPU
    axis, window = 2 + box.index(max(box)), max(box)
    n = features_bcxyz.shape[axis]
    highest = features_bcxyz.clone()
    for step in range(1, min(window // 2, n - 1) + 1):
        for to, start in ((0, step), (step, 0)):
            part = highest.narrow(axis, to, n - step)
            torch.maximum(part, features_bcxyz.narrow(axis, start, n - step), out=part)
    return highest


class SpatialAttention(nn.Module):
    """Weigh voxels by the mean and the maximum over their features.

    Notes
    -----
    **Shape** ``(B, C, X, Y, Z)`` in; weights in (0, 1) ``(B, 1, X, Y, Z)`` out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weigh = convolution(2, 1)

    def forward(self, features_bcxyz: Tensor) -> Tensor:
        """Weights of the voxels."""
        summary = [features_bcxyz.mean(1, keepdim=True), features_bcxyz.amax(1, keepdim=True)]
        return torch.sigmoid(self.weigh(torch.cat(summary, dim=1)))


class ConvolutionalAttention(nn.Module):
    """Channel attention, then spatial attention (CBAM, Woo et al. 2018, arXiv:1807.06521).

    Parameters
    ----------
    channels
        Features.
    reduced
        Features of the bottleneck of the channel attention.
    window
        Edge of the window of the channel attention, in voxels of this resolution.

    Notes
    -----
    **Shape** ``(B, channels, X, Y, Z)`` in and out.
    """

    def __init__(self, channels: int, reduced: int, window: int = 5) -> None:
        super().__init__()
        self.channel = ChannelAttention(channels, reduced, window)
        self.spatial = SpatialAttention()
        self.reach = window // 2 + 1

    def forward(self, features_bcxyz: Tensor) -> Tensor:
        """The weighted features."""
        features_bcxyz = features_bcxyz * self.channel(features_bcxyz)
        return features_bcxyz * self.spatial(features_bcxyz)


class DetailEnhancement(nn.Module):
    """Amplify what the half-resolution path cannot carry, and join that path.

    The high-pass residual of the features, x − average(x) over blocks of 2 x 2 x 2 voxels, is
    added with a learned gain per channel; half-resolution features and the modulation come along
    in the same two passes: ``scale · x + shift + gain · (x − up(average)) + up(coarse)``.

    Parameters
    ----------
    channels
        Features at full resolution.

    Notes
    -----
    **Shape** features ``(B, channels, X, Y, Z)``; average and coarse ``(B, channels, X/2, Y/2,
    Z/2)``; scale and shift broadcast to ``(B, channels, 1, 1, 1)``; result like features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((1, channels, 1, 1, 1), 0.1))

    def forward(
        self, features_bcxyz: Tensor, average: Tensor, coarse: Tensor, scale: Tensor, shift: Tensor
    ) -> Tensor:
        """The enhanced features."""
        gain = self.gain.to(features_bcxyz.dtype)
        added = coarse + (shift - gain * average)
        with own_precision(added):
            raised = functional.interpolate(added, scale_factor=2.0, mode="nearest")
        return (features_bcxyz * (scale + gain)).add_(raised)
