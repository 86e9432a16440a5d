"""The table `runs`: what its columns are."""

from __future__ import annotations

from bnlab.harness.schema import Table, boolean, integer, real, text

_ABOUT = """\
A row for each network, with all settings that change its training. The arguments of a model or a data set of your own
are columns too, as `model.dropout`, behind these."""

SHORT_NAMES = {
    **{f"{key}.name": key for key in ("data", "model", "norm", "optimizer")},
    **{f"optimizer.{key}": key for key in ("lr", "lr_scaling", "weight_decay", "label_smoothing", "schedule")},
    "optimizer.momentum": "sgd_momentum",
}
"""Settings that the table has under a short name too."""

RUNS = Table(
    about=_ABOUT,
    key={
        "run": text("name of the network, `<hash of its settings>/seed_<seed>`, and its folder below `results/runs/`"),
    },
    others={
        "seed": integer("initialization, order and augmentation are derived from it"),
        "data": text("data set, `data.name`"),
        "model": text("network, `model.name`"),
        "norm": text(
            "kind of normalization, `norm.name`: batch, ghost, renorm, group, layer, instance, gain_control, none"
        ),
        "batch_size": integer("images in a batch of training"),
        "norm_batch_size": integer(
            "images that are normalized together in training: `norm.batch_size` for ghost, where the batch is "
            "divided into parts of so many images or a few more; null for norms without statistics of the batch"
        ),
        "optimizer": text("`optimizer.name`"),
        "lr": real("`optimizer.lr`, the learning rate for a batch of 128 images"),
        "lr_scaling": text("`optimizer.lr_scaling`: how `lr` is scaled to other batch sizes (sqrt, linear, none)"),
        "sgd_momentum": real("`optimizer.momentum` of SGD; AdamW does not read it"),
        "weight_decay": real("`optimizer.weight_decay`"),
        "label_smoothing": real("`optimizer.label_smoothing`, a share of the label"),
        "schedule": text("`optimizer.schedule` of the learning rate (onecycle, step, constant)"),
        "epochs": real("length of the training in passes over the training split"),
        "steps": integer("length of the training in updates"),
        "status": text("finished, diverged (rows end before `last_step`) or failed (a job on it has raised)"),
        "train_seconds": real("time that training took, in seconds, in all processes that had a part in it"),
        "final_loss": real("loss of the last mini-batch, in nats"),
        "settings": text("JSON of the settings that differ from the defaults, of which the hash in `run` is made"),
        "versions": text("JSON of the packages' versions that trained it"),
        "device": text("name of the processor or GPU that trained it"),
        "threads": integer("CPU threads of torch that trained it"),
        "data.images": integer("training and validation images that were used"),
        "data.classes": integer("classes of glyphs; other data sets do not read it"),
        "data.difficulty": text("distortion of glyphs; other data sets do not read it"),
        "data.fonts": text("fonts of the training glyphs; other data sets do not read it"),
        "data.test_fonts": text("fonts of the test glyphs; other data sets do not read it"),
        "data.shift": integer("augmentation: largest random shift, in pixels"),
        "data.flip": boolean("augmentation: random horizontal flip"),
        "data.copies": boolean("read from image files, such as JPEG copies, and not from those that are published"),
        "model.depth": integer(
            "blocks (cnn), layers (resnet) or hidden layers (mlp); torchvision's networks do not read it"
        ),
        "model.width": integer(
            "channels of the first block, or hidden units (mlp); torchvision's networks do not read it"
        ),
        "model.pool_every": integer("blocks between two poolings (cnn); other networks do not read it"),
        "lr_effective": real("learning rate for this batch size, before the schedule"),
        "last_step": integer("updates that were made; fewer than `steps` if the training diverged"),
        "data.name": text(
            "as `data`; this and the following have a setting's own name, so that any can be an axis or a panel"
        ),
        "model.name": text("as `model`"),
        "norm.name": text("as `norm`"),
        "norm.batch_size": integer(
            "images of a part of the batch that is normalized by itself (ghost); other norms do not read it"
        ),
        "norm.groups": integer(
            "groups of channels (group, and where `norm.every_second` is group); other norms do not read it"
        ),
        "norm.momentum": real(
            "weight of the new batch in the running averages that the network reads in training (renorm); other "
            "norms do not read it"
        ),
        "norm.every_second": text(
            "what takes the place of every second batch norm, in a resnet of the second in each block: none, "
            "group; norms without statistics of the batch do not read it"
        ),
        "optimizer.name": text("as `optimizer`"),
        "optimizer.lr": real("as `lr`"),
        "optimizer.lr_scaling": text("as `lr_scaling`"),
        "optimizer.momentum": real("as `sgd_momentum`"),
        "optimizer.weight_decay": real("as `weight_decay`"),
        "optimizer.label_smoothing": real("as `label_smoothing`"),
        "optimizer.schedule": text("as `schedule`"),
        "order": text(
            "order of the images in an epoch: shuffled; replacement (drawn with replacement); sorted (class after"
            " class); blocks (class after class, in a random order of the classes); blocks:16 (blocks of 16 "
            "images of a class, in random order)"
        ),
        "freeze_at": real(
            "share of the training from which on batch norm normalizes with statistics that stay as they are; 1 "
            "where it never does"
        ),
        "freeze_with": text(
            "those statistics, of the weights at that step: ema (the running averages that the network holds), "
            "exact; none where none are kept"
        ),
        "averaging": text(
            "what is measured: none (the weights as they are), swa (their average over all updates from 75% of "
            "the training on; before, as they are), ema (their exponential average, 0.99 of the old one after "
            "each update)"
        ),
    },
    is_open=True,
)
