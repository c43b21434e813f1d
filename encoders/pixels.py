"""Pictures as encoders take them."""

from collections.abc import Sequence

from torch import Tensor

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean, deviation: DINOv2
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))  # CLIP


def as_pixels(pictures: Tensor, mean: Sequence[float], std: Sequence[float], raw: bool = False) -> Tensor:
    """Pictures (B, H, W, 3) in [0, 1] to (B, 3, H, W): (x - mean) / std, `raw` (255 x - mean) / std."""
    if raw:
        pictures = 255 * pictures
    return ((pictures - pictures.new_tensor(mean)) / pictures.new_tensor(std)).movedim(-1, 1)
