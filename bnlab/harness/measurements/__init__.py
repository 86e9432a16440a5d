"""Measurements on trained networks: each in a file, found by the name of its table."""

from bnlab.harness.measurements.base import Measurement, list_measurements, list_names, list_steps_read

__all__ = ["Measurement", "list_measurements", "list_names", "list_steps_read"]
