"""Hold what every folder uses: atomic file writing and the logger."""
