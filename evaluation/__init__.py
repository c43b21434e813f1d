"""Measure results: benchmarks, encoders, metrics, tables."""

# Names of the benchmarks in `readers.READERS`, for a command line that does not import torch for its --help.
BENCHMARKS = ("batch", "murecom", "dreambooth", "dreameditbench", "coco", "cocoee")
