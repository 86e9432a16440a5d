"""The images that the doctor is shown, drawn once for each file of tests."""

from __future__ import annotations

import pytest
from torch import Tensor

from tests.doctor.networks import Batch, list_images, make_batches


@pytest.fixture(scope="module")
def batches() -> list[Batch]:
    return make_batches(24)


@pytest.fixture(scope="module")
def images(batches: list[Batch]) -> list[Tensor]:
    return list_images(batches)
