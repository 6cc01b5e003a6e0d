"""Measured ratios, each in one run; ``python -m benchmarks`` prints them."""
