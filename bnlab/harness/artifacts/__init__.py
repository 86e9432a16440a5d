"""Networks and the data on which they are trained: `training_runner` makes one, `run` has its files."""
