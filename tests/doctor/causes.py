"""Causes of a user's own, for tests."""

from __future__ import annotations

from bnlab.doctor import Cause


class Planted(Cause):
    """Finds nothing.

    A false alarm never.
    """

    code = "OWN1"
    title = "planted"
    meaning = "It was planted."
    remedy = "Take it out."
