"""Whole-run inference: the blind prediction of every target volume.

Axes: ``c`` channel, ``v`` volume, ``x y z`` space.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .context import Context
from .fusion import Estimates
from .hardware import Precision
from .voxels import Box

TILE = 96


def predict_volume(
    model: nn.Module,
    context: Context | Estimates,
    volume: int,
    tiles: list[tuple[Box, Box]],
    precision: Precision,
    *,
    mirrored: bool = False,
) -> Tensor:
    """What a network makes of one volume.

    Parameters
    ----------
    model
        Network in evaluation mode.
    context
        The run, or its estimates.
    volume
        Target volume.
    tiles
        Boxes to compute and boxes to keep, from :func:`tiles_of`.
    precision
        Number format of the forward pass.
    mirrored
        Take the mean of this prediction and of that of the mirrored volume, whose errors differ; directions are known
        to the networks by their angles to each other only, which stay.

    Returns
    -------
    Tensor
        (X, Y, Z) float32 in SNR units, zero outside the tiles.
    """
    prediction = torch.zeros(context.voxels.mask_xyz.shape, device=context.device)
    for seen, kept in tiles:
        inputs, coordinates = context.inputs([volume], [seen])
        inner = tuple(slice(k.start - s.start, k.stop - s.start) for s, k in zip(seen, kept, strict=True))
        for turned in (False, True) if mirrored else (False,):
            if turned:
                # all voxels in reverse order: flipping three axes takes five times as long
                inputs = inputs.flatten(2).mT.flip(1).mT.unflatten(2, inputs.shape[2:])
            with (
                torch.inference_mode(),
                torch.autocast(
                    context.device.type, precision.autocast, enabled=precision.autocast is not None
                ),
            ):
                output = model(inputs, coordinates)[0, 0].float()
            prediction[kept] += (output.flip(0, 1, 2) if turned else output)[inner]
            del output  # it would cut up the memory that the next pass needs
        prediction[kept] /= context.gain(volume) * (2 if mirrored else 1)
    return prediction


def tiles_of(mask_xyz: Tensor, tile: int = TILE, *, halo: int) -> list[tuple[Box, Box]]:
    """Boxes that cover the mask, each with the larger box that its prediction looks at.

    Parameters
    ----------
    mask_xyz
        (X, Y, Z) bool.
    tile
        Largest edge of a kept box in voxels, even.
    halo
        Voxels seen around a kept box: as far as the network looks, so that tiles do not show.
    """
    tiles = []
    for box in _grid(tuple(mask_xyz.shape), tile):
        inside = mask_xyz[box]
        if not bool(inside.any()):
            continue
        seen, kept = [], []
        for axis, whole in enumerate(box):
            line = inside.permute(axis, *[a for a in range(3) if a != axis]).flatten(1).any(dim=1)
            where = line.nonzero().flatten()
            start, stop = whole.start + int(where[0]), whole.start + int(where[-1]) + 1
            kept.append(slice(start, stop))
            # even starts: the half-resolution path of every tile lies on one grid; even sizes need no filling up
            first = max(0, start - halo) // 2 * 2
            last = stop + halo
            seen.append(slice(first, min(mask_xyz.shape[axis], last + (last - first) % 2)))
        tiles.append(((seen[0], seen[1], seen[2]), (kept[0], kept[1], kept[2])))
    return tiles


def _grid(shape: tuple[int, ...], tile: int) -> Iterator[Box]:
    """Boxes of nearly equal size, no edge longer than a tile."""
    cuts = []
    for n in shape:
        parts = -(-n // tile)
        cuts.append([slice(n * i // parts, n * (i + 1) // parts) for i in range(parts)])
    for x in cuts[0]:
        for y in cuts[1]:
            for z in cuts[2]:
                yield x, y, z
