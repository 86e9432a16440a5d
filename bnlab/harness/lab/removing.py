"""Removing a trained network from the disk, unless it is being trained."""

from __future__ import annotations

import shutil
from pathlib import Path

from filelock import FileLock, Timeout

from bnlab.harness.errors import UserError


def remove_network(folder: Path, keeps_rows: bool) -> None:
    """Remove a network; `keeps_rows`: not its measured rows, which the tables of sweeps have.

    UserError while it is trained.
    """
    run = f"{folder.parent.name}/{folder.name}"
    if not folder.exists():
        return
    try:
        # The file is that of `Run.lock`. Making a Run would mean to import torch.
        with FileLock(folder.with_name(f"{folder.name}.lock")).acquire(timeout=0):
            before = measure_size(folder)
            (folder / "status.json").unlink(missing_ok=True)  # first: what a kill leaves is no whole run
            for path in folder.iterdir():
                if path.is_file():
                    path.unlink()
                elif path.name != "measurements":
                    shutil.rmtree(path)
            # Tables look for rows under the network's own name, and never in a folder that was set aside.
            if ".damaged" in folder.name or not keeps_rows:
                shutil.rmtree(folder)
            has_rows = (folder / "measurements").exists()
            freed = before - measure_size(folder)
    except Timeout as error:
        raise UserError(
            f"{run}: is being trained or measured; neither it nor what comes after it was removed"
        ) from error
    kept = "; its measured rows stay, for the tables of sweeps that have them" if has_rows else ""
    print(f"removed {run} ({freed:.1f} MB){kept}")


def measure_size(path: Path) -> float:
    """Measure a file, or all files of a folder, in MB."""
    files = [path, *path.rglob("*")]
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6
