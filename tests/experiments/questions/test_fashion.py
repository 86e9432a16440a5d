"""The images of Fashion-MNIST, read from their four files."""

from __future__ import annotations

from pathlib import Path

from experiments.questions.fashion.images import read_fashion_mnist
from tests.helpers import write_fashion


def test_the_files_of_fashion_mnist(tmp_path: Path) -> None:
    write_fashion(tmp_path, 20, 10)

    (images, labels), (test_images, test_labels) = read_fashion_mnist(str(tmp_path))

    assert images.shape == (20, 1, 28, 28)
    assert images[:, 0, 0, 0].tolist() == [*range(20)]
    assert labels.tolist() == [*range(10), *range(10)]
    assert len(test_images) == len(test_labels) == 10
