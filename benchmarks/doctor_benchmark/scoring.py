"""How answers are scored: strictly and leniently, with intervals over networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.doctor_benchmark.problem import Answer, Problem, Tool

_Z = 1.96  # of an interval of 95%


@dataclass(frozen=True)
class Row:
    """A problem with the last answer of a tool.

    Attributes:
        part, name, network: those of the problem.
        expected: verdicts and codes that are right.
        verdict, causes, notes: the tool's.
        is_strict: whether verdict and first cause are right; of a healthy network, whether there was no alarm.
        is_lenient: whether the verdict is right, or one of all codes.
    """

    part: str
    name: str
    network: str
    expected: str
    verdict: str
    causes: str
    notes: str
    is_strict: bool
    is_lenient: bool


def ask(problem: Problem, tool: Tool) -> Answer:
    """Ask a tool once, and once more with what its answer asks for, as far as it can be given."""
    given = problem.make()
    answer = tool(given.model, given.batches, **given.arguments)
    requested = {name: given.on_request[name] for name in answer.asks if name in given.on_request}
    if not requested:
        return answer
    return tool(given.model, given.batches, **given.arguments, **requested)


def grade(problem: Problem, answer: Answer) -> Row:
    """Grade a tool's last answer."""
    is_right = answer.verdict in problem.verdicts
    if problem.is_healthy:
        is_strict = is_lenient = is_right and not answer.causes
    else:
        # What costs nothing need be no more than a note.
        may_be_note = answer.verdict == "healthy" and not answer.causes
        first = [*answer.notes] if may_be_note else [*answer.causes[:1]]
        is_strict = is_right and not set(first).isdisjoint(problem.codes)
        is_lenient = is_right or not {*answer.causes, *answer.notes}.isdisjoint(problem.codes)

    verdicts = "/".join(verdict or "none" for verdict in problem.verdicts)
    expected = f"{verdicts}: {'/'.join(problem.codes)}" if problem.codes else verdicts
    return Row(
        problem.part,
        problem.name,
        problem.network,
        expected,
        answer.verdict or "none",
        " ".join(answer.causes),
        " ".join(answer.notes),
        is_strict,
        is_lenient,
    )


def compute_interval(rows: Sequence[tuple[str, bool]]) -> tuple[float, float, float]:
    """Average shares over networks, each of which counts once, with an interval.

    The interval is Wilson's (1927), of 95%, with a trial for each network in the place of each problem: problems of one
    network are right or wrong together.

    Args:
        rows: the network of each problem, and whether the answer is right.

    Returns:
        The mean of the networks' shares, and the interval's ends.
    """
    by_network: dict[str, list[bool]] = {}
    for network, is_right in rows:
        by_network.setdefault(network, []).append(is_right)
    count = len(by_network)
    share = sum(sum(answers) / len(answers) for answers in by_network.values()) / count

    square = _Z**2
    width = 1 + square / count
    center = share + square / (2 * count)
    half = math.sqrt(square * (share * (1 - share) / count + square / (2 * count) ** 2))
    # Rounding may put an end just outside of 0 or 1.
    return share, max(0.0, (center - half) / width), min(1.0, (center + half) / width)


def write_count(rows: Sequence[tuple[str, bool]]) -> str:
    """Write how many problems are right, and the share over networks with its interval."""
    share, low, high = compute_interval(rows)
    right = sum(is_right for _, is_right in rows)
    return f"{right} of {len(rows)}; {100 * share:.0f}% [{100 * low:.0f}, {100 * high:.0f}]"


def write_summary(rows: Sequence[Row]) -> str:
    """Write a table of a row for each part."""
    lines = ["| part | networks | strictly right | leniently right |", "|---|--:|---|---|"]
    for part in dict.fromkeys(row.part for row in rows):
        chosen = [row for row in rows if row.part == part]
        networks = len({row.network for row in chosen})
        strict = write_count([(row.network, row.is_strict) for row in chosen])
        lenient = write_count([(row.network, row.is_lenient) for row in chosen])
        lines.append(f"| {part} | {networks} | {strict} | {lenient} |")
    return "\n".join(lines)


def write_rows(rows: Sequence[Row]) -> str:
    """Write a table of a row for each problem."""
    lines = ["| | network | expected | verdict | causes (notes) | |", "|---|---|---|---|---|---|"]
    for row in rows:
        causes = row.causes
        if row.notes:
            causes = f"{causes} ({row.notes})"
        cells = [row.name, row.network, row.expected, row.verdict, causes.strip() or "–", _name_grade(row)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _name_grade(row: Row) -> str:
    if row.is_strict:
        return "hit"
    return "half" if row.is_lenient else "miss"
