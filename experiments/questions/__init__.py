"""A module or folder for each experiment, with one EXPERIMENT each; `bnlab.lab.catalogue` finds them."""
