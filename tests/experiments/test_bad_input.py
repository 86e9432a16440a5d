"""Mistakes on the command line and in files: a line or two that name the key, the value and what is allowed."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import pytest

from tests.experiments.commands import Call

# The words of a command line, and what its message says
CASES = {
    # overrides that are none
    "bath_size=4": "bath_size=4: there is no setting bath_size; did you mean batch_size?",
    "+x=1": "+x=1: settings are neither added nor left out",
    "=4": "=4: there is no setting",
    "batch_size": "batch_size: cannot be read; write key=value",
    "norm=null": "norm=null: is no choice",
    "hydra/launcher=joblib hydra.launcher.n_jobs=many": "hydra.launcher.n_jobs=many: must be a whole number\n",
    "seed=${foo}": "seed: Interpolation key 'foo' not found",
    "~batch_size": "~batch_size: settings are neither added nor left out",
    "-m experiment=quickstart,momentum": "experiment=quickstart,momentum: each of them has a sweep of its own",
    "-m name=a,b": "name=a,b: cannot be swept; comma lists can, but not of name",
    "momentum=[0.1": "momentum=[0.1: cannot be read",
    "estimator=window(k=20)": "a value with brackets, = or ä in quotes: 'estimator=\"window(k=20)\"'",
    "momentum=0.1,0.2": "swept with -m; to measure all on one network: 'momentum=[0.1,0.2]'",
    "hydra/launcher=nonsense": "hydra/launcher=nonsense: must be one of basic, joblib",
    "model=ö": "a value with brackets, = or ä in quotes",
    # choices
    "data=cifar": "data=cifar: did you mean cifar10?",
    "experiment=quikstart": "experiment=quikstart: did you mean quickstart?",
    "measurements=[gaps,evaluation]": "measurements=evaluation: did you mean evaluations?",
    "estimator=EMMA": "estimator=EMMA: did you mean ema?",
    "model.name=resnet18": "model.name=resnet18: choose by model=, from cnn, plain, mlp, resnet",
    "data.flip=true": "data.flip=true: there is no setting data.flip",
    "norm=instance model=mlp": "norm=instance: a unit of model=mlp has one value",
    "norm=group norm.groups=5": "norm.groups=5: must divide model.width=32",
    "norm=none measurements=drift": "measurements=drift: measures nothing of a network with norm=none",
    "order=random": "order=random: must be one of shuffled, sorted, blocks:16",
    "device=foo": "device=foo: not available here",
    # the setting that is meant, in another group, in other words, in one that has no such name
    "sgd.lr=0.1": "there is no setting sgd.lr; did you mean optimizer.lr?",
    "optimizer.learning_rate=0.1": "there is no setting optimizer.learning_rate; did you mean optimizer.lr?",
    "weight_decay=0": "did you mean optimizer.weight_decay?",
    "norm.batchsize=4": "did you mean batch_size?",
    "model.kernel=3": "there is no setting model.kernel; there are model.depth, model.width, model.pool_every\n",
    # types and ranges
    "batch_size=many": "batch_size=many: must be a whole number\n",
    "epochs=1.5": "epochs=1.5: must be a whole number, at least 1\n",
    "steps=1e5": "steps=100000.0: must be a whole number, at least 1; write it as 100000\n",
    "optimizer.label_smoothing=some": "label_smoothing=some: must be a number, at least 0 and at most 0.99\n",
    "quiet=maybe": "quiet=maybe: must be true or false\n",
    "threads=null": "threads=null: needs a value",
    "-m batch_size=1,32": "batch_size=1: must be 2 to 1,295",
    "norm=ghost norm.batch_size=32 batch_size=31": "norm.batch_size=32: must be 2 to 31 (a part of the batch)",
    "data.images=2000": "data.images=2000: must be 10 to 1,438",
    "data.images=10 batch_size=20 norm=ghost": "batch_size=20: must be 2 to 9",
    "momentum=0": "momentum=0: is the weight of the new batch; must be above 0 and at most 1",
    "momentum=[]": "momentum=[]: give at least one",
    "norm=renorm": "estimator=ema, momentum=0.1: a network with norm=renorm reads its running averages",
    "estimator='\"precise(images=400)\"' population=val": "estimator=precise(images=400): images=400: must be 2 to 143",
    "evaluate_at=[1.5]": "evaluate_at=1.5: must be log, final, or a list of steps (1 to 110) and shares (0.1)",
    "accuracy_at=[0.5] evaluate_at=[0.1,1.0]": "accuracy_at=0.5: is not among evaluate_at",
    "model=resnet model.depth=9": "model.depth=9: a resnet has 6n+2 layers",
    "averaging=swa freeze_at=0.8 freeze_with=exact": "the average of the weights has no frozen statistics",
    "weight_averages=0.9 freeze_at=0.8 freeze_with=exact": "weight_averages=0.9 freeze_with=exact: the average of the",
    "momentum=true": "momentum=True: is the weight of the new batch",
    "evaluate_at=[true]": "evaluate_at=True: must be log, final, or a list",
    # folders
    "data=cifar10 data.copies=true data.root=nowhere": "nowhere/train is missing; copies are image files in train/",
    "data=cifar10 data.copies=true data.download=true": "published images, not copies: use it without data.copies",
    "--foo": "--foo: no such option",
    "name=../x": "name=../x: must be letters, digits, _ . -",
}
# What an experiment's file mine.yaml has, and what the message says of it
HEADER = "# @package _global_\n"
FILES = {
    "unknown key": (f"{HEADER}bath_size: 3\n", "there is no setting bath_size; did you mean batch_size?"),
    "unknown key of a group": (
        f"{HEADER}norm:\n  batch_size: 3\n",
        "there is no setting norm.batch_size; did you mean",
    ),
    "type": (f"{HEADER}batch_size: many\n", "batch_size=many: must be a whole number"),
    "bracket": (f"{HEADER}momentum: [0.1\nname: mine\n", 'mine.yaml", line 3'),
    "choice without defaults": (f"{HEADER}optimizer: adamw\n", "In 'experiment/mine'"),
    "no header": ("batch_size: 32\n", "begins with the line # @package _global_"),
}


@pytest.mark.parametrize("line", CASES)
def test_a_mistake_on_the_command_line(line: str, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    done = call("sweep", *shlex.split(line))

    assert done.code == 2
    assert done.err.startswith("error: ")
    assert CASES[line] in done.err
    assert done.err.count("\n") <= 2
    assert not done.out
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ("file", "results=file: file is a file and no folder; name another folder, as results="),
        ("file/in/it", "file is a file and no folder"),
        ("closed/results", "closed cannot be written by you; name another folder"),
    ],
)
def test_a_folder_that_cannot_be_written_is_named_before_anything_is_tried(
    results: str, message: str, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "closed").mkdir()
    may_access = os.access  # root may write anywhere
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).name != "closed" and may_access(path, mode))
    monkeypatch.setattr("bnlab.harness.jobs.try_training", None)

    done = call("sweep", "steps=1", f"results={results}")

    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") == 1
    assert not [*(tmp_path / "closed").iterdir()]


@pytest.mark.parametrize("case", FILES)
def test_a_mistake_in_a_file(case: str, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, message = FILES[case]
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(text, encoding="utf-8")

    done = call("sweep", "experiment=mine", f"results={tmp_path}/r")

    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") <= 2
    assert not (tmp_path / "r").exists()


def test_a_mistake_is_answered_before_what_takes_seconds_is_imported(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bnlab.harness.jobs", None)  # cannot be imported

    done = call("sweep", "bath_size=4")

    assert done.code == 2
    assert "did you mean batch_size?" in done.err
