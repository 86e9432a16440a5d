"""The twenty public reports, and what is right to say of each: it was committed before a tool was asked."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.doctor_benchmark import first_reports as first
from benchmarks.doctor_benchmark import second_reports as second
from benchmarks.doctor_benchmark.problem import Given, Problem

FIRST, SECOND, HEALTHY = "first ten reports", "second ten reports", "healthy networks"


def _report(
    part: str,
    name: str,
    network: str,
    make: Callable[[], Given],
    verdicts: tuple[str | None, ...],
    codes: tuple[str, ...],
    remedy: str = "",
) -> Problem:
    return Problem(part, name, network, make, verdicts, codes, remedy)


AVERAGES = ("averages",)

REPORTS = [
    # Expected as on docs/doctor_reports.md, by the codes of today: BN105 has become part of BN104, BN107 of BN106.
    _report(
        FIRST,
        "huggingface/transformers#43520",
        "resnet",
        first.reset_buffers_on_load,
        AVERAGES,
        ("BN002",),
        "load the buffers, or recalibrate",
    ),
    _report(
        FIRST,
        "chemprop/chemprop#607",
        "molecules",
        first.overfit_a_regression,
        ("batches",),
        ("BN203", "BN202"),
        "larger batches, more molecules",
    ),
    _report(
        FIRST,
        "owkin/FLamby#260",
        "clients",
        first.average_parameters_of_clients,
        AVERAGES,
        ("BN106",),
        "average the buffers too",
    ),
    _report(
        FIRST,
        "LeeDoYup/FixMatch-pytorch#10",
        "teacher",
        first.average_weights_without_buffers,
        AVERAGES,
        ("BN002",),
        "copy the buffers too",
    ),
    _report(
        FIRST,
        "facebookresearch/higher#55",
        "learns to learn",
        first.learn_to_learn,
        ("averages", "network"),
        ("BN002",),
        "hand the buffers back",
    ),
    _report(
        FIRST,
        "wasidennis/AdaptSegNet#79",
        "two domains",
        first.adapt_to_a_darker_domain,
        ("averages", "batches"),
        ("BN204", "BN202", "BN104"),
        "averages for each domain",
    ),
    _report(
        FIRST,
        "pytorch/vision#2079",
        "dense",
        first.predict_once_in_train_mode,
        AVERAGES,
        ("BN104",),
        "call eval() first",
    ),
    _report(
        FIRST,
        "qubvel-org/segmentation_models.pytorch#128",
        "unet",
        first.segment_one_by_one_without_eval,
        ("mode",),
        ("BN402",),
        "call eval()",
    ),
    _report(
        FIRST,
        "yassouali/pytorch-segmentation#26",
        "batches of two",
        first.train_on_with_batches_of_two,
        ("averages", "network"),
        ("BN203", "BN201"),
        "larger batches",
    ),
    _report(
        FIRST,
        "chrischoy/SpatioTemporalSegmentation#11",
        "batches of eight",
        first.classify_one_by_one_without_eval,
        ("mode",),
        ("BN402",),
        "call eval()",
    ),
    # Expected as on docs/doctor_more_reports.md.
    _report(
        SECOND,
        "hiwonjoon/tf-frrn#2",
        "full resolution",
        second.segment_with_averages_never_updated,
        AVERAGES,
        ("BN002",),
        "recalibrate, or train with updates",
    ),
    _report(
        SECOND,
        "apache/mxnet#3032",
        "weights of 1",
        second.classify_with_weights_that_training_took_as_1,
        ("network",),
        ("BN303",),
        "set these weights to 1",
    ),
    _report(
        SECOND,
        "eladhoffer/ImageNet-Training#23",
        "digits 0",
        second.classify_from_a_file_of_parameters,
        AVERAGES,
        ("BN002",),
        "save and load both buffers, or recalibrate",
    ),
    _report(
        SECOND,
        "PaulCCCCCCH/Robustar_implementation#165",
        "resnet",
        second.classify_in_train_mode,
        ("mode",),
        ("BN402",),
        "call eval()",
    ),
    _report(
        SECOND,
        "NervanaSystems/neon#359",
        "recurrent",
        second.classify_sequences_with_averages_of_0,
        AVERAGES,
        ("BN002",),
        "save and load both, or recalibrate",
    ),
    _report(
        SECOND,
        "odegeasslbc/FastGAN-pytorch#4",
        "generator",
        second.generate_with_averaged_weights,
        AVERAGES,
        ("BN106",),
        "average the buffers too, or recalibrate",
    ),
    _report(
        SECOND,
        "csinva/gan-vae-pretrained-pytorch#2",
        "generator",
        second.generate_in_train_mode,
        # There are no labels and no metric, so a tool that gives no verdict is right, too.
        (None, "mode"),
        ("BN402",),
        "call eval()",
    ),
    _report(
        SECOND,
        "DLR-RM/stable-baselines3#1004",
        "target",
        second.value_with_a_target_network,
        AVERAGES,
        ("BN002", "BN106"),
        "copy the buffers too",
    ),
    _report(
        SECOND,
        "Tomiinek/Multilingual_Text_to_Speech#81",
        "padded",
        second.encode_padded_sequences,
        ("averages", "batches"),
        ("BN205", "BN202"),
        "leave padding out of the statistics",
    ),
    _report(
        SECOND,
        "broadinstitute/keras-resnet#47",
        "resnet",
        second.classify_with_layers_that_always_train,
        ("network", "mode"),
        ("BN304", "BN402"),
        "let the forward follow the mode",
    ),
    _report(HEALTHY, "dense", "dense", first.dense_classifier, ("healthy",), ()),
    _report(HEALTHY, "unet", "unet", first.segmenting_unet, ("healthy",), ()),
]
