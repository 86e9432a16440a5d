"""Mistakes on the command line and in files: a line or two that name the key, the value and what is allowed."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import pytest

from tests.experiments.commands import Call

# The words of a command line, and what its message names: the mistake, and what is allowed
CASES = {
    # overrides that are none
    "bath_size=4": ("bath_size=4: ", "batch_size?"),
    "+x=1": ("+x=1: ",),
    "=4": ("=4: ",),
    "batch_size": ("batch_size: ", "key=value"),
    "momentum=0.1 momentum=0.2": ("momentum=0.1 momentum=0.2: ", "twice"),
    "steps=3 epochs=2": ("steps=3 epochs=2: ", "leave one of them out"),
    "norm=null": ("norm=null: ",),
    "hydra/launcher=joblib hydra.launcher.n_jobs=many": ("hydra.launcher.n_jobs=many: ", "Integer\n"),
    "seed=${foo}": ("seed: ", "'foo'"),
    "~batch_size": ("~batch_size: ",),
    "-m experiment=quickstart,momentum": ("experiment=quickstart,momentum: ",),
    "-m name=a,b": ("name=a,b: ", "not of name"),
    "momentum=[0.1": ("momentum=[0.1: ",),
    "estimator=window(k=20)": ("estimator=window(k=20): ", "'estimator=\"window(k=20)\"'"),
    "momentum=0.1,0.2": ("momentum=0.1,0.2: ", "-m", "'momentum=[0.1,0.2]'"),
    "hydra/launcher=nonsense": ("hydra/launcher=nonsense: ", "basic, joblib"),
    "model=ö": ("model=ö: ", "in quotes"),
    # choices
    "data=cifar": ("data=cifar: ", "cifar10?"),
    "experiment=quikstart": ("experiment=quikstart: ", "quickstart?"),
    "measurements=[gaps,evaluation]": ("measurements=evaluation: ", "evaluations?"),
    "estimator=EMMA": ("estimator=EMMA: ", "ema?"),
    "model.name=resnet18": ("model.name=resnet18: ", "model=", "cnn, plain, mlp, resnet"),
    "data.flip=true": ("data.flip=true: ",),
    "norm=instance model=mlp": ("norm=instance: ", "model=mlp"),
    "norm=group norm.groups=5": ("norm.groups=5: ", "model.width=32"),
    "norm=none measurements=drift": ("measurements=drift: ", "norm=none"),
    "order=random": ("order=random: ", "shuffled, sorted, blocks:16"),
    "device=foo": ("device=foo: ",),
    # the setting that is meant, in another group, in other words, in one that has no such name
    "sgd.lr=0.1": ("sgd.lr=0.1: ", "optimizer.lr?"),
    "optimizer.learning_rate=0.1": ("optimizer.learning_rate=0.1: ", "optimizer.lr?"),
    "weight_decay=0": ("weight_decay=0: ", "optimizer.weight_decay?"),
    "norm.batchsize=4": ("norm.batchsize=4: ", "batch_size?"),
    "model.kernel=3": ("model.kernel=3: ", "model.depth, model.width, model.pool_every\n"),
    # types and ranges
    "batch_size=many": ("batch_size=many: ", "whole number"),
    "epochs=1.5": ("epochs=1.5: ", "whole number", "1 or more"),
    "optimizer.label_smoothing=some": ("optimizer.label_smoothing=some: ", "0", "0.99"),
    "quiet=maybe": ("quiet=maybe: ", "true or false\n"),
    "threads=null": ("threads=null: ",),
    "-m batch_size=1,32": ("batch_size=1: ", "2 to 1,295"),
    "norm=ghost norm.batch_size=32 batch_size=31": ("norm.batch_size=32: ", "2 to 31"),
    "data.images=2000": ("data.images=2000: ", "10 to 1,438"),
    "data.images=10 batch_size=20 norm=ghost": ("batch_size=20: ", "2 to 9"),
    "momentum=0": ("momentum=0: ", "above 0", "at most 1"),
    "momentum=[]": ("momentum=[]: ",),
    "norm=renorm": ("estimator=ema, momentum=0.1: ", "norm=renorm"),
    "estimator='\"precise(images=400)\"' population=val": ("estimator=precise(images=400): ", "2 to 143"),
    "evaluate_at=[1.5]": ("evaluate_at=1.5: ", "log, final", "0 to 110"),
    "accuracy_at=[0.5] evaluate_at=[0.1,1.0]": ("accuracy_at=0.5: ", "evaluate_at"),
    "model=resnet model.depth=9": ("model.depth=9: ", "6n+2"),
    "averaging=swa freeze_at=0.8 freeze_with=exact": ("averaging=swa freeze_with=exact: ",),
    "weight_averages=0.9 freeze_at=0.8 freeze_with=exact": ("weight_averages=0.9 freeze_with=exact: ",),
    "momentum=true": ("momentum=true: ", "a number"),
    "evaluate_at=[true]": ("evaluate_at=True: ", "log, final"),
    # folders
    "data=cifar10 data.copies=true data.root=nowhere": ("cifar10: nowhere/train ", "data.root"),
    "data=cifar10 data.copies=true data.download=true": ("data.copies", "data.download=true"),
    "--foo": ("--foo: ",),
    "name=../x": ("name=../x: ",),
}
# What an experiment's file mine.yaml has, and what the message names
HEADER = "# @package _global_\n"
FILES = {
    "unknown key": (f"{HEADER}bath_size: 3\n", "batch_size?"),
    "unknown key of a group": (f"{HEADER}norm:\n  batch_size: 3\n", "norm.batch_size; "),
    "type": (f"{HEADER}batch_size: many\n", "batch_size=many: "),
    "name of a choice": (f"{HEADER}norm:\n  name: ghost\n", "norm.every_second"),
    "bracket": (f"{HEADER}momentum: [0.1\nname: mine\n", 'mine.yaml", line 3'),
    "choice without defaults": (f"{HEADER}optimizer: adamw\n", "- override /optimizer: adamw"),
    "no header": ("batch_size: 32\n", "# @package _global_"),
}


@pytest.mark.parametrize("line", CASES)
def test_a_mistake_on_the_command_line(line: str, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    done = call("sweep", *shlex.split(line))

    assert done.code == 2
    assert done.err.startswith("error: ")
    assert all(named in done.err for named in CASES[line]), done.err
    assert done.err.count("\n") <= 2
    assert not done.out
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("results", "named"),
    [("file", "file"), ("file/in/it", "file"), ("closed/results", "closed")],
)
def test_a_folder_that_cannot_be_written_is_named_before_anything_is_tried(
    results: str, named: str, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "closed").mkdir()
    may_access = os.access  # root may write anywhere
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).name != "closed" and may_access(path, mode))
    monkeypatch.setattr("bnlab.harness.jobs.try_training", None)

    done = call("sweep", "steps=1", f"results={results}")

    assert done.code == 2
    assert done.err.startswith(f"error: results={results}: {named} ")
    assert done.err.count("\n") == 1
    assert not [*(tmp_path / "closed").iterdir()]


@pytest.mark.parametrize("case", FILES)
def test_a_mistake_in_a_file(case: str, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, named = FILES[case]
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(text, encoding="utf-8")

    done = call("sweep", "experiment=mine", f"results={tmp_path}/r")

    assert done.code == 2
    assert named in done.err
    assert done.err.count("\n") <= 2
    assert not (tmp_path / "r").exists()


def test_a_mistake_is_answered_before_what_takes_seconds_is_imported(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bnlab.harness.jobs", None)  # cannot be imported

    done = call("sweep", "bath_size=4")

    assert done.code == 2
    assert "batch_size?" in done.err
