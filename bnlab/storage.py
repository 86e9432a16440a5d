"""Files that are there whole or not at all, and that say when they are damaged: safetensors with a checksum."""

from __future__ import annotations

import hashlib
import os
import sys
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


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


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], kind: str, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file whose metadata tells its `kind` and the SHA-256 of its contents."""
    # Copies: safetensors refuses tensors that share memory.
    whole = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    described = {**metadata, "format": kind}
    described["sha256"] = _digest(whole, described)
    write_whole(path, lambda beside: _save_file(whole, beside, described))


def _save_file(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:  # a full disk, say
        raise OSError(f"{path}: {error}") from error


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


def load_tensors(path: str | Path, *kinds: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file that `save_tensors` wrote as one of `kinds`.

    Raises:
        FileNotFoundError: there is no such file. ValueError: it is damaged or of another kind. OtherVersion: it is
            of this kind, in the format of another version.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: damaged or not a safetensors file ({error})") from error
    found = metadata.get("format", "none")
    if found not in kinds:
        same_kind = found.rpartition("/")[0] == kinds[0].rpartition("/")[0]
        raise (OtherVersion if same_kind else ValueError)(f"{path}: expected format {kinds[0]!r}, found {found!r}")
    if metadata.pop("sha256", "") != _digest(tensors, metadata):
        raise ValueError(f"{path}: damaged, its contents do not match their checksum")
    return tensors, metadata


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(repr(sorted(metadata.items())).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.numel():
            digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
