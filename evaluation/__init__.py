"""Measure results: benchmarks, encoders, metrics, tables."""
