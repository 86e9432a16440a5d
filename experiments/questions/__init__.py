"""A module or folder for each experiment, with one EXPERIMENT each; `bnlab.harness.lab.registry` finds them."""
