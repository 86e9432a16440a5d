"""The verdict by scores: where the fault is, which follows from what brings them back; and the findings to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from bnlab.common.scores import Difference
from bnlab.doctor.cause import Cause
from bnlab.doctor.evidence.case import Case
from bnlab.doctor.evidence.sample import MOST_IMAGES
from bnlab.doctor.evidence.scores import Scores
from bnlab.doctor.evidence.setup import CALLER
from bnlab.doctor.interventions.experiment import Choice, Crossing, Trial, UndoExperiment
from bnlab.doctor.thresholds import SURELY_HEALTHY, WORTH, WORTH_OF_SPREAD
from bnlab.doctor.verdict.attribution import depends_on_first, name_causes, name_choice
from bnlab.doctor.verdict.findings import (
    Finding,
    explain_off,
    find_explained,
    find_signs,
    grade_cost,
    list_off,
    sort_findings,
)
from bnlab.doctor.verdict.verdict import BROKEN, ELSEWHERE, Edge, Verdict, Word
from bnlab.doctor.words import count_things, describe_difference, describe_gain, describe_score, round_up

_CONSTANTS = "Perhaps it was trained with its averages as constants, so do not recalibrate."
_AS_CONSTRUCTED = "All batch norms are as constructed: was the checkpoint loaded? Look at what load_state_dict returns."
_UNLOADED = (
    "Weights and biases of the batch norms are as constructed although updates were counted: is this the network that "
    "was trained? Look at what load_state_dict returns."
)
_OTHER_LABELS = "Are these labels, in this order, those that it was trained on?"
_EXACT_TOO = "New averages gain as much: either these images differ from training, or the averages are wrong."
_FIRST_OFF = "The first layer does not fit: either these images differ from training, or its averages are wrong."


def conclude(
    case: Case, scores: Scores, experiment: UndoExperiment | None, causes: Sequence[Cause], worth: float | None
) -> tuple[Verdict, list[Finding]]:
    """Judge by what was tried, and name the causes."""
    # Percent by mistake: no score could reach it, and every network would be called bad.
    if case.expected is not None and case.expected > 1 and scores.are_shares:
        raise ValueError(f"{CALLER}: expected={case.expected!r}, but scores are shares here; pass one between 0 and 1")
    least = compute_worth(scores, worth)
    judged = judge(case, scores, experiment, least)
    is_poor = scores.is_near_chance and not case.is_as_constructed
    explained = _explain(case, judged, experiment, causes, least, is_poor)
    others = find_signs(causes, case, [finding.cause.code for finding in explained])
    # The mode is judged by the scores in both modes and not by an undo, so that its cost is added here.
    if judged.word == "mode":
        others = [_add_cost_of_mode(finding, scores, least) for finding in others]
    findings = sort_findings([*explained, *others])
    return let_signs_speak(judged, findings, is_poor), findings


def _explain(
    case: Case,
    judged: Verdict,
    experiment: UndoExperiment | None,
    causes: Sequence[Cause],
    worth: float,
    is_poor: bool,
) -> list[Finding]:
    """Make findings of what was chosen; where nothing matters, of what shows all the same.

    These are notes, unless the network is so poor that no statistics could show what they cost.
    """
    if experiment is not None:
        explained = find_explained(judged.chosen, experiment, case, worth)
        if explained:
            return explained
        shown = find_explained(experiment.choose_shown(), experiment, case, worth)
        if shown and not is_poor:  # at chance a higher likelihood only means less certain errors
            return [replace(finding, severity="note") for finding in shown]
    return explain_off(causes, case, list_off(case), None if is_poor else "note")


def _add_cost_of_mode(finding: Finding, scores: Scores, worth: float) -> Finding:
    """Add to a finding on the mode what train mode costs, in which each batch is normalized by itself."""
    if finding.cause.kind != "mode":
        return finding
    cost = scores.mean("running") - scores.mean("batch")
    return replace(finding, cost=cost, severity=grade_cost(cost, worth))


def let_signs_speak(judged: Verdict, findings: Sequence[Finding], is_poor: bool) -> Verdict:
    """Call no network healthy whose forward shows a fault that no undo has to do with, or that is at chance with one.

    At chance under any statistics nothing shows what a fault costs.
    """
    severe = [finding for finding in findings if finding.severity != "note"]
    of_network = [finding for finding in severe if finding.cause.kind == "network"]
    if judged.word not in ("healthy", "undecided") or not severe:
        return judged
    # The sign has decided, so no number can turn the verdict back into one of these: their edges are dropped.
    edges = [edge for edge in judged.edges if edge.beyond not in ("healthy", "undecided", "network")]
    if of_network:
        cause = of_network[0].cause
        sentence = f"See {cause.code}, {cause.title}. {judged.sentence}"
        return replace(judged, word="network", sentence=sentence, edges=edges)
    if is_poor:
        cause = severe[0].cause
        named = f"{cause.code} ({cause.title})"
        sentence = f"Scores are near chance under any statistics, so the cost of {named} cannot be measured."
        sentence = f"{sentence} Repair that first, and ask again."
        return replace(judged, word="undecided", sentence=sentence, edges=edges)
    return judged


def compute_worth(scores: Scores, worth: float | None) -> float:
    """Find the smallest difference that matters: the caller's; half a point of shares; else by the metric's spread."""
    if worth is not None:
        return worth
    if scores.are_shares:
        return WORTH
    values = scores.values["exact"].nan_to_num()
    low = values.quantile(0.05)
    high = values.quantile(0.95)
    # Distances from lines are divided by this, which would be 0 for a metric with one value for all images.
    return max(WORTH_OF_SPREAD * float(high - low), 1e-12)


@dataclass(frozen=True)
class _Number:
    """A number that a condition asks for.

    Attributes:
        edge: the number with its line.
        is_met: whether it is on the side that the condition asks for.
    """

    edge: Edge
    is_met: bool


@dataclass(frozen=True)
class _Condition:
    """A condition of a verdict.

    Attributes:
        word: the verdict if it holds.
        numbers: all of which have to be met.
        decide: makes the verdict.
    """

    word: Word
    numbers: Sequence[_Number]
    decide: Callable[[], Verdict]

    @property
    def holds(self) -> bool:
        return all(number.is_met for number in self.numbers)


def judge(case: Case, scores: Scores, experiment: UndoExperiment | None, worth: float) -> Verdict:
    """Judge by what was tried: the first condition that holds decides.

    Args:
        case: with what is expected of the model.
        scores: under running and exact statistics, and under each batch's own where these were tried.
        experiment: what was undone; None where no cause saw a sign.
        worth: the smallest difference of scores that matters.
    """
    gain = scores.compare("exact", "running")
    # The conditions below compare numbers, which have to be finite.
    if case.is_broken:
        return Verdict("averages", BROKEN, gain)
    if not math.isfinite(scores.mean("exact")):
        return Verdict("network", "Scores under exact statistics are not finite.", gain)
    if not math.isfinite(gain.value):
        return Verdict("averages", _describe_not_finite(scores), gain)

    # The order matters, as each condition assumes that none before it holds: a network without its weights shows
    # nothing, one in train mode does not read its averages, and what was undone shows more than scores alone.
    conditions = [
        *_ask_for_weights(case, scores, experiment, gain, worth),
        *_ask_for_mode(case, scores, gain, worth),
        *_ask_for_undo(case, scores, experiment, gain, worth),
        *_ask_for_network(case, scores, gain, worth),
        *_ask_for_images(case, scores, experiment, gain, worth),
    ]
    failed = takewhile(lambda condition: not condition.holds, conditions)
    edges = [_name_beyond(condition) for condition in failed]
    decisive, *later = [condition for condition in conditions if condition.holds]
    # The last condition always holds and has no numbers, so that wherever this loop runs there is a later one.
    for number in decisive.numbers:  # not met, the next condition that holds would decide
        edges.append(replace(number.edge, beyond=later[0].word))

    verdict = decisive.decide()
    # The interval of a single image is infinite, so its ends are near no line.
    known = [edge for edge in (*edges, *verdict.edges) if math.isfinite(edge.value)]
    others = [edge for edge in known if edge.beyond != verdict.word]
    return replace(verdict, edges=others).add_nearest()


def _name_beyond(condition: _Condition) -> Edge:
    """Find the number on which a condition fails; of several the one that is farthest from its line."""
    edges = [number.edge for number in condition.numbers if not number.is_met]
    # All of them have to cross their lines before the condition holds, so the farthest says how near that is.
    farthest = max(edges, key=lambda edge: edge.distance)
    return replace(farthest, beyond=condition.word)


def _draw_line(what: str, value: float, line: float, scores: Scores) -> Edge:
    """Draw a line between differences of scores; the verdict beyond it is named later."""
    unit = " points" if scores.are_shares else ""
    return Edge(what, value, line, "undecided", line, scores.are_shares, unit)


def _ask_for_weights(
    case: Case, scores: Scores, experiment: UndoExperiment | None, gain: Difference, worth: float
) -> Iterator[_Condition]:
    """Ask whether weights are as constructed, and nothing that was tried brings the score above chance."""
    bar = scores.chance if case.expected is None else case.expected
    if bar is None or not (case.is_unloaded or case.is_as_constructed):
        return
    best = scores.best
    if experiment is not None and experiment.best is not None:
        best = max(best, float(experiment.best.judged.scores.mean()))
    unit = "%" if scores.are_shares else ""
    # Distances are not divided by the bar itself: a score of 75% would then be near a bar of 90%.
    edge = Edge("the best score is", best, bar, "network", SURELY_HEALTHY * worth, scores.are_shares, unit)
    reached = describe_score(best, scores)
    reason = _UNLOADED if case.is_unloaded else _AS_CONSTRUCTED
    sentence = f"Nothing that was tried brings it above {reached}. {reason}"
    yield _Condition("network", [_Number(edge, best < bar)], lambda: Verdict("network", sentence, gain))


def _ask_for_mode(case: Case, scores: Scores, gain: Difference, worth: float) -> Iterator[_Condition]:
    """Ask whether most batch norms are in train mode, and eval mode scores better."""
    training = case.select(lambda name: case.layers[name].training)
    if case.is_as_constructed or 2 * len(training) < len(case.layers) or "batch" not in scores.values:
        return
    low = scores.compare("running", "batch").low
    edge = _draw_line("eval mode is better by at least", low, worth, scores)
    yield _Condition("mode", [_Number(edge, low > worth)], lambda: Verdict("mode", _describe_mode(case, scores), gain))


def _ask_for_undo(
    case: Case, scores: Scores, experiment: UndoExperiment | None, gain: Difference, worth: float
) -> Iterator[_Condition]:
    """Ask whether the best undo surely brings back some likelihood, and more of the score than what matters."""
    if experiment is None or experiment.best is None:
        return
    ranked = experiment.measure_ranked_gain(experiment.best)
    score = experiment.measure_score(experiment.best).value
    ranked_by = "score" if experiment.is_by_scores else "likelihood"
    of_ranked = Edge(
        f"the best undo gains of the {ranked_by} at least",
        value=ranked.low,
        line=0.0,
        beyond="undecided",
        # The line is 0 and no scale, so that distances from it are shares of the gain.
        scale=abs(ranked.value) or 1.0,
    )
    of_score = _draw_line("the best undo gains", score, worth, scores)
    numbers = [_Number(of_ranked, ranked.low > 0), _Number(of_score, score > worth)]
    if scores.commonest is not None and case.expected is None:
        # First, because it is the condition below and one more: that the score stays at or below chance.
        yield _ask_for_chance(scores, experiment, numbers, gain, worth)
    choice = experiment.choose()
    word = name_choice(case, experiment)
    yield _Condition(word, numbers, lambda: _judge_experiment(case, scores, experiment, gain, choice, word))


def _ask_for_chance(
    scores: Scores, experiment: UndoExperiment, numbers: Sequence[_Number], gain: Difference, worth: float
) -> _Condition:
    """Ask whether the best undo, although it gains, leaves the score below always naming the commonest class."""
    assert experiment.best is not None and scores.commonest is not None
    before = float(experiment.as_is.scores.mean())
    after = float(experiment.best.judged.scores.mean())
    better = max(before, after)
    edge = Edge(
        "with or without the best undo the score reaches",
        better,
        scores.commonest,
        "undecided",
        SURELY_HEALTHY * worth,
        scores.are_shares,
        "%",
    )
    sentence = (
        f"Below chance before ({describe_score(before, scores)}) and after the best undo "
        f"({describe_score(after, scores)}), where always predicting the most frequent class scores "
        f"{describe_score(scores.commonest, scores)}: nothing shows what is wrong. {_OTHER_LABELS}"
    )
    return _Condition(
        "undecided", [*numbers, _Number(edge, better <= scores.commonest)], lambda: Verdict("undecided", sentence, gain)
    )


def _ask_for_network(case: Case, scores: Scores, gain: Difference, worth: float) -> Iterator[_Condition]:
    """Ask whether the best score is below what is expected, or no better than always naming the commonest class."""
    bar = scores.commonest if case.expected is None else case.expected
    if bar is None:
        return
    unit = "%" if scores.are_shares else ""
    edge = Edge("the best score is", scores.best, bar, "network", SURELY_HEALTHY * worth, scores.are_shares, unit)
    is_bad = _is_bad(scores, case.expected)
    yield _Condition("network", [_Number(edge, is_bad)], lambda: Verdict("network", _describe_bad(case, scores), gain))


def _ask_for_images(
    case: Case, scores: Scores, experiment: UndoExperiment | None, gain: Difference, worth: float
) -> Iterator[_Condition]:
    """Ask whether the images are too few to say that nothing is gained; if they are not, averages are healthy."""
    most = _find_most(gain, experiment)
    line = SURELY_HEALTHY * worth
    edge = _draw_line("the gain may be up to", most, line, scores)
    yield _Condition(
        "undecided",
        [_Number(edge, most > line)],
        lambda: Verdict("undecided", _describe_undecided(gain, scores, experiment, worth), gain),
    )
    yield _Condition("healthy", [], lambda: Verdict("healthy", _describe_healthy(case, scores, gain, worth), gain))


def _judge_experiment(
    case: Case, scores: Scores, experiment: UndoExperiment, gain: Difference, choice: Choice, word: Word
) -> Verdict:
    """Judge by the smallest undo that brings back as much as the best one."""
    kinds = choice.kinds
    trials = [*choice.chosen]
    # Without other kinds the fault is in the same place either way.
    if choice.other_kinds:
        trials += choice.rivals
    sentence = _describe_trials(trials, experiment, scores)
    low = _describe_low(scores, experiment, case.expected)

    if choice.other_kinds:
        reported = " or ".join(sorted(kinds | choice.other_kinds))
        judged = len(experiment.as_is.scores)
        more = f" {judged:,} images do not tell these apart ({reported})"
        # Four times as many images halve the interval.
        needed = min(_count_most_tried(scores), round_up(4 * judged))
        more += f"; about {needed:,} may." if needed > judged else ", and undos are tried on no more."
    elif word == "averages or images" and kinds == {"averages"}:
        more = f" {_FIRST_OFF}{low}"
    elif word == "averages or images" and kinds == {"images"}:
        more = f" {_EXACT_TOO}{low}"
    else:
        more = low
    edges = _list_edges(case, scores, experiment, choice, word)
    return Verdict(word, sentence + more, gain, trials, edges)


def _list_edges(case: Case, scores: Scores, experiment: UndoExperiment, choice: Choice, word: Word) -> list[Edge]:
    """List the numbers by which undos were graded, where the verdict would be another one beyond their lines."""
    assert experiment.best is not None
    best = experiment.measure_ranked_gain(experiment.best).value
    edges = []
    shortfall = experiment.measure_exact()
    if shortfall is not None and case.training is None and choice.kinds == {"images"}:
        surely, line = shortfall
        beyond_shortfall: Word = "averages or images" if word == "images" else "images"
        edges.append(_draw_share("exact statistics fall short by at least", surely, line, best, beyond_shortfall))
    if word in ("averages", "averages or images") and depends_on_first(case, choice.chosen):
        gap, most = case.measure_fit(case.first)
        beyond_fit: Word = "averages or images" if word == "averages" else "averages"
        edges.append(Edge("the first layer's averages are off by", gap, most, beyond_fit, scale=most, unit=" σ"))

    for crossing in experiment.list_crossings():
        beyond = name_choice(case, experiment, crossing)
        edges.append(_draw_crossing(crossing, beyond, best, scores))
    return edges


def _draw_share(what: str, value: float, line: float, best: float, beyond: Word) -> Edge:
    """Draw a line between shares of the best gain, which LEFT_BY_SMALLER is a share of as well."""
    line = line / best
    return Edge(what, value / best, line, beyond, scale=line, is_share=True, unit="% of the gain")


def _draw_crossing(crossing: Crossing, beyond: Word, best: float, scores: Scores) -> Edge:
    """Draw the line of a number that an undo was graded by."""
    if crossing.unit == "score":
        edge = _draw_line(crossing.what, crossing.value, crossing.line, scores)
        return replace(edge, beyond=beyond)
    if crossing.unit == "likelihood":
        return _draw_share(crossing.what, crossing.value, crossing.line, best, beyond)
    scale = crossing.line
    return Edge(crossing.what, crossing.value, crossing.line, beyond, scale, is_share=True, unit="% of its layers' gap")


def _find_most(gain: Difference, experiment: UndoExperiment | None) -> float:
    """Find how much exact statistics, or the best undo, may gain at most."""
    if experiment is None or experiment.best is None:
        return gain.high
    return max(gain.high, experiment.measure_score(experiment.best).high)


def _count_most_tried(scores: Scores) -> float:
    """Count the images that undos are judged by at most, however many there are."""
    # A metric of the caller's is of all images.
    return math.inf if scores.commonest is None else MOST_IMAGES


def find_best_score(scores: Scores, experiment: UndoExperiment | None) -> float:
    """Find the highest mean score of all statistics and undos."""
    if experiment is None or experiment.best is None:
        return scores.best
    return max(scores.best, float(experiment.best.judged.scores.mean()))


def _describe_not_finite(scores: Scores) -> str:
    reached = describe_score(scores.mean("exact"), scores)
    return f"Scores under running averages are not finite. Exact statistics reach {reached}."


def _describe_mode(case: Case, scores: Scores) -> str:
    training = case.select(lambda name: case.layers[name].training)
    now = describe_score(scores.mean("batch"), scores)
    in_eval = describe_score(scores.mean("running"), scores)
    if len(training) == len(case.layers):
        where = "All are in train mode, where"
    else:  # scores were measured with all of them in one mode
        where = f"{len(training)} of {len(case.layers)} are in train mode; if all are,"
    return f"{where} {scores.metric.lower()} is {now}; in eval mode it is {in_eval}. Call model.eval()."


def _describe_trials(trials: Sequence[Trial], experiment: UndoExperiment, scores: Scores) -> str:
    """Write what undoing the causes brings back.

    Only the difference: scores of the images that undos are judged by would stand beside those of all images, which
    are a little other.
    """
    gain = experiment.measure_score(trials[0])
    counted = count_things(gain.images, "image")
    # The smallest undo that brings back as much may have come out a little below 0.
    verb = "raises" if gain.value > 0 else "changes"
    by = describe_difference(gain, scores)
    return f"Undoing {name_causes(trials)} {verb} {scores.metric.lower()} by {by}, on {counted}."


def _is_bad(scores: Scores, expected: float | None) -> bool:
    score = scores.best
    if expected is not None:
        return score < expected
    if scores.commonest is None:
        return False
    return score <= scores.commonest or math.isclose(score, scores.commonest)  # they are added up in another order


def _describe_bad(case: Case, scores: Scores) -> str:
    if case.expected is not None:
        bar = f"{describe_score(case.expected, scores)} is expected"
    else:
        assert scores.commonest is not None
        bar = f"always predicting the most frequent class scores {describe_score(scores.commonest, scores)}"
    sentence = f"No statistics bring it above {describe_score(scores.best, scores)}, where {bar}."
    return f"{sentence} {_AS_CONSTRUCTED if case.is_as_constructed else _OTHER_LABELS}"


def _describe_healthy(case: Case, scores: Scores, gain: Difference, worth: float) -> str:
    # A metric of the caller's may be of other images than the statistics.
    of = case.images or gain.images
    on = "" if of == gain.images else f" on {count_things(gain.images, 'image')}"
    sentence = f"Exact statistics of {count_things(of, 'image')} {describe_gain(gain, scores)}{on}."
    # A network was not trained with averages that have never left their start.
    has_learnt_with_them = not any(case.is_initial(name) for name in case.seen)
    return f"{sentence} {_CONSTANTS}" if gain.high < -worth and has_learnt_with_them else sentence


def _describe_low(scores: Scores, experiment: UndoExperiment, expected: float | None) -> str:
    """Say where else to look if the best that was reached is below what is expected; empty where not."""
    best = find_best_score(scores, experiment)
    if expected is None or best >= expected:
        return ""
    return f" If {describe_score(best, scores)}, the best that was reached, is too low, look also at {ELSEWHERE}."


def _describe_undecided(gain: Difference, scores: Scores, experiment: UndoExperiment | None, worth: float) -> str:
    reported = f"Exact statistics {describe_gain(gain, scores)} on {count_things(gain.images, 'image')}"
    best = None if experiment is None else experiment.best
    if experiment is not None and best is not None:
        undone = experiment.measure_score(best)
        if undone.high > gain.high:  # it is this one that is not decided
            reported = (
                f"Undoing {name_causes([best])} would {describe_gain(undone, scores)} on "
                f"{count_things(undone.images, 'image')}"
            )
            gain = undone
            if undone.images >= _count_most_tried(scores):
                return f"{reported}, and undos are tried on no more: too few to tell."
    if gain.low > worth:  # by scores alone it would be clear, see `UndoExperiment.rank_by_scores`
        return f"{reported}, but that is not certain once all that was tried is counted: pass more images."
    half = (gain.high - gain.low) / 2
    wanted = "more images"
    if math.isfinite(half) and half > 0:
        is_unchanged = gain.value == 0 and bool((scores.values["exact"] == scores.values["running"]).all())
        power = 1 if is_unchanged else 2  # intervals of images that do not change fall with their number
        needed = gain.images * (half / worth) ** power
        wanted = f"about {round_up(needed):,} images"
    return f"{reported}: too few images to tell; {wanted} would."
