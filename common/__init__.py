"""What every folder uses: atomic file writing, the logger, shared keys."""
