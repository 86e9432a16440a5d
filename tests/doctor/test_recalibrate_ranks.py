"""`recalibrate` of distributed models, and by several processes together."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import bnlab
from tests.doctor.two_values import draw, make_classifier
from tests.helpers import run_two_ranks


def test_a_distributed_model_and_a_group_of_one_process(tmp_path: Path) -> None:
    model = make_classifier()
    alone = bnlab.recalibrate(make_classifier(), draw(100))
    store = distributed.FileStore(str(tmp_path / "rendezvous"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = bnlab.recalibrate(DistributedDataParallel(model), draw(100))
        wrapped.undo()
        layers, after = wrapped.layers, wrapped.after
        # Before its group: a group that ends with its last wrapper may wait for itself for ever.
        del wrapped
        together = bnlab.recalibrate(model, draw(100), training_batches=draw(100), group=distributed.group.WORLD)
    finally:
        distributed.destroy_process_group()

    assert layers == ("module.0",)
    assert after == 1
    assert str(together) == str(alone)
    assert model[0].running_mean.item() == pytest.approx(100)


@pytest.mark.slow
def test_processes_judge_by_the_images_of_all(tmp_path: Path) -> None:
    script = """
import warnings

import bnlab
import torch
from tests.doctor import digits
from tests.doctor.two_values import draw, make_classifier
values, labels = draw(100)[0]
own = slice(60 * rank, 60 + 60 * rank)
everything = bnlab.recalibrate(make_classifier(), [(values, labels)])
model = make_classifier()
if rank:
    model[0].running_var.fill_(float("nan"))
broken = bnlab.recalibrate(model, [(values[own], labels[own])], group=dist.group.WORLD)
assert broken.scores is None and broken.written, broken  # on both ranks

model = make_classifier()
shared = bnlab.recalibrate(model, [(values[own], labels[own])], group=dist.group.WORLD)
assert str(shared) == str(everything), shared
assert shared.scores.commonest == 0.5
assert abs(model[0].running_mean.item() - 100) < 1e-4

shared.undo()
model[0].running_mean.fill_(100.5 - 101.5 * rank)  # costs nothing on the first rank, and half on the second
shared = bnlab.recalibrate(model, [(values[own], labels[own])], group=dist.group.WORLD)
assert shared.written, shared

images, labels_of = (torch.cat(parts) for parts in zip(*digits.draw_batches(8), strict=True))
share = slice(0, -2) if rank == 0 else slice(-2, None)  # two images do not show that all are scaled
with warnings.catch_warnings(action="ignore"):
    scaled = bnlab.recalibrate(digits.make_healthy(), [(4 * images[share], labels_of[share])], group=dist.group.WORLD)
assert scaled.written and "as they would without BN209" in scaled.reason, scaled

try:
    bnlab.recalibrate(model, [] if rank else [values], group=dist.group.WORLD)
except ValueError as error:
    assert "recalibrate: batches is empty" in str(error)
else:
    raise AssertionError("an empty share is refused")
"""
    run_two_ranks(script, tmp_path)
