"""What has been measured is not measured again, unless what measured it has changed."""

from __future__ import annotations

import copy
import gc
import importlib
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pandas.testing import assert_frame_equal
from PIL import Image

from bnlab import estimators, inference
from bnlab.harness import load
from bnlab.harness.artifacts import shifts
from bnlab.harness.artifacts.data import DataConfig
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.artifacts.settings import Config
from bnlab.harness.artifacts.training import OptimizerConfig
from bnlab.harness.errors import UserError
from bnlab.harness.jobs import execute, prepare
from bnlab.harness.measurements import cache, frozen, own_code, sources
from bnlab.harness.measurements.sources import AVERAGING, FROZEN, parse_sources, source_digest, try_estimators

MODULE = """
from dataclasses import dataclass
import torch
from bnlab.estimators import EMA, Estimator
{imports}

@dataclass(frozen=True)
class Half(Estimator):
    name = "{name}"
    def gains(self, stream):
        return torch.full((len(stream),), {gain}, dtype=torch.float64)

@dataclass(frozen=True)
class Inner(Half):
    name = "inner"
    deep: float = 1.0

@dataclass(frozen=True)
class Unnamed(EMA):
    pass
"""


def config(results: Path, **changes: object) -> Config:
    fixed = {"batch_size": 256, "epochs": 1, "threads": 1, "device": "cpu", "evaluate_at": [2, 6]}
    return Config(**{**fixed, "results": str(results), **changes})  # type: ignore[arg-type]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str], list[int]]]:
    """What is measured from now on: table (split and shift, if others than test and none), estimators, steps."""
    found: list[tuple[str, list[str], list[int]]] = []
    original = cache.find_measurement

    def counted(name: str) -> Any:
        def measure(run: object, subjects: list[Any], steps: list[int], **options: str) -> pd.DataFrame:
            others = [options[key] for key in options if options[key] not in ("test", "none")]
            table = " on ".join([name, *others])
            found.append((table, [f"{s.estimator} {s.momentum}" if s else "" for s in subjects], steps))
            frame: pd.DataFrame = original(name)(run, subjects, steps, **options)
            return frame

        return measure

    monkeypatch.setattr(cache, "find_measurement", counted)
    return found


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Writes the user's module, which is then imported as by a new process."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(gain: str = "0.5", imports: str = "", name: str = "half", **others: str) -> None:
        forget()
        code = MODULE.format(gain=gain, imports=imports, name=name)
        for file, text in {"my_estimators": code, **others}.items():
            (tmp_path / f"{file}.py").write_text(text)

    yield write
    forget()


def forget() -> None:
    """Let the user's classes be no estimators any more."""
    for name in [name for name in sys.modules if name.startswith("my_")]:
        del sys.modules[name]
    importlib.invalidate_caches()
    own_code.digest_of_class.cache_clear()
    sources._average_twice.cache_clear()
    gc.collect()


def test_only_what_is_missing_is_measured(tmp_path: Path, calls: list[Any]) -> None:
    execute(config(tmp_path, estimator=["ema", "cumulative"], momentum=[0.1, 0.2], measurements=["gaps", "drift"]))
    assert calls == [("gaps", ["ema 0.1", "ema 0.2", "cumulative None"], [2, 6])]
    calls.clear()
    wider = config(tmp_path, estimator=["ema", "cumulative", "exact", "kalman"], momentum=[0.3, 0.1], name="wider")
    execute(wider)
    assert calls == [
        ("gaps", ["ema 0.3", "exact None", "kalman(per=layer) None"], [2, 6]),  # together, in one product
        ("evaluations", ["exact None", "ema 0.3", "ema 0.1", "cumulative None", "kalman(per=layer) None"], [6]),
    ]
    calls.clear()
    later = config(tmp_path, estimator=["ema", "test_batch"], evaluate_at=[2, 4, 6], accuracy_at="all", name="later")
    execute(later)
    assert calls == [
        ("gaps", ["ema 0.1"], [4]),
        ("evaluations", ["exact None", "ema 0.1"], [2, 4]),
        ("evaluations", ["test_batch(n=64) None"], [2, 4, 6]),
    ]
    calls.clear()
    some = config(tmp_path, estimator="cumulative", evaluate_at=[2, 4, 0.5, 6], accuracy_at=[0.5, 2], name="some")
    execute(some)
    assert calls == [("gaps", ["cumulative None"], [3, 4]), ("evaluations", ["exact None"], [3]),
                     ("evaluations", ["cumulative None"], [2, 3])]  # fmt: skip
    calls.clear()
    for job in (wider, later, some):
        execute(job)
    assert not calls
    # The same rows as if all had been measured at once.
    for job in (wider, later):
        at_once = config(tmp_path / "again", **{k: getattr(job, k) for k in
                         ("estimator", "momentum", "name", "evaluate_at", "accuracy_at")})  # fmt: skip
        execute(at_once)
        for table in ("gaps", "evaluations"):
            assert_frame_equal(load(job.name, tmp_path)[table], load(job.name, tmp_path / "again")[table], rtol=1e-12)


def test_only_the_split_that_is_missing_is_measured(tmp_path: Path, calls: list[Any]) -> None:
    """On a network that is not trained again; rows of other splits stay in the table."""
    fixed = {"estimator": "ema", "measurements": "evaluations"}
    execute(config(tmp_path, **fixed))
    (log,) = (tmp_path / "runs").rglob("log.parquet")
    trained = log.stat().st_mtime_ns
    calls.clear()
    execute(config(tmp_path, evaluate_on=["test", "val"], **fixed))
    execute(config(tmp_path, evaluate_on=["train", "val", "train"], accuracy_at="all", **fixed))
    both = ["exact None", "ema 0.1"]
    assert calls == [
        ("evaluations on val", both, [6]),
        ("evaluations on train", both, [2, 6]),
        ("evaluations on val", both, [2]),
    ]
    calls.clear()
    execute(config(tmp_path, evaluate_on=["val", "test", "train"], **fixed))
    assert not calls and log.stat().st_mtime_ns == trained
    found = load("adhoc", tmp_path)["evaluations"]
    assert found.groupby(["split", "step"]).size().to_dict() == {
        ("test", 6): 2, ("train", 2): 2, ("train", 6): 2, ("val", 2): 2, ("val", 6): 2,
    }  # fmt: skip


def test_other_test_images_leave_rows_of_other_splits(tmp_path: Path, calls: list[Any]) -> None:
    glyphs = config(tmp_path, steps=2, evaluate_at="final", measurements=["evaluations"], batch_size=16)
    glyphs.data.name, glyphs.data.root, glyphs.data.images, glyphs.data.classes = "glyphs", str(tmp_path), 100, 10
    glyphs.evaluate_on = ["val", "test"]
    for fonts in ("all", "stix_cm"):
        glyphs.data.test_fonts = fonts
        execute(glyphs)
    assert [table for table, *_ in calls] == ["evaluations on val", "evaluations", "evaluations on fonts:stix_cm"]
    rows = load("adhoc", tmp_path)["evaluations"].query("estimator == 'exact'")
    assert sorted(zip(rows["split"], rows["shift"], strict=True)) == [
        ("test", "fonts:stix_cm"), ("test", "none"), ("val", "none"),
    ]  # fmt: skip


def test_only_the_shift_that_is_missing_is_measured(tmp_path: Path, calls: list[Any]) -> None:
    """On a network that is not trained again, and whose images are not corrupted again; rows of other shifts stay."""
    fixed = {"estimator": "ema", "measurements": "evaluations"}
    execute(config(tmp_path, **fixed))
    (log,) = (tmp_path / "runs").rglob("log.parquet")
    trained = log.stat().st_mtime_ns
    calls.clear()
    execute(config(tmp_path, shifts=["none", "noise:1"], **fixed))
    execute(config(tmp_path, shifts=["blur:2", "noise:1", "blur:2"], evaluate_on=["test", "val"], **fixed))
    both = ["exact None", "ema 0.1"]
    assert calls == [
        ("evaluations on noise:1", both, [6]),
        ("evaluations on blur:2", both, [6]),
        ("evaluations on val on blur:2", both, [6]),
        ("evaluations on val on noise:1", both, [6]),
    ]
    calls.clear()
    shifts._corrupt.cache_clear()
    execute(config(tmp_path, shifts=["none", "noise:1", "blur:2"], **fixed))
    assert not calls and log.stat().st_mtime_ns == trained and not shifts._corrupt.cache_info().misses
    found = load("adhoc", tmp_path)["evaluations"].set_index(["split", "shift", "estimator"])["loss"]
    assert len(found) == 10 and found["test", "noise:1", "exact"] != found["test", "none", "exact"]


def test_other_corruptions_are_measured_again(
    tmp_path: Path, calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the same shift gives other images; unshifted ones stay."""
    job = config(tmp_path, shifts=["none", "noise:1"], measurements="evaluations")
    execute(job)
    monkeypatch.setattr(shifts, "_VERSION", 0)
    calls.clear()
    execute(job)
    assert [table for table, *_ in calls] == ["evaluations on noise:1"]


def test_fonts_are_a_shift_or_those_of_the_test_images(tmp_path: Path, calls: list[Any]) -> None:
    """Either way the same rows."""
    glyphs = config(tmp_path, steps=2, evaluate_at="final", measurements=["evaluations"], batch_size=16)
    glyphs.data = DataConfig("glyphs", str(tmp_path), images=100, classes=10, fonts="dejavu", test_fonts="dejavu")
    glyphs.shifts = ["none", "fonts:stix_cm"]
    execute(glyphs)
    assert [table for table, *_ in calls] == ["evaluations", "evaluations on fonts:stix_cm"]
    calls.clear()
    glyphs.shifts, glyphs.data.test_fonts = "none", "stix_cm"
    execute(glyphs)
    assert not calls
    found = load("adhoc", tmp_path)["evaluations"].set_index(["shift", "estimator"])["loss"]
    assert set(found.index) == {(s, e) for s in ("none", "fonts:stix_cm") for e in ("ema", "exact")}
    assert found["none", "exact"] != found["fonts:stix_cm", "exact"]


def test_drift_is_measured_once_for_all_estimators(tmp_path: Path, calls: list[Any]) -> None:
    fixed = {"batch_size": 64, "evaluate_at": [8, 20], "measurements": ["drift"]}
    for estimator in ("ema", "kalman"):
        execute(config(tmp_path, estimator=estimator, **fixed))
    assert calls == [("drift", [""], [20])]
    assert set(load("adhoc", tmp_path)["drift"]["step"]) == {20}


def test_a_raised_version_measures_again(tmp_path: Path, calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    execute(config(tmp_path, momentum=[0.1, 0.2], measurements=["gaps"]))
    monkeypatch.setattr(frozen, "VERSION", frozen.VERSION + 1)
    calls.clear()
    execute(config(tmp_path, momentum=[0.2], measurements=["gaps"]))
    assert calls == [("gaps", ["ema 0.2"], [2, 6])]
    assert set(load("adhoc", tmp_path)["gaps"]["momentum"]) == {0.2}


def test_other_test_images_are_measured_again(tmp_path: Path, calls: list[Any]) -> None:
    """And have a row of their own beside those of the same fonts, on one network."""
    glyphs = config(tmp_path, steps=2, evaluate_at="final", measurements=["evaluations"], batch_size=16)
    glyphs.data.name, glyphs.data.root, glyphs.data.images, glyphs.data.classes = "glyphs", str(tmp_path), 100, 10
    for fonts in ("all", "stix_cm", "all"):
        glyphs.data.test_fonts = fonts
        execute(glyphs)
    assert len(calls) == 2 and len(load("adhoc", tmp_path)["runs"]) == 1
    rows = load("adhoc", tmp_path)["evaluations"].set_index(["shift", "estimator"])["loss"]
    assert set(rows.index) == {(s, e) for s in ("none", "fonts:stix_cm") for e in ("ema", "exact")}
    assert rows["none", "exact"] != rows["fonts:stix_cm", "exact"]


def test_doses_are_of_the_test_images(tmp_path: Path, calls: list[Any]) -> None:
    glyphs = config(tmp_path, steps=2, evaluate_at="final", measurements=["doses"], batch_size=16)
    glyphs.data = DataConfig("glyphs", str(tmp_path), images=100, classes=10, fonts="dejavu", test_fonts="dejavu")
    other = copy.deepcopy(glyphs)
    other.name, other.data.test_fonts = "other", "stix_cm"
    found = []
    for job in (glyphs, other, glyphs):
        execute(job)
        found.append(load(job.name, tmp_path)["doses"].set_index(["layer", "moment", "dose"])["logit_gap"])
    assert len(calls) == 2 and found[0].equals(found[2]) and not found[0].equals(found[1])
    other.name = glyphs.name
    with pytest.raises(UserError, match=r"data.test_fonts=stix_cm: are other test images than those of dejavu, and th"):
        prepare([glyphs, other])


# Estimators of the user's own


def digest(name: str = "my_estimators.Half") -> str:
    return source_digest(parse_sources([name], [0.1], "train")[0])


def test_an_own_estimator_is_its_code(module: Callable[..., None]) -> None:
    """Of its module and of the user's own that this one uses; of ours, the version counts."""
    assert source_digest(parse_sources(["ema"], [0.1], "train")[0]) == ""
    module()
    first = digest()
    assert first and digest("my_estimators.Inner") == first
    module("0.25")
    assert digest() != first
    found = []
    for constant in ("0.5", "0.25"):
        module("CONSTANT", "from my_constants import CONSTANT, function", my_constants=f"""
import numpy
CONSTANT = {constant}
def function(): pass
""")  # fmt: skip
        found.append(digest())
    assert len({first, *found}) == 3
    module()
    assert digest() == first


@pytest.mark.parametrize(
    "imports",
    [
        "from my_constants import CONSTANT",
        "import my_constants as c; CONSTANT = c.CONSTANT; del c",
        "def read():\n    from my_constants import CONSTANT\n    return CONSTANT",
        "import my_package",
        "import importlib\ndef read():\n    return importlib.import_module('my_constants').CONSTANT",
        "import importlib\ndef read():\n    return importlib.import_module(name='my_constants').CONSTANT",
    ],
)
def test_an_own_estimator_is_what_it_imports(imports: str, module: Callable[..., None]) -> None:
    """Also a constant, which does not say where it is from, and what is imported once it is called."""
    found = set()
    for constant in ("0.5", "0.25"):
        module(imports=imports, my_constants=f"CONSTANT = {constant}", my_package="from my_constants import *")
        found.add(digest())
        importlib.import_module("my_constants")
        own_code.digest_of_class.cache_clear()
        found.add(digest())
    assert len(found) == 2


def test_a_module_of_the_users_may_have_the_name_of_one_of_pythons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Callable[..., None]
) -> None:
    found = set()
    for constant in ("0.5", "0.25"):
        monkeypatch.delitem(sys.modules, "sched", raising=False)
        module(imports="from sched import CONSTANT", sched=f"CONSTANT = {constant}")
        found.add(digest())
    assert len(found) == 2
    module(imports="import statistics")
    without = digest()
    (tmp_path / "sched.py").unlink()
    assert digest() == without


def test_an_import_that_fails_when_it_is_called_is_no_reason_to_refuse_the_estimator(
    module: Callable[..., None],
) -> None:
    module(imports="import importlib\ndef read():\n    importlib.import_module('..beyond')")
    assert digest()


def test_an_own_estimator_is_what_it_reads(tmp_path: Path, module: Callable[..., None]) -> None:
    """From a file, which no code says; the same for all momenta."""
    found = set()
    for gain in ("0.5", "0.25"):
        (tmp_path / "gain.txt").write_text(gain)
        module(f"float(open({str(tmp_path / 'gain.txt')!r}).read()) if len(stream) > 200 else 0.1")
        found.add(digest())
    assert len(found) == 2
    module(my_momenta="""
from dataclasses import dataclass
from bnlab.estimators import EMA
@dataclass(frozen=True)
class Own(EMA):
    name = "own"
""")  # fmt: skip
    assert len({source_digest(s) for s in parse_sources(["my_momenta.Own"], [0.1, 0.2], "train")}) == 1


def test_an_own_estimator_with_a_table_for_few_batches(module: Callable[..., None]) -> None:
    found = set()
    for gain in ("0.5", "0.25"):
        module(f"([{gain}] * 100)[len(stream) - 1]")
        try_estimators(parse_sources(["my_estimators.Half"], [0.1], "train"))
        found.add(digest())
    assert len(found) == 2


def test_an_installed_estimator_is_its_whole_package(
    tmp_path: Path, module: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where only later batches show it."""
    package = tmp_path / "site-packages" / "my_installed"
    package.mkdir(parents=True)
    monkeypatch.syspath_prepend(str(package.parent))
    code = MODULE.format(
        gain="0.5 + (len(stream) > 256) * late.GAIN", imports="from my_installed import late", name="i"
    )
    (package / "__init__.py").write_text(code)
    found = set()
    for gain in ("0.5", "0.25"):
        module()
        (package / "late.py").write_text(f"GAIN = {gain}")
        found.add(digest("my_installed.Half"))
    assert len(found) == 2


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("stream.batches.zero_()", r"half: my_estimators.Half fails .* writes into the stream"),
        ("import random; gain = random.random()", "half: my_estimators.Half fails .* something else the second time"),
    ],
)
def test_an_own_estimator_that_disturbs_or_varies(body: str, reason: str, module: Callable[..., None]) -> None:
    gains = f"(lambda: (exec({body!r}, scope := dict(stream=stream)), scope.get('gain', 0.5))[1])()"
    module(gains)
    with pytest.raises(UserError, match=reason):
        try_estimators(parse_sources(["my_estimators.Half"], [0.1], "train"))


def test_an_own_estimator_whose_file_is_missing_fails_alone(tmp_path: Path, module: Callable[..., None]) -> None:
    """As one for another number of batches: it is no full disk, which would end the sweep."""
    module("1.0 if len(stream) > 6 else float(open('no such file').read())")
    settings = config(tmp_path, estimator=["ema", "my_estimators.Half"], seed=0)
    prepare([settings])
    with pytest.raises(UserError, match=r"half: .*my_estimators\.py:\d+: FileNotFoundError"):
        execute(settings)
    assert set(load("adhoc", tmp_path)["gaps"]["estimator"]) == {"ema"}


def test_warnings_that_an_own_estimator_silences_are_told(module: Callable[..., None]) -> None:
    module(my_silence="import warnings\nwarnings.filterwarnings('ignore')\nfrom my_estimators import Half as Own")
    with pytest.warns(UserWarning, match="still"):
        parse_sources(["my_silence.Own"], [0.1], "train")
        warnings.warn("still", stacklevel=1)


def test_an_own_estimators_code_is_that_of_its_import(tmp_path: Path, module: Callable[..., None]) -> None:
    """Also where it is edited while a network trains."""
    module("torch.where(stream.steps > 300, 0.9, 0.1).double()[0].item()")
    (source,) = parse_sources(["my_estimators.Half"], [0.1], "train")
    (own,) = tmp_path.rglob("my_estimators.py")
    own.write_text(own.read_text().replace("0.9", "0.02"))
    edited = source_digest(source)
    own.write_text(own.read_text().replace("0.02", "0.9"))
    own_code.digest_of_class.cache_clear()
    assert edited == source_digest(source)


def test_an_own_estimator_keeps_to_its_label(module: Callable[..., None]) -> None:
    module(
        imports="",
        my_labels="""
from my_estimators import Half
class Other(Half):
    name = "other"
    label = "ema"
""",
    )
    with pytest.raises(UserError, match=r"its label 'ema' is not its name; let it be 'other', or other\("):
        parse_sources(["my_labels.Other"], [0.1], "train")


def test_two_own_estimators_with_one_label(tmp_path: Path, module: Callable[..., None]) -> None:
    """The rows of one of them would be missing, also where they are of two jobs."""
    module(
        my_labels="""
from my_estimators import Half, dataclass
@dataclass(frozen=True)
class Other(Half):
    name = label = "other"
    p: float = 0.5
"""
    )
    both = ["my_labels.Other(p=0.5)", "my_labels.Other(p=0.25)"]
    for planned in ([config(tmp_path, estimator=both)], [config(tmp_path, estimator=one) for one in both]):
        with pytest.raises(UserError, match=r"estimator=other: the label of both Other\(p=0.5\) and Other\(p=0.25\)"):
            prepare(planned)


def test_an_own_estimator_whose_parameters_can_be_changed(module: Callable[..., None]) -> None:
    module(
        my_lists="""
from dataclasses import field
from my_estimators import Half, dataclass
@dataclass(frozen=True)
class Other(Half):
    name = "other"
    weights: list[float] = field(default_factory=lambda: [0.5, 0.25])
"""
    )
    with pytest.raises(UserError, match=r"my_lists.Other: its parameter 'weights' is a list.*use a tuple"):
        parse_sources(["my_lists.Other"], [0.1], "train")


@pytest.mark.parametrize("place", ["imports", "body"])
def test_an_own_estimator_that_sets_the_default_dtype(place: str, module: Callable[..., None]) -> None:
    """Networks could not be built any more, and the model was said to be wrong."""
    line = "torch.set_default_dtype(torch.float64)"
    module(**({"imports": line} if place == "imports" else {"gain": f"{line} or 0.5"}))
    try:
        with pytest.raises(UserError, match=r"my_estimators.Half.*torch's default dtype is torch.float64"):
            try_estimators(parse_sources(["my_estimators.Half"], [0.1], "train"))
    finally:
        torch.set_default_dtype(torch.float32)


def test_one_measurement_without_brackets(tmp_path: Path, calls: list[Any]) -> None:
    execute(config(tmp_path, measurements="gaps"))
    assert calls == [("gaps", ["ema 0.1"], [2, 6])]


def test_a_number_of_images_is_written_in_one_way() -> None:
    found = parse_sources(["precise(images=100)", "precise(images=0100)"], [0.1], "train")
    assert [source.estimator for source in found] == ["precise(images=100)"]


def test_rows_of_another_run_are_not_taken(tmp_path: Path, calls: list[Any]) -> None:
    """Even of one whose losses are the same: an epoch has six steps."""
    six = config(tmp_path, steps=6, measurements="gaps")
    execute(config(tmp_path, measurements="gaps"))
    (kept,) = (tmp_path / "runs").rglob("gaps/*.parquet")
    copy = Run(six).folder / "measurements" / "gaps" / kept.name
    copy.parent.mkdir(parents=True)
    shutil.copy(kept, copy)
    calls.clear()
    execute(six)
    assert len(calls) == 1 and Run(six).id in set(load("adhoc", tmp_path)["gaps"]["run"])


def test_a_changed_own_estimator(tmp_path: Path, module: Callable[..., None], calls: list[Any]) -> None:
    """Rows of its earlier code leave the table, of all momenta and steps; others stay."""
    module()
    estimator = ["my_estimators.Half", "ema"]
    execute(config(tmp_path, estimator=estimator, measurements=["gaps"]))
    before = load("adhoc", tmp_path)["gaps"].set_index("estimator")["mean_gap"]
    module("1.0")
    calls.clear()
    execute(config(tmp_path, estimator=estimator, measurements=["gaps"], evaluate_at=[6]))
    assert calls == [("gaps", ["half None"], [6])]
    after = load("adhoc", tmp_path)["gaps"].set_index("estimator")
    assert list(after.loc["ema", "mean_gap"]) == list(before["ema"])
    assert set(after.loc["half", "step"]) == {6} and not set(after.loc["half", "mean_gap"]) & set(before["half"])


def test_exact_statistics_that_nobody_named_are_there_of_each_population_that_was_swept(tmp_path: Path) -> None:
    """A second sweep wrote over the first one's part, of which the estimators are the same."""
    for population in ("train", "val"):
        execute(config(tmp_path, estimator=["ema"], population=population))
    rows = load("adhoc", tmp_path)["evaluations"].query("estimator == 'exact'")
    assert set(rows["statistics_split"]) == {"train", "val"}


@pytest.mark.parametrize(
    "name", ["none", *FROZEN, *AVERAGING, *inference.list_rules(), "ema", "pre cise", "exact(images=9)"]
)
def test_an_own_estimator_cannot_take_a_name(name: str, module: Callable[..., None]) -> None:
    module(name=name)
    with pytest.raises(UserError, match=r"my_estimators.Half.*give (it|the class) another"):
        parse_sources(["my_estimators.Half"], [0.1], "train")


def test_an_own_estimator_needs_a_name(module: Callable[..., None]) -> None:
    """Its rows would be those of its base."""
    module()
    with pytest.raises(UserError, match=r"my_estimators.Unnamed has no name of its own but 'ema' of its base"):
        parse_sources(["my_estimators.Unnamed"], [0.1], "train")


def test_every_estimator_of_ours_stands_the_trial() -> None:
    ours = [name for name, cls in estimators.list_estimators().items() if cls.__module__.startswith("bnlab.")]
    try_estimators(parse_sources(ours, [0.01, 1.0], "train"))
    assert len(ours) >= 16


# Before anything is trained


def test_a_network_is_tried(tmp_path: Path) -> None:
    """One update on two images: torchvision's networks without batch norm cannot be recorded."""
    other = config(tmp_path, data=DataConfig(root=str(tmp_path)))
    other.model.name = "squeezenet1_0"
    with pytest.raises(UserError, match=r"model.name=squeezenet1_0: cannot (take|be trained)"):
        prepare([config(tmp_path), other])
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("averaging", ["none", "swa"])
def test_averaged_buffers_are_of_the_tables_momentum(averaging: str, tmp_path: Path) -> None:
    """Those of mobilenet_v3 have momentum 0.01, and were compared with `stale`, of 0.1."""
    other = config(tmp_path, data=DataConfig(root=str(tmp_path)), averaging=averaging, estimator=["stale", "averaged"])
    other.data.name, other.data.images, other.batch_size, other.steps, other.evaluate_at = "glyphs", 100, 16, 2, "final"
    other.model.name = "mobilenet_v3_small"
    with pytest.raises(UserError, match=r"estimator=averaged: .*_small has momentum 0.01.*; use exact or precise"):
        prepare([other])
    other.model.name = "resnet18"
    prepare([other])
    renorm = config(tmp_path, estimator=["averaged", "exact"])
    renorm.norm.name = "renorm"  # has a momentum of its own, as the estimator ema then
    prepare([renorm])


def test_jobs_on_one_network_predict_the_same_images(tmp_path: Path) -> None:
    """The folders have the same training images: the rows of one took the place of the other's."""
    jobs = []
    for name, shade in (("one", 0), ("copy", 0), ("other", 100)):
        for part in ("train", "test"):
            folder = tmp_path / name / "image_folder" / part / "class"
            folder.mkdir(parents=True)
            for i in range(12):
                level = 10 * i + shade * (part == "test")
                Image.fromarray(np.full((8, 8, 3), level, np.uint8)).save(folder / f"{i}.png")
        data = DataConfig("image_folder", str(tmp_path / name), image_size=8)
        jobs.append(config(tmp_path, data=data, batch_size=4))
    prepare(jobs[:2])
    with pytest.raises(UserError, match=r"data.root=.*/other: has the training images of .*/one with other"):
        prepare(jobs)


def test_divergence_is_a_result(tmp_path: Path) -> None:
    prepare([config(tmp_path, optimizer=OptimizerConfig(lr=1e18))])
