"""Measure results: benchmarks, encoders, metrics, tables."""

# Names in `benchmark_datasets.READERS`, for a command line that does not import torch for its --help.
BENCHMARKS = ("batch", "murecom", "dreambooth", "dreameditbench", "coco", "cocoee")
