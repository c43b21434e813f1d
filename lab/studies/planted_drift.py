"""Photographs with a planted drift: what a model does to a picture, with a known answer.

A case is a photograph, a mask, and the "painted" picture: the photograph with another photograph's content
in the mask, shifted, scaled, in other colours, with noise, as a JPEG. The photographs are scikit-image's
and, if it is installed, scikit-learn's:

    astronaut (NASA, public domain), brick, grass, gravel (CC0Textures, CC0), camera (Lav Varshney, CC0),
    chelsea (S. van der Walt, CC0), coffee (Rachel Michetti, CC0), coins (Brooklyn Museum, no known
    restrictions), hubble_deep_field (NASA, public domain), motorcycle_left (Daniel Scharstein, CC0), rocket
    (SpaceX, CC0); china and flower of scikit-learn (danielbuechele and vultilion, CC BY 2.0).
"""

import io
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

SKIMAGE = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "motorcycle_left.png",
    "rocket.jpg",
)
SKLEARN = ("china.jpg", "flower.jpg")
MASK_SHARES = (0.02, 0.4)
SHIFT, SCALES = 24.0, (0.9, 1.1)  # pixels; largest planted motion
NOISE, QUALITY = 0.015, (75, 95)  # standard deviation in [0, 1]; of the JPEG


@dataclass(frozen=True)
class Case:
    """One photograph and its painted picture; arrays (H, W, 3) in [0, 1], mask (H, W) of booleans.

    Attributes:
        photograph: Name.
        original: The photograph.
        content: The photograph with other content in the mask; what a perfect model returns.
        clean: The photograph drifted like `painted`, without other content, noise and JPEG.
        painted: `content` drifted, in other colours, with noise, as a JPEG.
        mask: Where the other content is.
        scale: Planted scale about the centre.
        shift: Planted (down, right) in pixels.
    """

    photograph: str
    original: np.ndarray
    content: np.ndarray
    clean: np.ndarray
    painted: np.ndarray
    mask: np.ndarray
    scale: float
    shift: np.ndarray

    def position(self, points: np.ndarray) -> np.ndarray:
        """Where points (N, 2) of the original lie in the painted picture, in continuous pixels."""
        centre = np.array(self.mask.shape) / 2
        return centre + self.scale * (points - centre) + self.shift

    def visible(self, margin: float) -> np.ndarray:
        """(H, W) of booleans: pixels that the painted picture shows, `margin` pixels from its border."""
        size = np.array(self.mask.shape)
        positions = self.position(np.argwhere(np.ones_like(self.mask)) + 0.5)
        inside = ((positions > margin) & (positions < size - margin)).all(1)
        return np.asarray(inside).reshape(self.mask.shape)

    @property
    def rim(self) -> np.ndarray:
        """(N, 2) positions just outside the mask."""
        return np.argwhere(ndimage.binary_dilation(self.mask) & ~self.mask) + 0.5


@cache
def photographs() -> dict[str, np.ndarray]:
    """(H, W, 3) in [0, 1] by name."""
    found = {}
    for package, folder, names in (
        ("skimage", "data", SKIMAGE),
        ("sklearn", "datasets/images", SKLEARN),
    ):
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            continue
        for name in names:
            file = Path(spec.origin).parent / folder / name
            if file.is_file():
                found[file.stem] = np.asarray(Image.open(file).convert("RGB")) / 255.0
    return dict(sorted(found.items()))


def plant(seed: int, drift: bool = True, cast: bool = True, damage: bool = True, longest: int = 0) -> Case:
    """Make a case.

    Args:
        seed: Photograph, mask, content and everything planted follow from it.
        drift: Plant a shift and a scale.
        cast: Plant other colours, see `colour_cast`.
        damage: Add noise, and save as JPEG.
        longest: Pixels of the longer side; 0: the photograph's own size.
    """
    rng = np.random.default_rng(seed)
    pictures = photographs()
    names = list(pictures)
    number = seed % len(names)
    other = (number + rng.integers(1, len(names))) % len(names)
    original = pictures[names[number]]
    if longest and max(original.shape) > longest:
        original = resized(original, [longest / max(original.shape[:2])] * 2)
    height, width = original.shape[:2]
    mask = random_mask(rng, height, width, rng.uniform(*MASK_SHARES))
    factors = [a / b for a, b in zip((height, width), pictures[names[other]].shape, strict=False)]
    fill = resized(pictures[names[other]], factors)[:height, :width]
    content = np.where(mask[..., None], fill, original)
    scale, shift = 1.0, np.zeros(2)
    angle, length, planted = rng.uniform(0, 2 * np.pi), rng.uniform(0, SHIFT), rng.uniform(*SCALES)
    if drift:
        scale, shift = planted, length * np.array([np.sin(angle), np.cos(angle)])
    pair = [drifted(image, scale, shift) for image in (original, content)]
    if cast:
        change = colour_cast(rng, height, width)
        pair = [change(image) for image in pair]
    clean, painted = pair
    if damage:
        painted = as_jpeg(painted + rng.normal(0, NOISE, painted.shape), int(rng.integers(*QUALITY)))
    return Case(names[number], original, content, clean, painted, mask, scale, shift)


def resized(image: np.ndarray, factors) -> np.ndarray:
    """(H, W, 3) by linear interpolation, averaged first where it shrinks."""
    sigma = [max(0.0, (1 / f - 1) / 2) for f in factors]
    return np.asarray(ndimage.zoom(ndimage.gaussian_filter(image, (*sigma, 0)), (*factors, 1), order=1))


def random_mask(rng: np.random.Generator, height: int, width: int, share: float) -> np.ndarray:
    """A rectangle or an ellipse of about that share of the picture, somewhere in it."""
    ellipse = rng.random() < 0.6
    area = share * height * width * (4 / np.pi if ellipse else 1)
    tall = np.sqrt(area) * np.exp(rng.uniform(-0.35, 0.35))
    tall, wide = min(tall, 0.95 * height), min(area / tall, 0.95 * width)
    middle = rng.uniform(tall / 2, height - tall / 2), rng.uniform(wide / 2, width - wide / 2)
    y, x = np.mgrid[:height, :width] + 0.5
    y, x = 2 * (y - middle[0]) / tall, 2 * (x - middle[1]) / wide
    return (y**2 + x**2 < 1) if ellipse else (np.maximum(abs(y), abs(x)) < 1)


def drifted(image: np.ndarray, scale: float, shift: np.ndarray) -> np.ndarray:
    """(H, W, 3) moved so that x comes to centre + scale (x - centre) + shift; mirrored beyond the border."""
    if scale == 1 and not shift.any():
        return image.copy()
    centre = np.array(image.shape[:2]) / 2
    start = centre - (centre + shift) / scale + 0.5 / scale - 0.5
    planes = [
        ndimage.affine_transform(
            image[..., k],
            [1 / scale] * 2,
            start,
            order=3,
            mode="mirror",  # pyright: ignore[reportArgumentType]
        )
        for k in range(3)
    ]
    return np.stack(planes, -1).clip(0, 1)


def colour_cast(rng: np.random.Generator, height: int, width: int):
    """A function of pictures (H, W, 3): each of five casts with probability 1 / 2, at least one.

    Gamma exp(+-0.18), gain 0.85 to 1.15, white balance 0.92 to 1.08 per channel, a vignette that darkens the
    corners by 5 to 35 %, offset +-0.05; cut to [0, 1].
    """
    on = rng.random(5) < 0.5
    on[rng.integers(5)] |= not on.any()
    gamma = np.exp(rng.uniform(-0.18, 0.18)) if on[0] else 1.0
    gain = rng.uniform(0.85, 1.15) if on[1] else 1.0
    balance = rng.uniform(0.92, 1.08, 3) if on[2] else np.ones(3)
    y, x = np.mgrid[:height, :width] + 0.5
    radius = ((2 * y / height - 1) ** 2 + (2 * x / width - 1) ** 2) / 2
    vignette = 1 - (rng.uniform(0.05, 0.35) if on[3] else 0.0) * radius[..., None]
    offset = rng.uniform(-0.05, 0.05) if on[4] else 0.0
    return lambda image: (image.clip(0, 1) ** gamma * gain * balance * vignette + offset).clip(0, 1)


def as_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """The picture after it was saved and opened."""
    data = io.BytesIO()
    Image.fromarray((255 * image.clip(0, 1)).round().astype(np.uint8)).save(data, "JPEG", quality=quality)
    return np.asarray(Image.open(data)) / 255.0
