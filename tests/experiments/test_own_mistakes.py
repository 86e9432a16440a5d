"""Mistakes in one's own code are answered in a line or two, which name the key; own_mistakes.md has the answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore

from bnlab.estimators import list_estimators
from tests.experiments.commands import Call, Write
from tests.experiments.own_mistakes import MISTAKES, MODULE, PAGE, TINY, spoil

FAILED = ("Rows of the measurement lack a column", "The measurement reads a step of which no checkpoint is kept")
"""The mistakes that are seen only once a network is trained, so that the job fails."""

KEYS = {
    "The module is misspelt": "model=mien.make_model",
    "The function is misspelt": "model=mine.make_modle",
    "The module has a syntax error": "model=mine.make_model",
    "An argument is misspelt": "model.width",
    "A value has the wrong type": "model.width",
    "An argument has neither a default nor a value": "model.width",
    "The function of the model raises": "model=mine.make_model",
    "The function of the model gives a tuple of modules": "model=mine.make_model",
    "The network has outputs for another number of classes": "model=mine.make_model",
    "The forward gives a tuple": "model=mine.make_model",
    "The network has no batch norm": "model=mine.make_model",
    "The network is made once, so that each seed has the same weights": "model=mine.make_model",
    "The folder of the data is not there": "data=mine.make_data",
    "Labels are one-hot": "data=mine.make_data",
    "The data have only one part": "data=mine.make_data",
    "The training part has random transforms": "data=mine.make_data",
    "The norm cannot take the number of channels": "norm=mine.Grouped",
    "The optimizer has no argument lr": "optimizer=mine.make_optimizer",
    "The estimator is misspelt": "estimator=mine.Hafl",
    FAILED[0]: "largest: ",
    FAILED[1]: "has no step 1",
}
"""What each answer names: the key that was chosen, the closest one, the table or the step."""


@pytest.fixture(autouse=True)
def _forget_module() -> Iterator[None]:
    """Let Hydra know nothing of the module before a test, as in a new process, and its estimators be none after it."""
    for choices in ConfigStore.instance().repo.values():
        if isinstance(choices, dict):  # of a group
            for name in [name for name in choices if name.startswith("mine.")]:
                del choices[name]
    yield
    for name, cls in list_estimators().items():
        if cls.__module__ == "mine":
            cls.name = f"forgotten {name} {id(cls)}"


@pytest.mark.parametrize("mistake", MISTAKES)
def test_an_answer_is_short_and_names_the_key(mistake: str, write: Write, call: Call, tmp_path: Path) -> None:
    words, text = spoil(mistake)
    write(text)

    code, out, err = call("sweep", *words, f"results={tmp_path}/r")

    assert code == (1 if mistake in FAILED else 2), out + err
    assert err.count("\n") <= (3 if mistake in FAILED else 2), err
    assert "Traceback" not in out + err
    assert KEYS[mistake] in err


def test_the_module_without_a_mistake_is_swept(write: Write, call: Call, tmp_path: Path) -> None:
    write(MODULE)
    own = ("model=mine.make_model", "data=mine.make_data", "optimizer=mine.make_optimizer")
    measured = ("estimator=[mine.Half,exact]", "measurements=[gaps,mine.Largest]")

    for words in ((*own, *measured), ("norm=mine.Grouped", "data=mine.make_data")):
        code, out, err = call("sweep", *words, *TINY, f"results={tmp_path}/r")
        assert code == 0, out + err
        assert not err


def test_the_page_has_all_mistakes() -> None:
    headings = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("## ")]

    assert headings == [f"## {mistake}" for mistake in MISTAKES]
