"""Exact statistics: `population` has the public call, `walk` the algorithm."""
