"""Region attention of a diffusion transformer, set up once per sampling step.

The layout of the tokens is known when the host calls the model: the latent, the padded text and the reference
latents are all there. So nothing inside the network is patched: one override of the attention calls is put
around the one that is there, for the time of that call.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..common.log import logger
from ..families.layout import IMAGE_KIND, REFERENCE, TEXT, GridSize, Span, TokenOrder, length_of
from ..host.families import layout_of, patch_of
from .blocks import TransformerBlock, choose_blocks, transformer_blocks
from .joint import RegionOverride, RowBlocks, Sequences
from .patch import CONDITIONAL, row_masks
from .policy import SEES, ShownReference, make_blocks, open_picture, open_text, token_groups
from .regions import WHOLE_IMAGE, Window, token_labels

OVERRIDE = "optimized_attention_override"  # the host's key
REFERENCES = "inlay_references"  # what the reference latents show: a keyword of the model's call
SCENE_REFERENCE, SUBJECT_REFERENCE = "scene", "subject"
EVERY_BOX = 0
KEPT_PLANS = 32  # every crop position adds one


@dataclass(frozen=True)
class JointMasking:
    """What to mask in a transformer.

    chosen: positions of the blocks, None for all. sees: the table of `policy`. photos: for every subject
    photo its box (from 1, EVERY_BOX for all) and strength; the others act in every box.
    """

    operator: str = "paper"
    strength: float = 1.0
    chosen: frozenset[int] | None = None
    sees: Mapping[str, Mapping[str, str]] = field(default_factory=lambda: SEES)
    photos: tuple[tuple[int, float], ...] = ()


EVERY_BLOCK = ("auto", "paper", "all", "none")  # choices that name no blocks


def choose_joint_masking(
    network: nn.Module,
    order: TokenOrder,
    text_strength: float,
    blocks: str,
    picture_strength: float,
    operator: str,
    photos: Sequence[tuple[int, float]] = (),
) -> JointMasking | None:
    """Return what to mask, from the inputs that UNets have too; None for nothing.

    Text and picture share one softmax here. A strength of 0 opens that part: the text acts everywhere, or
    inside and outside see each other. blocks: "auto", "paper" or "all", "none" (as a picture_strength of 0),
    or a list of `choose_blocks`.

    Raises:
        ValueError: For two different strengths over 0, or blocks that the network does not have.
    """
    if blocks in ("decoder_outer", "released"):
        raise ValueError(
            f'self_attention: "{blocks}" names layers of a UNet, which this model does not have; choose'
            " auto, all, double, single, first half or custom."
        )
    picture_strength = 0.0 if blocks == "none" else picture_strength
    if text_strength > 0 and picture_strength > 0 and text_strength != picture_strength:
        raise ValueError(
            f"self_strength: {picture_strength} differs from cross_attention {text_strength}, but in this"
            " model text and picture share one attention; give both the same value, or set one of them to 0."
        )
    strength = max(text_strength, picture_strength)
    if strength == 0:
        return None
    sees: Mapping[str, Mapping[str, str]] = SEES
    sees = sees if text_strength > 0 else open_text(sees)
    sees = sees if picture_strength > 0 else open_picture(sees)
    chosen = None
    if blocks not in EVERY_BLOCK:
        named = {"first half": "first 50%"}.get(blocks, blocks)
        chosen = choose_blocks(transformer_blocks(network, order), named)
    return JointMasking(operator, strength, chosen, sees, tuple(photos))


class StepTokens:
    """Wraps the host's `apply_model` of a transformer: masks its attention for the time of the call.

    Outside the percent range, and where the sequence has an unknown length, the call stays as it is.

    Args:
        network, order: the transformer and its token order.
        labels: (N, H, W) of `regions.region_labels`.
        text: per region its text tokens, None for all.
        in_range: (model_sampling, sigmas) -> whether to mask this step.
        rows_of: transformer_options -> (labels of the sampled pictures, which of the batch they are).
    """

    def __init__(
        self,
        network: nn.Module,
        order: TokenOrder,
        masking: JointMasking,
        labels: Tensor,
        text: Sequence[Collection[int] | None] | None,
        apply_to: str,
        in_range,
        rows_of,
        window_key: str,
    ):
        self.network, self.order, self.masking, self.labels = network, order, masking, labels
        self.text = list(text) if text else [None] * int(labels.max())
        self.apply_to, self.in_range, self.rows_of = apply_to, in_range, rows_of
        self.window_key = window_key
        self.blocks = transformer_blocks(network, order)
        self.plans: dict[tuple, Sequences] = {}
        self.warned = False

    def __call__(
        self,
        executor,
        x,
        t,
        c_concat=None,
        c_crossattn=None,
        control=None,
        transformer_options=None,
        **kwargs,
    ):
        """Run the host's `apply_model` with attention masked by token during this call."""
        options = transformer_options or {}
        sequences = None
        if c_crossattn is not None and self.in_range(
            executor.class_obj.model_sampling, options.get("sigmas", t)
        ):
            sequences = self._sequences(x, c_crossattn, kwargs, options)
        if sequences is None:
            return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
        override = RegionOverride(
            sequences,
            self.masking.operator,
            self.masking.strength,
            options.get(OVERRIDE),
            self._position,
            self.masking.chosen,
        )
        options = {**options, OVERRIDE: override}
        result = executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
        if not override.joint:
            self._warn("another patch changes the number of its tokens")
        return result

    def _position(self, options: Mapping[str, Any], joint_call: int) -> int:
        """Which block a call belongs to: as the host numbers it, or by counting the calls."""
        if "block_index" not in options:
            return joint_call
        kinds = [kind for kind, _ in self.order.blocks]
        kind = options.get("block_type") if len(kinds) > 1 else kinds[0]
        return self.blocks.index(TransformerBlock(str(kind), int(options["block_index"])))

    def _warn(self, reason: str) -> None:
        if not self.warned:
            self.warned = True
            logger.warning("Masked attention: this model stays unmasked, %s.", reason)

    def _sequences(self, x: Tensor, context: Tensor, kwargs: dict, options: dict) -> Sequences | None:
        latents = list(kwargs.get("ref_latents") or ())
        if latents and not self._reads_references(kwargs):
            latents = []
        if latents and REFERENCE not in self.order.order:
            self._warn("its order of tokens with reference pictures is not known")
            return None
        sizes = [tuple(latent.shape) for latent in latents]
        spans = layout_of(self.network, x.shape, context.shape[1], sizes)
        assert spans is not None
        chunks = options.get("cond_or_uncond", [CONDITIONAL])
        window = tuple(options.get(self.window_key, WHOLE_IMAGE))
        labels, rows = self.rows_of(options)
        references = self._references(spans, kwargs.get(REFERENCES, ()))
        starts = self._text_starts(context)
        key = (
            *(tuple(x.shape), context.shape[1], tuple(sizes), tuple(chunks), window, rows),
            *(references, starts, x.device),
        )
        if key not in self.plans:
            if len(self.plans) >= KEPT_PLANS:
                self.plans.clear()
            images = row_masks(labels.shape[0], x.shape[0] // len(chunks), chunks, self.apply_to)
            with torch.inference_mode(False):
                latent = (x.shape[-2], x.shape[-1])
                count = context.shape[1]
                self.plans[key] = self._plan(spans, labels, latent, window, images, references, starts, count)
                self.plans[key] = _moved(self.plans[key], x.device)
        return self.plans[key]

    def _reads_references(self, kwargs: dict) -> bool:
        """Whether the network reads its references: Krea 2 ignores them unless a method is set."""
        default = getattr(self.network, "default_ref_method", "index")
        return kwargs.get("ref_latents_method", default) is not None

    def _references(self, spans: Sequence[Span], shown: Sequence[tuple]) -> tuple[ShownReference, ...]:
        """Return what every reference shows, by the CONDITIONING or else by its size.

        A scene is as large as the picture. Bindings of the node come before those of the CONDITIONING.
        """
        (image,) = (span for span in spans if span.kind == IMAGE_KIND)
        everywhere = frozenset(range(1, len(self.text) + 1))
        photos = list(self.masking.photos)
        references = []
        for span in (span for span in spans if span.kind == REFERENCE):
            guess = (SCENE_REFERENCE,) if span.grid == image.grid else (SUBJECT_REFERENCE, EVERY_BOX, 1.0)
            kind, *binding = shown[span.number] if span.number < len(shown) else guess
            if kind == SCENE_REFERENCE:
                references.append(ShownReference())
                continue
            bound: Any = photos.pop(0) if photos else binding
            box, strength = bound
            references.append(ShownReference(everywhere if box == EVERY_BOX else frozenset({box}), strength))
        return tuple(references)

    def _text_starts(self, context: Tensor) -> tuple[int, ...]:
        """Return the position of every row's first prompt token.

        The host pads the text of some families with zeros on the left. Read only where regions see their own
        tokens.
        """
        if all(own is None for own in self.text):
            return (0,) * context.shape[0]
        empty = (context == 0).all(-1)
        return tuple(empty.long().cumprod(1).sum(1).tolist())

    def _plan(
        self,
        spans: list[Span],
        labels: Tensor,
        latent: GridSize,
        window: Window,
        images: Sequence[int | None],
        references: Sequence[ShownReference],
        starts: Sequence[int],
        text: int,
    ) -> Sequences:
        grid = next(span.grid for span in spans if span.kind == IMAGE_KIND)
        tokens = self._token_labels(labels, grid, latent, window).flatten(1)
        alike: dict[tuple[int | None, int], list[int]] = {}
        for row, (image, start) in enumerate(zip(images, starts, strict=True)):
            alike.setdefault((image, start if image is not None else 0), []).append(row)
        lengths: dict[tuple[int, int], list[RowBlocks]] = {}
        cross = None
        main = (length_of(spans), length_of(spans))
        for (image, start), rows in alike.items():
            pick = None if len(rows) == len(images) else torch.tensor(rows)
            for length, blocks in self._blocks(spans, tokens, image, references, start, text):
                if length in lengths and any(part.rows is pick for part in lengths[length]):
                    cross = [*(cross or ()), RowBlocks(pick, blocks)]  # as many text tokens as image tokens
                else:
                    lengths.setdefault(length, []).append(RowBlocks(pick, blocks))
        return Sequences(lengths, main, len(images), self._skip(spans, lengths), cross)

    def _skip(self, spans: Sequence[Span], lengths) -> dict[tuple[int, int], int]:
        """How many calls of refiners over one kind have the length of a masked call that comes later."""
        counts = {
            kind: sum(s.count for s in spans if s.kind == kind) for kind in (TEXT, IMAGE_KIND, REFERENCE)
        }
        skip: dict[tuple[int, int], int] = {}
        for kind, attribute in self.order.refiners:
            length = (counts[kind], counts[kind])
            if length in lengths and ((kind,) not in self.order.alone):
                skip[length] = skip.get(length, 0) + len(getattr(self.network, attribute))
        return skip

    def _token_labels(self, labels: Tensor, grid: GridSize, latent: GridSize, window: Window) -> Tensor:
        """Labels (N, rows, columns) of the image's tokens; the last ones may reach past the latent."""
        patch = patch_of(self.network, self.order)
        padded = (grid[0] * patch, grid[1] * patch)
        top, left, bottom, right = window
        bottom = top + (bottom - top) * padded[0] / latent[0]
        right = left + (right - left) * padded[1] / latent[1]
        return token_labels(labels, padded, grid, (top, left, bottom, right))[0]

    def _blocks(self, spans, tokens: Tensor, image: int | None, references, start: int, text: int):
        """Yield ((queries, keys), blocks) of every kind of call; blocks are None for rows without a mask."""
        sees = self.masking.sees
        length = length_of(spans)
        if not self.order.joint:
            text_span = [Span(TEXT, text)]
            if image is None:
                yield (length, length), None
                yield (length, text), None
                return
            queries = token_groups(spans, tokens[image], self.text)
            keys = token_groups(text_span, tokens[image], self.text, text_start=start)
            yield (length, length), make_blocks(queries, queries, sees)
            yield (length, text), make_blocks(queries, keys, sees)
            return
        kinds = [spans]
        for names in self.order.alone:
            alone = [span for span in spans if span.kind in names]
            if any(span.kind == REFERENCE for span in alone) or IMAGE_KIND in names:
                kinds.append(alone)
        for part in kinds:
            count = length_of(part)
            if image is None:
                yield (count, count), None
            else:
                groups = token_groups(part, tokens[image], self.text, references, start)
                yield (count, count), make_blocks(groups, groups, sees)


def _moved(sequences: Sequences, device: torch.device) -> Sequences:
    """Return the same with its index tensors on a device."""

    def moved(value: Any) -> Any:
        if isinstance(value, Tensor):
            single = value.is_floating_point() and device.type == "mps"  # which has no double precision
            return value.to(device, torch.float32 if single else value.dtype)
        if isinstance(value, dict):
            return {key: moved(part) for key, part in value.items()}
        if isinstance(value, list):
            return [moved(part) for part in value]
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*(moved(part) for part in value))
        return value

    return moved(sequences)
