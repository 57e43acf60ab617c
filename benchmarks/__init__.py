"""Measurements of speed, memory and exactness. The results are in BENCHMARKS.md."""
