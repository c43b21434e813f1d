"""Train identity adapters at scale: stages, samples, shards, trainer, checkpoints."""
