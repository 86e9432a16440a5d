"""How figures look, and the few pieces that every plot is made of. Nothing is set on import."""

from __future__ import annotations

import contextlib
import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawn

from bnlab.harness.errors import UserError

Tables = dict[str, pd.DataFrame]

# Okabe & Ito 2008: told apart by colour-blind readers too. One colour for an estimator in every figure.
ESTIMATORS = {
    "ema": "#0072B2",
    "ema_debiased": "#56B4E9",
    "cumulative": "#CC79A7",
    "last_batch": "#E69F00",
    "precise": "#009E73",
    "kalman": "#D55E00",
    "exact": "#000000",
}
NAMES = {
    "ema": "EMA",
    "ema_debiased": "EMA, start divided out",
    "cumulative": "average of all batches",
    "last_batch": "last batch only",
    "precise": "precise BN",
    "kalman": "Kalman",
    "test_batch": "test batch",
    "exact": "exact population",
}
_SERIES = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

_RC: dict[Any, Any] = {
    "figure.dpi": 100,
    "savefig.dpi": 160,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "pdf.fonttype": 42,
}


@dataclass(frozen=True)
class Figure:
    """One figure of an experiment: `score(tables)` gives its frame, `plot(frame, ax=...)` draws one panel.

    The frame's column `panel` tells the panels apart, from left to right in order of appearance. `caption` says how
    to read it. `columns`: what `score` needs, by table.
    """

    name: str
    title: str
    caption: str
    columns: dict[str, tuple[str, ...]]
    score: Callable[[Tables], pd.DataFrame]
    plot: Callable[..., Axes]


@contextlib.contextmanager
def paper() -> Iterator[None]:
    """The look of all figures, for the time of the block."""
    with plt.rc_context(_RC):
        yield


def series(values: Sequence[Any]) -> dict[Any, str]:
    """A colour for each value of something ordered, such as batch sizes."""
    return dict(zip(values, _SERIES, strict=False))


def estimator_colour(name: object) -> str:
    """The estimator's own colour; grey for one that is not known here."""
    return ESTIMATORS.get(str(name).partition("(")[0], "#777777")


def estimator_label(name: object, momentum: Any = math.nan) -> str:
    """Words for a legend; parameters kept."""
    base, bracket, rest = str(name).partition("(")
    shown = "" if math.isnan(momentum) else f" (momentum {momentum:g})"
    return NAMES.get(base, base) + (f" ({rest}" if bracket else "") + shown


def line(ax: Axes, frame: pd.DataFrame, x: str, colour: str, label: str | None = None, **style: Any) -> None:
    """Mean over seeds with its interval as a band; the frame has `mean`, `low`, `high`."""
    ordered = frame.sort_values(x)
    if len(ordered) == 1:  # a line would not be seen
        distances = (ordered[["mean"]].to_numpy() - ordered[["low", "high"]].to_numpy()).T
        ax.errorbar(ordered[x], ordered["mean"], abs(distances), fmt="o", color=colour, label=label)
        return
    ax.plot(ordered[x], ordered["mean"], color=colour, label=label, **style)
    if ordered["low"].notna().any():
        ax.fill_between(ordered[x], ordered["low"], ordered["high"], color=colour, alpha=0.15, linewidth=0)


def log_axis(ax: Axes, values: pd.Series, label: str) -> None:
    """A logarithmic x axis over positive values, also over a single one."""
    if values.nunique() == 1:
        ax.set_xlim(values.iloc[0] / 2, values.iloc[0] * 2)
    ax.set(xscale="log", xlabel=label)


def draw(figure: Figure, tables: Tables) -> Drawn:
    """All panels side by side with one legend below, the caption under them.

    Raises:
        UserError: a table lacks a column, or there is nothing to draw.
    """
    for table, columns in figure.columns.items():
        missing = [c for c in columns if c not in tables[table]]
        if missing:
            raise UserError(f"figure {figure.name}: table {table} has no column {missing[0]!r}")
    frame = figure.score(tables)
    panels = list(dict.fromkeys(frame["panel"]))
    if not panels:
        raise UserError(f"figure {figure.name}: the tables have no row for it; run its sweep again")
    width = 3.5 * len(panels) + 0.6
    wrapped = textwrap.wrap(f"{figure.caption}{_seeds(frame)}", int(width * 14.5))
    title = textwrap.wrap(figure.title, int(width * 9.5))
    drawn, axes = plt.subplots(1, len(panels), sharey=True, squeeze=False)
    for ax, panel in zip(axes[0], panels, strict=True):
        figure.plot(frame[frame["panel"] == panel], ax=ax)
        ax.set_title(str(panel))
    for ax in axes[0][1:]:
        ax.set_ylabel("")
    # A series may be missing in the first panel.
    handles: dict[str, Any] = {}
    for ax in axes[0]:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    rows = max(1, math.ceil(len(handles) / max(1, int(width // 2.2))))  # of the legend
    height = 4.28 + 0.22 * (rows - 1) + 0.22 * len(title) + 0.17 * len(wrapped)
    drawn.set_size_inches(width, height)
    below = (0.12 + 0.17 * len(wrapped)) / height
    drawn.text(0.02, 1 - 0.12 / height, "\n".join(title), fontsize=12, fontweight="bold", va="top")
    drawn.legend(
        handles.values(),
        handles.keys(),
        loc="lower center",
        bbox_to_anchor=(0.5, below),
        ncols=max(1, math.ceil(len(handles) / rows)),
    )
    drawn.text(0.02, 0.08 / height, "\n".join(wrapped), fontsize=8.5, va="bottom", color="#333333", linespacing=1.25)
    drawn.tight_layout(rect=(0, below + 0.22 * rows / height, 1, 1 - (0.2 + 0.22 * len(title)) / height))
    return drawn


def _seeds(frame: pd.DataFrame) -> str:
    """How many seeds the drawn means are over, where the frame tells."""
    counts = frame["n"].dropna() if "n" in frame else frame.groupby("panel")["seed"].nunique()
    low, high = int(counts.min()), int(counts.max())
    return f" n\u00a0=\u00a0{low if low == high else f'{low}–{high}'}\u00a0seeds."


def save(drawn: Drawn, folder: Path, name: str) -> list[Path]:
    """PNG and PDF, without a date, so that the same table gives the same file."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.png", folder / f"{name}.pdf"]
    drawn.savefig(paths[0])
    drawn.savefig(paths[1], metadata={"CreationDate": None})
    plt.close(drawn)
    return paths
