"""The doctor: what is wrong with a model's batch-norm statistics, what it costs, and what to do.

`bnlab.diagnose` says it, `bnlab.recalibrate` repairs it. A rule is one file of `rules/`, found by its code.
"""

from bnlab.doctor.catalogue import explain, list_rules
from bnlab.doctor.rule import Rule, Signs
from bnlab.doctor.undo import undo_from_file

__all__ = ["Rule", "Signs", "explain", "list_rules", "undo_from_file"]
