"""Data: the training and the test part, each images [N, C, H, W] and labels [N, ...]."""

import numpy as np

Part = tuple[np.ndarray, np.ndarray]


def make_discs(count: int = 1000, size: int = 16, noise: float = 0.2) -> tuple[Part, Part]:
    """Draw discs; a label is the radius of its disc. All arguments are settings, as data.noise.

    Data sets of torchvision, as ImageFolder, may be returned in place of arrays.
    """
    draw = np.random.default_rng(0)
    radii = draw.uniform(1, size / 2, count)
    rows, columns = np.mgrid[:size, :size] - (size - 1) / 2
    is_inside = rows**2 + columns**2 < radii[:, None, None] ** 2
    images = is_inside[:, None] + draw.normal(0, noise, (count, 1, size, size))
    tests = count // 5
    return (images[tests:], radii[tests:]), (images[:tests], radii[:tests])
