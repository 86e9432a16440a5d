"""Tensors in safetensors files that say what they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bnlab.common.files import Unreadable, find_error_number, reading, write_whole


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], kind: str, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file whose metadata has its `kind`; OSError if it cannot be written."""
    # Copies: safetensors refuses tensors that share memory.
    copies = {}
    for name, tensor in tensors.items():
        on_cpu = tensor.detach().to("cpu", copy=True)
        # safetensors refuses tensors that are not contiguous, too.
        copies[name] = on_cpu.contiguous()
    labelled = {**metadata, "format": kind}

    def write(beside: Path) -> None:
        try:
            save_file(copies, beside, labelled)
        except SafetensorError as error:  # a full disk, say: "I/O error: … (os error 28)"
            number = find_error_number(error)
            if number is None:
                raise OSError(f"{path}: {error}") from error
            raise OSError(number, str(error)) from error

    write_whole(path, write)


def load_tensors(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and metadata of a file that `save_tensors` wrote as one of this kind.

    Raises:
        FileNotFoundError: there is no such file; OSError: it may not be read.
        Unreadable: it is damaged, of another kind, or in the format of another version.
    """
    with Path(path).open("rb"):  # a file that is missing or may not be read is not damaged
        pass

    with reading(path), safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata() or {})
        # The open file is not a mapping: it has keys(), but cannot be iterated over.
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118

    found = metadata.get("format", "none")
    if found != kind:
        raise Unreadable(f"{path}: expected format {kind!r}, found {found!r}")
    return tensors, metadata
