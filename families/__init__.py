"""One row of facts per model family, and the order of the tokens in its attention."""
