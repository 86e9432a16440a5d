"""Ten public reports, played again in small, and three healthy networks: python -m benchmarks.doctor_reports.

Which reports these are, and how they were found, is in docs/doctor_reports.md. Each is a function that makes what its
author had. What the doctor has to say of it stands here, and was written down before the doctor saw it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks import doctor_report_classifiers as classifiers
from benchmarks import doctor_report_segmenters as segmenters
from benchmarks.doctor_report_parts import Patient
from bnlab import diagnose
from bnlab.doctor.diagnosis import Diagnosis


@dataclass(frozen=True)
class Report:
    """A report, and what is right to say of it.

    Attributes:
        title: the repository and the number of the thread.
        make: makes what its author had.
        verdicts: words that are right.
        codes: causes that are right.
    """

    title: str
    make: Callable[[], Patient]
    verdicts: tuple[str, ...]
    codes: tuple[str, ...]


REPORTS = [
    Report("huggingface/transformers#43520", classifiers.reset_buffers_on_load, ("averages",), ("BN002",)),
    # The thread blames the start of the averages. After 200 updates it weighs nothing, and averages that are taken
    # again are as bad: batches of fifty examples were learnt by heart, with the statistics of each.
    Report("chemprop/chemprop#607", classifiers.overfit_a_regression, ("batches",), ("BN203", "BN202")),
    Report("owkin/FLamby#260", segmenters.average_parameters_of_clients, ("averages",), ("BN106",)),
    Report("LeeDoYup/FixMatch-pytorch#10", classifiers.average_weights_without_buffers, ("averages",), ("BN002",)),
    # Adapted in eval mode, the weights have become those of a network without normalization: nothing brings these back.
    Report("facebookresearch/higher#55", classifiers.learn_to_learn, ("averages", "network"), ("BN002",)),
    Report(
        "wasidennis/AdaptSegNet#79",
        segmenters.adapt_to_a_darker_domain,
        ("averages", "batches"),
        ("BN204", "BN202", "BN104"),
    ),
    Report("pytorch/vision#2079", classifiers.predict_once_in_train_mode, ("averages",), ("BN104",)),
    Report(
        "qubvel-org/segmentation_models.pytorch#128", segmenters.segment_one_by_one_without_eval, ("mode",), ("BN402",)
    ),
    # The thread blames both the noisy loss, which is the weights' affair, and the averages of two images.
    Report(
        "yassouali/pytorch-segmentation#26",
        segmenters.train_on_with_batches_of_two,
        ("averages", "network"),
        ("BN203", "BN201"),
    ),
    Report(
        "chrischoy/SpatioTemporalSegmentation#11", classifiers.classify_one_by_one_without_eval, ("mode",), ("BN402",)
    ),
]
"""The reports, newest first, and what is right to say of each."""

HEALTHY = [
    Report("healthy", classifiers.dense_classifier, ("healthy",), ()),
    Report("healthy", segmenters.segmenting_unet, ("healthy",), ()),
    Report("healthy", classifiers.perceptron_on_columns, ("healthy",), ()),
]
"""Networks of which nothing is to be said."""


@dataclass(frozen=True)
class Screen:
    """An answer of the doctor.

    Attributes:
        text: as it is printed.
        verdict: its word.
        causes: the codes above a note, the first first.
        notes: the codes of notes.
    """

    text: str
    verdict: str
    causes: tuple[str, ...]
    notes: tuple[str, ...]

    @staticmethod
    def of(diagnosis: Diagnosis) -> Screen:
        """Read what a diagnosis says."""
        findings = diagnosis.findings
        is_note = findings["severity"] == "note"
        causes = tuple(findings["code"][~is_note])
        return Screen(str(diagnosis), str(diagnosis.verdict), causes, tuple(findings["code"][is_note]))

    def grade(self, verdicts: tuple[str, ...], codes: tuple[str, ...]) -> str:
        """Say whether this is a hit, a half or a miss; of a healthy network, whether it is quiet or an alarm."""
        is_right = self.verdict in verdicts
        if not codes:
            return "quiet" if is_right and not self.causes else "alarm"

        if is_right and self.causes[:1] and self.causes[0] in codes:
            return "hit"
        named = set(self.causes + self.notes)
        return "half" if is_right or named & set(codes) else "miss"


def ask(patient: Patient) -> list[Screen]:
    """Ask the doctor as the author could have done, and once more with what the answer asks for and the author had."""
    first = Screen.of(diagnose(patient.model, patient.batches, progress=False))
    further: dict[str, Any] = {}
    if "training_batches=" in first.text and patient.training is not None:
        further["training_batches"] = patient.training
    if "before=" in first.text and patient.before is not None:
        further["before"] = patient.before
    if not further:
        return [first]
    return [first, Screen.of(diagnose(patient.model, patient.batches, progress=False, **further))]


def main(words: list[str]) -> None:
    """Ask about all networks, or those whose names hold one of the words, and print the answers."""
    torch.set_num_threads(1)
    for each in REPORTS + HEALTHY:
        name = f"{each.title} {each.make.__name__}"
        if words and not any(word in name for word in words):
            continue
        patient = each.make()
        scores = ", ".join(f"{name} {value:.4g}" for name, value in patient.scores.items())
        print(f"\n## {name}\nwithout the doctor: {scores}\nright: {each.verdicts} {each.codes}", flush=True)
        for number, screen in enumerate(ask(patient), start=1):
            grade = screen.grade(each.verdicts, each.codes)
            print(
                f"\nscreen {number}: {grade} {screen.verdict} {screen.causes} {screen.notes}\n{screen.text}", flush=True
            )


if __name__ == "__main__":
    main(sys.argv[1:])
