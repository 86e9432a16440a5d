"""One torch thread in every test process, one small trained network for all tests that only read, and two options."""

import os
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock

from benchmarks.gallery import planters
from bnlab.commands.demo import specimen
from tests.doctor import digits
from tests.elsewhere import nudge
from tests.helpers import SMALL, Config, Run, plan_network, torchvision, train_network

collect_ignore = ["elsewhere/site"]  # which Python imports by itself, with --nudge alone

# Tensors are small, and threads without idle cores wait for each other; also of the commands that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--train-networks",
        action="store_true",
        help="train and write the networks of the doctor's gallery and tests that are not in their folders",
    )
    parser.addoption(
        "--nudge",
        metavar="SEED",
        type=int,
        help="change weights by a relative 1e-6 where an optimizer begins or a committed network is loaded",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("numprocesses", None):
        # The process that others report to imports packages whose warnings it shows, and these import torchvision.
        torchvision()

    seed = config.getoption("nudge")
    if seed is not None:
        root = Path(__file__).parents[1]
        os.environ["BNLAB_NUDGE"] = str(seed)
        os.environ["PYTHONPATH"] = os.pathsep.join([str(root / "tests/elsewhere/site"), str(root)])
        nudge.install(seed)

    if config.getoption("train_networks"):
        for networks in (specimen.NETWORKS, planters.NETWORKS, digits.NETWORKS):
            networks.trains = True


def small_config(results: Path, *words: str, **changes: Any) -> Config:
    """A small convolutional network on 360 digits, 40 updates in batches of 32, with further words or other values."""
    small = [f"{key}={value}" for key, value in SMALL.items()]
    config = plan_network(*small, *words, f"results={results}").config
    return replace(config, **changes)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The network of `small_config`, finished; one training for all processes. Not to be changed: copy its results."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    run = Run(small_config(shared / "trained"))
    with FileLock(shared / "trained.lock"):
        train_network(run)
    return run


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """A test draws the same numbers whichever tests ran before it in its process, which parallel runs do not fix."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def copied(trained: Run, tmp_path: Path) -> Config:
    """The configuration of a copy of that network, in a results folder of its own."""
    results = shutil.copytree(trained.config.results, tmp_path / "copied", ignore=shutil.ignore_patterns("*.lock"))
    return replace(trained.config, results=str(results))
