"""A module for each experiment, with one EXPERIMENT each; `experiments.catalogue` finds them."""
