"""What is asked of a GPU: the numbers of the CPU, no wait for the device inside of a loop, and everything in place."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bnlab import Moments, diagnose, population_statistics, recalibrate, record, watch
from bnlab.commands.demo.specimen import reset
from bnlab.harness import load
from bnlab.model.borrow import borrowed
from bnlab.model.reading import DeviceReader
from bnlab.nn import SelfTuned
from tests import references
from tests.conftest import small_config
from tests.doctor.digits import make_batches, make_healthy
from tests.harness.kills import assert_same, interrupted_at
from tests.helpers import (
    Run,
    assert_moments,
    images,
    measure_difference,
    plain,
    residual,
    run_job,
    train,
    train_network,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

# A mean is off by at most 1e-5 of its standard deviation, a variance by 1e-5 of itself: float32 sums its products, of
# some hundred inputs to a convolution, to 1e-6 or so.
CLOSE = 1e-5


@contextmanager
def full_float32() -> Iterator[None]:
    """Convolutions and products as exact as on the CPU: without TF32, which rounds inputs to ten bits."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def count_waits(run: Callable[[], object]) -> int:
    """Count how often a program waits for the device, as PyTorch itself sees it."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA" in str(warning.message) for warning in caught)


def to_gpu(batches: list[Any]) -> list[Any]:
    """Copy images, or pairs of images and labels, to the device."""
    return [batch.cuda() if isinstance(batch, Tensor) else tuple(part.cuda() for part in batch) for batch in batches]


@pytest.mark.parametrize("build", [plain, residual])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_statistics_are_those_of_float64_on_the_cpu(
    build: Callable[[], nn.Module], layout: torch.memory_format, offset: float
) -> None:
    model = build().eval()
    with torch.no_grad():
        first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
        if first.bias is not None:
            first.bias += offset
    batches = images(8, 8, 5)
    expected = population_statistics(copy.deepcopy(model).double(), [batch.double() for batch in batches])

    moved = copy.deepcopy(model).cuda().to(memory_format=layout)  # type: ignore[call-overload]
    on_gpu = [batch.cuda().contiguous(memory_format=layout) for batch in batches]
    with full_float32():
        found = population_statistics(moved, on_gpu)
        from_cpu = population_statistics(moved, batches)

    assert found.check is not None
    assert measure_difference(from_cpu, expected) < CLOSE * max(1.0, offset / 100)
    assert measure_difference(found, expected) < CLOSE * max(1.0, offset / 100)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mean", [0, 8, 16, 100, 10_000])
def test_moments_are_those_of_float64_however_far_from_zero(
    mean: float, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    generator = torch.Generator().manual_seed(0)
    values = mean + torch.randn(64, 64, 28, 28, generator=generator, dtype=torch.float64)
    x = values.to(dtype).cuda().contiguous(memory_format=layout)
    parts = x.split(16)
    reader = DeviceReader()
    expected = references.moments(x.cpu())

    for found in (reader.measure(x), reader.pool([reader.measure(part) for part in parts])):
        assert found.mean.is_cuda
        assert_moments(Moments(found.count, found.mean.cpu(), found.var.cpu()), expected, CLOSE)


def test_autocast_inside_of_a_forward_runs_each_batch_once() -> None:
    model = residual().cuda()
    batches = to_gpu(images(8, 8, 5))

    def forward(network: nn.Module, batch: Tensor) -> Any:
        with torch.autocast("cuda", torch.bfloat16):
            return network(batch)

    found = population_statistics(model, batches, forward=forward)
    slow = population_statistics(model, batches, forward=forward, strategy="layerwise")

    assert found.cost is not None
    assert found.cost.forwards == len(batches)
    assert measure_difference(slow, found) < 2**-8  # activations have eight bits


def test_waits_do_not_grow_with_batches() -> None:
    model = residual().cuda()
    # Of eight batches or more four are checked by an evaluation, each of which is waited for.
    few = to_gpu(images(*[8] * 8))
    many = to_gpu(images(*[8] * 24))
    population_statistics(model, few)

    waits = count_waits(lambda: population_statistics(model, few))

    assert count_waits(lambda: population_statistics(model, many)) == waits


def test_a_recorded_step_waits_for_nothing_and_records_what_the_cpu_does() -> None:
    model = plain().train()
    model[8] = nn.Identity()  # dropout draws other numbers on a device
    batches = images(*[8] * 20)
    moved = copy.deepcopy(model).cuda()
    on_gpu = to_gpu(batches)
    with full_float32():
        train(copy.deepcopy(moved), on_gpu)
        with record(model) as expected:
            train(model, batches)
        with record(moved) as found:
            waits = count_waits(lambda: train(moved, on_gpu))

    assert waits == 0
    for name, layer in expected.layers.items():
        torch.testing.assert_close(found.layers[name].moments, layer.moments, rtol=1e-3, atol=1e-4)


def test_a_self_tuned_layer_waits_only_where_it_chooses() -> None:
    model = SelfTuned.convert(plain()).cuda().train()
    waiting = set()
    for step, batch in enumerate(to_gpu(images(*[8] * 70)), start=1):
        waits = count_waits(lambda batch=batch: train(model, [batch]))  # type: ignore[misc]
        if waits:
            waiting.add(step)

    assert waiting <= {1, 2, 4, 8, 16, 32, 64}


def test_a_borrowed_model_is_given_back_without_waiting() -> None:
    model = residual().cuda()

    def change() -> None:
        with borrowed(model, training=True):
            model(on_gpu)

    on_gpu = images(8)[0].cuda()
    before = copy.deepcopy(model.state_dict())
    change()

    assert count_waits(change) == 0
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_diagnosis_says_on_a_gpu_what_it_says_on_the_cpu_and_its_repair_can_be_undone() -> None:
    model = make_healthy(0)
    reset(model)
    batches = make_batches(images=400)
    expected = diagnose(model, batches)

    moved = copy.deepcopy(model).cuda()
    on_gpu = to_gpu(batches)
    with full_float32():
        found = diagnose(moved, on_gpu)
    assert found.verdict == expected.verdict == "averages"
    assert list(found.findings["code"]) == list(expected.findings["code"])
    # A loader gives images on the CPU; a metric of one's own is given them where the outputs are.
    assert diagnose(moved, batches).causes == expected.causes
    by_metric = diagnose(moved, batches, metric=lambda output, batch: (output.argmax(1) == batch[1]).float())
    assert by_metric.causes == expected.causes

    before = copy.deepcopy(moved.state_dict())
    repair = recalibrate(moved, on_gpu)
    assert diagnose(moved, on_gpu).verdict == "healthy"
    repair.undo()
    after = moved.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_sweep_trains_and_measures_on_a_gpu(tmp_path: Path) -> None:
    config = small_config(tmp_path, device="cuda", momentum=[0.1], estimator=["ema", "exact"])
    run_job(config)
    tables = load(config.name, tmp_path)

    assert tables["gaps"]["mean_gap"].notna().all()
    assert tables["runs"]["device"].item() == torch.cuda.get_device_name()


def test_training_on_a_gpu_goes_on_where_it_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)  # the same sums in the same order
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    whole = Run(small_config(tmp_path / "whole", device="cuda"))
    train_network(whole)
    killed = Run(small_config(tmp_path / "killed", device="cuda"))
    with interrupted_at(20), pytest.raises(KeyboardInterrupt):
        train_network(killed)
    train_network(killed)

    assert_same(whole, killed)


def test_training_in_bfloat16_keeps_weights_and_averages_in_float32(tmp_path: Path) -> None:
    run = train_network(Run(small_config(tmp_path, "precision=bfloat16", device="cuda")))

    state = run.model_at(run.steps).state_dict()

    assert {values.dtype for values in state.values()} == {torch.float32, torch.int64}
    assert all(values.isfinite().all() for values in state.values())


@pytest.mark.parametrize("keep", [None, "cpu"])
@pytest.mark.parametrize("is_synchronized", [False, True])
def test_a_watched_training_has_the_statistics_of_its_latest_batches(keep: Any, is_synchronized: bool) -> None:
    model: nn.Module = plain()
    if is_synchronized:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = model.cuda().train()
    watching = watch(model, 10, keep=keep)
    batches = images(8, 8, 5)
    with full_float32():
        train(model, to_gpu(batches))
        found = watching.measure()

    expected = references.full_batch_population(model, torch.cat(batches[1:]))
    assert measure_difference(found, expected) <= CLOSE
    kept = watching.measure().cost
    assert kept is not None and kept.images == 13


def test_a_watched_model_may_be_moved_between_training_and_validation() -> None:
    model = plain().cuda().train()
    watching = watch(model)
    batches = images(8, 5)
    with full_float32():
        train(model, to_gpu(batches))
    model.cpu()

    expected = references.full_batch_population(model, torch.cat(batches))
    with watching.exact():
        assert next(model.buffers()).device.type == "cpu"
        assert measure_difference(watching.measure(), expected) <= CLOSE


def test_a_watched_step_does_not_wait_for_the_device() -> None:
    model = plain().cuda().train()
    (batch,) = to_gpu(images(8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(batch.clone()).square().mean().backward()
        optimizer.step()

    step()
    before = count_waits(step)
    watch(model)
    step()

    assert count_waits(step) == before
