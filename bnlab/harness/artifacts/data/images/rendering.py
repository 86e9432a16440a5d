"""Glyph images made on the spot: as many as one likes, in fonts that can be kept apart."""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from bnlab.harness.artifacts.data.fonts import CLASSES, FONTS, SIZE

# Amounts by which images are distorted; lengths are in half image widths, grey levels in 0-1. Of a 32-64-128 net
# test accuracy is 67% after one epoch of 20,000 images (36 classes, batches of 64, torch 2.13), and 92% after two.
_ROTATION = 0.12  # standard deviation, radians
_SHEAR = 0.10  # standard deviation
_SCALE = 0.10  # standard deviation of the logarithm
_SHIFT = 0.08  # standard deviation
_ELASTIC = 0.03  # standard deviation at 5 × 5 knots
_CONTRAST = 0.40  # least difference between ink and paper
_LIGHTING = 0.05  # standard deviation of the paper at 4 × 4 knots
_CLUTTER = 0.4  # share of the ink in pieces of a second glyph
_NOISE = 0.05  # standard deviation per pixel

_CANVAS = 48  # pixels of an atlas cell: more than SIZE, so that a magnified glyph stays sharp
_CHUNK = 1_000


def glyphs(images: int, classes: int, fonts: str, seed: int) -> tuple[Tensor, Tensor]:
    """Draw uint8 images [images, 1, 32, 32] and int64 labels [images], the same for the same arguments.

    Image i does not depend on how many are asked for. Across machines and versions of torch a pixel may differ by a
    rounding.
    """
    generator = torch.Generator().manual_seed(seed)
    characters = CLASSES[classes]
    atlas = _draw_atlas(fonts, characters)

    pixels = []
    labels = []
    # The last chunk is drawn whole, too, and cut off: in a smaller one the same generator would draw other images.
    for _ in range(0, images, _CHUNK):
        drawn, drawn_labels = _draw_chunk(atlas, generator)
        pixels.append(drawn)
        labels.append(drawn_labels)
    return torch.cat(pixels)[:images], torch.cat(labels)[:images]


def _draw_chunk(atlas: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw a chunk of images [_CHUNK, 1, SIZE, SIZE] with labels, from an atlas [font, character, cell, cell]."""
    fonts, characters = atlas.shape[:2]
    # The order of all draws decides on the images: with another one, no network that exists could be
    # measured, because the images that it was trained on could not be made again.
    drawn_fonts = torch.randint(fonts, (_CHUNK,), generator=generator)
    labels = torch.randint(characters, (_CHUNK,), generator=generator)
    cells = atlas[drawn_fonts, labels].unsqueeze(1)

    ink = _distort(cells, generator)
    # The second glyph is that of the image before in the chunk.
    neighbors = _push_out(cells.roll(1, 0), generator)
    ink = torch.maximum(ink, _CLUTTER * neighbors)

    brightness = _put_on_paper(ink, generator)
    pixels = brightness.mul_(255).round_().clamp_(0, 255)
    return pixels.to(torch.uint8), labels


def _distort(cells: Tensor, generator: torch.Generator) -> Tensor:
    """Turn, shear, scale, shift and bend glyphs: ink in 0-1, [_CHUNK, 1, SIZE, SIZE]."""
    turns = _draw_normal(generator, 4)
    shifts = _draw_normal(generator, 2) * _SHIFT
    grid = _make_grid(turns, shifts)

    bend = _draw_smooth(generator, 2, 5, _ELASTIC)
    bent_grid = grid + bend.permute(0, 2, 3, 1)
    return F.grid_sample(cells, bent_grid, align_corners=False)


def _push_out(cells: Tensor, generator: torch.Generator) -> Tensor:
    """Push glyphs out of their images by 1.1 to 1.5 half widths in any direction, so that pieces of them are left."""
    angle = _draw_uniform(generator, 0, 2 * torch.pi).view(-1, 1)
    distance = _draw_uniform(generator, 1.1, 1.5).view(-1, 1)
    direction = torch.cat([angle.cos(), angle.sin()], dim=1)
    shifts = direction * distance

    turns = _draw_normal(generator, 4)
    grid = _make_grid(turns, shifts)
    return F.grid_sample(cells, grid, align_corners=False)


def _put_on_paper(ink: Tensor, generator: torch.Generator) -> Tensor:
    """Add paper, contrast, lighting and noise: pixels from about 0 to 1."""
    contrast = _draw_uniform(generator, _CONTRAST, 1)
    # Ink is brighter than paper by the contrast, and has to stay below 1.
    paper = _draw_uniform(generator, 0, 1) * (1 - contrast)
    lighting = _draw_smooth(generator, 1, 4, _LIGHTING)
    noise = _draw_normal(generator, 1, SIZE, SIZE) * _NOISE
    return paper + contrast * ink + lighting + noise


def _draw_normal(generator: torch.Generator, *shape: int) -> Tensor:
    """Draw standard normal numbers [_CHUNK, *shape]."""
    return torch.randn(_CHUNK, *shape, generator=generator)


def _draw_uniform(generator: torch.Generator, low: float, high: float) -> Tensor:
    """Draw uniform numbers [_CHUNK, 1, 1, 1]."""
    return low + (high - low) * torch.rand(_CHUNK, 1, 1, 1, generator=generator)


def _draw_smooth(generator: torch.Generator, channels: int, knots: int, deviation: float) -> Tensor:
    """Draw smooth fields [_CHUNK, channels, SIZE, SIZE] between knots of this standard deviation."""
    values = _draw_normal(generator, channels, knots, knots) * deviation
    return F.interpolate(values, SIZE, mode="bicubic", align_corners=True)


def _make_grid(turns: Tensor, shifts: Tensor) -> Tensor:
    """Map pixels to places in cells, [N, SIZE, SIZE, 2], by normal numbers [N, 4] and the glyphs' shifts [N, 2]."""
    for_angle, for_shear, for_width, for_height = turns.unbind(1)
    angle = for_angle * _ROTATION
    shear = for_shear * _SHEAR
    wide = torch.exp(for_width * _SCALE)
    high = torch.exp(for_height * _SCALE)

    cos = angle.cos()
    sin = angle.sin()
    across = shear * cos - sin
    down = shear * sin + cos
    top = torch.stack([wide * cos, wide * across], dim=1)
    bottom = torch.stack([high * sin, high * down], dim=1)
    linear = torch.stack([top, bottom], dim=1)

    # A grid says from where in the cell each pixel is taken, so that a glyph moves the other way.
    offset = -linear @ shifts.unsqueeze(2)
    maps = torch.cat([linear, offset], dim=2)
    shape = [len(maps), 1, SIZE, SIZE]
    return F.affine_grid(maps, shape, align_corners=False)


@cache
def _draw_atlas(fonts: str, characters: str) -> Tensor:
    """Draw every character in every font: ink in 0-1, [font, character, cell, cell]."""
    cells = []
    for name in FONTS[fonts]:
        font = _load_font(name)
        cells.append([_draw_cell(font, character) for character in characters])
    return torch.from_numpy(np.stack(cells))


def _load_font(name: str) -> ImageFont.FreeTypeFont:
    """Load a font in the size at which its capitals are 60% of the cell high."""
    from matplotlib import get_data_path  # here: slow to import

    path = Path(get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    # Capitals fill a different share of the size in each font, so that a trial has to tell their height.
    trial_size = 100
    trial = ImageFont.truetype(path, trial_size)
    _, top, _, _ = trial.getbbox("H", anchor="ls")

    height = -top
    size = trial_size * 0.6 * _CANVAS / height
    return ImageFont.truetype(path, size)


def _draw_cell(font: ImageFont.FreeTypeFont, character: str) -> np.ndarray:
    """Draw a character, centered across, on the baseline that all share."""
    image = Image.new("L", (_CANVAS, _CANVAS))
    left, _, right, _ = font.getbbox(character, anchor="ls")
    middle = (left + right) / 2
    # Capitals are 60% of the cell high: 14% are left above them, and 26% below for descenders.
    baseline = 0.74 * _CANVAS
    position = (_CANVAS / 2 - middle, baseline)

    pen = ImageDraw.Draw(image)
    pen.text(position, character, fill=255, font=font, anchor="ls")
    ink = np.asarray(image, dtype=np.float32)
    return ink / 255
