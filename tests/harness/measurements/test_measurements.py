"""Every kind of statistic in the tables: frozen weights as the tools compute them, rules at inference time."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
import torch
from pandas.testing import assert_frame_equal

from bnlab import gap, population_statistics, running_statistics
from bnlab.estimators import list_estimators
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.errors import UserError
from bnlab.harness.measurements import find_measurement
from bnlab.harness.measurements.frozen import EXACT, frozen_statistics, in_batches
from bnlab.harness.measurements.sources import FrozenWeights, InferenceRule, Source, find_sources, parse_sources
from bnlab.harness.measurements.tables.evaluations import Evaluations
from bnlab.harness.statistics import Exact, UpdateBN
from bnlab.statistics import using
from tests.references import float64_copy


def rows(name: str, trained: Run, chosen: list[Source]) -> pd.DataFrame:
    measurement = find_measurement(name)
    subjects = measurement.scope(trained, chosen)
    found: pd.DataFrame = measurement.measure(trained, [*subjects], trained.wanted[-1:])
    return found


def test_update_bn_is_torchs(trained: Run) -> None:
    step = trained.wanted[-1]
    model = trained.model_at(step)
    images = trained.dataset.train.images
    batches = [images[part] for part in in_batches(len(images), 32)]
    torch.optim.swa_utils.update_bn(batches, model)

    found = frozen_statistics(trained, step, FrozenWeights.of(UpdateBN(), "train"))

    # Both average float32 moments: torch step by step in float32, bnlab in float64.
    gaps = gap(running_statistics(model), found)
    assert gaps["mean_gap"].max() < 5e-6
    assert gaps["var_gap"].max() < 5e-6


def test_all_names_at_once(trained: Run) -> None:
    rules = ["test_batch(n=32)", "pseudo_samples(n=8,between=True,batch=16)", "example_weighing", "eval_norm"]
    ours = [name for name, cls in list_estimators().items() if cls.__module__.startswith("bnlab.")]
    chosen = parse_sources([*ours, "exact", "precise", "update_bn", "swa", *rules], [0.1], "train")
    table = rows("evaluations", trained, chosen)

    assert len(table) == len(chosen)
    assert table["accuracy"].between(0, 1).all()

    measured = rows("gaps", trained, chosen)
    assert set(measured["estimator"]) == {s.estimator for s in chosen if not isinstance(s, InferenceRule)}
    assert measured["mean_gap"].notna().all()


def test_gaps_are_those_of_the_library(trained: Run) -> None:
    step = trained.wanted[-1]
    (update_bn,) = parse_sources(["update_bn"], [], "train")
    assert isinstance(update_bn, FrozenWeights)
    expected = gap(frozen_statistics(trained, step, EXACT), frozen_statistics(trained, step, update_bn))

    measured = rows("gaps", trained, [update_bn])

    columns = ["layer", "mean_gap", "var_gap", "kl", "output_gap"]
    assert_frame_equal(measured[columns], expected[columns], rtol=1e-12)
    assert (measured["output_gap"] > 0).all()


def test_a_sample_is_measured_before_the_end(trained: Run) -> None:
    some = Run(replace(trained.config, population_images=100, accuracy_at="all", evaluate_at=[trained.wanted[0], 1.0]))
    first, last = some.wanted
    expected = population_statistics(some.model_at(first), [trained.dataset.train.sample(100).images])

    assert gap(expected, frozen_statistics(some, first, EXACT))["mean_gap"].max() < 1e-6

    drawn = frozen_statistics(some, first, FrozenWeights.of(Exact(images=100), "train"))  # as many others
    assert gap(frozen_statistics(some, first, EXACT), drawn)["mean_gap"].min() > 1e-3
    assert gap(frozen_statistics(trained, last, EXACT), frozen_statistics(some, last, EXACT))["mean_gap"].max() == 0

    found = Evaluations().measure(some, [EXACT], [first, last]).set_index("step")
    assert found[["images", "stat_images"]].to_numpy().tolist() == [
        [100, 100],
        [359, len(trained.dataset.train.labels)],
    ]

    with using(some.model_at(first), expected) as model, torch.no_grad():
        logits = model.eval()(trained.dataset.test.sample(100).images)
    hits = logits.argmax(1) == trained.dataset.test.sample(100).labels
    assert found.loc[first, "accuracy"] == pytest.approx(hits.double().mean().item())


@pytest.mark.parametrize("split", ["test", "val", "train"])
def test_predictions_of_a_split(split: str, trained: Run) -> None:
    """Under exact statistics, against the network in float64; of the training split as many images as of test."""
    step = trained.wanted[-1]
    found = Evaluations().measure(trained, [EXACT], [step], split).iloc[0]
    images = getattr(trained.dataset, split).images
    labels = getattr(trained.dataset, split).labels
    if split == "train":
        images, labels = images[:359], labels[:359]  # as many as test has
    with using(trained.model_at(step), frozen_statistics(trained, step, EXACT)) as model, torch.no_grad():
        logits = float64_copy(model).eval()(images.double())

    assert found["split"] == split
    assert found["shift"] == "none"
    assert found["images"] == {"val": 40}.get(split, 359)
    assert found["accuracy"] == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    assert found["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-4)


def test_exact_statistics_are_always_there_of_the_population_that_is_asked_for(trained: Run) -> None:
    """And of no other, which a score would take for the same, but for rules, which start from those of training."""
    for chosen, population, splits in (
        (["ema"], "val", {("exact", "val"), ("ema", "train")}),
        (["exact"], ["train_augmented", "val"], {("exact", "train_augmented"), ("exact", "val")}),
        (["precise"], "val", {("exact", "val"), ("precise", "val")}),
        (["test_batch(n=50)"], "val", {("exact", "train"), ("exact", "val"), ("test_batch(n=50)", "test")}),
    ):
        config = replace(trained.config, population=population, estimator=chosen)
        found = rows("evaluations", Run(config), find_sources(config))
        assert {*zip(found["estimator"], found["statistics_split"], strict=True)} == splits


def test_predictions_under_a_shift(trained: Run) -> None:
    """Exact statistics are of the training images as they are, those of a test batch of 50 of the shifted images."""
    step = trained.wanted[-1]
    sources = parse_sources(["exact", "test_batch(n=50)"], [], "train")
    found = Evaluations().measure(trained, sources, [step], "test", "contrast:3").set_index("estimator")

    assert set(found["shift"]) == {"contrast:3"}
    assert list(found["stat_images"]) == [360, 50]

    images = trained.images_of("test", "contrast:3").images.double()
    labels = trained.dataset.test.labels
    model = trained.model_at(step)
    with using(model, frozen_statistics(trained, step, EXACT)), torch.no_grad():
        exact = float64_copy(model).eval()(images)
        in_train_mode = float64_copy(model).train()  # no dropout in this network
        batch = torch.cat([in_train_mode(images[part]) for part in in_batches(len(labels), 50)])
    for name, logits in (("exact", exact), ("test_batch(n=50)", batch)):
        assert found["accuracy"][name] == pytest.approx((logits.argmax(1) == labels).double().mean().item())
        assert found["loss"][name] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-4)
    difference = ((batch - exact).square().mean() / exact.square().mean()).sqrt().item()
    assert list(found["logit_gap"]) == pytest.approx([0, difference], rel=1e-3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("test_batch(n=x)", "n=x: is the number of images that are predicted at once, 1 or more"),
        ("eval_norm(batch=0)", "batch=0: is the number of images that are predicted at once, 1 or more"),
        ("test_batch(m=3)", "has no parameter 'm'"),
        ("example_weighing(weight=2.0)", r"weight=2.0; it lies in \[0, 1\]"),
        ("pseudo_samples(n=-1)", "it counts images and is 0 or more"),
        ("swa(weight=1)", "swa has no parameter 'weight'; it has images"),
        ("swa(images=some)", r"write swa, or swa\(images=1000\)"),
        ("stale(images=10)", "stale has no parameter 'images'; it has none"),
        ("none", "unknown; there are "),
        ("tset_batch", "unknown; there are .*, test_batch, "),
    ],
)
def test_bad_names(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_sources([name], [0.1], "train")


def test_a_process_plans_with_its_share_of_the_memory(trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnlab.harness.artifacts.runs.memory_limit", lambda memory, device: 1200)
    monkeypatch.setattr("bnlab.harness.artifacts.runs.cpu_count", lambda: 4 * torch.get_num_threads())

    assert [Run(replace(trained.config, device=kind)).memory for kind in ("cpu", "cuda")] == [300, 1200]


def test_batches_of_a_split() -> None:
    """None has one image alone, which has no variance."""
    assert [(s.start, s.stop) for s in in_batches(9, 4)] == [(0, 4), (4, 9)]
    assert [(s.start, s.stop) for s in in_batches(10, 4)] == [(0, 4), (4, 8), (8, 10)]
