"""From tables to figures, verdicts and pages. One path, for every report; no torch.

    question.py    what is asked: Question, Claim, Figure. Bnlab's stand in experiments/questions, those that redraw a
                   paper in experiments/papers, a user's in questions/ of the current folder.
    any_sweep.py   the question that any sweep gets, or that the words of a command line ask: what was `measured`,
                   by what was varied. `means_table` has the same means in words.
    tables.py      the tables of a sweep, as `load` gives them.
    frames.py      rows of tables, compared and averaged (`selection`, `means`): a score, which claims judge and figures
                   draw.
    verdicts.py    what is to hold of a score, and the tests that decide it.
    outcome.py     a question with its tables: the verdict on each claim, and what was measured.
    drawing.py     a figure as a file. `plots` has the kinds of plot, `looks` colours and lines, `axes` scales and
                   ticks, `printed` a paper's numbers.
    page.py        the outcome as a page, by the templates; `quotes` fills in what is written by hand.
    wording.py     settings, estimators and numbers in words.

`lab.report` goes through it: it finds the question, loads the tables of the sweeps that it reads, decides, draws and
writes. A paper that is redrawn is a question with `Paper` and printed numbers, whose figures and claims read several
sweeps (`reads`), or are those of other questions (`cite`, `show`). The report of a sweep without a question makes one.
"""
