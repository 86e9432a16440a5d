"""Diagnoses of 512 images that several tests read, made once for all of them; not to be changed."""

from __future__ import annotations

from functools import cache

from torch import nn

from bnlab import diagnose
from bnlab.doctor.report.diagnosis import Diagnosis
from tests.doctor.digits import Batches, draw_batches, get_norm, make_healthy


@cache
def draw() -> Batches:
    """Draw the batches of these diagnoses."""
    return draw_batches(16)


def make_spoiled() -> nn.Sequential:
    """Put the averages of the first batch norm where they start."""
    model = make_healthy(1)
    get_norm(model, "1").reset_running_stats()
    return model


@cache
def diagnose_healthy() -> Diagnosis:
    return diagnose(make_healthy(), draw(), progress=False)


@cache
def diagnose_spoiled() -> Diagnosis:
    return diagnose(make_spoiled(), draw(), progress=False)
