"""Files that are there whole or not at all, what is done with unreadable ones, and the digest of their contents."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import logging
import os
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

_LOG = logging.getLogger(__name__)
_UNREADABLE = (None, errno.ENOENT, errno.EISDIR)  # pyarrow raises OSError without a number where a file is damaged
# safetensors and torch report the system's error number in the text alone.
_NUMBER = re.compile(r"\(os error (\d+)\)|unable to mmap .*\((\d+)\)")


class Unreadable(ValueError):
    """A file that is missing, damaged or in the format of another version; what it held has to be made again."""


@contextlib.contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Whatever fails in the block is the fault of this file: `Unreadable`, which names it.

    A disk that fails, a file that may not be read and too little memory are no fault of its contents: OSError, or
    MemoryError.
    """
    try:
        yield
    except (Unreadable, MemoryError):
        raise
    except Exception as error:
        number = find_error_number(error)
        if number not in _UNREADABLE:
            raise OSError(number, " ".join(str(error).split()), str(path)) from error
        # The messages of parsers often have several lines; ours have one.
        raise Unreadable(f"{path}: cannot be read ({type(error).__name__}: {' '.join(str(error).split())})") from error


def find_error_number(error: Exception) -> int | None:
    """Find the number of the system's error, in the text if a library has put it there; None if it has none."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    match = _NUMBER.search(str(error))
    return int(match[match.lastindex or 0]) if match else None


def write_whole(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, then move it there in one step; a failure leaves what was there.

    OSError of the system, such as for a full disk, names `path`.
    """
    path = Path(path)
    # The file lies in the same folder, because only within one file system can it be moved in a single step. Its name
    # is random, because two processes may write the same file at once.
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(beside)
        # The contents must be on the disk before the file gets its name. Otherwise a power failure could leave an empty
        # file under that name.
        with beside.open("r+b") as file:  # Windows has no fsync of a file that is only read
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:  # of which many name no file
        # Libraries such as pyarrow raise an OSError without a number, and its text says everything already.
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
    finally:
        # There is nothing to remove once the file has been moved, or where its folder could not be made.
        with contextlib.suppress(OSError):
            beside.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file that is there whole, or not at all."""
    write_whole(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def quarantine(path: Path, reason: object, then: str) -> None:
    """Take an unreadable file, or a folder with one, out of the way, and log that."""
    # The number keeps earlier damaged files from being overwritten.
    names = (path.with_name(f"{path.name}.damaged-{number}") for number in itertools.count(1))
    aside = next(name for name in names if not name.exists())
    path.rename(aside)
    _LOG.warning(f"{reason}\n  set aside as {aside.name}; {then}")


def digest(*parts: str | bytes | memoryview, digits: int = 64) -> str:
    """The first hexadecimal digits of the SHA-256 of these parts, one after the other; text as UTF-8."""
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(part.encode() if isinstance(part, str) else part)
    return hashed.hexdigest()[:digits]
