"""What is said about a value that is out of range."""

import math

import pytest

from bnlab.harness.checks import require_within
from bnlab.harness.errors import UserError


@pytest.mark.parametrize(
    ("high", "message"),
    [
        (2000, "data.images=3: must be 10 to 2,000 (all)"),
        (math.inf, "data.images=3: must be 10 or more (all)"),
        (4, "data.images=3: must be at least 10, but at most 4 is possible (all)"),
    ],
)
def test_a_range_goes_from_low_to_high(high: float, message: str) -> None:
    with pytest.raises(UserError) as caught:
        require_within("data.images", 3, 10, high, "all")
    assert str(caught.value) == message
