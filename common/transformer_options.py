"""Keys of `transformer_options` that the sampler sets and the attention reads.

WINDOW: (top, left, bottom, right) of the view in fractions of the picture.
ROWS: (indices of the sampled pictures, number of pictures in the batch).
VIEW: the `imaging.views.View` that the latent shows, and the picture's (height, width).
"""

WINDOW, ROWS, VIEW = "inlay_window", "inlay_rows", "inlay_view"
Window = tuple[float, float, float, float]
