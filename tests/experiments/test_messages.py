"""What is said about mistakes in configuration files and misspelt or unquoted words; how often Hydra composes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from experiments import compose, explain
from experiments.compose import plan_jobs
from tests.experiments.commands import Call

HEADER = "# @package _global_\n"
DATA = HEADER + "defaults:\n  - override /data: "
SWEPT = HEADER + "hydra:\n  mode: MULTIRUN\n  sweeper:\n"
# What an experiment's file mine.yaml has, and what the message says after its name
FILES = {
    "unknown key": (HEADER + "name: mine\nbath_size: 3\n", ".*'bath_size'; did you mean 'batch_size'"),
    "unknown key in a group": (HEADER + "data:\n  classess: 3\n", ".*'data.classess'.*'data.classes'"),
    "group": (HEADER + "data: digits\n", "data: a group of settings, chosen by 'defaults: .override /data: digits.'"),
    "suite": (HEADER + "suite: base\n", "suite: a group of settings, chosen by 'defaults: .override /suite: base.'"),
    "variation": (HEADER + "variation: constant\n", "variation: is chosen on the command line .variation=constant. or"),
    "experiment": (HEADER + "experiment: quickstart\n", "experiment: one experiment cannot choose another"),
    "dotted key": (HEADER + "data.name: digits\n", "data.name is nested in a file, 'data: {name: ...}'"),
    "wrong type": (HEADER + "optimizer:\n  lr: high\n", "optimizer.lr: .*'high'"),
    "bracket": (HEADER + "momentum: [0.1\nname: mine\n", "line 3, column 5: not valid YAML"),
    "tab": (HEADER + "data:\n\timages: 3\n", "line 3, column 1: not valid YAML"),
    "key twice": (HEADER + "seed: 0\nseed: 1\n", "line 3, column 1: not valid YAML .*duplicate key seed"),
    "not UTF-8": (b"# @package _global_\nname: b\xff\n", "cannot be read .*utf-8"),
    "no header": ("name: mine\n", "must begin with the line '# @package _global_'"),
    "a list": ("- name\n- mine\n", "must begin with the line '# @package _global_'"),
    "choice": (DATA + "cifra\n", "data=cifra: there is no such data; choose from cifar10.*did you mean 'cifar10'"),
    "choice added": (HEADER + "defaults:\n  - /data: digits\n", "cannot be read .*data appears more"),
    "interpolation": (HEADER + "name: ${nope}\n", "name: .*'nope'"),
    "swept key": (
        SWEPT + "    params:\n      sead: 0,1\n",
        "sead=0,1: there is no setting 'sead'; did you mean 'seed'",
    ),
    "swept values": (SWEPT + "    params:\n      seed: 0,\n", "seed=0,: cannot be read"),
    "sweeper": (SWEPT + "    parms: 3\n", ".*'hydra.sweeper.parms'"),
    "mode": (HEADER + "hydra:\n  mode: OFTEN\n", "hydra.mode: .*'OFTEN'"),
    "nothing": (HEADER, "has no name; write name: mine"),
    "no name": (HEADER + "seed: 1\n", "has no name; write name: mine"),
    "to be given": (HEADER + "name: mine\nbatch_size: ???\n", r"batch_size is \?\?\?, and has to be given"),
    "empty sweeper": (HEADER + "hydra: {sweeper: }\n", "has no name; write name: mine"),
}


@pytest.mark.parametrize(
    ("group", "case"),
    [
        *(("experiment", case) for case in FILES),
        *(("variation", case) for case in ("unknown key", "group", "wrong type", "bracket", "no header", "a list")),
        *((group, "choice") for group in ("suite", "variation")),
        ("suite", "no header"),
    ],
)
def test_a_mistake_in_a_file(group: str, case: str, conf: Path, call: Call, tmp_path: Path) -> None:
    text, message = FILES[case]
    (conf / group / "mine.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    code, out, err = call(f"sweep {group}=mine dry_run=true", f"results={tmp_path}/r")
    assert code == 2 and not out and re.search(f"conf/{group}/mine.yaml: {message}", err), err
    assert err.count("\n") == 1 and err.startswith("error: ")


@pytest.mark.parametrize("group", ["norm", "data", "variation"])
def test_a_file_that_sets_the_name_of_the_results(group: str, conf: Path, call: Call, tmp_path: Path) -> None:
    """With an experiment's header, a norm's name was that of the results, and the norm the usual one."""
    (conf / group / "mine.yaml").write_text(f"{HEADER}name: group\n")
    code, out, err = call(f"sweep {group}=mine dry_run=true", f"results={tmp_path}/r")
    assert code == 2 and not out and err.startswith(f"error: {group}=mine: sets name: group, where results lie")
    assert err.count("\n") == 1


def test_a_mistake_on_the_command_line_is_not_that_of_the_file(conf: Path, call: Call, tmp_path: Path) -> None:
    (conf / "experiment" / "mine.yaml").write_text(DATA + "glyphs\n")
    code, out, err = call("sweep experiment=mine data=cifra dry_run=true", f"results={tmp_path}/r")
    assert code == 2 and not out and err.startswith("error: data=cifra: there is no such data")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("optimizer.leraning_rate", "optimizer.lr"),
        ("learning_rate", "optimizer.lr"),
        ("lr", "optimizer.lr"),
        ("optimizer.lrr", "optimizer.lr"),
        ("optimizer.momentun", "optimizer.momentum"),
        ("momentun", "momentum"),
        ("bath_size", "batch_size"),
        ("dat.name", "data.name"),
        ("image_size", "data.image_size"),
        ("dataset", "data"),
        ("n_jobs", "hydra.launcher.n_jobs"),
    ],
)
def test_the_setting_that_was_meant(key: str, meant: str) -> None:
    assert f"did you mean {meant!r}?" in explain.explain_unknown("word", key)


def test_nothing_is_near() -> None:
    assert "did you mean" not in explain.explain_unknown("word", "foo.xyz")


@pytest.mark.parametrize(
    ("word", "names"),
    [
        ("estimator=window(k=20)", ["window(k=20)"]),
        ("estimator=[ema,window(k=20),precise(images=100)]", ["ema", "window(k=20)", "precise(images=100)"]),
        ("estimator=[ema,polynomial(alpha=0.7)]", ["ema", "polynomial(alpha=0.7)"]),
    ],
)
def test_the_advice_on_quotes_works(word: str, names: list[str]) -> None:
    with pytest.raises(ValueError, match="needs quotes: ") as caught:
        plan_jobs([word], multirun=False)
    advice = str(caught.value).partition("needs quotes: ")[2].removesuffix(")")
    (config,) = plan_jobs(shlex.split(f"{advice} data=digits")[:1], multirun=False).configs
    assert ([config.estimator] if isinstance(config.estimator, str) else list(config.estimator)) == names


def test_the_advice_on_quotes_works_for_a_sweep() -> None:
    with pytest.raises(ValueError, match="needs quotes: ") as caught:
        plan_jobs(["estimator=ema,window(k=20)"], multirun=True)
    advice = str(caught.value).partition("needs quotes: ")[2].removesuffix(")")
    found = plan_jobs(shlex.split(advice), multirun=True).configs
    assert [config.estimator for config in found] == ["ema", "window(k=20)"]


@pytest.mark.parametrize("folder", ["/data (1)/results", "results(2,b)", "My Drive(1)/a(b)/c"])
def test_the_advice_on_quotes_works_for_a_folder(folder: str) -> None:
    with pytest.raises(ValueError, match="needs quotes: ") as caught:
        plan_jobs([f"results={folder}"], multirun=False)
    advice = str(caught.value).partition("needs quotes: ")[2].removesuffix(")")
    (config,) = plan_jobs(shlex.split(advice), multirun=False).configs
    assert config.results == folder


def test_the_advice_on_a_folder_with_a_blank_works(call: Call, tmp_path: Path) -> None:
    folder = f"results={tmp_path / 'my results'}"
    found = call("figures", "experiment=quickstart", folder)
    assert found.code == 2 and shlex.split(found.err)[-2:] == ["experiment=quickstart", folder]


def test_hydra_composes_each_choice_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    composed = compose.compose

    def counted(name: str, overrides: list[str], **options: bool) -> object:
        calls.append(overrides)
        return composed(name, overrides, **options)

    monkeypatch.setattr(compose, "compose", counted)
    words = ["data=digits,glyphs", "seed=range(0,20)", "momentum=0.1,[0.1,0.2]", "optimizer.lr=0.1"]
    found = plan_jobs(words, multirun=True)
    assert len(found.configs) == len(found.words) == 80
    assert sorted(calls) == [[], ["data=digits"], ["data=glyphs"]]
    assert [(c.data.name, c.seed, c.momentum) for c in found.configs[:2]] == [
        ("digits", 0, 0.1),
        ("digits", 0, [0.1, 0.2]),
    ]
    assert found.words[-1] == ["data=glyphs", "seed=19", "momentum=[0.1,0.2]", "optimizer.lr=0.1"]


def test_values_are_those_that_hydra_composes() -> None:
    """Every way to write a value gives what Hydra makes of the same words by itself."""
    words = ["experiment=momentum", "data=glyphs", "optimizer=adamw", "optimizer.lr=1e-2", "batch_size=16", "seed=3"]
    words += ["estimator=[ema,'window(k=20)']", "evaluate_at=[1,0.5]", "name=other", "steps=null", "data.flip=false"]
    words += ["measurements=[gaps]", "data.fonts='dejavu'"]
    (found,) = plan_jobs(words, multirun=False).configs
    compose.register()
    with compose.initialize_config_dir(str(compose.CONF), version_base="1.3"):
        assert found == compose.OmegaConf.to_object(compose.compose("config", words))


def test_what_an_experiment_sweeps_is_not_left_out(conf: Path) -> None:
    text = HEADER + "name: own\nsteps: 9\nhydra:\n  sweeper:\n    params:\n      batch_size: 4,16\n      seed: 0,1\n"
    (conf / "experiment/own.yaml").write_text(text)
    with pytest.raises(ValueError, match="sweeps batch_size, seed only with -m; write 'mode: MULTIRUN'"):
        plan_jobs(["experiment=own"], multirun=False)
    assert len(plan_jobs(["experiment=own"], multirun=True).configs) == 4
    assert len(plan_jobs(["experiment=own", "batch_size=4", "seed=3"], multirun=False).configs) == 1


def test_what_swept_files_sweep_is_not_left_out(conf: Path) -> None:
    words = ["suite=base,large"]
    message = "^suite=base,large: each of these files sweeps batch_size, seed itself, .*: batch_size=... seed=...$"
    for more in ([], ["model=cnn"]):
        with pytest.raises(ValueError, match=message):
            plan_jobs([*more, *words], multirun=True)
    with pytest.raises(ValueError, match="each of these files sweeps batch_size itself"):
        plan_jobs([*words, "seed=0,1"], multirun=True)
    assert len(plan_jobs([*words, "seed=0,1", "batch_size=64"], multirun=True).configs) == 4
    assert len(plan_jobs(["experiment=quickstart", *words], multirun=True).configs) == 30
    (conf / "experiment/own.yaml").write_text(SWEPT + "    params:\n      suite: base,large\nname: own\n")
    with pytest.raises(ValueError, match=message):
        plan_jobs(["experiment=own"], multirun=False)


@pytest.mark.parametrize("experiment", ["weight_averaging", "model_selection"])
def test_a_variation_is_of_what_an_experiment_sets(experiment: str) -> None:
    words = [f"experiment={experiment}", "variation=base,step", "batch_size=64", "seed=0"]
    found = plan_jobs(words, multirun=True).configs
    assert {config.optimizer.schedule for config in found} == {"constant", "step"}


@pytest.mark.parametrize(
    "words",
    [
        "experiment=self_tuned variation=constant",  # which sweeps schedules
        "experiment=settings optimizer.lr=0.2",  # which sweeps variations
        "variation=base,adamw optimizer=sgd",
        "variation=frozen_ema freeze_at=null",
    ],
)
def test_a_variation_without_effect_is_refused(words: str) -> None:
    with pytest.raises(ValueError, match="overrides what it sets"):
        plan_jobs(words.split(), multirun=True)


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("norm.batch_size=8", "norm.name=batch"),
        ("data.fonts=dejavu", "data.name=digits"),
        ("freeze_with=exact", "freeze_at is not given"),
        ("epochs=3", "steps=9"),
    ],
)
def test_a_setting_that_nothing_reads_is_told(word: str, reason: str, recwarn: pytest.WarningsRecorder) -> None:
    plan_jobs([word, "steps=9", "data.root=elsewhere", "optimizer.momentum=0.5"], multirun=False)
    assert [str(warning.message) for warning in recwarn] == [f"{word} is not read ({reason})"]


def test_a_setting_of_an_experiment_that_nothing_reads_is_told(conf: Path, recwarn: pytest.WarningsRecorder) -> None:
    text = SWEPT + "    params:\n      norm.batch_size: 4,8\nname: unread\nsteps: 9\nepochs: 3\nfreeze_with: exact\n"
    (conf / "experiment/unread.yaml").write_text(text)
    plan_jobs(["experiment=unread"], multirun=False)
    assert [str(warning.message) for warning in recwarn] == [
        "conf/experiment/unread.yaml: epochs is not read (steps=9)",
        "conf/experiment/unread.yaml: freeze_with is not read (freeze_at is not given)",
        "conf/experiment/unread.yaml: norm.batch_size=4,8 is not read (norm.name=batch)",
    ]


def test_what_replaces_a_setting_of_an_experiment_is_not_told(recwarn: pytest.WarningsRecorder) -> None:
    plan_jobs(["experiment=quickstart", "steps=9"], multirun=False)
    assert not recwarn.list


def test_a_setting_that_some_networks_read_is_not_told(recwarn: pytest.WarningsRecorder) -> None:
    plan_jobs(["norm=batch,group", "norm.groups=4", "epochs=3", "steps=null"], multirun=True)
    assert not recwarn.list


def test_more_processes_than_an_integer_counts(call: Call, tmp_path: Path) -> None:
    words = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=99999999999", "steps=1", f"results={tmp_path}")
    code, _, err = call("sweep", *words)
    assert code == 2 and err.startswith("error: hydra/launcher=joblib: Python int too large")
