"""Small images of striped patterns, drawn from a seed: eight classes, which four directions and two tints make."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SIZE = 12  # pixels on a side
CLASSES = 8
_DIRECTIONS = 4
_TINTS = torch.tensor([[1.0, 0.6, 0.1], [0.4, 0.8, 0.7]])  # warm and cold, as red, green, blue
_NOISE = 0.3  # standard deviation of a pixel


def draw_patterns(images: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw images and labels, the same for the same seed.

    Returns:
        Images [N, 3, 12, 12], mostly between 0 and 1, and labels [N] from 0 to 7.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (images,), generator=generator)
    directions = labels % _DIRECTIONS
    tints = _TINTS[labels // _DIRECTIONS]

    wobble = torch.randn(images, generator=generator)
    angles = directions * (math.pi / _DIRECTIONS) + 0.15 * wobble
    grey = _draw_stripes(angles, generator)

    cast = torch.randn(images, 3, generator=generator)
    tints = tints + 0.15 * cast
    noise = torch.randn(images, 3, SIZE, SIZE, generator=generator)
    return grey[:, None] * tints[:, :, None, None] + _NOISE * noise, labels


def _draw_stripes(angles: Tensor, generator: torch.Generator) -> Tensor:
    """Draw grey stripes [N, 12, 12] of these angles [N]; frequency, phase, contrast and brightness are random."""

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(angles), 1, 1, generator=generator)

    frequency = draw(0.18, 0.26)
    phase = draw(0, 2 * math.pi)
    contrast = draw(0.4, 0.8)
    brightness = draw(0.3, 0.7)

    at = torch.arange(SIZE) - (SIZE - 1) / 2
    y, x = torch.meshgrid(at, at, indexing="ij")
    cosine = angles.cos().view(-1, 1, 1)
    sine = angles.sin().view(-1, 1, 1)
    across = x * cosine + y * sine
    stripes = torch.sin(2 * math.pi * frequency * across + phase)
    return brightness + contrast / 2 * stripes
