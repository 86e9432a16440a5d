"""The images of Fashion-MNIST (Xiao, Rasul & Vollgraf 2017, arXiv 1708.07747) as they were published.

Either of these lines fetches the four files, and the word behind it says where they are then:

    apt-get install dataset-fashion-mnist                                    data.root=/usr/share/datasets/fashion-mnist
    python -c "from torchvision.datasets import FashionMNIST as F; F('data', download=True)"
                                                                             data.root=data/FashionMNIST/raw
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

_HEADERS = {"images-idx3": 16, "labels-idx1": 8}  # bytes before the values


def read_fashion_mnist(root: str = "data/FashionMNIST/raw") -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Read the training and the test part: grey images [N, 1, 28, 28] of bytes, and labels."""
    parts = []
    for part in ("train", "t10k"):
        values = {}
        for kind, header in _HEADERS.items():
            content = gzip.decompress(Path(root, f"{part}-{kind}-ubyte.gz").read_bytes())
            values[kind] = np.frombuffer(content, np.uint8, offset=header)
        images = values["images-idx3"].reshape(-1, 1, 28, 28)
        # A copy, because torch warns of arrays that cannot be written.
        parts.append((images.copy(), values["labels-idx1"].astype(np.int64)))
    return tuple(parts)
