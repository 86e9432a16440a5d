"""The images that the doctor is shown, drawn once for each file of tests."""

from __future__ import annotations

import pytest
from torch import Tensor

from tests.doctor.digits import Batches, draw_batches, list_images


@pytest.fixture(scope="module")
def batches() -> Batches:
    return draw_batches(24)


@pytest.fixture(scope="module")
def images(batches: Batches) -> list[Tensor]:
    return list_images(batches)
