"""Tensors in safetensors files that say what they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bnlab.files import OtherVersion, write_whole


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], kind: str, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file whose metadata has its `kind`; OSError if it cannot be written."""
    # Copies: safetensors refuses tensors that share memory.
    whole = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}

    def write(beside: Path) -> None:
        try:
            save_file(whole, beside, {**metadata, "format": kind})
        except SafetensorError as error:  # a full disk, say
            raise OSError(f"{beside}: {error}") from error

    write_whole(path, write)


def load_tensors(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file that `save_tensors` wrote as one of this kind.

    Raises:
        FileNotFoundError: there is no such file; OSError: it cannot be read.
        ValueError: it is damaged or of another kind.
        OtherVersion: it is of this kind, in the format of another version.
    """
    if Path(path).is_dir():
        raise ValueError(f"{path}: is a folder, expected a file")
    with Path(path).open("rb"):  # a file that is missing or cannot be read is not damaged
        pass
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: damaged or not a safetensors file ({error})") from error
    found = metadata.get("format", "none")
    if found != kind:
        same_kind = found.rpartition("/")[0] == kind.rpartition("/")[0]
        raise (OtherVersion if same_kind else ValueError)(f"{path}: expected format {kind!r}, found {found!r}")
    return tensors, metadata
