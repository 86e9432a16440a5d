"""Kinds of models that population_statistics meets, and the table of what it answers to each of them.

`python -m tests.exact.kinds` writes the table, kinds.md beside this file.
"""

from __future__ import annotations

import math
import re
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from bnlab import Statistics, population_statistics
from tests import references
from tests.exact.test_arguments import replace_buffers, run_in_a_thread
from tests.exact.zoo import CASES, Net, OwnForward, conv
from tests.helpers import AddsItsCalls, images, measure_difference, plain, randomized, residual

PAGE = Path(__file__).with_suffix(".md")
LONGEST = 160
"""Characters of a message that the table has."""


class Kind(NamedTuple):
    """A kind of model.

    Attributes:
        model: one of this kind.
        batches: what its forward takes.
        options: keyword arguments of population_statistics.
    """

    model: nn.Module
    batches: Iterable[Any]
    options: dict[str, Any]


class Answer(NamedTuple):
    """What population_statistics does today, in a word or two, and how its warning or error begins."""

    today: str
    message: str


# -- norms ------------------------------------------------------------------------------------------------------------


class MaskedRows(nn.BatchNorm1d):
    """Of sequences [N, C, T] it averages and normalizes what a mask [N, T] leaves."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        rows = x.transpose(1, 2)
        normalized = torch.zeros_like(rows)
        normalized[mask] = super().forward(rows[mask])
        return normalized.transpose(1, 2)


class Ghost(nn.BatchNorm2d):
    """In train mode it normalizes and averages parts of a batch."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        return torch.cat([super(Ghost, self).forward(part) for part in input.split(4)])


class GhostAverages(nn.BatchNorm2d):
    """In train mode it averages the mean and the variance of the halves of a batch, itself."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training:
            halves = torch.stack(input.chunk(2))
            self.get_buffer("running_mean").lerp_(halves.mean((0, 1, 3, 4)), 0.1)
            self.get_buffer("running_var").lerp_(halves.var((1, 3, 4)).mean(0), 0.1)
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class NeverAverages(nn.BatchNorm2d):
    """It normalizes with its buffers in train mode too."""

    def forward(self, input: Tensor) -> Tensor:
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class Doubled(nn.BatchNorm2d):
    """It normalizes 2x + 1."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(2 * input + 1)


class OwnArithmetic(nn.BatchNorm2d):
    """It averages and normalizes its input without torch's operation."""

    def forward(self, input: Tensor) -> Tensor:
        mean, var = self.get_buffer("running_mean"), self.get_buffer("running_var")
        if self.training:
            batch_var, batch_mean = torch.var_mean(input, (0, 2, 3), correction=0)
            with torch.no_grad():
                mean.lerp_(batch_mean, 0.1)
                var.lerp_(batch_var, 0.1)
            mean, var = batch_mean, batch_var
        normalized = (input - mean[:, None, None]) / (var[:, None, None] + self.eps).sqrt()
        return normalized * self.weight[:, None, None] + self.bias[:, None, None]


class OtherClass(nn.Module):
    """A norm of no class of torch's, which calls torch's operation with its own buffers."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.eps = 1e-5
        self.momentum = 0.1
        self.weight = nn.Parameter(torch.linspace(0.5, 2.0, channels))
        self.bias = nn.Parameter(torch.linspace(-1.0, 1.0, channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def normalize(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.normalize(x)


class OtherFiltered(OtherClass):
    """It averages and normalizes something other than its input."""

    def forward(self, x: Tensor) -> Tensor:
        return self.normalize(F.avg_pool2d(x, 3, 1, 1))


class WritesItsInput(OtherClass):
    """As InPlaceABN: own arithmetic and an activation, written into the input."""

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        with torch.no_grad():
            if self.training:
                batch_var, batch_mean = torch.var_mean(x, (0, 2, 3), correction=0)
                mean.lerp_(batch_mean, self.momentum)
                var.lerp_(batch_var, self.momentum)
                mean, var = batch_mean.clone(), batch_var.clone()
            x.sub_(mean[:, None, None]).div_((var[:, None, None] + self.eps).sqrt())
            x.mul_(self.weight[:, None, None]).add_(self.bias[:, None, None])
            return F.leaky_relu_(x)


class OfPair(nn.BatchNorm2d):
    """It normalizes the first of two values."""

    def forward(self, input: tuple[Tensor, Tensor]) -> Tensor:  # type: ignore[override]
        x, other = input
        return super().forward(x) + other


# -- models -----------------------------------------------------------------------------------------------------------


def around(norm: nn.Module) -> nn.Module:
    """A network in which a norm for 4 channels lies between a convolution and an ordinary batch norm."""
    return randomized(nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)))


def between(run: Callable[..., Any], **parts: nn.Module) -> Net:
    """A network of `run` with a convolution `c`, a batch norm `bn` and a block `b` behind."""
    return Net(run, c=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4), b=conv(4, 5), **parts)


def _normalize_by_hand(net: Any, x: Tensor) -> Any:
    bn = net.bn
    return net.b(F.batch_norm(net.c(x), bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps))


class Merged(nn.Linear):
    """As layers of LoRA: in eval mode what was learned beside the weight is added to it."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__(inside, outside)
        self.down = nn.Parameter(torch.randn(1, inside))
        self.up = nn.Parameter(torch.randn(outside, 1))
        self.is_merged = False

    def train(self, mode: bool = True) -> Merged:
        super().train(mode)
        if self.is_merged == mode:
            self.weight.data += (-1 if mode else 1) * (self.up @ self.down).detach()
            self.is_merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if self.is_merged else y + x @ self.down.T @ self.up.T


def _make_merged() -> nn.Module:
    model = nn.Sequential(Merged(6, 5), nn.BatchNorm1d(5), nn.ReLU(), Merged(5, 4), nn.BatchNorm1d(4))
    return randomized(model).train()


def _make_reused_memory() -> Callable[[nn.Module, Any], Any]:
    """Copies each batch into one tensor, as CUDA graphs need it."""
    memory = torch.empty(16, 5)

    def run(model: nn.Module, batch: Tensor) -> Any:
        memory.copy_(batch)
        return model(memory)

    return run


def _make_locked() -> nn.Module:
    lock = threading.Lock()

    def run(net: Any, x: Tensor) -> Any:
        if not lock.acquire(timeout=0.1):
            raise RuntimeError("the lock is held")
        try:
            return net.b(net.a(x))
        finally:
            lock.release()

    return Net(run, a=conv(3, 4), b=conv(4, 5))


def _change_attribute(net: Any, x: Tensor) -> Any:
    net.scale = 3.0
    y = net.a(x) * net.scale
    net.scale = 1.0
    return net.b(y)


def _make_changing() -> nn.Module:
    net: Any = Net(_change_attribute, a=conv(3, 4), b=conv(4, 5))
    net.scale = 1.0
    return net


def _make_swapping() -> nn.Module:
    """A network that puts averages in the place of its weights for each forward."""
    part = plain()
    averages = 1.5 * nn.utils.parameters_to_vector(part.parameters()).detach() + 0.1

    def run(net: Any, x: Tensor) -> Any:
        kept = nn.utils.parameters_to_vector(net.a.parameters()).detach()
        nn.utils.vector_to_parameters(averages, net.a.parameters())
        y = net.a(x)
        nn.utils.vector_to_parameters(kept, net.a.parameters())
        return y

    return Net(run, a=part)


def _count_in_a_forward(net: Any, x: Tensor) -> Any:
    net.count = 1
    y = net.a(x)
    net.count += 1
    return net.b(y * net.count)


def _keep_mask(net: Any, x: Tensor, mask: Tensor) -> Any:
    net.info["mask"] = mask
    y = net.a(x)
    return net.b(y * net.info["mask"][:, None])


def _make_keeping() -> nn.Module:
    net: Any = Net(_keep_mask, a=nn.BatchNorm1d(4), b=nn.BatchNorm1d(4))
    net.info = {}
    return net


def _make_few_masks() -> list[tuple[Tensor, Tensor]]:
    """Sequences [N, C, T] with a mask [N, T], which leaves something out in 3 batches of 24."""
    masks = [torch.ones(8, 16) for _ in range(24)]
    for number in (3, 10, 19):
        masks[number][:, 2:] = 0
    return [(torch.randn(8, 4, 16) + 1, mask) for mask in masks]


def _make_masked(full: Iterable[int] = ()) -> list[tuple[Tensor, Tensor]]:
    """Sequences [N, C, T] with a mask [N, T], which leaves nothing out in the batches of these numbers."""
    masks = [torch.rand(8, 6) > 0.5 for _ in range(6)]
    for number in full:
        masks[number][:] = True
    return [((torch.randn(8, 4, 6) + number / 2) * mask[:, None] + 1, mask) for number, mask in enumerate(masks)]


def _make_hidden() -> nn.Module:
    net: Any = Net(lambda net, x: net.a(net.norms[0](x)), a=conv(3, 4))
    net.norms = [nn.BatchNorm2d(3).eval()]
    return net


def _make_distributed() -> nn.Module:
    """A network in DistributedDataParallel, in a group of this process alone, which `answer` ends."""
    if not distributed.is_initialized():
        distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    return DistributedDataParallel(plain())


def _make_quantized() -> nn.Module:
    from torch.ao import quantization

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5))
    randomized(model).train()
    model.qconfig = quantization.get_default_qat_qconfig("fbgemm")
    fused = quantization.fuse_modules_qat(model, [["0", "1", "2"], ["3", "4"]])
    prepared: nn.Module = quantization.prepare_qat(fused)
    for batch in images(4, 4):
        prepared(batch)  # so that its observers have seen values
    return prepared


class Refilling:
    """A loader that writes each batch into the memory of the one before it."""

    def __iter__(self) -> Iterator[Tensor]:
        memory = torch.empty(8, 3, 8, 8)
        for batch in images(8, 8, 8):
            yield memory.copy_(batch)


def _train_in_forward(model: nn.Module, batch: Tensor) -> Any:
    return model.train()(batch)


def _call_with_all(model: nn.Module, batch: Any) -> Any:
    return model(*batch)


# -- the list ---------------------------------------------------------------------------------------------------------


def _of(
    make: Callable[[], nn.Module],
    make_batches: Callable[[], Iterable[Any]] = lambda: images(8, 8, 5),
    **options: Any,
) -> Callable[[], Kind]:
    """Describe a kind by what makes its model and batches, in this order."""
    return lambda: Kind(make(), make_batches(), options)


def _of_zoo(name: str) -> Callable[[], Kind]:
    """Describe a kind of which the zoo has a model."""

    def make() -> Kind:
        case = CASES[name]()
        return Kind(case.model, case.batches, {"forward": case.forward})

    return make


KINDS: dict[str, Callable[[], Kind]] = {
    # Ordinary networks
    "plain convolutions": _of_zoo("sequential"),
    "residual": _of_zoo("residual"),
    "branches": _of_zoo("branches"),
    "concatenation": _of_zoo("concatenation"),
    "a layer called three times": _of_zoo("in a loop"),
    "a way through the network that depends on the batch": _of_zoo("by content"),
    "siamese": _of_zoo("siamese"),
    "several image sizes": _of_zoo("several sizes"),
    "BatchNorm1d of features": _of_zoo("features"),
    "BatchNorm1d of sequences [N, C, L]": _of_zoo("sound"),
    "BatchNorm3d": _of_zoo("volumes"),
    "SyncBatchNorm in eval mode": _of_zoo("synchronized"),
    "a layer frozen in eval mode, in a model in train mode": _of_zoo("partly frozen"),
    "half precision": _of(
        lambda: plain().bfloat16(), make_batches=lambda: [batch.bfloat16() for batch in images(8, 8, 5)]
    ),
    "a layer that no data reach": _of_zoo("not reached"),
    "a layer in a plain Python list": _of(_make_hidden),
    "instance norm with running statistics beside a batch norm": _of(
        lambda: around(nn.InstanceNorm2d(4, track_running_stats=True))
    ),
    "no batch norm": _of(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4))),
    # Norms with a forward of their own
    "a norm with an activation behind": _of(lambda: around(OwnForward(4))),
    "a norm of masked rows": _of(lambda: MaskedRows(4), make_batches=_make_masked, forward=_call_with_all),
    "a norm of masked rows, all of them in the first and last batch": _of(
        lambda: MaskedRows(4), make_batches=lambda: _make_masked(full=(0, 5)), forward=_call_with_all
    ),
    "ghost norm that calls torch's on parts": _of(lambda: around(Ghost(4))),
    "ghost norm that averages by itself": _of(lambda: around(GhostAverages(4))),
    "a norm of 2x + 1": _of(lambda: around(Doubled(4))),
    "a norm that never averages": _of(lambda: around(NeverAverages(4))),
    "own arithmetic in a subclass": _of(lambda: around(OwnArithmetic(4))),
    "own arithmetic that writes into its input, as InPlaceABN": _of(lambda: around(WritesItsInput(4))),
    "F.batch_norm in a module of another class": _of(lambda: around(OtherClass(4))),
    "F.batch_norm of a filtered input in a module of another class": _of(lambda: around(OtherFiltered(4))),
    "a norm whose forward takes a tuple": _of(
        lambda: between(lambda net, x: net.b(net.pair((net.bn(net.c(x)), torch.ones(1)))), pair=OfPair(4))
    ),
    "a layer called as bn.forward(x)": _of(lambda: between(lambda net, x: net.b(net.bn.forward(net.c(x))))),
    "F.batch_norm by hand with a layer's buffers": _of(lambda: between(_normalize_by_hand)),
    # Wrapped, compiled and translated models
    "DataParallel": _of_zoo("data parallel"),
    "DistributedDataParallel, a group of one process": _of(_make_distributed),
    "torch.compile": _of_zoo("compiled"),
    "fx-traced": _of(lambda: torch.fx.symbolic_trace(residual())),
    "TorchScript by script": _of(lambda: torch.jit.script(plain().eval())),
    "TorchScript by trace": _of(lambda: torch.jit.trace(plain().eval(), images(8)[0])),
    "a part in TorchScript": _of(lambda: nn.Sequential(torch.jit.script(conv(3, 4).eval()), conv(4, 5))),
    "torch.export": _of(
        lambda: torch.export.export(
            plain().eval(), (images(8)[0],), dynamic_shapes=({0: torch.export.Dim.AUTO},)
        ).module(),
    ),
    "prepared for quantization-aware training": _of(_make_quantized),
    # What a forward does
    "autocast inside of the forward": _of_zoo("autocast"),
    "gradient checkpointing": _of_zoo("checkpointed"),
    "gradient checkpointing, reentrant": _of(
        lambda: Net(lambda net, x: checkpoint(net.a, x.clone().requires_grad_(), use_reentrant=True), a=plain())
    ),
    "functional_call with other parameters": _of_zoo("averaged weights"),
    "functional_call with other parameters inside of the forward": _of_zoo("other weights"),
    "functional_call with other buffers": _of(plain, forward=replace_buffers),
    "inference_mode inside of the forward": _of_zoo("inference mode"),
    "weights merged in eval mode, as LoRA": _of(
        _make_merged, make_batches=lambda: [torch.randn(n, 6) + n for n in (9, 7)]
    ),
    "an attribute changed during the forward": _of(_make_changing),
    "weights swapped during the forward": _of(_make_swapping),
    "vmap inside of the forward": _of(lambda: Net(lambda net, x: torch.vmap(net.a)(x[None]), a=nn.BatchNorm2d(3))),
    "a lock held across layers": _of(_make_locked),
    "a forward in another thread": _of(lambda: Net(run_in_a_thread, a=plain())),
    "a forward that calls train()": _of(plain, forward=_train_in_forward),
    "a forward that copies each batch into one tensor": _of(
        lambda: nn.Sequential(nn.BatchNorm1d(5)),
        make_batches=lambda: [torch.randn(16, 5) * (1 + i) + 50 + 3 * i for i in range(8)],
        forward=_make_reused_memory(),
    ),
    "features kept by a hook": _of_zoo("features in a hook"),
    "a counter that each forward begins again": _of(
        lambda: Net(_count_in_a_forward, a=conv(3, 4), b=conv(4, 5)),
    ),
    "a counter that goes on from batch to batch": _of(lambda: nn.Sequential(AddsItsCalls(), plain())),
    "a mask that a forward keeps, and few batches fill": _of(
        _make_keeping, make_batches=_make_few_masks, forward=_call_with_all
    ),
    "the same, and all batches are checked": _of(
        _make_keeping, make_batches=_make_few_masks, forward=_call_with_all, check="all"
    ),
    "random: dropout in eval mode too": _of(
        lambda: Net(lambda net, x: net.b(F.dropout(net.a(x), 0.5, training=True)), a=conv(3, 4), b=conv(4, 5)),
    ),
    # Batches
    "batches as dictionaries": _of_zoo("dictionaries"),
    "batches as nested lists": _of_zoo("lists of images"),
    "a loader that refills its memory": _of(plain, make_batches=Refilling),
    "a loader that refills its memory, and is read once": _of(plain, make_batches=lambda: iter(Refilling())),
    "one batch of one image": _of(plain, make_batches=lambda: images(1)),
    "NaN in the data": _of(plain, make_batches=lambda: [batch * torch.nan for batch in images(8, 5)]),
    "an empty batch": _of(plain, make_batches=lambda: [*images(8, 5), torch.zeros(0, 3, 8, 8)]),
}
"""What makes each kind, by name."""


# -- answers ----------------------------------------------------------------------------------------------------------


class _Normalized(TorchDispatchMode):
    """Keeps what torch's batch norm normalizes, by the name of the layer whose running mean it reads."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._names = {
            buffer.data_ptr(): name.rpartition(".")[0]
            for name, buffer in model.named_buffers()
            if name.endswith("running_mean")
        }
        self.values: dict[str, list[Tensor]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if "batch_norm" in func.name():
            x, running_mean = args[0], args[3]
            name = None if running_mean is None else self._names.get(running_mean.data_ptr())
            if name is not None:
                self.values.setdefault(name, []).append(x.detach().double().clone())
                if args[5] is True:  # in train mode: at inference it would normalize with its buffers
                    args = (*args[:5], False, *args[6:])
        return func(*args, **(kwargs or {}))


def measure_off(kind: Kind, statistics: Statistics) -> float:
    """Evaluate all batches under the statistics, and compare what is normalized with them.

    Statistics are exact where both are the same. What a layer normalizes is what torch's operation is given with its
    buffers, or its input where it does not call that operation.

    Returns:
        The largest difference, of a mean in σ and of a variance relative.
    """
    model = kind.model
    inputs: dict[str, list[Tensor]] = {}

    def keep(name: str, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor):
            inputs.setdefault(name, []).append(args[0].detach().double().clone())

    statistics.write_to(model)
    for name, layer in model.named_modules():
        if name in statistics and not isinstance(layer, torch.jit.ScriptModule):  # which takes no hooks
            layer.register_forward_pre_hook(lambda layer, args, name=name: keep(name, args))
    model.eval()

    forward = kind.options.get("forward")
    with torch.no_grad(), _Normalized(model) as normalized:
        for batch in kind.batches:
            image = batch[0] if isinstance(batch, (list, tuple)) else batch
            forward(model, batch) if forward else model(image)
    # Moments are compared and counts are not: a layer that leaves rows out may have been measured with them.
    seen = {
        name: references.merge(normalized.values.get(name) or inputs[name])._replace(count=math.nan)  # type: ignore[arg-type]
        for name in statistics
    }
    return measure_difference(statistics, seen, statistics.eps)


def answer(name: str) -> Answer:
    """Measure a kind.

    Returns:
        "measured", where nothing was warned of; "layer by layer", where a warning says so; "not covered", where some
        layers have no result; "refused". After it "wrong by", where the result is not the right one, which a warning
        says or not.
    """
    was_initialized = distributed.is_initialized()
    try:
        return _answer(name)
    finally:
        if distributed.is_initialized() and not was_initialized:
            distributed.destroy_process_group()


def _make(name: str) -> Kind:
    """Make a kind, the same one each time."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript and quantization are deprecated
        return KINDS[name]()


def _answer(name: str) -> Answer:
    kind = _make(name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            statistics = population_statistics(kind.model, kind.batches, **kind.options)
        except (TypeError, ValueError) as error:
            return Answer("refused", _shorten(str(error)))

    messages = [str(each.message) for each in caught if issubclass(each.category, RuntimeWarning)]
    text = " ".join(messages)
    if statistics.unseen or "not measured" in text:
        today = "not covered"
        messages = messages or [f"unseen: {', '.join(statistics.unseen)}"]
    elif "layer by layer" in text:
        today = "layer by layer"
    else:
        today = "measured"
        if messages:
            today += ", with a warning"

    # Another one of the kind, because a forward may have left something in the first.
    another = _make(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        off = measure_off(another, statistics)
    # A result is rounded to the layer's buffers.
    rounding = max(torch.finfo(parameter.dtype).eps for parameter in another.model.parameters())
    if off > max(1e-4, 4 * rounding):
        is_said = statistics.check is not None and not statistics.check.is_exact
        size = f"{off:.2g}" if off < 10 else "more than 10"
        today += f", wrong by {size}" + (" as a warning says" if is_said else " without a word")
    return Answer(today, _shorten(messages[0]) if messages else "")


def _shorten(message: str) -> str:
    return " ".join(message.split())[:LONGEST].rstrip()


# -- the page ---------------------------------------------------------------------------------------------------------


def format_page(answers: dict[str, Answer]) -> str:
    """Format the table: each kind, and what is answered to it."""
    lines = [
        "# What population_statistics answers to kinds of models\n",
        "`python -m tests.exact.kinds` writes this page: what each kind of `kinds.py` is answered, and how the\n"
        "warning or error begins.\n",
        "| kind | answer | message |",
        "| --- | --- | --- |",
    ]
    for name, (today, message) in answers.items():
        cells = (name, today, message.replace("|", r"\|"))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def read_page() -> dict[str, Answer]:
    """Read the answers that the page has."""
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")][2:]
    answers = {}
    for row in rows:
        name, today, message = [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
        answers[name] = Answer(today, message)
    return answers


def main() -> None:
    """Write the table."""
    torch.set_num_threads(1)
    PAGE.write_text(format_page({name: answer(name) for name in KINDS}), encoding="utf-8")


if __name__ == "__main__":
    main()
