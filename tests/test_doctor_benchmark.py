"""The benchmark of doctors: its scorer, what it asks, and the networks that it loads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.doctor_benchmark import reports
from benchmarks.doctor_benchmark.__main__ import main
from benchmarks.doctor_benchmark.parts import NETWORKS
from benchmarks.doctor_benchmark.problem import Answer, Given, Problem
from benchmarks.doctor_benchmark.scoring import ask, compute_interval, grade
from bnlab.doctor import CAUSES


def give() -> Given:
    return Given(nn.Identity(), [torch.zeros(1)], {"expected": 0.9}, {"before": "earlier"})


BROKEN = Problem("part", "a fault", "a network", give, ("averages",), ("BN002", "BN106"))
HARMLESS = Problem("part", "a fault", "a network", give, ("healthy",), ("BN110",))
WITHOUT_FAULT = Problem("part", "none", "a network", give, ("healthy",), ())


@pytest.mark.parametrize(
    ("problem", "answer", "is_strict", "is_lenient"),
    [
        (BROKEN, Answer("averages", ["BN106", "BN108"]), True, True),
        (BROKEN, Answer("averages", ["BN108", "BN106"]), False, True),
        (BROKEN, Answer("averages"), False, True),
        (BROKEN, Answer("images", ["BN002"]), False, True),
        (BROKEN, Answer("healthy", [], ["BN002"]), False, True),
        (BROKEN, Answer(None, ["BN209"]), False, False),
        (HARMLESS, Answer("healthy", [], ["BN201", "BN110"]), True, True),
        (HARMLESS, Answer("healthy", ["BN209"], ["BN110"]), False, True),
        (WITHOUT_FAULT, Answer("healthy", [], ["BN201"]), True, True),
        (WITHOUT_FAULT, Answer("healthy", ["BN201"]), False, False),
        (WITHOUT_FAULT, Answer("undecided"), False, False),
    ],
)
def test_an_answer_is_graded_strictly_and_leniently(
    problem: Problem, answer: Answer, is_strict: bool, is_lenient: bool
) -> None:
    row = grade(problem, answer)

    assert (row.is_strict, row.is_lenient) == (is_strict, is_lenient)


def test_a_tool_is_given_what_it_asks_for_once() -> None:
    calls: list[dict[str, Any]] = []

    def tool(model: nn.Module, batches: Sequence[Any], **arguments: Any) -> Answer:
        calls.append(arguments)
        return Answer("undecided", asks=["before", "trace"])

    ask(BROKEN, tool)

    assert calls == [{"expected": 0.9}, {"expected": 0.9, "before": "earlier"}]


def test_each_network_counts_once_in_an_interval() -> None:
    """Two networks, of which one is right in one of three problems and one in all: (1/3 + 1)/2."""
    rows = [("a", True), ("a", False), ("a", False), ("b", True), ("b", True)]

    share, low, high = compute_interval(rows)

    assert share == pytest.approx(2 / 3)
    # Wilson's ends solve (p - share)² = z² p (1 - p) / n.
    for end in (low, high):
        assert (end - share) ** 2 == pytest.approx(1.96**2 * end * (1 - end) / 2)
    assert low < share < high


def test_an_interval_of_networks_that_are_all_right_is_not_certain() -> None:
    share, low, high = compute_interval([(str(number), True) for number in range(4)])

    assert (share, high) == (1.0, 1.0)
    assert low == pytest.approx(1 / (1 + 1.96**2 / 4))
    assert not math.isclose(low, 1.0)


def test_thirty_reports_expect_causes_that_there_are() -> None:
    problems = reports.REPORTS
    codes = {cause.code for cause in CAUSES}

    parts = (reports.FIRST, reports.SECOND, reports.EXAM, reports.HEALTHY)
    assert [sum(problem.part == part for problem in problems) for part in parts] == [10, 10, 10, 2]
    assert len({(problem.part, problem.name) for problem in problems}) == len(problems)
    assert all({*problem.codes} <= codes for problem in problems)
    assert all(bool(problem.remedy) != problem.is_healthy for problem in problems)


def test_networks_of_reports_are_committed_and_small() -> None:
    assert not NETWORKS.trains
    assert sum(path.stat().st_size for path in NETWORKS.folder.iterdir()) <= 1_000_000


@pytest.mark.parametrize("word", ["mxnet", "transformers#43520", "OpenNMT"])
def test_a_report_is_worse_than_it_should_be(word: str) -> None:
    """By plain PyTorch: what it should be comes first."""
    (problem,) = [problem for problem in reports.REPORTS if word in problem.name]

    scores = problem.make().scores
    found = scores["as it is"]

    assert found < next(iter(scores.values())) - 0.02


def test_another_tool_is_scored(capsys: pytest.CaptureFixture[str]) -> None:
    main(["transformers", "--tool", "benchmarks.doctor_benchmark.rule:ask_rule"])

    *_, row = capsys.readouterr().out.splitlines()
    part, networks, strict, lenient = [cell.strip() for cell in row.split("|")[1:-1]]
    assert (part, networks) == (reports.FIRST, "1")
    assert strict == lenient == "1 of 1; 100% [21, 100]"
