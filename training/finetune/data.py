"""From references to what a training step needs: everything encoded once, nothing encoded in a step."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...common.log import logger
from ...imaging.augment import augment
from ...imaging.bezier import bezier_mask
from ...imaging.boxes import bounding_box
from ...imaging.buckets import bucket_sizes, nearest_bucket
from ...imaging.inputs import as_images_each, as_masks_each, check_finite
from ...imaging.latent_mask import snap_hole
from ...imaging.masks import box_mask, check_mask, check_not_empty
from ..objective import generator_at
from .recipes import Recipe

LATENT_PIXEL = 8  # pixels to a latent pixel, in every VAE of the UNet families
ENCODED_AT_ONCE = 8


class Reference(NamedTuple):
    """A picture of the subject: image (H,W,3) in [0,1], mask (H,W), 1 on the subject."""

    image: Tensor
    mask: Tensor


class Concept(NamedTuple):
    """A caption and the reference pictures it describes."""

    caption: str
    references: Sequence[Reference]


def collect_references(
    images: Sequence[Tensor],
    masks: Sequence[Tensor] | None,
    kind: str = "",
    names: tuple[str, str] = ("images", "masks"),
) -> list[Reference]:
    """Return batches of pictures and masks, of any sizes and ranks, as single references.

    Without masks an alpha channel is the mask; without that the whole picture is. Raises ValueError when they
    do not belong together; `kind` stands before the inputs' `names` there, such as "regular_".
    """
    pictures = [picture for batch in as_images_each(list(images), kind + names[0]) for picture in batch]
    if not pictures:
        raise ValueError(
            f"{kind}{names[0]}: there are no reference pictures; wire at least one picture of the subject."
        )
    wired = as_masks_each(None if masks is None else list(masks), kind + names[1])
    if wired is None:
        return [_with_own_mask(picture) for picture in pictures]
    shapes = [mask for batch in wired for mask in batch]
    if len(shapes) != len(pictures):
        raise ValueError(
            f"{kind}{names[1]}: there are {len(shapes)} masks for {len(pictures)} images;"
            " give one mask for every image."
        )
    return [Reference(picture[..., :3], mask) for picture, mask in zip(pictures, shapes, strict=True)]


def _with_own_mask(picture: Tensor) -> Reference:
    alpha = picture[..., 3] if picture.shape[-1] == 4 else picture.new_ones(picture.shape[:2])
    return Reference(picture[..., :3], alpha)


def collect_background(image: Tensor | None, mask: Tensor | None) -> Reference | None:
    """Return the picture that samples are painted into, with its hole; None without a picture.

    Raises:
        ValueError: for a hole that is missing, empty or of another size.
    """
    if image is None:
        if mask is not None:
            raise ValueError("sample_mask: there is no sample_image for it; wire the picture as well.")
        return None
    pictures = as_images_each([image], "sample_image")[0][:1]
    check_finite(pictures, "sample_image")
    masks = as_masks_each(None if mask is None else [mask], "sample_mask")
    if masks is None:
        raise ValueError("sample_image: it has no sample_mask; wire a mask of the place to fill.")
    hole = masks[0][:1]
    check_mask(pictures, hole, "sample_mask")
    check_not_empty(hole, "sample_mask")
    return Reference(pictures[0, ..., :3], (hole[0] > 0.5).float())


def check_references(references: Sequence[Reference], size: int, masked: bool, kind: str = "") -> list[str]:
    """Raise ValueError, naming the mask, when there is no subject to learn; `size` is that of the crops.

    `masked`: the masks were wired in, so one that covers its whole picture is worth a warning. `kind` as in
    `collect_references`. Returns what the user should be warned of, which is in the log as well.
    """
    whole = []
    for number, (image, mask) in enumerate(references, 1):
        name = f"{kind}masks: mask {number}"
        if not (mask > 0.5).any():
            raise ValueError(
                f"{name} is empty; paint over the subject (white, 1) in every reference picture."
            )
        check_mask(image[None], mask[None], name)
        if masked and (mask > 0.5).all():
            whole.append(str(number))
        box, shrink = bounding_box(mask), size / min(mask.shape)
        if min(box.height, box.width) * shrink < LATENT_PIXEL:
            raise ValueError(
                f"{name}: the subject is only {box.width}x{box.height} pixels of a"
                f" {mask.shape[1]}x{mask.shape[0]} picture, too small to learn; crop closer to it."
            )
        if not torch.isfinite(image).all():
            raise ValueError(f"{kind}images: picture {number} holds NaN or infinite values; load it again.")
    warnings = []
    if whole:
        own = "paint over the subject only, or let Load References cut it out"
        remedy = "mask the thing alone" if kind else own
        warnings.append(
            f"{kind}masks: there is no mask for picture {', '.join(whole)} (it covers the whole picture), so"
            f" the background is learned too; {remedy}."
        )
    if len(references) > 1 and all(torch.equal(r.image, references[0].image) for r in references[1:]):
        warnings.append(
            f"{kind}images: all of them are identical; different ones keep more of what the model knows."
            if kind
            else "All reference pictures are identical; different views teach the subject better."
        )
    for warning in warnings:
        logger.warning(f"Inlay: {warning}")
    return warnings


def small_photo_notes(references: Sequence[Reference], shapes: Sequence[tuple[int, int]]) -> list[str]:
    """Return a warning that names the pictures smaller than their crops (height, width); it is logged too."""
    small = [
        f"{number} ({mask.shape[1]}x{mask.shape[0]})"
        for number, ((_, mask), (height, width)) in enumerate(zip(references, shapes, strict=True), 1)
        if mask.shape[0] < height or mask.shape[1] < width
    ]
    if not small:
        return []
    note = (
        "images: smaller than the resolution of the training and enlarged, so details are blurred:"
        f" picture {', '.join(small)}; use larger photos or a lower resolution."
    )
    logger.warning(f"Inlay: {note}")
    return [note]


@dataclass(frozen=True)
class Examples:
    """N encoded examples: everything that a training step reads.

    `context` and `pooled` may hold one row that stands for all N.
    """

    latent: Tensor  # (N,4,h,w), scaled as the network sees it
    mask: Tensor  # (N,1,h,w), 1 = the hole
    masked: Tensor  # (N,4,h,w), the latent of the picture with a grey hole
    valid: Tensor  # (N,1,h,w), 0 on the padded ring
    context: Tensor  # (N or 1,L,D)
    pooled: Tensor | None = None  # (N or 1,P), only where the network has a label embedding
    # Standard deviations of latent and masked (N,4,h,w) where each step draws them; else both are the means.
    deviation: Tensor | None = None
    masked_deviation: Tensor | None = None
    # (N or 1,), which of the encoded texts; where it is given, `context` and `pooled` are not used.
    caption: Tensor | None = None
    class_caption: Tensor | None = None  # (N or 1,), of the one with the class instead of the token
    # (N,), which reference picture an example was made from; -1: a regular picture
    photo: Tensor | None = None
    pixel_mask: Tensor | None = None  # (N,1,H,W) in bytes, the hole in pixels, which FLUX.1 Fill reads
    # (N,R), the reference pictures that an edit model is shown beside an example; -1: none
    subject_references: Tensor | None = None

    def __len__(self) -> int:
        return len(self.latent)

    @property
    def largest(self) -> "Examples":
        """The examples of the largest size: these, for all have one size."""
        return self

    @property
    def first(self) -> "Examples":
        """The examples of the first picture's size: these."""
        return self

    def rows(self, batch: int, step: int, seed: int) -> "Examples":
        """Return the batch of a step, see `rows_of_step`."""
        return self.take(rows_of_step(len(self), batch, step, seed))

    def map(self, change: "Callable[[Examples], Examples]") -> "Examples":
        """Return the examples, changed."""
        return change(self)

    def take(self, rows: Tensor) -> "Examples":
        """Return the examples at `rows` (B,), with one context row each."""
        return self._map(
            lambda part: part[rows] if len(part) == len(self) else part.expand(len(rows), *part.shape[1:])
        )

    def to(self, device: torch.device) -> "Examples":
        """Return the examples on a device."""
        return self._map(lambda part: part.to(device, non_blocking=True))

    def cloned(self) -> "Examples":
        """Return the examples with tensors of their own."""
        return self._map(Tensor.clone)

    def joined(self, other: "Examples") -> "Examples":
        """Return these rows and then the other's; both as `take` returns them.

        Contexts of different length are repeated to the least common multiple of their lengths: repeating
        every key does not change softmax attention.
        """
        pairs = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        length = math.lcm(self.context.shape[1], other.context.shape[1])
        if length:
            pairs["context"] = tuple(c.repeat(1, length // c.shape[1], 1) for c in pairs["context"])
        return Examples(**{name: torch.cat(pair) for name, pair in pairs.items() if pair[0] is not None})

    def drawn(self, generator: torch.Generator) -> "Examples":
        """Draw the latents from the VAE's distribution, where it is known (`latent_dist.sample()`)."""
        if self.deviation is None or self.masked_deviation is None:
            return self
        noise = torch.randn(2, *self.latent.shape, generator=generator).to(self.latent)
        return replace(
            self,
            latent=self.latent + noise[0] * self.deviation,
            masked=self.masked + noise[1] * self.masked_deviation,
            deviation=None,
            masked_deviation=None,
        )

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Examples":
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        return Examples(**{name: change(part) for name, part in parts.items() if part is not None})


@dataclass(frozen=True)
class BucketedExamples:
    """Encoded examples of several sizes; a batch is always of one of them.

    buckets: the examples of each size, in the order in which the sizes appear among the pictures.
    """

    buckets: tuple[Examples, ...]

    def __len__(self) -> int:
        return sum(map(len, self.buckets))

    @property
    def largest(self) -> Examples:
        """The examples of the largest size."""
        return max(self.buckets, key=lambda part: part.latent[0].numel())

    @property
    def first(self) -> Examples:
        """The examples of the first picture's size."""
        return self.buckets[0]

    def rows(self, batch: int, step: int, seed: int) -> Examples:
        """Return the batch of a step, all of one size.

        In each round of as many batches as there are examples, a bucket of n examples has n batches, so each
        example is used `batch` times a round. The order of a round is drawn from the seed. A function of the
        step alone, as `rows_of_step`.
        """
        turn, place = divmod(step, len(self))
        owners = torch.arange(len(self.buckets)).repeat_interleave(torch.tensor([*map(len, self.buckets)]))
        owners = owners[torch.randperm(len(self), generator=generator_at(seed, turn, 4))]
        bucket = self.buckets[int(owners[place])]
        own = turn * len(bucket) + int((owners[:place] == owners[place]).sum())
        return bucket.rows(batch, own, seed)

    def map(self, change: Callable[[Examples], Examples]) -> "BucketedExamples":
        """Return the same buckets, each changed."""
        return BucketedExamples(tuple(change(bucket) for bucket in self.buckets))


TrainingSet = Examples | BucketedExamples


def buckets_of(examples: TrainingSet) -> tuple[Examples, ...]:
    """Return the parts of a set that have one size each."""
    return examples.buckets if isinstance(examples, BucketedExamples) else (examples,)


def bucketed(parts: Sequence[Examples]) -> TrainingSet:
    """Return examples of any sizes as one set; those of one size are joined."""
    shapes: dict[torch.Size, list[Examples]] = {}
    for part in parts:
        shapes.setdefault(part.latent.shape[1:], []).append(part)
    buckets = tuple(concatenate_examples(group) for group in shapes.values())
    return buckets[0] if len(buckets) == 1 else BucketedExamples(buckets)


def concatenate_examples(parts: Sequence[Examples]) -> Examples:
    """Return the rows of all parts, which have one size, as one, each with its own context."""
    if len(parts) == 1:
        return parts[0]
    whole = parts[0].take(torch.arange(len(parts[0])))
    for part in parts[1:]:
        whole = whole.joined(part.take(torch.arange(len(part))))
    return whole


def crop_shapes(
    references: Sequence[Reference], recipe: Recipe, size: int, step: int
) -> list[tuple[int, int]]:
    """Return height and width of the crops of each reference; both are multiples of `step` pixels."""
    if recipe.aspect_ratios != "buckets":
        return [(size, size)] * len(references)
    sizes = bucket_sizes(size, step)
    return [nearest_bucket(mask.shape[0], mask.shape[1], sizes) for _, mask in references]


def prepare_examples(
    references: Sequence[Reference],
    recipe: Recipe,
    size: int,
    encode: Callable[[Tensor], Tensor],
    context: Tensor,
    pooled: Tensor | None,
    seed: int,
    step: int = LATENT_PIXEL,
) -> TrainingSet:
    """Return augmented copies of every reference with their holes, encoded.

    As many as the recipe asks for, or as the run will use if that is less; `size` pixels square, or in
    buckets of that area whose sides are multiples of `step`.
    `encode` takes pictures (B,H,W,3) in [0,1] to latents (B,4,h,w) scaled for the network; where the
    recipe draws from the VAE's distribution, to means and standard deviations in one (B,8,h,w).
    """
    looks = recipe.steps * recipe.accumulation * recipe.batch_size
    copies = min(recipe.copies, -(-looks // len(references)))
    groups: dict[tuple[int, int], list[int]] = {}
    for number, shape in enumerate(crop_shapes(references, recipe, size, step)):
        groups.setdefault(shape, []).append(number)
    generator = torch.Generator().manual_seed(seed)
    return bucketed(
        [
            _examples_of_size(references, numbers, recipe, shape, copies, encode, context, pooled, generator)
            for shape, numbers in groups.items()
        ]
    )


def _examples_of_size(
    all_references: Sequence[Reference],
    numbers: Sequence[int],
    recipe: Recipe,
    shape: tuple[int, int],
    copies: int,
    encode: Callable[[Tensor], Tensor],
    context: Tensor,
    pooled: Tensor | None,
    generator: torch.Generator,
) -> Examples:
    references = [all_references[number] for number in numbers]
    views = _views(references, recipe, shape, copies, generator)
    groups = iter(lambda: list(islice(views, ENCODED_AT_ONCE // 2)), [])  # drawn as they are encoded
    parts = zip(*(_encoded(group, encode) for group in groups), strict=True)
    latent, mask, masked, valid, pixels = (torch.cat(part) for part in parts)
    photo = torch.tensor(numbers).repeat_interleave(copies)
    rest = {"photo": photo, "pixel_mask": pixels if recipe.hole_condition == "channels" else None}
    if not recipe.sample_posterior:
        return Examples(latent, mask, masked, valid, context, pooled, **rest)
    (latent, deviation), (masked, other) = latent.chunk(2, dim=1), masked.chunk(2, dim=1)
    return Examples(latent, mask, masked, valid, context, pooled, deviation, other, **rest)


def with_subject_references(
    rows: Examples, count: int, pictures: int, dropout: float, generator: torch.Generator
) -> Examples:
    """Return rows with `count` other pictures of the subject each, drawn from all `pictures` of them.

    With probability `dropout` a row has none, and so have rows of regular pictures. The picture that a row
    shows is never among them.
    """
    if not count or rows.photo is None:
        return rows
    drawn = torch.full((len(rows), count), -1)
    for row, photo in enumerate(rows.photo.tolist()):
        order = torch.randperm(pictures, generator=generator)
        dropped = torch.rand((), generator=generator) < dropout
        if photo >= 0 and not dropped:
            others = order[order != photo][:count]
            drawn[row, : len(others)] = others
    return replace(rows, subject_references=drawn)


TrainingView = tuple[Tensor, Tensor, Tensor]  # picture (1,3,H,W) in [-1,1], hole and valid (1,1,H,W)


def _views(
    references: Sequence[Reference],
    recipe: Recipe,
    shape: tuple[int, int],
    copies: int,
    generator: torch.Generator,
) -> Iterator[TrainingView]:
    for reference in references:  # on the CPU, wherever they come from: all sets end up in one batch
        image = reference.image.cpu().movedim(-1, 0)[None].float() * 2 - 1
        mask = (reference.mask.cpu() > 0.5).float()[None, None]
        for _ in range(copies):
            view, subject, valid = augment(image, mask, shape, generator, recipe.augmentation)
            hole = box_mask(subject[:, 0]) if recipe.hole == "box" else bezier_mask(subject[:, 0], generator)
            yield view, hole[:, None], valid


def _encoded(group: Sequence[TrainingView], encode: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
    """Return latent, mask, masked, valid and pixel_mask of a few views, as `Examples` holds them."""
    view, hole, valid = (torch.cat(parts) for parts in zip(*group, strict=True))
    pictures = torch.cat([view, view * (1 - hole)])  # a hole is grey: 0 in [-1, 1]
    latent, masked = encode((pictures.movedim(1, -1) + 1) / 2).chunk(2)
    grid = latent.shape[-2:]
    # A latent pixel is valid only where all the pixels under it show the picture.
    return latent, shrunk_hole(hole, grid), masked, -F.adaptive_max_pool2d(-valid, grid), hole.byte()


def shrunk_hole(hole: Tensor, grid: torch.Size | tuple[int, int]) -> Tensor:
    """Holes (B,1,H,W) on the latents' grid (h,w), see `snap_hole`."""
    return snap_hole(hole[:, 0], (grid[0], grid[1]))[:, None]


def rows_of_step(count: int, batch: int, step: int, seed: int) -> Tensor:
    """Return which examples a step uses (batch,): each once per epoch, in an order drawn from the seed.

    A function of the step alone, so a resumed run sees what the uninterrupted one saw.
    """
    places = range(step * batch, (step + 1) * batch)
    epochs = {place // count for place in places}
    orders = {epoch: torch.randperm(count, generator=generator_at(seed, epoch, 1)) for epoch in epochs}
    return torch.stack([orders[place // count][place % count] for place in places])
