"""Layers, labels and batches that people have, and that are unlike those of the gallery."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bnlab
from bnlab import diagnose, recalibrate

Batches = Sequence[tuple[Tensor, Tensor]]


class Raising(nn.BatchNorm1d):
    """Raises in eval mode where its weights are large, as where an assertion stands."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training and float(self.weight.abs().max()) > 2.9:
            raise RuntimeError("weights are too large")
        return super().forward(input)


class InPlace(nn.BatchNorm1d):
    """Writes into its input in eval mode, to save memory."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training:
            return super().forward(input)
        return input.copy_(super().forward(input))


class OfFixedSize(nn.Module):
    """Takes batches of 32 only."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Any:
        return self.network(x.view(32, 4))


class Residual(nn.Module):
    """Its last batch norm has weights of 0, as at the start of a residual branch."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.branch = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        nn.init.zeros_(self.branch[1].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        y = self.network(x)
        return y + self.branch(y)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def batches() -> Batches:
    images = torch.randn(512, 4, generator=torch.Generator().manual_seed(0))
    return list(zip(images.split(32), images[:, :3].argmax(1).split(32), strict=True))


@pytest.fixture
def network(batches: Batches) -> nn.Sequential:
    """A small classifier in eval mode, whose averages fit."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    train(network, batches)
    return network


def train(network: nn.Module, batches: Batches) -> None:
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1e-3, total_iters=20 * len(batches))
    network.train()
    for _ in range(20):
        for images, labels in batches:
            optimizer.zero_grad()
            F.cross_entropy(network(images), labels).backward()
            optimizer.step()
            schedule.step()
    network.eval()


def test_weights_come_back_where_a_forward_raises_with_others(network: nn.Sequential, batches: Batches) -> None:
    network[1].__class__ = Raising
    before = {name: value.clone() for name, value in network.state_dict().items()}

    diagnosis = diagnose(network, batches, progress=False)

    assert diagnosis.verdict == "healthy"
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_norm_that_writes_into_its_input_leaves_nothing_out(network: nn.Sequential, batches: Batches) -> None:
    network[1].__class__ = InPlace

    diagnosis = diagnose(network, batches, progress=False)

    assert diagnosis.verdict == "healthy", str(diagnosis)
    assert not diagnosis.findings.query("code == 'BN304'").size


def test_a_branch_with_weights_of_0_leaves_nothing_out(network: nn.Sequential, batches: Batches) -> None:
    model = Residual(network)
    model.train()
    for images, _ in batches:
        model(images)

    diagnosis = diagnose(model.eval(), batches, progress=False)

    assert diagnosis.verdict == "healthy", str(diagnosis)


def test_weights_that_a_parametrization_computes_are_read(network: nn.Sequential, batches: Batches) -> None:
    torch.nn.utils.parametrize.register_parametrization(network[1], "weight", nn.Softplus(), unsafe=True)
    train(network, batches)

    diagnosis = diagnose(network, batches, progress=False)

    assert not diagnosis.findings.query("code == 'BN304'").size, str(diagnosis)


def test_a_model_of_one_batch_size(network: nn.Sequential, batches: Batches) -> None:
    model = OfFixedSize(network).eval()

    assert diagnose(model, batches, progress=False).verdict in ("healthy", "undecided")
    assert recalibrate(model, batches, force=True, progress=False).written


def test_norms_of_other_classes_are_examined_beside_those_without_averages(
    network: nn.Sequential, batches: Batches
) -> None:
    class Own(nn.Module):
        """A batch norm of another class than torch's."""

        def __init__(self, channels: int) -> None:
            super().__init__()
            self.register_buffer("running_mean", torch.full((channels,), 5.0))
            self.register_buffer("running_var", torch.ones(channels))
            self.momentum, self.eps = 0.1, 1e-5

        def forward(self, x: Tensor) -> Tensor:
            return F.batch_norm(x, self.running_mean, self.running_var, training=self.training, eps=self.eps)  # type: ignore[arg-type]

    model = nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False), Own(4), network).eval()

    diagnosis = diagnose(model[:2], batches, progress=False)

    assert "1" in set(diagnosis.table.reset_index().astype(str).to_numpy().ravel())


@pytest.mark.parametrize("label", [-1, -100])
def test_labels_below_0_count_as_wrong_or_not_at_all(label: int, network: nn.Sequential, batches: Batches) -> None:
    changed = [(images, labels.index_fill(0, torch.tensor([0]), label)) for images, labels in batches]

    assert diagnose(network, changed, progress=False).verdict
    assert recalibrate(network, changed, force=True, progress=False).written


def test_a_page_of_images_without_labels_beside_training_batches(
    network: nn.Sequential, batches: Batches, tmp_path: Path
) -> None:
    diagnosis = diagnose(network, [images for images, _ in batches], training_batches=batches, progress=False)

    diagnosis.to_html(tmp_path / "page.html")

    assert (tmp_path / "page.html").stat().st_size > 1000


def test_batches_of_which_only_some_have_labels(network: nn.Sequential, batches: Batches) -> None:
    network[1].get_buffer("running_mean").add_(3)
    images, _ = batches[-1]

    assert diagnose(network, [*batches[:-1], images], progress=False).verdict


def test_one_channel_of_rows_that_are_no_images(batches: Batches) -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.score = nn.Linear(2, 1)
            self.norm = nn.BatchNorm1d(1)

        def forward(self, x: Tensor) -> Tensor:
            rows = self.norm(self.score(x.view(-1, 2)))
            return rows.view(len(x), -1)  # type: ignore[no-any-return]

    gate = Gate()
    for images, _ in batches:
        gate(images)

    diagnosis = diagnose(gate.eval(), [images for images, _ in batches], progress=False)

    assert "1 batch norm" in str(diagnosis)


def test_what_a_forward_puts_into_an_empty_buffer_is_taken_out_again() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale: Tensor | None
            self.register_buffer("scale", None)
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            if self.scale is None:
                self.scale = x.detach().std(0)
            return self.norm(x / self.scale)  # type: ignore[no-any-return]

    model = Scaled()

    bnlab.population_statistics(model, [torch.randn(64, 3)])

    assert model.scale is None
    Scaled().load_state_dict(model.state_dict())


def test_the_same_sparse_matrix_in_each_step_is_watched() -> None:
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 8)
            self.norm = nn.BatchNorm1d(8)

        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            return self.norm(torch.sparse.mm(edges, self.linear(x)))  # type: ignore[no-any-return]

    model = Graph()
    watch = bnlab.watch(model, images=20)
    nodes, edges = torch.randn(20, 4), (torch.rand(20, 20) > 0.7).float().to_sparse()

    for _ in range(3):
        model(nodes, edges).sum().backward()

    assert watch is not None


def test_a_model_that_is_converted_while_it_is_recorded() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3))
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(8, 3, generator=generator) for _ in range(3)]

    with warnings.catch_warnings(), bnlab.record(model) as trace:
        warnings.simplefilter("ignore")  # buffers in another type than before are not quite the average
        model(images[0])
        model.double()
        for more in images[1:]:
            model(more.double())

    expected = torch.stack([torch.stack((each.mean(0), each.var(0))) for each in images])
    assert torch.allclose(trace.layers["0"].moments, expected.double(), atol=1e-6)


def test_a_batch_of_gain_0_may_hold_anything() -> None:
    last_full = bnlab.estimators.LastFullBatch()
    model = nn.Sequential(nn.BatchNorm1d(1))
    full, bad = torch.randn(8, 1), torch.full((3, 1), math.nan)
    with warnings.catch_warnings(), bnlab.record(model) as trace:
        warnings.simplefilter("ignore")
        for images in (full, bad):
            model(images)
            trace.step()

    replayed = bnlab.replay(trace, last_full)

    assert replayed[trace.last_step]["0"].mean == pytest.approx(float(full.mean()), abs=1e-5)
