"""Networks that correct the blind base of one volume, and their blocks.

Axis letters: b batch, c channel, x y z space, v volume, k coordinate. Spatial axes are in
voxels; intensities are in units of the noise level (SNR units).

No block normalises over a batch or pools over a whole volume: what a network says about a voxel
depends on a bounded neighbourhood only, so a patch and the whole brain get the same answer
(away from their borders, for patches that start at even indices).
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


def _activate(features_bcxyz: Tensor) -> Tensor:
    """Leaky ReLU in place: at full resolution each pass over memory counts."""
    return functional.leaky_relu_(features_bcxyz, SLOPE)


def _convolution(input_channels: int, output_channels: int, kernel_size: int = 3) -> nn.Conv3d:
    """A 'same' convolution with He weights and no bias at the start."""
    layer = nn.Conv3d(input_channels, output_channels, kernel_size, padding=kernel_size // 2)
    for name, parameter in layer.named_parameters():
        if name == "weight":
            nn.init.kaiming_normal_(parameter, a=SLOPE)
        else:
            nn.init.zeros_(parameter)
    return layer


def _zeroed(layer: Layer) -> Layer:
    """The same layer, with an output of exactly zero at the start."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _lay_out(module: nn.Module) -> None:
    """Keep weights with their channels last, as convolutions like them."""
    for parameter in module.parameters():
        if parameter.ndim == 5:
            parameter.data = parameter.data.contiguous(memory_format=LAYOUT)


def _against_base(inputs: Tensor) -> Tensor:
    """The first channel, and the difference of each other channel to it.

    A correction is made of such differences: without them, the network first has to learn to
    cancel the anatomy that all channels share. Taken before any rounding to half precision.
    """
    contrasts = inputs.clone(memory_format=LAYOUT)
    contrasts[:, 1:] -= inputs[:, :1]
    return contrasts


def _own_precision(tensor: Tensor) -> torch.autocast:
    """Context for what autocast does in float32 on a CPU, though the values are the same."""
    return torch.autocast(tensor.device.type, enabled=False)


def _modulate(features_bcxyz: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
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


def _check_channels(input_channels: int, output_channels: int, base_filters: int) -> None:
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


def _check_inputs(inputs: Tensor, input_channels: int) -> None:
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
        self.project = _zeroed(nn.Linear(hidden, 2 * sum(stage_channels)))

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
        self.reduce = _convolution(channels, reduced, 1)
        self.average = nn.Sequential(*(BoxAverage(reduced, box) for box in self.boxes))
        self.expand = _convolution(reduced, channels, 1)

    def forward(self, features_bcxyz: Tensor) -> Tensor:
        """Weights of the features."""
        reduced = highest = self.reduce(features_bcxyz)
        with _own_precision(reduced):
            for box in self.boxes:
                highest = functional.max_pool3d(highest, box, 1, [edge // 2 for edge in box])
        # voxels of the window that lie outside the input are left out of the mean
        coverage = self.average(torch.ones_like(reduced[:1]))
        mean = self.average(reduced) / coverage
        return torch.sigmoid(self.expand(_activate(mean) + functional.leaky_relu(highest, SLOPE)))


class SpatialAttention(nn.Module):
    """Weigh voxels by the mean and the maximum over their features.

    Notes
    -----
    **Shape** ``(B, C, X, Y, Z)`` in; weights in (0, 1) ``(B, 1, X, Y, Z)`` out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weigh = _convolution(2, 1)

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
        with _own_precision(added):
            raised = functional.interpolate(added, scale_factor=2.0, mode="nearest")
        return (features_bcxyz * (scale + gain)).add_(raised)


class MultiScaleDetailNet(nn.Module):
    """Correct the blind base of one volume from nine channels, at two resolutions.

    A full-resolution path keeps the detail; a half-resolution path, with attention, sees further
    for an eighth of the work. The coordinates of the channels in q-space modulate the features of
    three stages and never touch intensities.

    Parameters
    ----------
    input_channels
        Channels of the input; the first ``output_channels`` are what is corrected.
    output_channels
        Channels of the output, at most ``input_channels``.
    base_filters
        Features at full resolution; twice as many at half resolution. Multiples of 16 are fastest.
    num_volumes
        Range of the coordinates: the longest wavelength of their encoding is four times as long.
    use_sinusoidal_encoding
        Modulate the features by the coordinates of the channels.
    coordinates_per_channel
        Real coordinates per channel: 1 for an index, more for a place in q-space.
    residual
        Add the correction to the first input channels; otherwise return the correction alone.

    Raises
    ------
    ValueError
        At construction for sizes below 1 or ``output_channels > input_channels``; at a call for
        inputs or coordinates of another shape.

    Notes
    -----
    **Shape** inputs ``(B, input_channels, X, Y, Z)`` of any X, Y, Z from 1 up; volume_indices
    ``(B, input_channels)``, or ``(B, input_channels, K)`` for K coordinates per channel; result
    ``(B, output_channels, X, Y, Z)``.

    The last layer starts at zero, so an untrained network returns the first channels unchanged.

    ``reach`` is the distance in voxels beyond which inputs have no influence on an output: a tile
    that starts at even indices and has that much around it gets the answer of the whole.
    """

    def __init__(
        self,
        input_channels: int = 9,
        output_channels: int = 1,
        base_filters: int = 32,
        num_volumes: int = 10,
        use_sinusoidal_encoding: bool = True,
        *,
        coordinates_per_channel: int = 1,
        residual: bool = True,
    ) -> None:
        super().__init__()
        _check_channels(input_channels, output_channels, base_filters)
        if min(num_volumes, coordinates_per_channel) < 1:
            raise ValueError(
                "expected num_volumes and coordinates_per_channel of at least 1, "
                f"found {num_volumes} and {coordinates_per_channel}"
            )
        self.input_channels, self.output_channels, self.residual = input_channels, output_channels, residual
        self.coordinates_per_channel = coordinates_per_channel
        fine, coarse = base_filters, 2 * base_filters
        self.modulation = (
            FilmProjection(
                input_channels * coordinates_per_channel,
                (coarse, coarse, fine),
                hidden=coarse,
                longest_wavelength=4.0 * num_volumes,
            )
            if use_sinusoidal_encoding
            else None
        )
        self.stem = _convolution(input_channels, fine)
        self.block_average = BoxAverage(fine, (2, 2, 2), stride=2)
        self.widen = _convolution(fine, coarse)
        self.coarse_first = _convolution(coarse, coarse)
        self.coarse_second = _convolution(coarse, coarse)
        self.attention = ConvolutionalAttention(coarse, fine)
        self.narrow = _convolution(coarse, fine, 1)
        self.detail = DetailEnhancement(fine)
        self.fine_first = _convolution(fine, fine)
        self.fine_second = _convolution(fine, fine)
        self.correct = _zeroed(nn.Conv3d(fine, output_channels, 1))
        # at half resolution three convolutions and the attention, then a block, stem and two convolutions
        self.reach = 2 * (3 + self.attention.reach) + 1 + 1 + 2
        _lay_out(self)

    def forward(self, inputs: Tensor, volume_indices: Tensor | None = None) -> Tensor:
        """Correct the first channels of the inputs.

        Parameters
        ----------
        inputs
            ``(B, input_channels, X, Y, Z)``, in SNR units.
        volume_indices
            ``(B, input_channels)`` or ``(B, input_channels, coordinates_per_channel)``; ignored,
            and optional, without the sinusoidal encoding.

        Returns
        -------
        Tensor
            ``(B, output_channels, X, Y, Z)``.
        """
        _check_inputs(inputs, self.input_channels)
        modulations = self._modulations(inputs, volume_indices)
        x, y, z = inputs.shape[2:]
        even = inputs
        if x % 2 or y % 2 or z % 2:
            even = functional.pad(inputs, (0, z % 2, 0, y % 2, 0, x % 2), mode="replicate")
        correction = self._correct(_against_base(even), modulations)[:, :, :x, :y, :z]
        return inputs[:, : self.output_channels] + correction if self.residual else correction

    def _correct(self, inputs: Tensor, modulations: list[tuple[Tensor, Tensor]]) -> Tensor:
        """The correction, for inputs of even size."""
        coarse_in, coarse_out, joint = modulations
        fine = _activate(self.stem(inputs))
        average = self.block_average(fine)
        coarse = _activate(_modulate(self.widen(average), *coarse_in))
        change = self.coarse_second(_activate(self.coarse_first(coarse)))
        coarse = _activate(coarse + self.attention(_modulate(change, *coarse_out)))
        fine = self.detail(fine, average, self.narrow(coarse), *joint)
        fine = _activate(self.fine_second(_activate(self.fine_first(fine))).add_(fine))
        return self.correct(fine)

    def _modulations(self, inputs: Tensor, volume_indices: Tensor | None) -> list[tuple[Tensor, Tensor]]:
        """Scale and shift of the three stages."""
        if self.modulation is None:
            return [(inputs.new_ones(()), inputs.new_zeros(()))] * 3
        shape: tuple[int, ...] = (inputs.shape[0], self.input_channels)
        if self.coordinates_per_channel > 1:
            shape += (self.coordinates_per_channel,)
        if volume_indices is None or tuple(volume_indices.shape) != shape:
            found = "none" if volume_indices is None else str(tuple(volume_indices.shape))
            raise ValueError(f"expected volume_indices of shape {shape}, found {found}")
        return self.modulation(volume_indices.flatten(1))


class DenoiserNet(nn.Module):
    """The plain alternative: a stack of convolutions that predicts a correction.

    Parameters
    ----------
    input_channels
        Channels of the input; the first ``output_channels`` are what is corrected.
    output_channels
        Channels of the output, at most ``input_channels``.
    base_filters
        Features of each layer.
    depth
        Convolutions, at least 2.

    Raises
    ------
    ValueError
        At construction for sizes that make no network; at a call for inputs of another shape.

    Notes
    -----
    **Shape** inputs ``(B, input_channels, X, Y, Z)``; result ``(B, output_channels, X, Y, Z)``.

    The last layer starts at zero, so an untrained network returns the first channels unchanged.
    ``reach`` is the distance in voxels beyond which inputs have no influence on an output.

    NOTE: DnCNN (Zhang et al. 2017, doi:10.1109/TIP.2017.2662206) without batch normalisation,
    which would make a prediction depend on the other patches of its batch.
    """

    def __init__(
        self, input_channels: int = 9, output_channels: int = 1, base_filters: int = 32, depth: int = 6
    ) -> None:
        super().__init__()
        _check_channels(input_channels, output_channels, base_filters)
        if depth < 2:
            raise ValueError(f"expected a depth of at least 2, found {depth}")
        self.input_channels, self.output_channels, self.reach = input_channels, output_channels, depth
        widths = [input_channels] + [base_filters] * (depth - 1)
        self.layers = nn.ModuleList(_convolution(a, b) for a, b in itertools.pairwise(widths))
        self.correct = _zeroed(nn.Conv3d(base_filters, output_channels, 3, padding=1))
        _lay_out(self)

    def forward(self, inputs: Tensor, volume_indices: Tensor | None = None) -> Tensor:
        """Correct the first channels of the inputs; ``volume_indices`` is accepted and ignored.

        Parameters
        ----------
        inputs
            ``(B, input_channels, X, Y, Z)``, in SNR units.
        volume_indices
            Anything: this network knows nothing of q-space.

        Returns
        -------
        Tensor
            ``(B, output_channels, X, Y, Z)``.
        """
        _check_inputs(inputs, self.input_channels)
        features = _against_base(inputs)
        for layer in self.layers:
            features = _activate(layer(features))
        return inputs[:, : self.output_channels] + self.correct(features)
