"""A module or folder for each experiment, with one QUESTION each; `bnlab.harness.lab.registry` finds them."""
