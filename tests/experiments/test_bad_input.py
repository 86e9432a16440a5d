"""Mistakes on the command line: one or two lines that name the key and the value, exit 2, nothing written."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from bnlab import estimators, inference
from bnlab.harness import jobs
from bnlab.harness.artifacts.data import DataConfig
from bnlab.harness.artifacts.folders import lock_of
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.artifacts.settings import Config
from bnlab.harness.measurements.sources import AVERAGING, FROZEN
from experiments import launch, runs
from tests.experiments.commands import Call, Done, files, run

# command and words, and what the message says
CASES = {
    # overrides that are none
    "sweep bath_size=4": "bath_size.*did you mean 'batch_size'",
    "sweep optimizer.lrr=1": "did you mean 'optimizer.lr'",
    "sweep foo.bar=1": "no setting 'foo.bar'",
    "sweep +x=1": "without \\+ or ~",
    "sweep ++seed=1": "without \\+ or ~",
    "sweep ~steps": "without \\+ or ~",
    "sweep ~data": "without \\+ or ~",
    "sweep momentum=[0.1": "not closed",
    "sweep estimator='precise": "not closed",
    "sweep momentum=0.1,0.2": "with -m; .*momentum=\\[0.1,0.2\\]",
    "sweep seed=0,1": "swept with -m",
    "sweep experiment=quickstart momentum=0.1,2": "above 0 and at most 1",
    "sweep foo": "key=value",
    "sweep =1": "key=value",
    "sweep seed==1": "cannot be read",
    "sweep データ=1": "データ",
    "sweep seed=１": "seed=１",
    "sweep name=ünïcode": "name=ünïcode",
    "sweep seed=0 seed=1": "given twice",
    "sweep experiment=quickstart experiment=momentum": "given twice",
    "sweep --foo": "no such option",
    "sweep -x": "no such option",
    "sweep --config-name=foo": "no such option",
    # choices
    "sweep data=digit": "choose from .*digits.*did you mean 'digits'",
    "sweep data=": "choose from",
    "sweep norm=layr": "choose from batch, frozen, gain_control, ghost, .*did you mean 'layer'",
    "sweep norm=ghost norm.batch_size=256": "norm.batch_size=256: is larger than the batch.*batch_size=128",
    "sweep norm=ghost norm.batch_size=1": "norm.batch_size=1: one image has no batch statistics",
    "sweep norm=ghost batch_size=1": "batch_size=1: must be 2 to 1,295 .norm=ghost needs at least 2",
    "sweep norm=ghost measurements=drift": "measurements=drift: need batch norm .norm=batch, renorm",
    "sweep norm=group norm.groups=5": "norm.groups=5: must divide the channels.*model.width=32",
    "sweep norm=group batch_size=0": "batch_size=0: must be 1 to 1,295",
    "sweep norm=group measurements=gaps": "measurements=gaps: need batch norm",
    "sweep norm=group norm.every_second=group": "norm.every_second=group: stands in for a norm with batch statistics",
    "sweep norm.every_second=layer": "norm.every_second=layer: must be one of none, group",
    "sweep norm=instance model=mlp": "norm.name=instance: a unit of an mlp has one value",
    "sweep norm=gain_control model=mlp": "norm.name=gain_control: a unit of an mlp has one value",
    "sweep norm=renorm": "momentum=0.1: a network with norm=renorm reads.*use estimator=ema with momentum=0.01",
    "sweep norm=renorm estimator=cumulative": "estimator=cumulative: a network with norm=renorm reads",
    "sweep norm=renorm norm.momentum=0": "norm.momentum=0.0: is the weight of the new batch",
    "sweep norm=none model=torchvision": "norm.name=none: resnet18 has normalization of its own",
    "sweep norm=none model.name=cnnn": "model.name=cnnn: unknown",
    "sweep norm=none measurements=[gaps]": "measurements=.*gaps.*: need batch norm",
    "sweep -m norm=none,batch measurements=[drift]": "measurements=.*drift.*: need batch norm",
    "sweep data={name:digits}": "takes one name",
    "sweep data.name=x": "data.name=x: must be one of",
    "sweep model=reznet": "did you mean 'resnet'",
    "sweep model=null": "takes one name",
    "sweep optimizer=[sgd,adamw]": "takes one name",
    "sweep experiment=nope": "choose from",
    "sweep experiment=../../x": "choose from",
    "sweep order=random": "order=random: must be one of shuffled, replacement, sorted, blocks, or blocks:16 for",
    "sweep order=blocks:0": "order=blocks:0: must be one of shuffled, replacement, sorted, blocks, or blocks:16 for",
    "sweep order=[sorted]": "order",
    "sweep freeze_with=cumulative": "freeze_with=cumulative: must be one of ema, exact",
    "sweep freeze_at=0": "freeze_at=0.0: is a share of the training; must be above 0 and below 1",
    "sweep freeze_at=1": "freeze_at=1.0: .*below 1",
    "sweep freeze_at=nan": "freeze_at=nan: .*below 1",
    "sweep freeze_at=0.9 steps=4": "freeze_at=0.9: nothing of 4 steps is left",
    "sweep freeze_at=0.8 norm=none": "freeze_at=0.8: norm.name=none cannot be frozen; use norm=batch",
    "sweep freeze_at=0.8 norm=ghost": "freeze_at=0.8: norm.name=ghost cannot be frozen; use norm=batch",
    "sweep freeze_at=0.8 momentum=0.01": "momentum=0.01: a network with freeze_at reads.*with momentum=0.1,",
    "sweep freeze_at=0.8 estimator=[ema,cumulative]": "estimator=cumulative: a network with freeze_at",
    "sweep freeze_at=0.8 measurements=[gaps,drift]": "measurements=drift: .* with freeze_at later steps have no",
    "sweep averaging=mean": "averaging=mean: must be one of none, swa, ema",
    "sweep averaging=swa measurements=decomposition": "measurements=decomposition: .* with averaging=swa the network",
    "sweep estimator='averaged(images=9)'": "write averaged, which has no parameters",
    # types and ranges
    "sweep seed=0.5": "seed=0.5.*Integer",
    "sweep seed=-1": "seed=-1: must be 0",
    "sweep seed=99999999999999999999999": "must be 0 to",
    "sweep seed=true": "Integer",
    "sweep seed=": "Integer",
    "sweep seed=null": "not Optional",
    "sweep batch_size=1": "batch_size=1: must be 2 to 1,295 .norm=batch needs at least 2",
    "sweep batch_size=99999": "1,295 images",
    "sweep batch_size=2.5": "Integer",
    "sweep data.images=10 batch_size=10": "batch_size=10: must be 2 to 9",
    "sweep data.images=5": "data.images=5: must be 10",
    "sweep data.images=99999": "must be 10 to 1,438",
    "sweep momentum=0": "above 0 and at most 1",
    "sweep momentum=1.5": "above 0 and at most 1",
    "sweep momentum=nan": "momentum=nan",
    "sweep momentum=[]": "at least one",
    "sweep momentum=[[0.1]]": "must be a number",
    "sweep momentum=[0.1,true]": "momentum=True: must be a number",
    "sweep momentum=null": "must be a number",
    "sweep momentum={a:1}": "must be a number",
    "sweep estimator=[]": "at least one",
    "sweep estimator=": "unknown; there are",
    "sweep estimator=foo": "estimator=foo: unknown; there are .*ema.*exact",
    "sweep estimator=precise(images=0)": "needs quotes",
    "sweep estimator='precise(images=0)'": "images must be 2 or more",
    "sweep estimator='precise(images=1)'": "images must be 2 or more",
    "sweep estimator='precise(images=400)' population=val": "validation split has 143 images",
    "sweep estimator='eval_norm(batch=4,batch=5)'": "batch is given twice",
    "sweep estimator='test_batch(n=360)'": "estimator=test_batch.n=360.: only 359 images of the test split",
    "sweep estimator='pseudo_samples(batch=360)' evaluate_on=[test,train]": "only 359 images of the test split",
    "sweep estimator=test_batch data.images=600 evaluate_on=[test,val]": "n=64.: only 60 images of the val",
    "sweep experiment=test_batch data.images=2000": "n=512.: only 500 images of the test split",
    "sweep hydra.launcher.n_jobs=2": "n_jobs needs hydra/launcher=joblib",
    "sweep estimator='precise(images=9999)'": "training split has 1,295 images",
    "sweep estimator='ema(momentum=5)'": "momentum=5",
    "sweep estimator='ema(x=5)'": "no parameter 'x'",
    "sweep estimator=os.path": "no subclass",
    "sweep estimator=nomod.X": "cannot be imported",
    "sweep estimator=..": "estimator=\\.\\.",
    "sweep evaluate_at=[]": "at least one step",
    "sweep evaluate_at=[0]": "evaluate_at=0",
    "sweep evaluate_at=[1.5]": "evaluate_at=1.5",
    "sweep evaluate_at=[nan]": "evaluate_at=nan",
    "sweep evaluate_at=foo": "evaluate_at=foo",
    "sweep epochs=0": "must be 1",
    "sweep epochs=100000000000000000000": "must be 1 to",
    "sweep steps=0": "must be 1",
    "sweep threads=0": "threads=0: must be 1",
    "sweep device=foo": "must be auto, cpu, cuda",
    "sweep device=meta": "must be auto, cpu, cuda",
    "sweep device=cuda:99": "not available here",
    "sweep measurements=[foo]": "choose from gaps",
    "sweep measurements=foo": "measurements=foo: choose from gaps",
    "sweep norm=none measurements=gaps": "measurements=gaps: need batch norm",
    "sweep population=foo": "population=foo: choose from train, train_augmented, val",
    "sweep population=[train,foo]": "population=.*foo.*: choose from train, train_augmented, val",
    "sweep population=[]": "population=.*: choose from",
    "sweep estimator='precise(images=400)' population=[train,val]": "validation split has 143 images",
    "sweep accuracy_at=foo": "final, all",
    "sweep accuracy_at=[]": "at least one step",
    "sweep accuracy_at=[0.5] evaluate_at=[0.1,1.0]": "is not among evaluate_at",
    "sweep evaluate_on=foo": "evaluate_on=foo: choose from test, val, train",
    "sweep evaluate_on=[test,foo]": "evaluate_on=\\['test', 'foo'\\]: choose from test, val, train",
    "sweep evaluate_on=[]": "evaluate_on=\\[\\]: choose from",
    "sweep evaluate_on=null": "evaluate_on=None: choose from",
    "sweep shifts=nois:1": "shifts=nois:1: unknown .did you mean noise",
    "sweep shifts=[none,noise:4]": "shifts=noise:4: write noise with a strength of 1, 2, 3",
    "sweep shifts='noise(1)'": "shifts=noise.1.: write noise with a strength of 1, 2, 3, such as noise:1",
    "sweep shifts=fonts:dejavu": "shifts=fonts:dejavu: data.name=digits has none",
    "sweep data=glyphs data.fonts=dejavu shifts=[none,fonts:stix_cm]": "set data.test_fonts=dejavu",
    "sweep shifts=[]": "shifts=\\[\\]: give at least one",
    "sweep shifts=null": "shifts=None: unknown",
    "sweep shifts=none,noise:1": "swept with -m",
    "sweep optimizer.lr=0": "above 0",
    "sweep optimizer.lr=nan": "above 0",
    "sweep optimizer.lr=1e30": "optimizer.lr=1e\\+30: must be above 0 and below 1e\\+19",
    "sweep optimizer.weight_decay=inf": "at least 0 and below 1e\\+19",
    "sweep optimizer.momentum=1": "below 1",
    "sweep optimizer.schedule=foo": "onecycle, step, constant",
    "sweep model.depth=0": "model.depth=0: must be 1",
    "sweep model=resnet model.depth=9": "6n\\+2",
    "sweep model.depth=100000": "model.depth=100000: must be 1,000 or less",
    "sweep model.width=1000000": "model.width=1000000: training it needs [\\d,]+ GB of memory.*take less",
    "sweep model=mlp model.width=999999999999": "model.width=999999999999: .* GB of memory",
    "sweep model.width=9999999999999999999999": "model.width=9999999999999999999999: .* GB of memory",
    "sweep model=resnet model.width=100000": "model.width=100000: .* GB of memory",
    "sweep data=glyphs data.images=1000000000": "data.images=1000000000: must be 10 to 10,000,000",
    "sweep data.image_size=100000000": "data.image_size=100000000: must be 8 to 1,024",
    "sweep model=torchvision model.name=vgg11_bn": "cannot take 1×8×8 images",
    "sweep data=mnist data.root=nowhere": "nowhere/MNIST/raw/train-images-idx3-ubyte is missing.*data.download=true",
    # folders
    "sweep experiment=conf/experiment/quickstart.yaml": "a file's name without folder and .yaml; choose",
    "sweep experiment=quickstart.yaml": "experiment=quickstart.yaml: experiment takes a file's name",
    "sweep -m data=digits,conf/data/glyphs": "data takes a file's name without folder",
    "sweep name=../x": "name='../x'",
    "sweep name=": "name=''",
    "sweep name=1.50": "name=1.50: is read as 1.5; put a letter before it",
    "sweep name=2024_11_22": "name=2024_11_22: is read as 20241122",
    "sweep results=2024_11_22": "results=2024_11_22: is read as 20241122; put a letter before it",
    "sweep results=true": "results=true: is read as True",
    "sweep name=runs": "not runs",
    "sweep name=???": "name",
    "sweep name=${nope}": "nope",
    # what a sweep cannot sweep
    "sweep -m name=a,b": "one name",
    "sweep -m model.width=4,5 name=w${model.width}": "a sweep has one name, and this has w4, w5",
    "sweep -m experiment=quickstart,momentum": "one experiment",
    "sweep -m seed=range(0,0)": "at least one",
    "sweep momentum=range(1,3)": "several values are swept with -m$",
    "sweep MOMENTUM=0.1": "did you mean 'momentum'?",
    "sweep -m seed=interval(0,1)": "comma list",
    "sweep -m data=glob(*)": "comma list",
    "sweep -m seed=0,": "cannot be read",
    "sweep -m seed=choice(1,2),3": "comma list",
    "sweep seed.x=3": "seed.x=3: ",
    "sweep data@x=digits": "no setting 'data@x'",
    "sweep -m batch_size=1,32": "batch_size=1",
    "sweep -m seed=0,0.5": "seed=0.5",
    # Hydra's own
    "sweep hydra.mode=NONSENSE": "only hydra/launcher",
    "sweep hydra.job.chdir=true": "only hydra/launcher",
    "sweep hydra/sweeper=optuna": "only hydra/launcher",
    "sweep hydra/launcher=nonsense": "no such launcher; choose from basic, joblib",
    "sweep hydra/launcher=[a]": "takes one name",
    "sweep hydra/launcher=null": "takes one name",
    "sweep hydra.launcher.nope=1": "no setting 'hydra.launcher.nope'",
    "sweep hydra/launcher=joblib hydra.launcher.n_jobs=x": "hydra.launcher.n_jobs=x: .*Integer",
    "sweep -m hydra/launcher=basic,joblib": "one hydra/launcher",
    "sweep hydra/launcher=submitit_slurm": "no Slurm here",
    # other commands
    "figures foo": "key=value",
    "figures experiment=nope": "choose from",
    "figures experiment=quickstart": "no results for 'quickstart'.*experiments.sweep experiment=quickstart",
    "figures experiment=quickstart seed=1": "seed: not an option",
    "figures experiment=quickstart,momentum": "one experiment",
    "figures experiment=null": "takes one name",
    "figures experiment=quickstart name=../x": "name='../x'",
    "figures": "which experiment",
    "figures --results x": "--results: no such option; there is --help",
    "figures experiment=quickstart experiment=momentum": "experiment is given twice",
    "answers seed=1": "seed: not an option here; there are experiment, results, name",
    "answers -m": "-m: no such option",
    "answers +experiment=quickstart": "cannot be added",
    "runs list name=x": "name: not an option here; there are results",
    "runs list --all": "--all: no such option",
    "runs": "which command",
    "runs foo": "foo",
    "runs show": "show",
    "runs show x": "no network",
    "runs rm": "rm: which",
    "runs rm x": "no network",
}


@pytest.mark.parametrize("line", list(CASES))
def test_message(line: str, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / "results"
    monkeypatch.setattr(launch.shutil, "which", lambda _: None)
    monkeypatch.setattr(launch, "launch", lambda _: pytest.fail("was about to train"))
    code, out, err = call(line, f"results={results}")
    assert code == 2 and not out and re.search(CASES[line], err), err
    assert 1 <= len(err.splitlines()) <= 2 and err.startswith("error: ") and "Traceback" not in err
    assert not results.exists()


def test_the_real_command(tmp_path: Path) -> None:
    done = run("sweep", "bath_size=4", f"results={tmp_path}/r", expect=2)
    assert done.stderr.count("\n") == 1 and not done.stdout and not (tmp_path / "r").exists()


@pytest.mark.parametrize("folder", ["/proc/nowhere", "/dev/null", "/dev/null/x"])
def test_results_that_are_no_folder(folder: str, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs.os, "access", lambda path, mode: not str(path).startswith("/proc"))
    code, _, err = call("sweep", f"results={folder}")
    assert code == 2 and err.count("\n") == 1 and folder in err


def test_empty_results(call: Call) -> None:
    for command in ("sweep", "runs list", "runs clean"):
        code, _, err = call(command, "results=")
        assert code == 2 and "results=: must be a folder" in err


def test_figures_without_words(call: Call) -> None:
    code, _, err = call("figures")
    assert code == 2 and err.startswith("error: which experiment?")


def test_figures_of_other_rows(results: Path) -> None:
    done = run("figures", "experiment=optimum", "name=adhoc", f"results={results}", expect=2)
    assert done.stderr.count("\n") == 2 and "run: python -m experiments.sweep experiment=optimum" in done.stderr
    assert not list(results.rglob("*.png"))


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    words = ("-m", "batch_size=32,256", "seed=0,1", "optimizer.lr=1e18", "dry_run=true")
    done = run("sweep", *words, f"results={tmp_path}/r")
    assert "4 jobs on 4 networks, none trained yet" in done.stdout
    assert not (tmp_path / "r").exists() and not done.stderr


def test_an_experiments_own_sweep_gives_way(tmp_path: Path) -> None:
    done = run("sweep", "experiment=quickstart", "seed=7", "batch_size=256", "dry_run=true", f"results={tmp_path}/r")
    assert "1 job on 1 network, none trained yet" in done.stdout


def test_help(call: Call) -> None:
    shown = run("sweep", "--help").stdout
    assert "momentum" in shown
    ours = [name for name, cls in estimators.list_estimators().items() if cls.__module__.startswith("bnlab.")]
    assert all(re.search(rf"\b{name}\b", shown) for name in (*ours, *inference.list_rules(), *FROZEN, *AVERAGING))
    for command in ("figures", "runs", "answers"):
        code, out, _ = call(command, "--help")
        assert code == 0 and "python -m experiments." in out


# runs


def test_list_and_show(swept: tuple[Path, Done], call: Call) -> None:
    where = f"results={swept[0]}"
    header, *lines, total = call("runs list", where).out.splitlines()
    assert header.split() == ["run", "batch_size", "status", "step", "seconds", "MB"]
    assert len(lines) == 4 and all("finished" in line for line in lines) and total.startswith("4 networks, ")
    assert sorted(line.split()[1] for line in lines) == ["256", "256", "32", "32"]
    name = lines[0].split()[0]
    shown = call("runs show", name, where)
    assert shown.code == 0 and "batch_size" in shown.out and "status.json" in shown.out and "torch" in shown.out
    assert "names 2 networks" in run("runs", "show", name.split("/")[0], where, expect=2).stderr


def test_list_shows_what_changes_the_training(tmp_path: Path, call: Call) -> None:
    """Epochs were shown where steps say how long it is, and folders of images not at all."""

    def list_settings(*changes: dict[str, Any]) -> list[str]:
        results = tmp_path / str(len([*tmp_path.iterdir()]))
        for seed, change in enumerate(changes):
            run = Run(Config())
            run.config, run.folder = Config(seed=seed, **change), results / "runs" / "a" / f"seed_{seed}"
            run.write_config()
            files = {"training_images": f"{change.get('steps')} files"}
            versions = {"versions": {}, "device": "cpu", "threads": 1}
            (run.folder / "environment.json").write_text(json.dumps({**versions, **files}))
        return call("runs list", f"results={results}").out.splitlines()[0].split()[1:-4]

    assert list_settings({"epochs": 3}, {"steps": 9}) == ["epochs", "steps"]
    assert list_settings({"epochs": 3, "steps": 9}, {"epochs": 4, "steps": 9}) == []
    folders = [{"data": DataConfig("image_folder", root, images=10)} for root in "ab"]
    assert list_settings(*folders) == ["data.root"]
    folder = {**folders[0], "epochs": 1}
    assert list_settings({**folder, "steps": 1}, {**folder, "steps": 2}) == ["training_images", "steps"]
    assert list_settings(*({"data": DataConfig("glyphs", root, test_fonts=root)} for root in "ab")) == []
    assert list_settings({}, {"order": "sorted"}, {"averaging": "swa"}) == ["order", "averaging"]
    assert list_settings({"freeze_with": "exact"}, {}) == []
    assert list_settings({}, {"freeze_at": 0.5}) == ["freeze_at", "freeze_with"]
    assert list_settings({"freeze_at": 0.5}, {"freeze_at": 0.5, "freeze_with": "exact"}) == ["freeze_with"]


@pytest.mark.parametrize("contents", ["", "[1, 2]", "batch_size: [", "\0", "x: 1", "batch_size: &a [*a]"])
def test_a_damaged_config_hides_no_other_network(contents: str, results: Path, call: Call) -> None:
    """Its network is sound: nothing says that it should be deleted, and `clean` leaves it."""
    folder = sorted(path.parent for path in results.glob("runs/*/*/status.json"))[0]
    (folder / "config.yaml").write_text(contents)
    name = f"{folder.parent.name}/{folder.name}"
    before = files(results)
    for words in ("list", f"show {name}"):
        out = call(f"runs {words}", f"results={results}").out
        assert "config.yaml is damaged: the command that trained it writes it again" in out and name in out
    assert call("runs list", f"results={results}").out.count("finished") == 4
    assert call("runs clean", f"results={results}").code == 0
    assert files(results) == before


def test_networks_of_another_version_are_listed_and_kept(results: Path, call: Call) -> None:
    status = sorted(results.glob("runs/*/*/status.json"))[0]
    status.write_text(status.read_text().replace('"format": 1', '"format": 99'))
    before = files(results)
    assert call("runs list", f"results={results}").out.count("of another version") == 1
    assert call("runs clean", f"results={results}").code == 0
    assert files(results) == before


def test_damaged_runs_are_listed_and_cleaned(results: Path, call: Call) -> None:
    folders = sorted(path.parent for path in results.glob("runs/*/*/status.json"))
    (folders[0] / "status.json").write_text("[]")
    (folders[1] / "status.json").unlink()
    folders[2].rename(folders[2].with_name("seed_0.damaged-1"))
    mine = results / "mine.damaged"
    mine.write_text("not the harness's")
    out = call("runs list", f"results={results}").out
    assert out.count("damaged") == 1 and out.count("unfinished") == 2 and "1 unfinished" in out
    before = files(results)
    assert "removed 1 damaged" in call("runs clean", f"results={results}").out
    gone = before.keys() - files(results).keys()
    assert gone and all("damaged-1" in name for name in gone) and mine.exists()


@pytest.mark.parametrize("text", ["{}", "[]", "{"])
def test_a_damaged_environment_is_shown_as_such(text: str, results: Path, call: Call) -> None:
    path = sorted(results.glob("runs/*/seed_?"))[0]
    (path / "environment.json").write_text(text)
    out = call(f"runs show {path.parent.name}/{path.name}", f"results={results}").out
    assert "environment.json: damaged" in out and "settings of the job" in out


def test_removing_networks(results: Path, call: Call) -> None:
    before = files(results)
    first, second, third, _ = names = sorted(f"{p.parent.name}/{p.name}" for p in results.glob("runs/*/seed_?"))

    def refused(*words: str, place: Path = results) -> str:
        code, _, err = call("runs rm", *words, f"results={place}")
        assert code == 2
        return err

    assert "names 2 networks" in refused(first.split("/")[0])
    assert "no network" in refused(first, "nonsense")
    names_one = results.with_name("one")
    shutil.copytree(results / "runs" / first, names_one / "runs" / first)
    assert "no network" in refused("", place=names_one)
    with lock_of(results / "runs" / second):
        assert f"{second}: is being trained; nothing was removed" in refused(first, second)
    assert files(results) == before

    out = call(f"runs rm {first} {second} {first}", f"results={results}").out
    assert [line.split()[1] for line in out.splitlines()] == [first, second]
    gone = before.keys() - files(results).keys()
    assert gone and all(name.startswith((f"runs/{first}/", f"runs/{second}/")) for name in gone)
    listed = call("runs list", f"results={results}").out
    assert [name for name in names if name in listed] == names[2:] and third in listed


def test_one_seed_is_not_the_beginning_of_another(results: Path, call: Call) -> None:
    """The command that removed seed 1, given once more, took seed 10."""
    first = min(results.glob("runs/*/seed_1"))
    tenth = first.rename(first.with_name("seed_10"))
    name = f"{first.parent.name}/{first.name}"
    assert f"{name}: names no network" in call(f"runs rm {name}", f"results={results}").err and tenth.exists()
    assert call(f"runs show {name}0", f"results={results}").code == 0


def test_a_removal_that_was_killed(results: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    name = min(f"{p.parent.name}/{p.name}" for p in results.glob("runs/*/seed_?"))
    with monkeypatch.context() as patched:
        patched.setattr(runs.shutil, "rmtree", lambda _: None)
        assert call(f"runs rm {name}", f"results={results}").code == 0
    assert name not in call("runs list", f"results={results}").out
    assert "removed 1 damaged networks" in call("runs clean", f"results={results}").out
    assert not list(results.glob("runs/*/.removed-*"))
