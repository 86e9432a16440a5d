"""The table `runs`: its columns other than settings, which `setting_columns` adds."""

from __future__ import annotations

from bnlab.harness.schema import Table, integer, real, text

_ABOUT = """\
A row for each network. A setting is called as on the command line, `optimizer.lr`; `data`, `model`, `norm` and
`optimizer` are what was chosen there. Null where a network does not read a setting: words before a colon say which
choices do. The arguments of a model, a norm, an optimizer, a task or a data set of your own are columns too, as
`model.dropout`, behind these, and so is the digest of its code, as `model.source`, or of its images and labels,
`data.content`."""

DERIVED = {
    "norm_batch_size": integer(
        "follows from other settings: images that are normalized together in training. `norm.batch_size` for ghost, "
        "where the batch is divided into parts of so many images or a few more; `batch_size` for other norms with "
        "statistics of the batch; null for norms without"
    ),
    "steps": integer("length of the training in updates, also where `epochs` was set"),
    "lr_effective": real(
        "follows from other settings: the learning rate that the optimizer was given at this batch size, before the "
        "schedule; groups of an optimizer of your own may have others. "
        "`optimizer.lr` times `batch_size` / 128, to the power that `optimizer.lr_scaling` says: sqrt 1/2, linear 1, "
        "none 0"
    ),
}
"""Columns whose values are computed from settings."""

RESULTS = {
    "status": text("finished, diverged (rows end before `last_step`) or failed (a job on it has raised)"),
    "last_step": integer("updates that were made; the training diverged at the last of them, if it did"),
    "train_seconds": real("time that training took, in seconds, in all processes that had a part in it"),
    "final_loss": real("loss of the last mini-batch, in nats"),
    "unseen": text(
        "batch norms that an evaluation does not call, as those of an auxiliary head: they have no rows; null where "
        "there are none"
    ),
    "settings": text(
        "JSON of the settings of which the hash in `run` is made: batch size, length, what was chosen for data, model, "
        "norm and optimizer, and all others that differ from their defaults"
    ),
    "versions": text("JSON of the packages' versions with which its training began"),
    "device": text("where its training began: the name of a GPU, or CPU with its architecture"),
    "threads": integer("CPU threads of torch with which its training began"),
}
"""Columns that say how a training ended, and with what it was made."""

RESOLVED = {
    "epochs": real("length of the training in passes over the training split, also where `steps` was set"),
    "data.images": integer("training and validation images that were used, also where null was set"),
    "freeze_at": real(
        "share of the training from which on batch norm normalizes with statistics that stay as they are; 1 where it "
        "never does"
    ),
    "freeze_with": text(
        "those statistics, of the weights at that step: ema, the network's own running averages, or exact; none where "
        "none are kept"
    ),
}
"""Columns of settings whose value in the configuration may be open, and which have the value that was used."""

RUNS = Table(
    about=_ABOUT,
    key={
        "run": text("name of the network, `<hash of its settings>/seed_<seed>`, and its folder below `results/runs/`"),
    },
    others={**DERIVED, **RESULTS},
    is_open=True,
)
"""The table without the columns of settings, which `setting_columns.describe_runs` adds."""
