"""Files that are there whole or not at all, what is done with damaged ones, and the digest of their contents."""

from __future__ import annotations

import hashlib
import os
import sys
import uuid
from collections.abc import Callable
from pathlib import Path


class OtherVersion(ValueError):
    """A file that another version of bnlab wrote, in a format that this one does not read: foreign, not damaged."""


def write_whole(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, then move it there in one step; a failure leaves what was there."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        write(beside)
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def set_aside(path: Path, reason: object, then: str) -> None:
    """Take a file out of the way that is damaged, or as `OtherVersion` of another version, and say so.

    Where its folder cannot be written, only say so.
    """
    kind = "other-version" if isinstance(reason, OtherVersion) else "damaged"
    try:
        path.replace(path.with_name(f"{path.name}.{kind}"))
        print(f"{reason}\n  set aside; {then}", file=sys.stderr)
    except OSError as error:
        print(f"{reason}\n  left out, cannot be set aside ({error.strerror}); {then}", file=sys.stderr)


def digest(*parts: str | bytes | memoryview, digits: int = 64) -> str:
    """The first hexadecimal digits of the SHA-256 of these parts, one after the other; text as UTF-8."""
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(part.encode() if isinstance(part, str) else part)
    return hashed.hexdigest()[:digits]
