"""Do weights that oscillate between two integers in quantization-aware training leave running averages wrong, and is
accuracy back once they are measured again?"""

from typing import Any

from bnlab.harness.lab.registry import read_paper
from bnlab.harness.reporting.frames import OtherThan, score
from bnlab.harness.reporting.plots import LOST_OF_ANY_SIZE, Axis, Forest
from bnlab.harness.reporting.printed import make_printed_figure
from bnlab.harness.reporting.question import Claim, Figure, Question, above, below, cite, show, within
from experiments.margins import AS_NEAR, SIX_IMAGES
from experiments.questions import quantized

OF_8_BITS: dict[str, Any] = {"model.bits": 8}
OF_3_BITS: dict[str, Any] = {"model.bits": 3}
DEPTHWISE: dict[str, Any] = {"model.depthwise": True}
PAPER = read_paper(__file__)

QUESTION = Question(
    paper=PAPER,
    figures={
        "kl": show(quantized, "kl"),
        "lost": Figure(
            "Points that running averages lose against exact statistics, by bits",
            "Compare the lines: the same weights under running averages, of momentum 0.1, and under exact statistics. "
            "The axis is linear up to 0.3 points, and logarithmic beyond.",
            score(
                quantized.compute_losses, "accuracy", ("panel", "line", "model.bits"), scale=-100, estimator="ema",
                momentum=0.1),
            Forest("line", LOST_OF_ANY_SIZE), printed=PAPER.pick("mbv2_4_lost", "mbv2_3_lost"),
            networks=quantized.ROUNDED),
        "printed": make_printed_figure(
            "Theirs: accuracy before and after statistics are measured again, and what freezing weights does",
            "Compare circles with circles and squares with squares: circles are table 2, of 20 epochs; squares are "
            "table 6, which quantizes activations too, and whose epochs were not read.",
            Forest("panel", Axis("% top-1"), series="series"),
            PAPER.pick(
                "mbv2_4_before", "mbv2_4_after", "mbv2_3_before", "mbv2_3_after", "mbv2_full", "mbv2_lsq_4",
                "mbv2_dampen_4", "mbv2_freeze_4", "mbv2_lsq_3", "mbv2_dampen_3", "mbv2_freeze_3"),
            reads="quantized"),
    },
    claims={
        "three_bits_cost": cite(
            quantized, "three_bits_cost", "that running averages are wrong, most at 3 bits (written for this paper)"),
        "eight_bits_do_not": Claim(
            "With weights of 8 bits they lose less than 0.3 points, depthwise or not.",
            score(
                "evaluations", "accuracy", ("model.depthwise",), at=1.0, against="exact", scale=-100, estimator="ema",
                momentum=0.1, **OF_8_BITS),
            within(-0.3, 0.3, "points lost", SIX_IMAGES), lines="each", reads="quantized"),
        "fewer_bits_cost_more": Claim(
            "With depthwise convolutions the loss at 3 bits is over half a point larger than at 8.",
            score(quantized.find_added, "accuracy", ("model.depthwise",), scale=-100, **DEPTHWISE),
            above(
                0.5, "points more",
                "half of what three_bits_cost asks, since the difference has the noise of two losses"),
            lines="each", reads="quantized"),
        "depthwise_layers_are_worse": Claim(
            "At 3 bits the divergence behind depthwise convolutions is over twice that behind pointwise ones.",
            score(
                quantized.find_layers, "kl", ("line",), against="pointwise", along="kind", ratio=True, geometric=True,
                **OF_3_BITS),
            above(2.0, "times", "theirs are said to be larger there; twice is seen on a logarithmic axis"),
            lines="each", reads="quantized"),
        "few_images_are_enough": Claim(
            "Exact statistics of 512 images lose less than 0.3 points against those of all, at every width.",
            score(
                "evaluations", "accuracy", ("model.bits",), at=1.0, against="exact", scale=-100,
                estimator="exact(images=512)", **DEPTHWISE),
            within(-0.3, 0.3, "points lost", SIX_IMAGES), lines="each", reads="quantized"),
        "a_long_memory_averages_it_out": Claim(
            "At 3 bits, at the end, the variance gap at momentum 0.01 is smaller than at 0.1.",
            score(
                "gaps", "var_gap", ("model.bits",), at=1.0, against=0.1, along="momentum", ratio=True,
                depth=OtherThan(1), average="layer", geometric=True, estimator="ema", momentum=0.01,
                **OF_3_BITS, **DEPTHWISE),
            below(1.0, "times", AS_NEAR), lines="each", reads="quantized"),
    })  # fmt: skip
