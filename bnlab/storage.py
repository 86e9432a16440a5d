"""Tensors in safetensors files with a checksum, which say when they are damaged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bnlab.files import OtherVersion, digest, write_whole


def save_tensors(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    kind: str,
    metadata: Mapping[str, str],
    about: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file whose metadata tells its `kind` and the SHA-256 of its contents.

    Args:
        about: more metadata, by which `load_tensors` tells the file from a copy of another one.

    Raises:
        ValueError: `about` has a key that the file has by itself.
        OSError: it cannot be written.
    """
    about = about or {}
    if taken := sorted({*metadata, "format", "sha256"} & {*about}):
        raise ValueError(f"about: the file has {', '.join(taken)} by itself; choose other keys")
    # Copies: safetensors refuses tensors that share memory.
    whole = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    described = {**metadata, **about, "format": kind}
    described["sha256"] = _digest(whole, described)
    write_whole(path, lambda beside: _save_file(whole, beside, described))


def _save_file(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:  # a full disk, say
        raise OSError(f"{path}: {error}") from error


def load_tensors(
    path: str | Path, *kinds: str, about: Mapping[str, str] | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file that `save_tensors` wrote as one of `kinds`.

    Args:
        about: what the file must say of itself, unless it does not have the key, as earlier files.

    Raises:
        FileNotFoundError: there is no such file; OSError: it cannot be read.
        ValueError: it is damaged, of another kind or about another thing.
        OtherVersion: it is of this kind, in the format of another version.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"no such file: {path}")
    if Path(path).is_dir():
        raise ValueError(f"{path}: is a folder, expected a file")
    with Path(path).open("rb"):  # a file that cannot be read is not damaged
        pass
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
    for key, expected in (about or {}).items():
        if metadata.get(key, expected) != expected:
            raise ValueError(f"{path}: is of {key} {metadata[key]}, expected {expected}")
    return tensors, metadata


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    parts: list[str | memoryview] = [repr(sorted(metadata.items()))]
    for name in sorted(tensors):
        tensor = tensors[name]
        parts.append(f"{name} {tensor.dtype} {tuple(tensor.shape)}")
        if tensor.numel():
            parts.append(tensor.flatten().view(torch.uint8).numpy().data)
    return digest(*parts)
