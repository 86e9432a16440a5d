"""Glyph images made on the spot: as many and as hard as one likes, in fonts that can be kept apart."""

import string
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

CLASSES = {
    10: string.digits,
    36: string.digits + string.ascii_uppercase,
    62: string.digits + string.ascii_uppercase + string.ascii_lowercase,
}

_DEJAVU = tuple(
    f"DejaVu{family}{style}"
    for family, slanted in (("Sans", "Oblique"), ("SansMono", "Oblique"), ("Serif", "Italic"))
    for style in ("", "-Bold", f"-{slanted}", f"-Bold{slanted}")
)
# Of Computer Modern, cmmi10 (old-style figures), cmex10 and cmsy10 (symbols) do not show all the characters.
_STIX_CM = (
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
    *("cmr10", "cmb10", "cmti10", "cmss10", "cmtt10"),
)
FONTS = {"dejavu": _DEJAVU, "stix_cm": _STIX_CM, "all": _DEJAVU + _STIX_CM}


@dataclass(frozen=True)
class Difficulty:
    """How far images are distorted; lengths are in half image widths, grey levels in 0-1.

    Test accuracy, in percent, of a 32-64-128 net after 1 → 2 epochs of 20,000 images (36 classes, batches of
    64, torch 2.13): weak 92 → 98, medium 67 → 92, strong 32 → 59.
    """

    rotation: float  # standard deviation, radians
    shear: float  # standard deviation
    scale: float  # standard deviation of the logarithm
    shift: float  # standard deviation
    elastic: float  # standard deviation at 5 × 5 knots
    contrast: float  # least difference between ink and paper
    lighting: float  # standard deviation of the paper at 4 × 4 knots
    clutter: float  # share of the ink in pieces of a second glyph
    noise: float  # standard deviation per pixel


DIFFICULTIES = {
    "weak": Difficulty(0.08, 0.04, 0.06, 0.05, 0.02, 0.60, 0.02, 0.0, 0.03),
    "medium": Difficulty(0.12, 0.10, 0.10, 0.08, 0.03, 0.40, 0.05, 0.4, 0.05),
    "strong": Difficulty(0.20, 0.15, 0.15, 0.12, 0.05, 0.30, 0.08, 0.7, 0.09),
}

SIZE = 32
_CANVAS = 48  # pixels of an atlas cell: more than SIZE, so that a magnified glyph stays sharp
_CHUNK = 1_000


def glyphs(images: int, classes: int, difficulty: str, fonts: str, seed: int) -> tuple[Tensor, Tensor]:
    """uint8 images [images, 1, 32, 32] and int64 labels [images], the same for the same arguments.

    Image i does not depend on how many are asked for: whole chunks are drawn from one stream and cut. Across
    machines and versions of torch a pixel may differ by a rounding.
    """
    generator = torch.Generator().manual_seed(seed)
    atlas = _atlas(fonts, CLASSES[classes])
    level = DIFFICULTIES[difficulty]
    chunks = [_chunk(atlas, level, generator) for _ in range(-(-images // _CHUNK))]
    pixels, labels = (torch.cat(parts)[:images] for parts in zip(*chunks, strict=True))
    return pixels, labels


def _chunk(atlas: Tensor, level: Difficulty, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A chunk of images [_CHUNK, 1, SIZE, SIZE] with labels, from an atlas [font, character, cell, cell]."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(_CHUNK, *shape, generator=generator)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(_CHUNK, 1, 1, 1, generator=generator)

    fonts = torch.randint(len(atlas), (_CHUNK,), generator=generator)
    labels = torch.randint(atlas.shape[1], (_CHUNK,), generator=generator)
    cells = atlas[fonts, labels].unsqueeze(1)

    grid = F.affine_grid(_affine(normal(4), normal(2) * level.shift, level), [_CHUNK, 1, SIZE, SIZE], False)
    bend = F.interpolate(normal(2, 5, 5) * level.elastic, SIZE, mode="bicubic", align_corners=True)
    ink = F.grid_sample(cells, grid + bend.permute(0, 2, 3, 1), align_corners=False)

    if level.clutter:
        # A neighbour in the chunk, pushed out to 1.1–1.5 half widths in any direction.
        angle, away = uniform(0, 2 * torch.pi).view(-1, 1), uniform(1.1, 1.5).view(-1, 1)
        push = torch.cat([angle.cos(), angle.sin()], dim=1) * away
        grid = F.affine_grid(_affine(normal(4), push, level), [_CHUNK, 1, SIZE, SIZE], False)
        ink = torch.maximum(ink, level.clutter * F.grid_sample(cells.roll(1, 0), grid, align_corners=False))

    contrast = uniform(level.contrast, 1)
    paper = uniform(0, 1) * (1 - contrast)
    lighting = F.interpolate(normal(1, 4, 4) * level.lighting, SIZE, mode="bicubic", align_corners=True)
    pixels = paper + contrast * ink + lighting + normal(1, SIZE, SIZE) * level.noise
    return pixels.mul_(255).round_().clamp_(0, 255).to(torch.uint8), labels


def _affine(normal: Tensor, shift: Tensor, level: Difficulty) -> Tensor:
    """Maps [N, 2, 3] from image to atlas cell out of standard normal numbers [N, 4] and shifts [N, 2]."""
    angle = normal[:, 0] * level.rotation
    shear = normal[:, 1] * level.shear
    wide, high = (normal[:, 2:] * level.scale).exp().unbind(1)
    cos, sin = angle.cos(), angle.sin()
    rows = [wide * cos, wide * (shear * cos - sin), high * sin, high * (shear * sin + cos)]
    linear = torch.stack(rows, dim=1).view(-1, 2, 2)
    return torch.cat([linear, -linear @ shift.unsqueeze(2)], dim=2)


@cache
def _atlas(fonts: str, characters: str) -> Tensor:
    """Ink in 0-1, [font, character, cell, cell]: every character centred across, on one baseline."""
    from matplotlib import get_data_path  # here: slow to import
    from PIL import Image, ImageDraw, ImageFont

    def cell(font: ImageFont.FreeTypeFont, character: str) -> np.ndarray:
        image = Image.new("L", (_CANVAS, _CANVAS))
        left, _, right, _ = font.getbbox(character, anchor="ls")
        position = (_CANVAS / 2 - (left + right) / 2, 0.74 * _CANVAS)
        ImageDraw.Draw(image).text(position, character, fill=255, font=font, anchor="ls")
        return np.asarray(image, dtype=np.float32) / 255

    def font(name: str) -> ImageFont.FreeTypeFont:
        # Capitals of all fonts 60 % of the cell high.
        path = Path(get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
        trial = ImageFont.truetype(path, 100)
        height = -trial.getbbox("H", anchor="ls")[1]
        return ImageFont.truetype(path, 100 * 0.6 * _CANVAS / height)

    loaded = [font(name) for name in FONTS[fonts]]
    return torch.from_numpy(np.stack([[cell(f, character) for character in characters] for f in loaded]))
