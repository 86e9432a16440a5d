"""`watch`: exact statistics at any moment of a training, from the batches that it has just been trained on."""

from __future__ import annotations

import contextlib
import inspect
import types
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim.optimizer import Optimizer

from bnlab.exact.population import population_statistics
from bnlab.exact.task import Ranks
from bnlab.model.batches import find_device, require_batches, require_image_count, require_rereadable
from bnlab.model.borrow import Reverted, restored
from bnlab.model.layers import (
    batch_norm_layers,
    count_channels,
    get_weight,
    is_batch_norm,
    join_names,
    list_instance_norms,
    require_module,
)
from bnlab.model.warn import warn
from bnlab.statistics.network import Lending, Statistics
from bnlab.watching.comparison import Comparison, compare_metrics, read_metrics
from bnlab.watching.keeper import CLOSED, Calls, Keeper, Pause, PauseOfOther, unwrap

if TYPE_CHECKING:
    import pandas as pd

_CALLER = "watch"
_OF_BATCHES = ("forward", "max_images", "tolerance")  # keywords that say how given batches are read and called
_NOT_EVALUATED = (
    "; evaluate was not seen to call the model in eval mode; does it evaluate a copy, or another model? Pass that as "
    "model="
)
_NOTHING_YET = (
    "watch: no call of the model with a batch norm in train mode has been seen; call model.train() and train first, "
    "or pass batches="
)


def watch(
    model: nn.Module,
    images: int = 512,
    *,
    batches: Iterable[Any] | None = None,
    keep: str | None = None,
    optimizer: Optimizer | None = None,
    group: Any = None,
    **options: Any,
) -> Watch:
    """Watch a training: by how much does `eval()` understate each validation score?

    The inputs of the latest training batches are kept. Under the weights of the moment they give exact statistics, of
    images as training shows them. Training goes on bit for bit as without.

    The arguments of each call with a batch norm in train mode are kept, because running averages are of such calls. If
    several modules hold all batch norms, it is the outermost of those that are called: mostly the model itself, but
    `self.net` of a LightningModule whose `training_step` calls only that. The arguments are copied in their own type,
    with the numbers, words and switches that the model's modules had as attributes.

    Exact statistics are measured in eval mode, under the autocast that holds where they are asked for, and outside of
    compiled code. Layers that training keeps in eval mode, or whose weight takes no gradient while others do, are
    frozen and stay as they are.

    Inputs that come from trainable parts outside of the module are those of their time.

    Args:
        model: any module with batch norms that keep running statistics; compile it before.
        images: how many are kept, or a few more: batches are not cut. More images give more exact statistics, and
            take more memory and time. In a group each process keeps so many.
        batches: measured in place of the batches that are trained on, as `population_statistics` takes them.
        keep: "cpu" keeps the copies in main memory; default on their device.
        optimizer: whose learning rate (of its first group) the history is to have.
        group: a torch.distributed process group: its ranks' batches are measured together, and all ranks call
            `measure`, `exact` and `compare`. Default that of a model in DistributedDataParallel.
        options: further keywords of `population_statistics`, such as `layers`; `forward`, `max_images` and `tolerance`
            are for `batches` only. Its `images`, which counts the images of a batch, cannot be passed: here `images` is
            how many are kept.

    Returns:
        A `Watch`. Keep it: when it is dropped, it is closed.

    Raises:
        TypeError, ValueError: an argument is wrong, or the model has no batch norm with running statistics.

    >>> torch.manual_seed(0).initial_seed()
    0
    >>> model = nn.Sequential(nn.BatchNorm1d(1, affine=False))
    >>> training = watch(model)
    >>> output = model(torch.tensor([[1.0], [3.0]]))
    >>> training.measure()["0"].mean.item()
    2.0
    """
    layers = batch_norm_layers(model, options.get("layers"), caller=_CALLER)
    require_image_count(images, _CALLER)
    if keep not in (None, "cpu"):
        raise ValueError(f'{_CALLER}: keep={keep!r}; pass "cpu", or None for the device of the inputs')

    if batches is not None:
        require_batches(batches, _CALLER)
        require_rereadable(batches, _CALLER)
    if optimizer is not None and not hasattr(optimizer, "param_groups"):
        raise TypeError(f"{_CALLER}: optimizer is a {type(optimizer).__name__}; pass an optimizer of torch")
    _require_options(options, batches is not None)

    if group is None and isinstance(model, nn.parallel.DistributedDataParallel):
        group = model.process_group
    ranks = Ranks(group, _CALLER)

    is_first_rank = group is None or torch.distributed.get_rank(group) == 0
    # Every process keeps batches of its own, and only the first one says how much memory they take.
    # If `batches` are measured no images are kept, but updates, frozen layers and calls are still followed.
    keeper = Keeper(model, layers, images if batches is None else 0, keep, is_first_rank)
    training = Watch(unwrap(model), keeper, ranks, batches, optimizer, options)
    # The model's hooks hold the keeper, so that its images would stay where nobody can ask for them any more, as where
    # a cell of a notebook is run again.
    weakref.finalize(training, keeper.undo.close).atexit = False
    return training


class Watch:
    """A training that is watched: what `watch` returns.

    Attributes:
        model: the model, without wrappers.

    >>> model = nn.Sequential(nn.BatchNorm1d(1, affine=False))
    >>> training = watch(model)
    >>> output = model(torch.tensor([[1.0], [3.0]]))
    >>> training
    Watch(Sequential; 2 of 512 images; 0 comparisons)
    >>> print(training.compare(lambda: model.eval()(torch.tensor([[2.0]])).item(), lower=True))
    1.716 under running averages, 0 under exact statistics: eval() overstates it by 1.72 (of 2 images; 512 are wanted)
    >>> training.close()
    """

    def __init__(
        self,
        model: nn.Module,
        keeper: Keeper,
        ranks: Ranks,
        batches: Iterable[Any] | None,
        optimizer: Optimizer | None,
        options: dict[str, Any],
    ) -> None:
        self.model = model
        self._keeper = keeper
        self._ranks = ranks
        self._batches = batches
        self._optimizer = optimizer
        self._options = options
        self._rows: list[dict[str, Any]] = []
        self._models_under_exact: list[nn.Module] = []  # the models that have exact statistics now

    @property
    def is_exact(self) -> bool:
        """Whether the watched model has exact statistics now."""
        return self.model in self._models_under_exact

    def measure(self, *, model: nn.Module | None = None) -> Statistics:
        """Measure exact statistics of the images that are kept, or of `batches`, under the weights of the moment.

        Args:
            model: another model with the same layers, such as one of averaged weights: under its weights. It may be in
                a wrapper, as torch's `AveragedModel` is.

        Raises:
            TypeError: `model` is no module.
            ValueError: there is no batch yet, inputs cannot be kept, all layers are frozen, or the statistics are not
                exact, as those of a model that draws random numbers in eval mode; or `model` has other layers.
        """
        target = self._find_model(model)
        names = self._list_layers()
        if self._batches is not None:
            if self._keeper.is_closed:
                raise ValueError(f"{_CALLER}: {CLOSED}")
            options = self._options
            batches = self._batches
        else:
            # The kept arguments are passed to the module that was called in training.
            self._require_kept()
            options = {**self._options, "forward": self._keeper.call, "images": attrgetter("images")}
            batches = self._keeper.batches

        options = {**options, "layers": names, "group": self._ranks.group}
        statistics = population_statistics(target, batches, **options)
        # Inexact statistics would be worse than none, because the comparison would show their error as a loss.
        if statistics.check is not None and not statistics.check.is_exact:
            raise ValueError(
                f"{_CALLER}: the statistics are not exact: an ordinary evaluation gives layer "
                f"{statistics.check.layer!r} another input (does the model draw random numbers in eval mode?)"
            )
        return statistics

    def exact(
        self, statistics: Statistics | None = None, *, model: nn.Module | None = None
    ) -> contextlib.AbstractContextManager[nn.Module]:
        """Give the model exact statistics in the block, to choose a checkpoint and to save it.

        The running averages come back after it, bit for bit, also after an exception; a `state_dict()` that is taken in
        the block has them, too, unless it is saved or copied there. Nothing else is changed: the
        model has the mode that it has. Forwards in the block are not kept; where some of them were in train mode, a
        warning says so.

        Args:
            statistics: what `measure` has returned under the same weights; default: they are measured.
            model: as of `measure`; it gets the statistics, and the watched model goes on being kept.

        Raises:
            TypeError: these are no statistics, or `model` is no module.
            ValueError: as `measure`, or within another such block or `compare`; nothing has been changed then.
        """
        if statistics is not None and not isinstance(statistics, Statistics):
            raise TypeError(
                f"{_CALLER}: exact() was given a {type(statistics).__name__}; pass what measure() has returned, or "
                "nothing"
            )
        evaluated = self._find_model(model)
        self._require_running_averages("exact", evaluated)
        if statistics is None:
            statistics = self.measure(model=evaluated)
        return _Exact(evaluated, self._models_under_exact, self._pause(evaluated), statistics)

    def _find_model(self, model: nn.Module | None) -> nn.Module:
        """Find the part of a model that has the layers of the watched one; None: the watched one itself."""
        if model is None:
            return self.model
        require_module(model, _CALLER)
        wanted = _list_channels(self.model)
        watched = {*self.model.modules()} - {self.model}
        parts = [part for part in model.modules() if part not in watched and _list_channels(part) == wanted]
        if not parts:
            raise ValueError(
                f"{_CALLER}: model= is a {type(model).__name__} whose batch norms are not those of the "
                f"{type(self.model).__name__} that is watched, by name and channels; pass a copy of that, or an average"
            )
        # A wrapper may hold the trained model beside its average; then the average is meant.
        return next((part for part in parts if part is not self.model), self.model)

    def _pause(self, model: nn.Module) -> Pause:
        """Count the calls of a model, and keep none of the watched one's."""
        if model is self.model:
            return self._keeper.paused()
        return PauseOfOther(model, batch_norm_layers(model, caller=_CALLER))

    def _require_running_averages(self, call: str, model: nn.Module) -> None:
        if model in self._models_under_exact:
            raise ValueError(
                f"{_CALLER}: {call}() where the model has exact statistics already, in a block of exact() or in the "
                "function that compare() calls; take it out of there"
            )

    def compare(
        self, evaluate: Callable[[], Any], *, lower: bool | Collection[str] = False, model: nn.Module | None = None
    ) -> str:
        """Evaluate under exact statistics and under running averages, and add the outcome to the history.

        Training goes on bit for bit as if `evaluate` had been called once: modes, buffers and the random states of
        torch, numpy and Python are put back after the call under exact statistics, which comes first. What else
        `evaluate` does, such as to save or to log, it does twice.

        Args:
            evaluate: called without arguments; returns a number, a dictionary of numbers, or a score for each image,
                of which the difference has a 95% interval; of an array [images, ...] each image's mean is taken. It
                puts the model into eval mode itself.
            lower: whether lower is better, as of a loss; of a dictionary, the names of the metrics of which it is.
            model: as of `measure`; the model that `evaluate` calls. If you compare more than one, let `evaluate` return
                a dictionary that names the metrics of each, because they have one history.

        Returns:
            One line. It says so if exact statistics could not be had, are of fewer images than are to be kept, or lack
            layers; and if `evaluate` has not called the model, as where it evaluates a copy.

        Raises:
            TypeError, ValueError: `evaluate` returned something else; or it called the model in train mode, or, at its
                first call, with other weights than the model has outside; or this is called in a block of `exact`, or
                in `evaluate`.
        """
        if not callable(evaluate):
            raise TypeError(f"{_CALLER}: evaluate is a {type(evaluate).__name__}; pass a function without arguments")
        if not isinstance(lower, (bool, Collection)) or isinstance(lower, (str, Mapping)):
            raise TypeError(f"{_CALLER}: lower={lower!r}; pass True, or a list of the metrics of which lower is better")
        evaluated = self._find_model(model)
        self._require_running_averages("compare", evaluated)
        # These two raise, where errors of `measure` are only reported: in such a model neither values nor
        # modes could be read while `evaluate` runs.
        find_device(evaluated, None, _CALLER)  # raises where the model has no values
        self._require_same_layers()

        statistics = None
        reason = ""
        try:
            statistics = self.measure(model=evaluated)
        except Exception as error:  # whatever it is: training can go on without exact statistics
            reason = str(error)

        # The call under exact statistics comes first and is put back. What the other call changes stays, as if it had
        # been the only one.
        # Each outcome is read at once, as the second call may fill the same dictionary or array.
        exact = None
        if statistics is not None:
            pause = self._pause(evaluated)
            with (
                restored(self.model if model is None else model),
                _Exact(evaluated, self._models_under_exact, pause, statistics),
            ):
                exact = read_metrics(evaluate())
                _require_evaluation(pause.calls)
        with self._pause(evaluated) as calls:
            running = read_metrics(evaluate())
        _require_evaluation(calls)

        comparisons = compare_metrics(running, exact, lower)
        images = self._count_images(statistics)
        self._rows += [self._make_row(comparison, images) for comparison in comparisons]

        lines = [comparison.describe() for comparison in comparisons]
        # A metric without a name is called "score", which a single line need not say.
        if len(lines) > 1 or comparisons[0].metric != "score":
            lines = [f"{comparison.metric}: {line}" for comparison, line in zip(comparisons, lines, strict=True)]
        line = "; ".join(lines)
        # Where values differ, the model was evaluated, also if only its parts were called, which nothing counts.
        if statistics is not None and not calls.in_eval_mode and all(each.are_equal for each in comparisons):
            line += _NOT_EVALUATED
        return line + self._describe_limits(statistics, reason)

    @property
    def history(self) -> pd.DataFrame:
        """A row for each comparison and metric.

        Columns:

        - update: the model's updates so far; training forwards, where no update by a torch optimizer was seen.
        - images: how many this process keeps at that moment; of `batches`, how many were measured.
        - metric: its name; "score" where it has none.
        - running, exact: its value under both kinds of statistics; exact is NaN where these could not be had.
        - lost: how much worse it is under running averages, in the metric's unit.
        - learning_rate: if an optimizer was given.
        """
        # Imported here, so that a training without a look at its history does not wait for pandas.
        import pandas as pd

        # A history without rows has no types, so that they are given here.
        dtypes = {"update": "int64", "images": "int64", "metric": "str"}
        dtypes |= dict.fromkeys(("running", "exact", "lost"), "float64")
        if self._optimizer is not None:
            dtypes["learning_rate"] = "float64"
        return pd.DataFrame(self._rows, columns=list(dtypes)).astype(dtypes)

    def plot(self, metric: str | None = None) -> Any:
        """Draw a metric under both kinds of statistics over the updates, and below it what running averages lose.

        Args:
            metric: its name; default the first one.

        Returns:
            The two axes of matplotlib, an array.

        Raises:
            ValueError: nothing was compared yet, or no such metric.
        """
        history = self.history
        if history.empty:
            raise ValueError(f"{_CALLER}: nothing was compared yet; call compare first")
        names = list(dict.fromkeys(history["metric"]))
        chosen = names[0] if metric is None else metric
        if chosen not in names:
            raise ValueError(f"{_CALLER}: metric={metric!r}; there are {join_names(names)}")

        rows = history[history["metric"] == chosen].set_index("update")
        words = {"running": "running averages", "exact": "exact statistics", "lost": "lost under running averages"}
        # Legends show the names of columns.
        drawn = rows[list(words)].rename(columns=words)
        above = (words["running"], words["exact"])
        below = (words["lost"],)
        top, bottom = drawn.plot(subplots=[above, below], sharex=True, marker=".")
        top.set_ylabel(chosen)
        bottom.axhline(0, color="gray", linewidth=0.5)
        return top.figure.axes

    def close(self) -> None:
        """Remove the hooks, and the images that are kept; the history stays."""
        self._keeper.close()

    def __repr__(self) -> str:
        kept = f"{self._keeper.images:,} of {self._keeper.wanted:,} images"
        return f"Watch({type(self.model).__name__}; {kept}; {len(self._rows)} comparisons)"

    def _require_same_layers(self) -> None:
        """Raise ValueError where a batch norm was replaced: modes are read off those that were there."""
        replaced = self._keeper.list_replaced(self.model)
        if replaced:
            raise ValueError(
                f"{_CALLER}: replaced since bnlab.watch was called (by convert_sync_batchnorm?): "
                f"{join_names(replaced)}; call bnlab.watch again after that"
            )

    def _list_layers(self) -> list[str]:
        """List the layers to measure: the caller's, or all that are not frozen."""
        self._require_same_layers()
        chosen = self._options.get("layers")
        layers = batch_norm_layers(self.model, chosen, caller=_CALLER)
        if chosen is not None:
            return list(layers)

        # A frozen weight is a sign only beside weights that are trained. If none is trained, the whole model is watched
        # as it is.
        is_trained = any(parameter.requires_grad for parameter in self.model.parameters())
        frozen = []
        for name, layer in layers.items():
            weight = get_weight(layer)
            has_frozen_weight = isinstance(weight, nn.Parameter) and not weight.requires_grad
            if layer in self._keeper.frozen or (has_frozen_weight and is_trained):
                frozen.append(name)

        # A layer is frozen if it is so on any rank, because a rank without a batch so far has seen no mode.
        frozen_somewhere = {name for of_rank in self._ranks.gather(frozen) for name in of_rank}
        names = [name for name in layers if name not in frozen_somewhere]

        if not names:
            raise ValueError(
                f"{_CALLER}: all layers are frozen (in eval mode while training, or without gradients); name them in "
                "layers="
            )
        return names

    def _require_kept(self) -> None:
        """Raise ValueError unless there are images, and all of them could be kept, on all ranks."""
        # Each rank raises what any rank has to refuse: if one raised alone, the others would wait for it.
        refusals = [refusal for refusal in self._ranks.gather(self._keeper.find_refusal()) if refusal is not None]
        if refusals:
            raise ValueError(f"{_CALLER}: {refusals[0]}")
        if not any(self._ranks.gather(self._keeper.images)):
            raise ValueError(_NOTHING_YET)

    def _count_images(self, statistics: Statistics | None) -> int:
        """Count the images that are kept, or those of `batches` that were measured."""
        if self._batches is None:
            return self._keeper.images
        if statistics is None or statistics.cost is None:
            return 0
        return statistics.cost.images

    def _make_row(self, comparison: Comparison, images: int) -> dict[str, Any]:
        row = {
            "update": self._keeper.updates,
            "images": images,
            "metric": comparison.metric,
            "running": comparison.mean("running"),
            "exact": comparison.mean("exact"),
            "lost": comparison.lost,
        }
        if self._optimizer is not None:
            row["learning_rate"] = float(self._optimizer.param_groups[0]["lr"])
        return row

    def _describe_limits(self, statistics: Statistics | None, reason: str) -> str:
        """Say why there are no exact statistics, or what they lack."""
        if statistics is None:
            return f"; exact statistics could not be had: {reason}"
        described = ""
        kept = self._keeper.images
        wanted = self._keeper.wanted
        if kept < wanted:  # of given batches none are wanted
            described = f" (of {kept:,} images; {wanted:,} are wanted)"
        if statistics.unseen:
            described += f"; no batch has reached {join_names(statistics.unseen)}, which keep running averages"
        measured = {*statistics, *statistics.unseen}
        frozen = [name for name in batch_norm_layers(self.model, caller=_CALLER) if name not in measured]
        # If the caller has named layers, the others are left out on purpose.
        if frozen and self._options.get("layers") is None:
            described += f"; frozen layers keep running averages: {join_names(frozen)}"
        instance_norms = list_instance_norms(self.model)
        if instance_norms:
            described += f"; instance norms keep running averages: {join_names(instance_norms)}"
        return described


class _Exact(Reverted):
    """A block in which a model has exact statistics, and its calls are counted.

    Args:
        model: the model.
        all_exact: the models that have exact statistics now; in the block this one, too.
        pause: what counts its calls.
        statistics: those that it gets.
    """

    def __init__(self, model: nn.Module, all_exact: list[nn.Module], pause: Pause, statistics: Statistics) -> None:
        self._all_exact = all_exact
        self._pause = pause
        self._lending = Lending(model, statistics, _CALLER)
        self.lent = model

    def note(self) -> None:
        self._before = [*self._all_exact]
        self._lending.note()

    def change(self) -> None:
        self._pause.change()
        self._all_exact.append(self.lent)
        self._lending.change()

    def give_back(self) -> None:
        self._lending.give_back()
        self._all_exact[:] = self._before
        self._pause.give_back()

    def __exit__(self, kind: object, error: BaseException | None, trace: types.TracebackType | None) -> None:
        super().__exit__(kind, error, trace)
        if self._pause.calls.in_train_mode and error is None:
            warn(
                f"{_CALLER}: the model was called in train mode in a block of exact(): each batch has used its own "
                "statistics, and the running averages were not updated; call model.eval() to evaluate, and train "
                "outside of the block"
            )


def _list_channels(model: nn.Module) -> dict[str, int]:
    """List the batch norms of a model or a part of one, by name, with their channels."""
    return {name: count_channels(layer) for name, layer in model.named_modules() if is_batch_norm(layer)}


def _require_evaluation(calls: Calls) -> None:
    """Raise ValueError if the model was in train mode, or had other weights than those that were measured."""
    if calls.in_train_mode:
        raise ValueError(
            f"{_CALLER}: evaluate called the model in train mode, in which batch norm uses each batch's own "
            "statistics; call model.eval() in it"
        )
    if calls.has_other_weights:
        raise ValueError(
            f"{_CALLER}: evaluate called the model with other weights than it has outside (averaged ones, or a "
            "checkpoint?), of which the statistics are; put these weights in place before compare, and take them out "
            "after it"
        )


def _require_options(options: dict[str, Any], has_batches: bool) -> None:
    """Raise TypeError unless these are keywords of `population_statistics`, and of use; their values are read later."""
    known = inspect.signature(population_statistics).parameters
    unknown = [name for name in options if name not in known]
    if unknown:
        raise TypeError(f"{_CALLER}: {join_names(unknown)} is no keyword of watch or population_statistics")
    if has_batches:
        return
    # These keywords say how given batches are read and called; without batches= they would do nothing.
    useless = [name for name in _OF_BATCHES if name in options]
    if useless:
        raise TypeError(f"{_CALLER}: {join_names(useless)} is for batches=, which are not given")
