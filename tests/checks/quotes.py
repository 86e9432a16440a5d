"""Pages that are written by hand say what claims say: here are their sentences with numbers, as answers quote them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

import pandas as pd

from bnlab.harness.reporting.quotes import fill_paragraphs
from bnlab.harness.reporting.wording import round_numbers
from bnlab.nn import SelfTuned
from experiments.count_losses import PAGE, compute_losses, format_page, load_committed, say_count, say_others
from experiments.literature import list_findings
from experiments.pages import read_catalogue
from tests.checks.outcomes import ROOT, decide_all, decide_quoted

# Not results: code, addresses, and momenta by their value.
SETTING = re.compile(r"`[^`]*`|\]\([^)]*\)|(?<=momentum )0\.\d+|(?<=momentum of )0\.\d+", re.IGNORECASE)
NUMBER = re.compile(r"(?<![\w.^,-])-?\d[\d,]*(?:\.\d+)?(?!\d)( points?| times|%| σ)?")
QUOTED = re.compile(r"(-?[\d.]+)(?:%| [a-zσ]+)? \[(-?[\d.]+), (-?[\d.]+)\]")
# Numbers that say what was measured, and marks; not the bounds of claims, the width of intervals, and arithmetic.
BY_HAND = re.compile(
    r"(?<!less than )(?<!, to )(?<![\d.])[\d.]+(?: points| times)|(?<![\d.])(?!95%|1%)\d[\d.]*%|"
    r"\[-?[\d.]+, -?[\d.]+\]|†"
)

_LAGGING = '"batch size 16, updates 560", "batch size 64, updates 144", "batch size 64, updates 560"'
_AT_THE_END = '"batch size 16", "batch size 64", "batch size 256"'
_HARMLESS = f'{{{{ holds("ground.harmless_at_the_end", {_AT_THE_END}, shown=False) }}}}'
_UP_TO_256 = '"batch size 4", "batch size 16", "batch size 64", "batch size 256"'
_HARMLESS_ON_CIFAR10 = '{{ holds("real.harmless_at_the_end", shown=False) }}'


@cache
def compute_all_losses() -> pd.DataFrame:
    """Compute the losses that pages count."""
    return compute_losses(load_committed())


def _draw(panel: str, line: str, updates: int) -> str:
    """Quote an accuracy of the figure of three kinds of statistics."""
    return f'{{{{ drawn("ground.training", "{panel}, {line}, updates {updates}", unit="", interval=False) }}}}%'


def _follow(line: str) -> str:
    """Quote an accuracy, after five updates, of the network of which one channel is followed."""
    return f'{{{{ drawn("drift.one_network", "updates 5, {line}", unit="", interval=False) }}}}%'


def quote_readme() -> tuple[str, ...]:
    """Quote what README.md says."""
    return (
        f"from a rate of 0.025, 0.1 or 0.4 | less than 0.3 points{_HARMLESS_ON_CIFAR10} |",
        'averaged over six steps | {{ holds("real.a_cosine_costs_on_average", "learning rate 0.1") }} |',
        'from a fifth of the training on | {{ holds("real.a_constant_rate_costs_on_average", "learning rate 0.1") }} |',
        'smallest) | {{ holds("real.a_constant_rate_costs_on_average", "learning rate 0.4") }} |',
        'of the trained network | {{ holds("real.copied_buffers_lose_after_a_cosine", "learning rate 0.1") }} |',
        'standard deviation of {{ holds("real.a_single_step_is_a_draw", interval=False) }}.',
        f'running means lie {{{{ estimated("gap.means_are_near_late", {_UP_TO_256}, interval=False) }}}} away from',
        f'variances {{{{ holds("gap.variances_are_near_late", {_UP_TO_256}, interval=False) }}}}, which',
        f"lost {say_count(compute_all_losses())}†",
        'of the mean have {{ holds("gap.larger_gaps_cost_more", "mean (σ)") }} with',
        'in their seed it is {{ holds("gap.gaps_tell_less_between_seeds", "mean (σ)") }}, so',
    )


def quote_why() -> tuple[str, ...]:
    """Quote what docs/why.md says."""
    return (
        f"After five updates `eval()` shows {_follow('running average')},",
        f"where the network can do {_follow('exact statistics')}.",
        f"running averages show {_draw('falling from rate 1.6', 'running average', 140)} a quarter of the way through "
        f"training, where the networks can do {_draw('falling from rate 1.6', 'exact statistics', 140)}.",
        f"Half-way it is {_draw('falling from rate 1.6', 'running average', 280)} against "
        f"{_draw('falling from rate 1.6', 'exact statistics', 280)}.",
        f"At the end next to nothing is lost: {_draw('falling from rate 1.6', 'running average', 560)} both times.",
        f"At the end next to nothing is lost: {_draw('falling from rate 1.6', 'exact statistics', 560)} both times.",
        '{{ holds("quickstart.start_costs_early", "batch size 256") }} on digits after four updates, at batch size 256',
        '{{ holds("ground.constant_rates_cost_early", "batch size 64, updates 144") }} after 144 updates at a constant '
        "rate, at batch size 64:",
        f"{_draw('constant rate 0.1', 'running average', 144)} accuracy instead of "
        f"{_draw('constant rate 0.1', 'exact statistics', 144)}.",
        f"which lag by only one update, it is {_draw('constant rate 0.1', 'last batch', 144)} ",
        '{{ holds("momentum.mistake_costs_late") }} more with momentum 0.9 than with 0.1, at the end of four '
        "epochs, at batch sizes 16 to 256",
        "With tuned rates, after 560 updates or more, it is less than 0.3 points at batch sizes 64 and 256{{ "
        'holds("ground.the_last_batch_nearly_alone_is_harmless_late", "batch size 64", "batch size 256", '
        "shown=False) }}, "
        'and {{ estimated("ground.the_last_batch_nearly_alone_is_harmless_late", "batch size 4, updates 2250", '
        '"batch size 16, updates 560", "batch size 16, updates 2250", interval=False) }} at 4 and 16.',
        f"lost {say_count(compute_all_losses())}†.",
        f"The other two lost {say_others(compute_all_losses())}†:",
        f"less than half a point is lost at the end, at batch sizes 16 to 256{_HARMLESS}.",
        'At batch size 4 less than 0.3 points are lost after 9,000 updates{{ holds("gap.nothing_at_adequate_batch", '
        '"batch size 4", shown=False) }} (undecided',
        f"less than 0.3 points are lost at the end of a cosine{_HARMLESS_ON_CIFAR10}.",
        '| of 0.025, CIFAR-10, from a fifth of the training on | {{ holds("real.a_constant_rate_costs_on_average", '
        '"learning rate 0.025") }} |',
        '| of 0.1 | {{ holds("real.a_constant_rate_costs_on_average", "learning rate 0.1") }} |',
        '| of 0.4 | {{ holds("real.a_constant_rate_costs_on_average", "learning rate 0.4") }} |',
        'after 2,250 updates, batch sizes 4 to 64 | {{ estimated("ground.constant_rates_keep_costing", "batch size 4", '
        '"batch size 16", "batch size 64") }} |',
        'batch size 256 | {{ undecided("ground.constant_rates_keep_costing", "batch size 256", interval=False) }} |',
        'at batch size 16{{ holds("model_selection.ema_picks_as_well", "batch size 16", shown=False) }} '
        "(undecided at 256: "
        '{{ undecided("model_selection.ema_picks_as_well", "batch size 256", interval=False) }} worse).',
        'at a cost of {{ estimated("real.that_checkpoint_costs_little", "learning rate 0.4") }}.',
        'outside grey cells is {{ holds("ground.constant_rates_cost_early", "batch size 64, updates 144") }};',
        "larger batches lost at most 0.3 points more in three of five comparisons"
        '{{ holds("ground.larger_batches_do_not_lose_more", "256 against 64", "64 against 16, lengths compared: 2", '
        "shown=False) }}; two",
    )


def quote_plain_pytorch() -> tuple[str, ...]:
    """Quote what docs/howto/plain_pytorch.md says."""
    return (
        'are as accurate as statistics of all of them, to within 0.3 points{{ holds("cifar10.precise_is_as_accurate", '
        "shown=False) }}; the same held on rendered characters at batch sizes 16 and 256{{ "
        'holds("changed_weights.one_pass_is_enough", "unchanged", shown=False) }}.',
    )


_OF_THE_CNN = '"model cnn, batch size 64, schedule onecycle"'


def quote_self_tuned() -> tuple[str, ...]:
    """Quote what docs/howto/self_tuned.md says."""
    return (
        f'(all but the first) | {{{{ holds("predictive.near_the_best", {_OF_THE_CNN}) }}}} | {{{{ estimated('
        '"cifar10_augmented.predictive_is_near_the_best") }} |',
        f'all layers | {{{{ fails("predictive.near_the_best_over_all_layers", {_OF_THE_CNN}) }}}} | |',
        'deeper layers | {{ holds("predictive.late_where_the_rate_ends", "batch size 64") }} | {{ holds('
        '"cifar10_augmented.predictive_is_late_at_the_end") }} |',
        'loses less than 0.3 points{{ holds("real.self_tuned_averages_lose_nothing_at_the_end", shown=False) }} '
        "against",
        'it gains {{ holds("real.self_tuned_averages_gain_on_a_cosine", interval=False) }}, and',
        'at constant rates {{ holds("real.self_tuned_averages_gain_at_a_constant_rate", interval=False) }} (table).',
    )


PAGES = {
    "README.md": quote_readme,
    "docs/why.md": quote_why,
    "docs/howto/plain_pytorch.md": quote_plain_pytorch,
    "docs/howto/self_tuned.md": quote_self_tuned,
}


def find_other_quotes() -> Iterator[str]:
    """Find sentences that say other numbers than their claims, and numbers that nothing is quoted for."""
    for path, quote_page in PAGES.items():
        linked = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", read_prose(path))
        text = " ".join(linked.replace("**", "").split())
        rest = text
        for quote in quote_page():
            sentences = fill_paragraphs(quote, [*decide_all().values()])
            if len(sentences) != 1:
                yield f"{path}: another verdict; {quote}"
            for sentence in sentences:
                if sentence not in text:
                    yield f"{path} does not say: {sentence}"
                rest = rest.replace(sentence, "")

        numbers = [number for number in BY_HAND.findall(rest) if number != "†"]
        if numbers or rest.count("†") != int("†" in text):  # where the mark is explained
            yield f"{path} has numbers that quote nothing: {numbers}; tests/checks/quotes.py has what it quotes"


def find_other_counts_of_losses() -> Iterator[str]:
    """Find pages that count other configurations than the committed tables give, or list them otherwise."""
    losses = compute_all_losses()
    if PAGE.read_text(encoding="utf-8") != format_page(losses):
        yield f"{PAGE.name} is another; run: python -m experiments.count_losses"
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "results" / "reference").glob("*.md")]
    for path in pages:
        linked = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", path.read_text(encoding="utf-8"))
        text = " ".join(linked.replace("**", "").split())
        if len(re.findall(r"\d+ of \d+ configurations", text)) != text.count(say_count(losses)):
            yield f"{path.name} counts other losses than: {say_count(losses)}"


def read_prose(path: str) -> str:
    """Read a page of the repository without its code and outputs."""
    return re.sub("```.*?```", "", (ROOT / path).read_text(encoding="utf-8"), flags=re.DOTALL)


def find_other_numbers_of_the_self_tuned_norm() -> Iterator[str]:
    """Find numbers of its documentation that no verdict has."""
    known = set()
    for outcome in decide_all().values():
        for numbers in outcome.frame[["mean", "low", "high"]].itertuples(index=False):
            for factor in (1, -1, 100):
                mean, *bounds = (factor * number for number in numbers)
                low, high = sorted(bounds)
                known.add(tuple(round_numbers(mean, low, high, digits=3)))
    for said in QUOTED.findall(SelfTuned.__doc__ or ""):
        if said not in known:
            yield f"SelfTuned: {said} is of no verdict"


def find_long_numbers() -> Iterator[str]:
    """Find numbers with more digits than their intervals bear, in answers, conclusions and pages by hand."""
    outcomes = [*decide_all().values()]
    for name, template in list_templates().items():
        text = " ".join(fill_paragraphs(template, outcomes))
        for number in list_long_numbers(text):
            yield f"{name} says {number}, with more than two significant digits"
    for path, quote_page in PAGES.items():
        for quote in quote_page():
            for number in list_long_numbers(" ".join(fill_paragraphs(quote, outcomes))):
                yield f"{path} says {number}, with more than two significant digits"


def list_templates() -> dict[str, str]:
    """List by name what is written around the tables: answers, conclusions, and the texts before and after them."""
    catalogue = read_catalogue()
    around = {"first": catalogue.first, "situations": catalogue.situations, "last": catalogue.last}
    conclusions = {number: conclusion for number, (_, conclusion) in catalogue.hypotheses.items()}
    return {**around, **catalogue.questions, **conclusions}


def list_long_numbers(text: str) -> list[str]:
    """List numbers with over two significant digits, or three where the first is 1; whole ones only with a unit."""
    found = []
    # Settings, such as a decay of `0.999`, are no measurements.
    for match in NUMBER.finditer(SETTING.sub("", text)):
        number = match[0].removesuffix(match[1] or "")
        digits = re.sub(r"[-.,]", "", number).lstrip("0")
        is_count = "." not in number and not match[1]
        if not is_count and len(digits) > (3 if digits.startswith("1") else 2):
            found.append(number)
    return found


def find_sentences_that_are_left_out() -> Iterator[str]:
    """Find sentences of answers and conclusions whose quotes are untrue, or misspelt: pages leave these out."""
    outcomes = [*decide_all().values()]
    for name, template in list_templates().items():
        for line in template.splitlines():
            if line and not fill_paragraphs(line, outcomes):
                yield f"{name} has a sentence for another verdict: {line}"


def find_questions_that_the_index_lacks() -> Iterator[str]:
    """Find questions that nobody finds who asks them."""
    catalogue = read_catalogue()
    entries = [entry for entries in catalogue.index.values() for entry in entries if entry.startswith("Q")]
    if entries != [*catalogue.questions]:
        yield f"the index has {entries}, and not the questions in their order: {[*catalogue.questions]}"


def find_numbers_of_the_literature_by_hand() -> Iterator[str]:
    """Find numbers from here that quote no claim, and those that gain less than nothing."""
    for number, finding in list_findings().items():
        here = "".join(re.findall("^- Here: (.*)", finding, re.MULTILINE))
        shown = " ".join(fill_paragraphs(here, decide_quoted()))
        if re.search(r"\b(?:gains?|costs?|loses?|lost) -[\d.]+", shown):
            yield f"{number} gains or costs less than nothing: {shown}"

        by_hand = re.sub(r"{{.*?}}|0\.3 points|0\.[18] σ", "", here)  # margins are no results
        if re.search(r"\d(?:%(?! of training)| points?| times| σ)", by_hand):
            yield f"{number} has a number that quotes no claim: {by_hand}"
