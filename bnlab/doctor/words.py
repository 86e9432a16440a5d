"""Words of evidence."""

from __future__ import annotations


def count_things(count: int, thing: str) -> str:
    """Write a number of things: "1 update", "2,000 updates"."""
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"
