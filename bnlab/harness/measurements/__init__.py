"""Measurements on trained networks: each is a table, found by its name or by import path."""

from bnlab.harness.measurements.base import Measurement, find_measurement, list_tables

__all__ = ["Measurement", "find_measurement", "list_tables"]
