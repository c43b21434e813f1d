"""Where the repository keeps the trained weights of the tiny world, in few bits."""

from pathlib import Path

WEIGHTS = Path(__file__).parents[1] / "weights"
