"""Train, assemble and export the tiny models."""
