"""What exact statistics take, write, refuse and name."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from bnlab import diagnose, population_statistics
from tests import references
from tests.exact.zoo import Net
from tests.helpers import images, measure_difference, plain, residual, run_two_ranks, unchanged

WAYS: list[dict[str, Any]] = [{}, {"strategy": "layerwise"}, {"statistic": "precise"}]


def list_shared(call: Callable[..., Any], other: Callable[..., Any]) -> list[str]:
    """The keywords that both take, in the order of the first."""
    return [name for name in inspect.signature(call).parameters if name in inspect.signature(other).parameters]


def test_keywords_that_calls_share_come_in_one_order() -> None:
    shared = list_shared(population_statistics, diagnose)
    assert shared == ["model", "batches", "forward"]
    assert shared == list_shared(diagnose, population_statistics)


def test_some_layers_are_measured_under_the_buffers_of_others() -> None:
    model = residual().double()
    data = [batch.double() for batch in images(8, 5)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = population_statistics(model, data, layers=["4.bn2"])

    assert list(found) == ["4.bn2"]
    assert measure_difference(found, references.moments_of_inputs(model.eval(), ["4.bn2"], data, None)) <= 1e-12


@pytest.mark.parametrize(("wanted", "expected"), [(6, [4, 4]), (8, [4, 4]), (9, [4, 4, 4])])
def test_max_images_stops_after_the_batch_that_reaches_it(wanted: int, expected: list[int]) -> None:
    read = []

    def load() -> Iterator[Tensor]:
        for batch in images(4, 4, 4, 4):
            read.append(len(batch))
            yield batch

    found = population_statistics(plain(), load(), max_images=wanted)

    assert read == expected
    assert found.cost is not None
    assert found.cost.images == sum(expected)


def test_forwards_that_write_into_their_batch_write_into_a_copy() -> None:
    data = [torch.randn(8, 3) for _ in range(3)]
    before = [batch.clone() for batch in data]
    population_statistics(nn.Sequential(nn.BatchNorm1d(3)), data, forward=lambda model, batch: model(batch.mul_(2)))

    assert all(map(torch.equal, data, before))


def test_forwards_that_write_into_objects_of_objects_write_into_copies() -> None:
    data = [SimpleNamespace(inner=SimpleNamespace(values=torch.randn(8, 3))) for _ in range(3)]
    before = [batch.inner.values.clone() for batch in data]
    population_statistics(
        nn.Sequential(nn.BatchNorm1d(3)), data, forward=lambda model, batch: model(batch.inner.values.mul_(2))
    )

    assert all(torch.equal(batch.inner.values, own) for batch, own in zip(data, before, strict=True))


def test_a_loader_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnlab.exact.source.read_free_bytes", lambda device: 10_000)
    (batch,) = images(8)
    assert population_statistics(plain(), [batch])  # one batch may take more than half

    with pytest.raises(ValueError, match=r"batches take 6,144 bytes, more than half .* pass max_images="):
        population_statistics(plain(), itertools.repeat(batch))

    # A list takes no more memory by being read.
    assert population_statistics(plain(), [batch, batch, batch])


def test_two_ranks_measure_what_one_does(tmp_path: Path) -> None:
    """Shares of other sizes, of other numbers, and none."""
    run_two_ranks(
        """
import warnings
from bnlab import population_statistics
from tests.exact.zoo import make_kept_features
from tests.helpers import images, measure_difference, residual
warnings.simplefilter("ignore")
data = images(8, 3, 5, 7)
group = dist.group.WORLD
for options in ({}, {"statistic": "precise"}, {"strategy": "layerwise"}, {"standard_errors": True}):
    whole = population_statistics(residual(), data, **options)
    for share in (data[1:] if rank else data[:1], data if rank else []):
        found = population_statistics(residual(), share, group=group, **options)
        assert list(found) == list(whole)
        assert measure_difference(found, whole) < 1e-6
        assert found.cost.images == sum(map(len, share))
        for name, errors in (whole.standard_errors or {}).items():
            for one, other in zip(found.standard_errors[name], errors, strict=True):
                assert torch.allclose(one, other, rtol=1e-5, atol=0)
model = make_kept_features()
whole = population_statistics(model, data)
found = population_statistics(model, data[rank::2], group=group)
assert measure_difference(found, whole) < 1e-6
try:
    population_statistics(residual(), [data[0] * (float("nan") if rank else 1)], group=group)
    raise SystemExit("not refused")
except ValueError as error:
    assert "NaN" in str(error)
""",
        tmp_path,
    )


# -- what is refused, and what is named -------------------------------------------------------------------------------

FIRST, SECOND = DATA = images(8, 5)


def replace_buffers(model: nn.Module, batch: Tensor) -> Any:
    return functional_call(model, {name: buffer.clone() for name, buffer in model.named_buffers()}, (batch,))


def replace_buffers_later(model: nn.Module, batch: Tensor) -> Any:
    """Only for batches other than the first."""
    return model(batch) if torch.equal(batch, FIRST) else replace_buffers(model, batch)


def hide_what_is_wrong(model: nn.Module, batch: Tensor) -> None:
    try:
        model(batch)
    except BaseException as error:
        raise RuntimeError("cleanup failed") from error


def run_in_a_thread(net: Any, x: Tensor) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(net.a, x).result()


@pytest.mark.parametrize(
    ("make", "batches", "options", "error", "message"),
    [
        (lambda: nn.Linear(3, 3), DATA, {}, ValueError, "no BatchNorm layer with running statistics in Linear"),
        (lambda: nn.Sequential(nn.InstanceNorm2d(3), nn.BatchNorm1d(2, track_running_stats=False)), DATA, {},
         ValueError, r"\(1 InstanceNorm2d, 1 BatchNorm1d without running statistics skipped; only [^;]* are read\)$"),
        (lambda: torch.jit.trace(plain().eval(), FIRST), DATA, {}, ValueError,
         "the model is TorchScript, whose layers cannot"),
        (lambda: nn.Sequential(torch.jit.trace(plain().eval(), FIRST)), DATA, {}, ValueError,
         "'0' is TorchScript, whose"),
        (nn.LazyBatchNorm2d, DATA, {}, ValueError, "is lazy and not built yet; run one forward pass first"),
        (lambda: plain().to("meta"), DATA, {}, ValueError,
         "on the meta device, which holds no values; use model.to_empty"),
        (lambda: nn.Sequential(nn.LazyConv2d(3, 3), nn.BatchNorm2d(3)), DATA, {}, ValueError,
         r"'0\.weight' is lazy and not"),
        (plain, [{"image": FIRST}], {}, TypeError, r"is a dict .* forward=lambda model, batch: model\(\*\*batch\)"),
        (plain, DATA, {"layers": ["2"]}, ValueError, "layers has '2', which is no BatchNorm .* there are '1', '4'"),
        (plain, DATA, {"layers": []}, ValueError, "layers is empty; name at least one, or pass None for all"),
        (plain, DATA, {"statistic": "both"}, ValueError, "choose 'exact' or 'precise'"),
        (plain, DATA, {"max_images": 0}, ValueError, "pass at least 1"),
        (plain, DATA, {"max_images": "auto"}, ValueError, "tolerance=None"),
        (plain, DATA, {"device": "nowhere"}, ValueError, "cannot be used here"),
        (plain, DATA, {"group": 3}, TypeError, "pass a process group"),
        (plain, [SECOND * np.nan] * 2, {"forward": hide_what_is_wrong}, ValueError, "NaN or infinite values"),
        (plain, [FIRST, SECOND[:, :2]], {}, RuntimeError, "expected input"),
        (plain, [FIRST, FIRST[:0]], {}, ValueError, "leave empty batches out"),
        (lambda: nn.BatchNorm1d(3), [torch.randn(1, 3)], {}, ValueError, "one value per channel"),
        (lambda: nn.BatchNorm1d(3), [torch.randn(1, 3)] * 2, {"statistic": "precise"}, ValueError,
         "use larger batches"),
        (lambda: Net(run_in_a_thread, a=nn.BatchNorm2d(3)), DATA, {}, ValueError, "runs in another thread"),
        *((plain, DATA, {"forward": replace, **way}, ValueError, "give functional_call parameters only")
          for way in WAYS for replace in (replace_buffers, replace_buffers_later)),
    ],
)  # fmt: skip
def test_what_is_refused_and_how(
    make: Callable[[], Any], batches: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = make()
    is_built = isinstance(model, nn.Module) and "lazy" not in message and "meta" not in message
    same = unchanged(model) if is_built else contextlib.nullcontext()
    with same, warnings.catch_warnings(), pytest.raises(error, match=message):
        warnings.simplefilter("ignore")
        population_statistics(model, batches, **options)


class OwnNorm(nn.Module):
    """A norm with buffers of some names."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            self.register_buffer(name, torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return x


def make_held(norms: Any) -> nn.Module:
    """A network that holds batch norms in no module."""
    model = Net(lambda net, x: net.bn(x), bn=nn.BatchNorm2d(3))
    model.norms = norms
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Sequential(nn.BatchNorm2d(3), OwnNorm("running_mean")), "'1' keep running statistics"),
        (lambda: nn.Sequential(nn.BatchNorm2d(3), OwnNorm("stored_mean", "stored_var")), "'1' keep running statistics"),
        (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=False)),
         "'1' are batch norms without"),
        *((lambda hold=hold: make_held(hold(nn.BatchNorm2d(3))),
           "'norms' hold batch norms in a plain list or dictionary, .*; they are not measured")
          for hold in (lambda norm: [norm], lambda norm: {"a": [norm]}, lambda norm: (nn.Sequential(norm),))),
    ],
)  # fmt: skip
def test_norms_that_are_not_measured_are_named_once(make: Callable[[], nn.Module], message: str) -> None:
    model = make()
    with pytest.warns(RuntimeWarning, match=message) as caught:
        population_statistics(model, images(8, 5))
    assert len(caught) == 1
    with pytest.raises(ValueError, match="1 OwnNorm skipped"):
        population_statistics(OwnNorm("running_mean"), images(8))


_SHARDED = """
import copy, warnings
import torch, torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
import bnlab
warnings.simplefilter("ignore")
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
first = FullyShardedDataParallel(copy.deepcopy(model), device_id=torch.device("cpu"))
first.eval()(torch.randn(2, 3, 8, 8))
fully_shard(model[0], mesh=init_device_mesh("cpu", (1,)))
for sharded, part in ((first, "the model"), (model, "'0'")):
    for call in (lambda model: bnlab.population_statistics(model, [torch.randn(2, 3, 8, 8)]), bnlab.running_statistics):
        before = {name: (buffer, buffer.clone()) for name, buffer in sharded.named_buffers()}
        try:
            call(sharded)
        except ValueError as error:
            assert f"{part} is sharded by FSDP" in str(error), error
        else:
            raise SystemExit("not refused")
        assert all(torch.equal(*pair) for pair in before.values())
dist.destroy_process_group()
print("refused")
"""


def test_a_model_that_is_sharded_is_refused_before_anything_is_touched() -> None:
    """In a process of its own: what was measured under FSDP ended in a segmentation fault."""
    command = [sys.executable, "-c", _SHARDED]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=180, check=False)
    assert done.stdout.splitlines()[-1:] == ["refused"], done.stderr


@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is deprecated")
def test_a_part_in_torchscript_that_has_no_averages_is_no_obstacle() -> None:
    model = plain().eval()
    scripted = nn.Sequential(model, torch.jit.trace(nn.Hardswish(), model(FIRST)))

    found = population_statistics(scripted, DATA)

    expected = population_statistics(model, DATA)
    assert [name.removeprefix("0.") for name in found] == [*expected]
    assert all(torch.equal(found[f"0.{name}"].mean, moments.mean) for name, moments in expected.items())
