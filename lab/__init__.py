"""The tiny world: renderer, captions, the tiny models and their ablation tables."""
