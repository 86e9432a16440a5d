"""Every kind of statistic in the tables: frozen weights as the tools compute them, rules at inference time."""

from __future__ import annotations

from dataclasses import replace
from multiprocessing import parent_process

import pytest
import torch
from joblib import Parallel, delayed

from bnlab import Statistics, gap, population_statistics, running_statistics, using
from bnlab.estimators import list_estimators
from bnlab.harness import load_model
from bnlab.harness.errors import UserError
from bnlab.harness.measurements.estimates import draw_population, in_batches
from bnlab.harness.measurements.subjects import Subject, parse_subjects
from bnlab.harness.statistic_kinds import Exact
from tests.helpers import Config, Run, measure
from tests.references import accuracy_under, float64_copy

LAST = 40


def select_exact(run: Run, step: int = LAST) -> Statistics:
    """Measure exact statistics of all training images."""
    return population_statistics(run.model_at(step), run.dataset.train.images.split(256))


def test_update_bn_is_torchs(trained: Run, copied: Config) -> None:
    measure(copied, "gaps", evaluate_at=[LAST])
    model = trained.model_at(LAST)
    images = trained.dataset.train.images
    torch.optim.swa_utils.update_bn(images.split(32), model)

    found = load_model("adhoc", trained.id, statistics="update_bn", results=copied.results)

    # Both average float32 moments: torch step by step in float32, bnlab in float64.
    gaps = gap(running_statistics(model), running_statistics(found))
    assert gaps["mean_gap"].max() < 5e-6
    assert gaps["var_gap"].max() < 5e-6


def test_all_names_at_once(copied: Config) -> None:
    rules = ["test_batch(n=32)", "pseudo_samples(n=8,between=True,batch=16)", "example_weighing", "eval_norm"]
    ours = [name for name, cls in list_estimators().items() if cls.__module__.startswith("bnlab.")]
    chosen = [*ours, "exact", "precise", "update_bn", "swa"]

    table = measure(copied, "evaluations", estimator=[*chosen, *rules])
    gaps = measure(copied, "gaps", estimator=[*chosen, *rules])

    assert len(table) == len(chosen) + len(rules)
    assert table["accuracy"].between(0, 1).all()
    assert gaps["estimator"].nunique() == len(chosen)
    assert gaps["mean_gap"].notna().all()
    assert (gaps["output_gap"][gaps["estimator"] == "update_bn"] > 0).all()


def test_a_sample_is_measured_before_the_end(trained: Run, copied: Config) -> None:
    settings = {"population_images": 100, "evaluate_at": [1, 1.0], "estimator": ["exact", "exact(images=100)"]}
    found = measure(copied, "evaluations", accuracy_at="all", **settings)
    gaps = measure(copied, "gaps", **settings)

    exact = found[found["estimator"] == "exact"].set_index("step")
    assert exact[["images", "stat_images"]].to_numpy().tolist() == [[100, 100], [359, 360]]
    assert gaps["mean_gap"][gaps["estimator"] == "exact(images=100)"].min() > 1e-3, "as many others"

    statistics = population_statistics(trained.model_at(1), [trained.dataset.train.sample(100).images])
    test = trained.dataset.test.sample(100)
    with using(trained.model_at(1), statistics) as model, torch.no_grad():
        hits = model(test.images).argmax(1) == test.labels
    assert exact.loc[1, "accuracy"] == pytest.approx(hits.double().mean().item())


def test_each_network_and_step_has_a_sample_of_its_own(trained: Run) -> None:
    subject = Subject(Exact(images=100))
    other = Run(replace(trained.config, seed=1))
    other.dataset = trained.dataset

    places = ((trained, 1), (trained, 7), (other, 1))
    first, *others = (draw_population(run, step, subject, 100)[0] for run, step in places)

    assert not [images for images in others if torch.equal(images, first)]


@pytest.mark.parametrize(("split", "images"), [("test", 359), ("val", 40), ("train", 359)])
def test_predictions_of_a_split(split: str, images: int, trained: Run, copied: Config) -> None:
    """Of the training split as many images as test has."""
    (found,) = measure(copied, "evaluations", estimator="exact", evaluate_on=split).to_dict("records")

    every = getattr(trained.dataset, split)
    part = (every.images[:images], every.labels[:images])
    assert (found["split"], found["shift"], found["images"]) == (split, "none", images)
    expected = accuracy_under(trained.model_at(LAST), select_exact(trained), *part)
    assert found["accuracy"] == pytest.approx(expected, abs=1.5 / images)


@pytest.mark.parametrize(
    ("estimator", "population", "splits"),
    [
        (["ema"], "val", {("exact", "val"), ("ema", "train")}),
        (["exact"], ["train_augmented", "val"], {("exact", "train_augmented"), ("exact", "val")}),
        (["precise"], "val", {("exact", "val"), ("precise", "val")}),
        (["test_batch(n=50)"], "val", {("exact", "train"), ("exact", "val"), ("test_batch(n=50)", "test")}),
    ],
)
def test_exact_statistics_are_always_there_of_the_population_that_is_asked_for(
    estimator: list[str], population: str | list[str], splits: set[tuple[str, str]], copied: Config
) -> None:
    """And of no other, which a score would take for the same, but for rules, which start from those of training."""
    found = measure(copied, "evaluations", estimator=estimator, population=population)

    assert {*zip(found["estimator"], found["statistics_split"], strict=True)} == splits
    of_val = found[(found["estimator"] == "exact") & (found["statistics_split"] == "val")]
    assert of_val["stat_images"].isin([40]).all()
    assert (of_val["logit_gap"] > 0).all(), "compared with those of training"


def test_predictions_under_a_shift(trained: Run, copied: Config) -> None:
    """Exact statistics are of the training images as they are, those of a test batch of 50 of the shifted images."""
    found = measure(copied, "evaluations", estimator=["exact", "test_batch(n=50)"], shifts="contrast:3")
    found = found.set_index("estimator")

    assert set(found["shift"]) == {"contrast:3"}
    assert list(found["stat_images"]) == [360, 50]

    images = trained.images_of("test", "contrast:3").images
    labels = trained.dataset.test.labels
    expected = accuracy_under(trained.model_at(LAST), select_exact(trained), images, labels)
    assert found["accuracy"]["exact"] == pytest.approx(expected, abs=1.5 / len(labels))

    in_train_mode = float64_copy(trained.model_at(LAST)).train()  # no dropout in this network
    with torch.no_grad():
        logits = torch.cat([in_train_mode(images[part].double()) for part in in_batches(len(labels), 50)])
    loss = torch.nn.functional.cross_entropy(logits, labels).item()
    assert found["loss"]["test_batch(n=50)"] == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("test_batch(n=x)", "n=x: "),
        ("test_batch(m=3)", "'m'"),
        ("example_weighing(weight=2.0)", r"weight=2.0\b.*\[0, 1\]"),
        ("swa(images=some)", r"swa\(images=1000\)"),
        ("none", r"\baveraged, "),
    ],
)
def test_bad_names(name: str, named: str) -> None:
    with pytest.raises(UserError, match=named):
        parse_subjects([name], [0.1], "train")


def test_processes_of_a_sweep_know_that_they_are_several() -> None:
    """They share the memory, and the process that has started them would be none of them."""
    parents = Parallel(n_jobs=2)(delayed(parent_process)() for _ in range(2))

    assert all(parent is not None for parent in parents)
    assert parent_process() is None


def test_batches_of_a_split() -> None:
    """None has one image alone, which has no variance."""
    assert [(s.start, s.stop) for s in in_batches(9, 4)] == [(0, 4), (4, 9)]
    assert [(s.start, s.stop) for s in in_batches(10, 4)] == [(0, 4), (4, 8), (8, 10)]
