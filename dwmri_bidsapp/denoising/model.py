"""Networks that correct the blind base of one volume; their blocks are in :mod:`.blocks`.

Axis letters: b batch, c channel, x y z space, v volume, k coordinate. Spatial axes are in
voxels; intensities are in units of the noise level (SNR units).

No block normalises over a batch or pools over a whole volume: what a network says about a voxel
depends on a bounded neighbourhood only, so a patch and the whole brain get the same answer
(away from their borders, for patches that start at even indices).
"""

from __future__ import annotations

import itertools
from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn import functional

from .blocks import (
    BoxAverage,
    ConvolutionalAttention,
    DetailEnhancement,
    FilmProjection,
    activate,
    against_base,
    check_channels,
    check_inputs,
    convolution,
    convolve_to_one,
    lay_out,
    modulate,
    zeroed,
)


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
    leave_out
        ``"attention"``, the ``"half-resolution"`` path with it, the enhancement of ``"detail"``, or the ``"skip"``
        connections that carry full resolution past the half-resolution path: to measure what they are worth.

    Raises
    ------
    ValueError
        At construction for sizes below 1, ``output_channels > input_channels``, or no path left; at a
        call for inputs or coordinates of another shape.

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
        leave_out: Collection[str] = (),
    ) -> None:
        super().__init__()
        check_channels(input_channels, output_channels, base_filters)
        if {"half-resolution", "skip"} <= set(leave_out):
            raise ValueError("expected one path at least, found both left out")
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
        self.stem = convolution(input_channels, fine)
        self.block_average = BoxAverage(fine, (2, 2, 2), stride=2)
        self.looks_coarsely = "half-resolution" not in leave_out
        self.widen = convolution(fine, coarse)
        self.coarse_first = convolution(coarse, coarse)
        self.coarse_second = convolution(coarse, coarse)
        attends = not {"attention", "half-resolution"} & set(leave_out)
        self.attention = ConvolutionalAttention(coarse, fine) if attends else None
        self.narrow = convolution(coarse, fine, 1)
        self.detail = DetailEnhancement(fine)
        if "detail" in leave_out:
            self.detail.gain.requires_grad_(False).zero_()
        self.skips = "skip" not in leave_out
        self.fine_first = convolution(fine, fine)
        self.fine_second = convolution(fine, fine)
        self.correct = zeroed(nn.Conv3d(fine, output_channels, 1))
        # at half resolution three convolutions and the attention, then a block, stem and two convolutions
        attention_reach = self.attention.reach if self.attention is not None else 0
        self.reach = (2 * (3 + attention_reach) if self.looks_coarsely else 0) + 1 + 1 + 2
        lay_out(self)

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
        check_inputs(inputs, self.input_channels)
        modulations = self._modulations(inputs, volume_indices)
        x, y, z = inputs.shape[2:]
        correction = self._correct(_even_size(against_base(inputs)), modulations)[:, :, :x, :y, :z]
        return inputs[:, : self.output_channels] + correction if self.residual else correction

    def _correct(self, inputs: Tensor, modulations: list[tuple[Tensor, Tensor]]) -> Tensor:
        """The correction, for inputs of even size."""
        fine = activate(self.stem(inputs))
        del inputs  # large, and no longer needed
        average = self.block_average(fine)
        coarse = self._coarse(average, modulations) if self.looks_coarsely else average.new_zeros(())
        if not self.skips:
            fine, average = torch.zeros_like(fine), torch.zeros_like(average)
        fine = self.detail(fine, average, coarse, *modulations[2])
        change = self.fine_second(activate(self.fine_first(fine)))
        return self.correct(activate(change.add_(fine) if self.skips else change))

    def _coarse(self, average: Tensor, modulations: list[tuple[Tensor, Tensor]]) -> Tensor:
        """The path at half resolution."""
        coarse = activate(modulate(self.widen(average), *modulations[0]))
        change = modulate(self.coarse_second(activate(self.coarse_first(coarse))), *modulations[1])
        if self.attention is not None:
            change = self.attention(change)
        return self.narrow(activate(coarse + change))

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


def _even_size(image_bcxyz: Tensor) -> Tensor:
    """The same with the last plane of each odd axis once more."""
    x, y, z = image_bcxyz.shape[2:]
    if not (x % 2 or y % 2 or z % 2):
        return image_bcxyz
    return functional.pad(image_bcxyz, (0, z % 2, 0, y % 2, 0, x % 2), mode="replicate")


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
        check_channels(input_channels, output_channels, base_filters)
        if depth < 2:
            raise ValueError(f"expected a depth of at least 2, found {depth}")
        self.input_channels, self.output_channels, self.reach = input_channels, output_channels, depth
        widths = [input_channels] + [base_filters] * (depth - 1)
        self.layers = nn.ModuleList(convolution(a, b) for a, b in itertools.pairwise(widths))
        self.correct: nn.Conv3d = zeroed(nn.Conv3d(base_filters, output_channels, 3, padding=1))
        lay_out(self)

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
        check_inputs(inputs, self.input_channels)
        features = against_base(inputs)
        for layer in self.layers:
            features = activate(layer(features))
        if self.output_channels == 1:
            return inputs[:, :1] + convolve_to_one(features, self.correct)
        return inputs[:, : self.output_channels] + self.correct(features)
