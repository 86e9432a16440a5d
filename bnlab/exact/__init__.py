"""Exact statistics: `population` has the public call, `breadth` the algorithm."""
