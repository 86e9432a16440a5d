"""The tests elsewhere: which variants there are, and by how much weights are nudged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.gallery.planters import NETWORKS as GALLERY
from bnlab.commands.demo.specimen import NETWORKS as DEMO
from tests.doctor.digits import NETWORKS as DIGITS
from tests.elsewhere.__main__ import VARIANTS, NotHere, Place, Variant, choose_next, main
from tests.elsewhere.nudge import nudge

ROOT = Path(__file__).parents[1]


def test_a_nudge_is_of_a_millionth_and_the_same_each_time() -> None:
    weights = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    weights[0] = 0

    nudged = nudge(weights, seed=1)

    change = ((nudged - weights) / weights.abs().clamp(min=1e-30)).abs()
    assert 2e-7 < change.mean() < 1e-6  # at most 15 of 2²³ parts, and half of that on average
    assert change.max() <= 15 * 2**-23
    assert torch.equal(nudged, nudge(nudged, seed=1))
    assert not torch.equal(nudged, nudge(weights, seed=2))
    assert not nudged[0].any()


@pytest.mark.parametrize("values", [torch.randn(8), torch.randn(8, 8).double()])
def test_biases_and_other_types_are_not_nudged(values: torch.Tensor) -> None:
    assert torch.equal(nudge(values, seed=1), values)


@pytest.mark.slow
def test_processes_that_tests_start_are_nudged_as_well() -> None:
    program = (
        "import torch; values = torch.arange(1.0, 65.0).view(8, 8); weight = torch.nn.Parameter(values.clone());"
        "torch.optim.SGD([weight], 0.1); print(bool((weight == values).all()))"
    )
    site = ROOT / "tests/elsewhere/site"
    environment = {"PYTHONPATH": f"{site}:{ROOT}", "BNLAB_NUDGE": "1", "PATH": "/usr/bin:/bin"}

    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True)

    assert done.stdout.split() == [b"False"]


def test_an_unknown_variant_is_refused_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["moon"]) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert "'moon'" in line and "folder" in line


def test_a_variant_that_cannot_be_had_is_not_called_passed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> Place:
        raise NotHere("there is no such user")

    monkeypatch.setitem(VARIANTS, "user", Variant("another user", enter=refuse))  # type: ignore[arg-type]

    assert main(["user"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "Elsewhere, user: not run, as there is no such user"


def test_commits_take_the_variants_in_turn() -> None:
    assert choose_next() in VARIANTS


def test_committed_networks_are_few_and_small() -> None:
    files = [path for networks in (DEMO, GALLERY, DIGITS) for path in networks.folder.iterdir()]

    assert sum(path.stat().st_size for path in files) <= 2_000_000
    assert len([path for path in files if ".trace" not in path.suffixes]) <= 26


def test_a_network_that_is_not_there_is_not_trained_by_itself() -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors: no such network; in a clone, `make networks`"):
        GALLERY.recall("nowhere", nn.Linear(1, 1), lambda: None)
