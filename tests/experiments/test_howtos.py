"""The how-to pages of the site: their files, code and commands work in the order in which they are read.

A block of text shows what the block before it prints. Many of its numbers are of networks that the page trains, whose
last bits are those of the processor: the last digit that is shown may be another by one.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch

from bnlab.harness import load
from bnlab.harness.lab.registry import find_question
from bnlab.harness.reporting.any_sweep import describe_sweep
from bnlab.harness.reporting.outcome import decide_outcome
from bnlab.harness.reporting.wording import write_value
from tests.commands.running import call_bnlab
from tests.experiments.commands import ROOT, Call, Called, Write
from tests.helpers import require

HOWTOS = sorted((ROOT / "docs" / "howto").glob("*.md"))
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# ([\w/]+)\.py\n")
NUMBER = r"-?\d+\.\d+|\d+(?=%)"  # what may differ by one in its last digit
SECTION = re.compile(r"^(?=## )", re.MULTILINE)
OPTIONAL = ("lightning", "onnxruntime", "optuna", "schedulefree", "torchao", "transformers")
QUICK = ("steps=3", "data.images=200", "evaluate_at=final", "device=cpu", "threads=1")

Follow = Callable[[Iterable[str]], dict[str, Any]]


def list_sections(page: Path) -> list[str]:
    """What stands before the first heading of a page, and under each heading."""
    return SECTION.split(page.read_text(encoding="utf-8"))


def find_package(section: str) -> str | None:
    """The optional package that a section imports."""
    for package in OPTIONAL:
        if re.search(rf"^(import|from) {package}\b", section, re.MULTILINE):
            return package
    return None


def list_optional() -> list[tuple[Path, str]]:
    """The pages that import an optional package, with it."""
    found = []
    for page in HOWTOS:
        packages = {find_package(section) for section in list_sections(page)}
        found += [(page, package) for package in OPTIONAL if package in packages]
    return found


def list_blocks(section: str) -> Iterator[tuple[str, str]]:
    """The language and the text of each block of code."""
    for match in FENCE.finditer(section):
        yield match[1], match[2]


def adapt(words: list[str]) -> list[str]:
    """The words of a command, with settings that make its sweep short; nothing is sent to a cluster."""
    if words[0] != "sweep":
        return words
    if "hydra/launcher=submitit_slurm" in words:
        return [*words, "dry_run=true"]
    shorter = {word.partition("=")[0]: word for word in (*QUICK, "hydra/launcher=basic")}
    return [word for word in words if word.partition("=")[0] not in (*shorter, "epochs")] + [*shorter.values()]


def run_bnlab(words: list[str], call: Call, folder: Path) -> Called:
    """Run a command in this process: of the clone, or of the package."""
    if words[0] in ("sweep", "report", "runs"):
        return call(*adapt(words))
    done = call_bnlab(folder, *words)
    return Called(done.returncode, done.stdout, done.stderr)


def find_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def is_shown(shown: str, printed: str) -> bool:
    """Return whether a page shows what its code prints, up to the last digit of numbers.

    Three dots stand for any text.
    """
    words, *marked = re.split(rf"({NUMBER}|\.\.\.)", shown.rstrip())
    pattern = re.escape(words)
    numbers = []
    for mark, words in zip(marked[::2], marked[1::2], strict=True):
        if mark == "...":
            pattern += "(?s:.*)"
        else:
            pattern += r"(-?\d+(?:\.\d+)?)"
            numbers.append(mark)
        pattern += re.escape(words)
    match = re.fullmatch(pattern, printed.rstrip())
    return match is not None and all(map(is_near, numbers, match.groups()))


def is_near(shown: str, printed: str) -> bool:
    """Return whether two numbers differ by one in the last digit that is shown, or less."""
    unit = Decimal(1).scaleb(-len(shown.partition(".")[2]))
    return abs(Decimal(shown) - Decimal(printed)) <= unit


def run_ranks(words: list[str]) -> str:
    """Run a script in two processes, as `torchrun --nproc-per-node 2` does; what they print."""
    assert words[:2] == ["--nproc-per-node", "2"]
    common = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_port())}
    common["PYTHONPATH"] = os.pathsep.join(sys.path)
    ranks = []
    command = [sys.executable, *words[2:]]
    for rank in ("0", "1"):
        ranks.append(subprocess.Popen(command, env={**common, "RANK": rank}, stdout=subprocess.PIPE, encoding="utf-8"))
    outputs = [process.communicate(timeout=180)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0]
    return "".join(outputs)


def run_pytest(words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> Called:
    """Run a reader's own tests in this process."""
    code = pytest.main(["--rootdir", str(folder), "--capture=no", "-p", "no:cacheprovider", "-p", "no:xdist", *words])
    return Called(int(code), *capsys.readouterr())


@pytest.fixture
def follow(
    write: Write, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Follow:
    """Does what sections say in an empty folder, and compares what it prints with what they show. Returns all names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "docs" / "howto")
    names: dict[str, Any] = {}

    def run(language: str, text: str) -> str:
        file = FILE.match(text)
        if file:
            write(text, name=file[1])
            return ""
        if language == "python":
            exec(text, names)
            return capsys.readouterr().out
        return "".join(run_command(line) for line in text.replace("\\\n", " ").splitlines())

    def run_command(line: str) -> str:
        command, _, status = line.partition("  # status ")
        program, *words = shlex.split(command)
        if program == "torchrun":
            return run_ranks(words)
        if program == "pytest":
            tested = run_pytest(words, tmp_path, capsys)
            assert tested.code == 0, tested.out
            return tested.out
        assert program == "bnlab"
        code, out, err = run_bnlab(words, call, tmp_path)
        assert code == int(status or 0), err
        return out

    def followed(sections: Iterable[str]) -> dict[str, Any]:
        printed = ""
        for section in sections:
            for language, text in list_blocks(section):
                if language != "text":
                    printed = run(language, text)
                elif not is_shown(text, printed):
                    pytest.fail(f"the page shows\n{text}\nand its code prints\n{printed}")
        return names

    return followed


def list_pages() -> list[Any]:
    """List the pages but those with a test of their own; one that starts two processes is slow."""
    slow = {"distributed"}
    others = [page for page in HOWTOS if page.stem not in ("sweep", "question", "loggers")]
    return [pytest.param(page, marks=pytest.mark.slow if page.stem in slow else ()) for page in others]


@pytest.mark.parametrize("page", list_pages(), ids=lambda page: page.stem)
def test_a_reader_can_follow(page: Path, follow: Follow, request: pytest.FixtureRequest) -> None:
    if page.stem != "figures":
        request.getfixturevalue("no_pictures")
    follow(section for section in list_sections(page) if find_package(section) is None)


def test_a_readers_test_fails_for_a_model_at_fault(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page's test passes for its recalibrated model, and here the model is the one of before."""
    page = (ROOT / "docs" / "howto" / "doctor.md").read_text(encoding="utf-8")
    files = {file[1]: text for _, text in list_blocks(page) if (file := FILE.match(text))}
    write(files["mine"], name="mine")
    recalibrated = '    network.load_state_dict(load_file("new.safetensors"))\n'
    assert recalibrated in files["test_model"]
    write(files["test_model"].replace(recalibrated, ""), name="test_model")

    monkeypatch.chdir(tmp_path)
    tested = run_pytest(["-q", "test_model.py"], tmp_path, capsys)

    assert tested.code == 1
    assert "AssertionError: The averages are at fault: averages have not converged" in tested.out
    assert "1 failed" in tested.out


@pytest.mark.usefixtures("no_pictures")
def test_the_gaps_of_a_reader_are_those_of_the_report(follow: Follow) -> None:
    names = follow(list_sections(ROOT / "docs" / "howto" / "sweep.md"))

    drawn = describe_sweep("first", names["tables"]).question.figures["gap"].score({})
    of_ema = drawn[drawn["estimator"] == "ema"]
    expected = of_ema.set_index(["batch_size", "momentum"])["mean"]
    pd.testing.assert_series_equal(names["by_momentum"], expected, check_names=False)


class StandInRun:
    """What `wandb.init` returns, with what it was given."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.is_finished = False

    def log(self, data: dict[str, float], step: int) -> None:
        assert not self.is_finished
        # W&B takes no numbers of earlier steps.
        assert not self.logged or step >= self.logged[-1][0]
        self.logged.append((step, data))

    def finish(self) -> None:
        self.is_finished = True


def test_a_reader_logs_to_any_service(follow: Follow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B by a stand-in, as it needs an account."""
    runs: list[StandInRun] = []

    def init(project: str, id: str, name: str, config: dict[str, Any], dir: Path, resume: str) -> StandInRun:
        assert not [run for run in runs if not run.is_finished], "W&B would return the run that is open"
        runs.append(StandInRun(id=id, config=config, folder=dir))
        return runs[-1]

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))

    follow(list_sections(ROOT / "docs" / "howto" / "loggers.md"))

    assert [run.settings["config"]["seed"] for run in runs] == [2, 3]
    for run in runs:
        assert run.is_finished
        assert not {"/", "\\", ":"} & {*run.settings["id"]}, "is no id of W&B"
        assert {step for step, _ in run.logged} == {1, 2, 3}
    (folder,) = {path.parent for path in tmp_path.rglob("losses.txt")}
    assert len((folder / "losses.txt").read_text(encoding="utf-8").splitlines()) == 4, "three updates, and the end"
    assert len(list(tmp_path.rglob("tensorboard"))) == 2


@pytest.mark.parametrize(
    ("shown", "printed", "is_right"),
    [
        ("1", "1", True),
        ("2", "1", False),
        ("of 10 images 84.9%", "of 10 images 85.0%", True),
        ("of 10 images 84.9%", "of 10 images 85.1%", False),
        ("of 10 images 84.9%", "of 11 images 84.9%", False),
        ("[-0.4, 0.6]", "[-0.5, 0.6]", True),
        ("[-0.4, 0.6]", "[0.4, 0.6]", False),
        ("94%", "93%", True),
        ("94%", "92%", False),
        ("...\nBN103: 0.4", "more\nBN103: 0.5", True),
        ("...\nBN103: 0.4", "more\nBN104: 0.4", False),
        ("0.4, then healthy", "0.4, then at fault", False),
    ],
)
def test_what_a_page_shows_has_to_be_what_its_code_prints(
    shown: str, printed: str, is_right: bool, follow: Follow
) -> None:
    page = f"```python\nprint({printed!r})\n```\n\n```text\n{shown}\n```\n"
    if is_right:
        follow([page])
        return
    with pytest.raises(pytest.fail.Exception, match="its code prints\n"):
        follow([page])


def test_another_processor_moves_no_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that differ in their last bits predict the same after forty updates: shown shares do not change."""
    monkeypatch.syspath_prepend(ROOT / "docs" / "howto")
    digits = importlib.import_module("digits")
    outputs = []
    for rounding in (0.0, 2**-24, -(2**-24)):
        model = digits.make_model()
        for weight in model.parameters():
            weight.data *= 1 + rounding * torch.randn(weight.shape)
        digits.train(model, epochs=4)
        with torch.no_grad():
            outputs.append(model.eval()(digits.test_images))

    best = outputs[0].topk(2).values
    smallest_margin = (best[:, 0] - best[:, 1]).min()
    for others in outputs[1:]:
        moved = (others - outputs[0]).abs().max()
        assert 0 < 10 * moved < smallest_margin  # of two classes, each may move


def test_a_reader_draws_the_gap_against_another_setting(follow: Follow, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "howto" / "question.md").read_text(encoding="utf-8")
    setting, values = "norm", "batch,ghost"
    assert page.count("optimizer.weight_decay") == 3, "in the sweep, in the report, and in the question"
    asked = page.replace("optimizer.weight_decay=0,0.0005,0.005", f"{setting}={values}")

    follow(SECTION.split(asked.replace("optimizer.weight_decay", setting)))

    figures = tmp_path / "results" / "decay" / "figures"
    assert (figures / f"gap_by_{setting}_momentum_layer.png").exists()
    assert (figures / "lost.png").exists()
    tables = load("decay")
    question = find_question("decay")
    frame = question.figures["lost"].score(tables)
    assert (frame["n"] == 3).all()
    assert {*decide_outcome(question, {"decay": tables}).frame["n"]} == {3}

    of_pytorch = frame[frame["momentum"] == 0.1].set_index(setting)["mean"].sort_index()
    assert [write_value(value) for value in of_pytorch.index] == values.split(",")
    last = tables["evaluations"].merge(tables["runs"][["run", setting, "steps"]], on="run").query("step == steps")
    means = last.groupby([setting, "estimator", "momentum"], dropna=False)["accuracy"].mean()
    exact = means.xs("exact", level="estimator").droplevel("momentum")
    expected = 100 * (exact - means.xs(("ema", 0.1), level=("estimator", "momentum")))
    pd.testing.assert_series_equal(of_pytorch, expected, check_names=False)


@pytest.mark.slow
@pytest.mark.parametrize(("page", "package"), list_optional(), ids=lambda part: getattr(part, "stem", part))
def test_a_reader_who_has_the_package_can_follow(page: Path, package: str, follow: Follow) -> None:
    require(package)

    follow(section for section in list_sections(page) if find_package(section) in (None, package))
