"""Exact statistics over the processes that `torchrun` starts: of all their images, however these are shared out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Shares of both ranks, by numbers of batches: of other sizes, of other numbers, and none.
SCRIPT = """
import torch.distributed as dist
from bnlab import population_statistics
from bnlab.moments import compare_moments
from tests.helpers import images, residual

dist.init_process_group("gloo")
rank = dist.get_rank()
data = images(8, 3, 5, 7, 4, 6, 2)
shares = {"4 and 3": data[rank::2], "2 and 5": data[2:] if rank else data[:2], "0 and 7": data if rank else []}
ways = ({}, {"memory": "60KB"}, {"upstream": "batch"}, {"strategy": "layerwise"})
for options in ways:
    whole = population_statistics(residual(), data, **options)
    for name, share in shares.items():
        found = population_statistics(residual(), share, group=dist.group.WORLD, **options)
        assert list(found) == list(whole), (name, options)
        off = max(max(compare_moments(whole[layer], found[layer])) for layer in whole)
        assert off < 1e-6, (name, options, off)
        assert found.cost.images == sum(map(len, share))
        if "memory" in options and len(share) > 4:
            assert found.cost.forwards > found.cost.batches, found.cost
dist.destroy_process_group()
print(f"rank {rank} is fine")
"""


@pytest.mark.slow
def test_ranks_with_other_numbers_of_batches_measure_what_one_process_does(tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(SCRIPT)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]

    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)

    assert done.returncode == 0, done.stderr
    for rank in (0, 1):  # lines of two processes may run into each other
        assert f"rank {rank} is fine" in done.stdout
