"""The benchmarks themselves, without measuring anything."""

from __future__ import annotations

import pytest
import torch

from benchmarks import scale
from benchmarks.doctor_networks import Cost, Training
from benchmarks.doctor_rates import Outcome, examine, names_cause, write_page, write_share
from benchmarks.timing import HEADING, Result
from bnlab import population_statistics
from bnlab.doctor.scores import Scores
from bnlab.harness.artifacts.data import OwnData


def test_the_data_of_the_timed_training_can_be_read() -> None:
    data = OwnData(name="benchmarks.training.make_images", shift=4, flip=True)

    assert data.count_used() == 6000


@pytest.mark.parametrize(("limit", "expected"), [(None, ""), (1.0, "1 ✗"), (2.0, "2")])
def test_a_row_has_its_ratio_and_marks_what_is_above_the_limit(limit: float | None, expected: str) -> None:
    result = Result("training", "bnlab", 3.0, "plain loop", 2.0, limit, "n = 1")

    row = result.write_row()

    assert row == f"| training | bnlab | 3 | plain loop | 2 | 1.500 | {expected} | n = 1 |"
    assert row.count("|") == HEADING.splitlines()[0].count("|")


def make_result(gained: int, lost: int, found: tuple[str, ...]) -> Outcome:
    """Make the result of a network that names 50 of 1,000 images rightly, as many more as `gained` under exact
    statistics and as many fewer as `lost`; all of it is due to lag.
    """
    running = torch.zeros(1_000, dtype=torch.float64)
    running[:50] = 1
    exact = running.clone()
    exact[:lost] = 0
    exact[50 : 50 + gained] = 1
    cost = Cost(Scores({"running": running, "exact": exact}, True), {"start": 0.0, "noise": 0.0, "lag": 0.02})
    gain = cost.scores.compare("exact", "running")
    return Outcome(Training(0, "patterns", 0.1, 64, False), cost, gain, found, found)


@pytest.mark.parametrize(
    ("gained", "lost", "kind"), [(0, 0, "harmless"), (20, 15, "harmless"), (20, 10, "unclear"), (20, 0, "costly")]
)
def test_a_network_is_costly_where_more_than_half_a_point_is_sure(gained: int, lost: int, kind: str) -> None:
    assert make_result(gained, lost, ()).kind == kind


def test_rates_count_false_alarms_hits_and_causes() -> None:
    results = [
        make_result(0, 0, ()),
        make_result(0, 0, ("BN202",)),
        make_result(20, 0, ("BN108",)),
        make_result(20, 0, ("BN101",)),
        make_result(20, 10, ("BN202",)),
    ]

    lines = write_page(results).splitlines()

    (rates,) = [line for line in lines if line.startswith("| test images |")]
    assert [cell.split(" [")[0].strip() for cell in rates.split("|")[2:5]] == ["1 of 2", "2 of 2", "1 of 2"]
    assert "Codes that were false alarms, by number of networks: BN202 of 1." in lines
    assert names_cause(results[2].cost, ("BN101", "BN108"))


def test_the_interval_of_a_share_is_wilsons() -> None:
    assert write_share([True] * 3) == "3 of 3 [44%, 100%]"  # 3 / (3 + 1.96²) = .438
    assert write_share([False] * 10) == "0 of 10 [0%, 28%]"
    assert write_share([]) == "0 of 0"


@pytest.mark.parametrize("memory", [2_000_000, 3_000_000, 5_000_000])
def test_the_model_of_exact_statistics_knows_how_many_forwards_are_begun(memory: int) -> None:
    model = scale.build_resnet20()
    expected = scale.compute_cost(scale.describe(model, 32), images=32, batch=4, memory=memory).begun

    cost = population_statistics(model.eval(), list(torch.randn(32, 3, 32, 32).split(4)), memory=memory).cost

    assert cost is not None
    assert 1 < expected < 20
    assert cost.forwards == pytest.approx(expected * cost.batches)


@pytest.mark.parametrize("name", list(scale.TABLES))
def test_the_page_on_scale_has_what_its_model_says(name: str) -> None:
    page = scale.PAGE.read_text(encoding="utf-8")

    lines = list(scale.TABLES[name]())

    assert len(lines) > 4
    assert scale.replace_table(page, name, lines) == page, "run: python -m benchmarks.scale"


@pytest.mark.slow
def test_the_doctor_names_the_lag_of_a_small_momentum_at_a_constant_rate() -> None:
    result = examine(Training(10, "patterns", momentum=0.01, batch_size=64, is_constant=True))

    assert result.kind == "costly"
    assert result.cost.cause == "lag"
    assert "BN108" in result.alone
