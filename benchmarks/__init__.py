"""Ratios, both sides measured in alternation in one run: python -m benchmarks."""
