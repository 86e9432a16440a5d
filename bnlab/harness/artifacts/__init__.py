"""Networks and the data on which they are trained: `training_runner` makes one, `run` has its files.

What settings choose by name is a class in `data`, `norms`, `models`, `optimizers` or `tasks`. These modules do not
import torch, so that a sweep that has nothing to do does not wait for it. What a class builds or reads with torch
stands beside them, in `data/images`, `norms/layers`, `models/networks` and `objectives`; `build` or `read` imports it
when it is called.
"""
