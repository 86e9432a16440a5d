"""Mistakes on the command line: a line or two that name the key, the value and what is allowed; nothing written."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from bnlab.harness.errors import UserError
from bnlab.lab.compose import plan_jobs
from tests.experiments.commands import Call, run

# The words of a command line, and what its message says
CASES = {
    # overrides that are none
    "bath_size=4": "bath_size=4: there is no setting bath_size; did you mean batch_size?",
    "+x=1": "+x=1: there is no setting to add",
    "model=null": "model=null: is no choice",
    "++x=1": "x=1: there is no setting x",
    "=4": "=4: there is no setting",
    "batch_size": "batch_size: cannot be read; write key=value",
    "data=4": "data=4: is no choice",
    "data@other=digits": "data@other=digits: there is no setting data@other",
    "hydra=1": "hydra=1: there is no setting hydra",
    "hydra.launcher.n_jobs=2": "there is no setting hydra.launcher.n_jobs",
    "hydra/launcher=joblib hydra.launcher.n_jobs=many": "hydra.launcher.n_jobs=many\n  Value 'many' of type 'str'",
    "-m hydra.verbose=true,false": "hydra.verbose=true,false: cannot be swept",
    "seed=${foo}": "seed: Interpolation key 'foo' not found",
    "~batch_size": "~batch_size: nothing can be left out",
    "~hydra/launcher": "~hydra/launcher: nothing can be left out",
    "hydra/sweeper=optuna": "hydra/sweeper=optuna: the jobs of a sweep are a grid",
    "-m suite=base,base seed=0": "bnlab sweep -m suite=base seed=0 && bnlab sweep",
    "-m data=glob(*)": "data=glob(*): cannot be swept",
    "-m seed=range(0,0)": "seed=range(0,0): cannot be swept",
    "-m name=a,b": "name=a,b: cannot be swept; comma lists can, but not of name",
    "momentum=[0.1": "momentum=[0.1: cannot be read",
    "estimator=window(k=20)": "a value with brackets in quotes: 'estimator=\"window(k=20)\"'",
    "momentum=0.1,0.2": "swept with -m; to measure all on one network: 'momentum=[0.1,0.2]'",
    "seed=0,1": "seed=0,1: several values are swept with -m",
    "hydra/launcher=nonsense": "there is no hydra/launcher 'nonsense'; choose from basic, joblib",
    # choices
    "data=digit": "data=digit: there is no data 'digit'; choose from cifar10, cifar100, digits",
    "model.name=resnet18": "model.name=resnet18: choose by model=, from cnn, plain, mlp, resnet, torchvision",
    "'optimizer={lrr: 1}'": "there is no setting optimizer.lrr; did you mean optimizer.lr?",
    "data.flip=true": "data.flip=true: this data has no flip; data=cifar10, data=cifar100, data=fashion_mnist has",
    "norm=none model=torchvision": "norm=none: resnet18 has normalization of its own",
    "norm=instance model=mlp": "norm=instance: a unit of model=mlp has one value",
    "norm=group norm.groups=5": "norm.groups=5: must divide model.width=32",
    "norm=none measurements=drift": "measurements=drift: need batch norm, found norm=none",
    "order=random": "order=random: must be one of shuffled, replacement, sorted, blocks, or blocks:16",
    "shifts=fog:1": "shifts=fog:1: must be one of none, blur:1",
    "estimator=foo": "estimator=foo: unknown; there are adaptive_gain, ",
    "device=foo": "device=foo: not available here",
    # types and ranges
    "seed=0.5": "seed=0.5: Value '0.5' of type 'float' could not be converted to Integer",
    "-m batch_size=1,32": "batch_size=1: must be 2 to 1,295",
    "-m seed=0,1 data=digits,digit": "data=digit: there is no data 'digit'",
    "data.images=2000": "data.images=2000: must be 10 to 1,438",
    "data=glyphs data.images=3": "data.images=3: must be 10 or more",
    "momentum=0": "momentum=0: is the weight of the new batch; must be above 0 and at most 1",
    "momentum=[]": "momentum=[]: give at least one",
    "norm=renorm": "estimator=ema, momentum=0.1: a network with norm=renorm reads its running averages",
    "estimator='\"precise(images=400)\"' population=val": "estimator=precise(images=400): images=400: must be 2 to 143",
    "evaluate_at=[1.5]": "evaluate_at=1.5: must be log, final, or a list of steps (1 to 110) and shares (0.1)",
    "accuracy_at=[0.5] evaluate_at=[0.1,1.0]": "accuracy_at=0.5: is not among evaluate_at",
    "model=resnet model.depth=9": "model.depth=9: a resnet has 6n+2 layers",
    # folders
    "data=cifar10 data.copies=true data.root=nowhere": "nowhere/train is missing; set data.root to the folder that has",
    "data=mnist data.root=nowhere": "nowhere/MNIST/raw/train-images-idx3-ubyte is missing; set data.download=true",
    "name=../x": "name=../x: must be letters, digits, _ . -",
}


@pytest.mark.parametrize("line", CASES)
def test_message(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line)
    multirun = "-m" in words
    with pytest.raises(UserError) as caught:
        plan_jobs([word for word in words if word != "-m"], multirun=multirun)

    message = str(caught.value)
    assert CASES[line] in message
    assert message.count("\n") <= 1
    assert not [*tmp_path.iterdir()]


def test_several_experiments_are_refused_with_the_command_of_each() -> None:
    """Each file sweeps settings of its own, which Hydra would drop."""
    words = ["experiment=quickstart,momentum", "seed=0", "results=my results"]

    with pytest.raises(UserError) as caught:
        plan_jobs(words, multirun=True)

    message, commands = str(caught.value).split("\n")

    assert message.startswith("experiment=quickstart,momentum: ")

    for command, experiment in zip(commands.split(" && "), ("quickstart", "momentum"), strict=True):
        typed = shlex.split(command)
        assert typed[:3] == ["bnlab", "sweep", "-m"]
        assert typed[3:] == [f"experiment={experiment}", "seed=0", "results=my results"]
        assert len(plan_jobs(typed[3:], multirun=True).configs) == 3


def test_a_file_that_chooses_another_sweeper(tmp_path: Path) -> None:
    sweepers = tmp_path / "hydra" / "sweeper"
    sweepers.mkdir(parents=True)
    (sweepers / "guessing.yaml").write_text("_target_: mine.Sweeper\n")
    experiments = tmp_path / "experiment"
    experiments.mkdir()
    text = "# @package _global_\ndefaults:\n  - override /hydra/sweeper: guessing\n"
    (experiments / "mine.yaml").write_text(text)

    with pytest.raises(UserError, match="hydra/sweeper=guessing: the jobs of a sweep are a grid"):
        plan_jobs([f"--config-dir={tmp_path}", "experiment=mine"], multirun=True)


def test_a_mistake_is_answered_before_what_takes_seconds_is_imported(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bnlab.harness.jobs", None)  # cannot be imported

    done = call("sweep", "bath_size=4")

    assert done.code == 2
    assert "did you mean batch_size?" in done.err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sweep seed=0,1", "several values are swept with -m"),
        ("sweep data=mnist data.root=nowhere", "nowhere/MNIST/raw/train-images-idx3-ubyte is missing"),
        ("sweep --config-dir nowhere", "--config-dir=nowhere: is no folder"),
        ("sweep --foo", "--foo: no such option"),
        ("runs show x", "x: names no network"),
    ],
)
def test_a_command_says_it_in_a_line(line: str, message: str, call: Call, tmp_path: Path) -> None:
    done = call(line, f"results={tmp_path}/r")

    assert done.code == 2
    assert done.err.startswith("error: ")
    assert message in done.err
    assert done.err.count("\n") == 1
    assert not done.out
    assert not (tmp_path / "r").exists()


def test_the_real_command(tmp_path: Path) -> None:
    done = run("sweep", "bath_size=4", f"results={tmp_path}/r", expect=2)

    assert done.stderr.startswith("error: bath_size=4: there is no setting bath_size; did you mean batch_size?")
    assert done.stderr.count("\n") == 1
    assert not done.stdout
    assert not (tmp_path / "r").exists()
