"""Models of public reports, in small: what is right, what is refused, and what comes back as it was."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnlab import population_statistics, using
from bnlab.moments import Moments, compare_moments
from tests import references


def images(*sizes: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, 3, 6, 6, generator=generator) for size in sizes]


# -- the model comes back as it was -----------------------------------------------------------------------------------


@pytest.mark.parametrize("in_place", [True, False])
def test_a_teacher_that_is_moved_in_the_forward_comes_back(in_place: bool) -> None:
    """As of MoCo and BYOL."""

    class Teacher(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student = nn.Linear(2, 2)
            self.teacher = nn.Linear(2, 2)
            self.bn = nn.BatchNorm1d(2)
            self.teacher.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            moved = self.teacher.weight * 0.999 + self.student.weight.detach() * 0.001
            if in_place:
                self.teacher.weight.data.copy_(moved)
            else:
                self.teacher.weight.data = moved
            return self.bn(self.teacher(x))

    model = Teacher()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        population_statistics(model, [torch.randn(8, 2)] * 3)

    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("rows", [1, 2])
def test_a_queue_whose_place_depends_on_the_batch_fits_all_images(rows: int) -> None:
    """Also where a layer gets several rows of an image, so that all images are checked after a few."""

    class Queue(nn.Module):
        place: Tensor
        queue: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm1d(2)
            self.register_buffer("queue", torch.zeros(32, 2))
            self.register_buffer("place", torch.zeros(1, dtype=torch.long))

        def forward(self, x: Tensor) -> Tensor:
            x = self.bn(x.repeat_interleave(rows, 0))[::rows]
            place = int(self.place)
            self.queue[place : place + len(x)] = x
            self.place[0] = (place + len(x)) % 32
            return x

    model = Queue()
    found = population_statistics(model, [torch.randn(32, 2)] * 2)

    assert found["bn"].count == 64 * rows
    assert int(model.place) == 0
    assert not model.queue.any()


def test_buffers_that_get_their_size_in_the_forward_come_back_empty() -> None:
    """As of observers of quantization."""

    class Observed(nn.Module):
        least: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("least", torch.tensor([]))
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            if not self.least.numel():
                self.least.resize_(3)
            self.least.copy_(x.amin((0, 2, 3)))
            return self.bn(x)

    model = Observed()
    model.bn.running_var.fill_(7.0)  # type: ignore[union-attr]
    population_statistics(model, images(8, 8))

    assert model.training
    assert model.least.numel() == 0
    assert torch.equal(model.bn.running_var, torch.full((3,), 7.0))  # type: ignore[arg-type]


# -- what is not measured is said -------------------------------------------------------------------------------------


def test_a_layer_in_a_plain_list_is_said_not_to_be_measured() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bns = [nn.BatchNorm2d(3)]
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.bns[0](x))

    with pytest.warns(RuntimeWarning, match="'bns' hold batch norms in a plain list, .* ModuleList; they are not"):
        assert list(population_statistics(Listed(), images(8, 8))) == ["bn"]


def test_a_norm_with_buffers_of_other_names_is_said_not_to_be_measured() -> None:
    """As BigGAN's."""

    class Conditional(nn.Module):
        stored_mean: Tensor
        stored_var: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("stored_mean", torch.zeros(3))
            self.register_buffer("stored_var", torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return F.batch_norm(x, self.stored_mean, self.stored_var, None, None, self.training)

    model = nn.Sequential(Conditional(), nn.BatchNorm2d(3))
    with pytest.warns(RuntimeWarning, match="'0' keep running statistics"):
        population_statistics(model, images(8, 8))


def test_layers_that_are_left_out_are_no_hidden_ones() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        population_statistics(model, images(8, 8), layers=["1"])


# -- batches ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    x: Tensor
    y: Tensor


def test_batches_that_are_objects_count_their_images_and_stay_as_they_were() -> None:
    data = [Batch(x, torch.zeros(len(x))) for x in images(8, 8, 8)]
    before = [batch.x.clone() for batch in data]

    def forward(model: nn.Module, batch: Batch) -> Any:
        return model(batch.x.sub_(1))

    found = population_statistics(nn.Sequential(nn.BatchNorm2d(3)), data, forward=forward, max_images=16)

    assert found.cost is not None
    assert found.cost.images == 16
    assert all(torch.equal(batch.x, value) for batch, value in zip(data, before, strict=True))

    expected = references.merge([value - 1 for value in before[:2]])
    assert max(compare_moments(Moments(*expected), found["0"])) < 1e-5


def test_two_views_of_series_count_as_many_images_as_there_are_labels() -> None:
    data = [([torch.randn(16, 3, 10), torch.randn(16, 3, 10)], torch.zeros(16)) for _ in range(4)]

    def forward(model: nn.Module, batch: Any) -> list[Any]:
        return [model(view) for view in batch[0]]

    found = population_statistics(nn.Sequential(nn.BatchNorm1d(3)), data, forward=forward, max_images=32)

    assert found.cost is not None
    assert found.cost.images == 32
    assert found["0"].count == 2 * 32 * 10


# -- batches that take routes of their own ----------------------------------------------------------------------------

WAYS = ["breadth", "layerwise", "little memory", "least memory"]


def find_options(model: nn.Module, data: list[Any], forward: Any, way: str) -> dict[str, Any]:
    """What `population_statistics` is to be called with; little memory is for about two batches that wait."""
    if "memory" not in way:
        return {"strategy": way}
    with pytest.raises(ValueError, match="bytes, memory= allows") as refused:
        population_statistics(model, data, forward=forward, memory=1)
    (number,) = re.findall(r"needs ([\d,]+) bytes", str(refused.value))
    needed = int(number.replace(",", ""))
    return {"memory": needed if way == "least memory" else 2 * needed}


def is_right(model: nn.Module, data: list[Any], forward: Any, way: str) -> bool:
    """Whether a plain evaluation under the result gives each layer the moments that were measured, without a word."""
    options = find_options(model, data, forward, way)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = population_statistics(model, data, forward=forward, **options)
    with using(model, found), torch.no_grad():
        seen = references.moments_of_inputs(model, list(found), data, forward)
    assert found.unseen == ()
    assert {name: moments.count for name, moments in found.items()} == {name: of.count for name, of in seen.items()}
    return max(max(compare_moments(Moments(*seen[name]), found[name])) for name in found) < 1e-5


class Domains(nn.Module):
    """A layer for each domain, which is set beside the forward."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.bns = nn.ModuleList(nn.BatchNorm2d(size) for _ in "ab")
        self.domain = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.bns[self.domain](x)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("domains", [[0, 1] * 4 + [0], [0, 1] * 4, [0] * 4 + [1] * 5, [0, 0, 1, 0, 0, 0, 0, 0]])
def test_domains_that_are_set_for_each_batch(way: str, domains: list[int]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), Domains(8), nn.ReLU(), nn.Conv2d(8, 8, 3), Domains(8))
    data = [(torch.randn(16, 3, 10, 10) + 4 * domain, domain) for domain in domains]

    def forward(model: nn.Module, batch: Any) -> Any:
        for module in model.modules():
            if isinstance(module, Domains):
                module.domain = batch[1]
        return model(batch[0])

    assert is_right(model, data, forward, way)


class Exit(nn.Module):
    """A block that small batches do without."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if len(x) > 20:
            x = F.relu(self.second(x))
        return self.third(x)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("sizes", [[32, 16] * 4, [16, 32] * 4, [16, 32]])
def test_a_block_that_some_batches_do_without(way: str, sizes: list[int]) -> None:
    torch.manual_seed(0)
    data = [torch.randn(size, 3) + number % 2 for number, size in enumerate(sizes)]
    assert is_right(Exit(), data, None, way)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("routes", [[0, 1] * 3, [0, 1], [1, 0, 0]])
def test_a_layer_that_the_batch_chooses(way: str, routes: list[int]) -> None:
    class Chosen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bns = nn.ModuleList(nn.BatchNorm2d(3) for _ in "ab")
            self.last = nn.BatchNorm2d(3)

        def forward(self, x: Tensor, route: int) -> Tensor:
            return self.last(F.relu(self.bns[route](x)))

    data = [(x + route, route) for x, route in zip(images(*[16] * len(routes)), routes, strict=True)]
    assert is_right(Chosen(), data, lambda model, batch: model(*batch), way)


# -- standard errors --------------------------------------------------------------------------------------------------


class Proposals(nn.Module):
    """A detector in small: of each image a number of parts of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.BatchNorm2d(3)
        self.head = nn.BatchNorm1d(3)

    def forward(self, x: Tensor, parts: Tensor) -> Tensor:
        means = self.backbone(x).mean((2, 3))
        return self.head(means.repeat_interleave(parts, 0))


def test_errors_are_of_batches_where_images_have_different_numbers_of_rows() -> None:
    data = [(x, torch.arange(8) + 1 + number) for number, x in enumerate(images(*[8] * 10))]

    def run(model: nn.Module, batch: Any) -> Any:
        return model(*batch)

    found = population_statistics(Proposals(), data, forward=run, standard_errors=True)

    assert found.standard_errors is not None
    model = Proposals().eval()
    with using(model, found), torch.no_grad():
        seen = [references.moments_of_inputs(model, ["head"], [batch], run)["head"] for batch in data]
    whole = found["head"]
    added = torch.stack([(of.mean - whole.mean) * of.count / whole.count for of in seen])
    expected = (added.square().sum(0) * 10 / 9).sqrt()
    torch.testing.assert_close(found.standard_errors["head"][0], expected, rtol=1e-4, atol=0)


def test_lazy_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'0\.weight' is lazy and not built yet"):
        population_statistics(nn.Sequential(nn.LazyConv2d(3, 3), nn.BatchNorm2d(3)), images(8))
