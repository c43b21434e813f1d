"""The tokens of a transformer's attention: which of them are text, image, reference or padding.

Diffusion transformers attend over one sequence of text and image tokens. The order is a fact of the network's
class; the counts follow from the sizes of the latents and of the text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

GridSize = tuple[int, int]
TEXT, IMAGE_KIND, REFERENCE, PAD = "text", "image", "reference", "pad"


@dataclass(frozen=True)
class Span:
    """Consecutive tokens of one kind.

    number: which reference, counted from 0; 1 for the padding of the text, which holds text after the
    refiners. grid: (rows, columns) of an image or a reference.
    """

    kind: str
    count: int
    number: int = 0
    grid: GridSize = (0, 0)


@dataclass(frozen=True)
class TokenOrder:
    """How a network class builds its sequence.

    order: of TEXT, IMAGE_KIND and REFERENCE.
    patch: latent cells per side of a token, or the attribute of the network that holds it (a number, or a
        sequence that ends with it).
    pad_multiple: the attribute with the multiple to which text and image are each padded.
    alone: sets of kinds over which some blocks also attend without the others.
    refiners: (kind, attribute) of the lists of blocks that attend over one kind before the joint blocks, in
        the order they run.
    joint: False for networks with separate self-attention (image) and cross-attention (text).
    blocks: (name, attribute) of the lists of blocks that attend over the sequence, in the order they run:
        "double" for separate weights for text and image, "single" for the same weights for both.
    """

    order: tuple[str, ...]
    patch: str | int
    pad_multiple: str = ""
    alone: tuple[tuple[str, ...], ...] = ()
    refiners: tuple[tuple[str, str], ...] = ()
    joint: bool = True
    blocks: tuple[tuple[str, str], ...] = ()


TEXT_FIRST = (TEXT, IMAGE_KIND, REFERENCE)

FLUX_BLOCKS = (("double", "double_blocks"), ("single", "single_blocks"))
DOUBLE_BLOCKS = (("double", "transformer_blocks"),)
REFINERS = ((TEXT, "context_refiner"), (IMAGE_KIND, "noise_refiner"), (REFERENCE, "ref_image_refiner"))

# Class name of the host's network -> its order.
TOKEN_ORDERS = {
    "Flux": TokenOrder(TEXT_FIRST, "patch_size", blocks=FLUX_BLOCKS),
    "Chroma": TokenOrder((TEXT, IMAGE_KIND), "patch_size", blocks=FLUX_BLOCKS),
    "QwenImageTransformer2DModel": TokenOrder(TEXT_FIRST, "patch_size", blocks=DOUBLE_BLOCKS),
    "MageFlowTransformer2DModel": TokenOrder(TEXT_FIRST, 1, blocks=DOUBLE_BLOCKS),
    "SingleStreamDiT": TokenOrder(TEXT_FIRST, "patch", blocks=(("single", "blocks"),)),
    "NextDiT": TokenOrder(
        (TEXT, IMAGE_KIND), "patch_size", pad_multiple="pad_tokens_multiple", blocks=(("single", "layers"),)
    ),
    "OmniGen2Transformer2DModel": TokenOrder(
        (TEXT, REFERENCE, IMAGE_KIND),
        "patch_size",
        alone=((REFERENCE,),),
        refiners=REFINERS,
        blocks=(("single", "layers"),),
    ),
    "BooguTransformer2DModel": TokenOrder(
        (TEXT, REFERENCE, IMAGE_KIND),
        "patch_size",
        alone=((REFERENCE,), (REFERENCE, IMAGE_KIND)),
        refiners=REFINERS,
        blocks=(("double", "double_stream_layers"), ("single", "single_stream_layers")),
    ),
    "LensTransformer2DModel": TokenOrder((IMAGE_KIND, TEXT), 1, blocks=DOUBLE_BLOCKS),
    "Anima": TokenOrder((IMAGE_KIND,), "patch_spatial", joint=False, blocks=(("single", "blocks"),)),
}


def grid_of(size: Sequence[int], patch: int) -> GridSize:
    """(rows, columns) of the tokens of a latent (..., height, width); the host pads up to whole patches."""
    return -(-size[-2] // patch), -(-size[-1] // patch)


def padding(count: int, multiple: int) -> int:
    """How many tokens fill `count` up to a multiple; none for a multiple of 0."""
    return -count % multiple if multiple else 0


def token_layout(
    order: TokenOrder,
    patch: int,
    image: GridSize,
    text: int,
    references: Sequence[GridSize] = (),
    multiple: int = 0,
) -> list[Span]:
    """Return the spans of the sequence.

    Args:
        order: of the network's class.
        patch: latent cells per side of a token.
        image: (height, width) of the noisy latent.
        text: number of text tokens.
        references: (height, width) of every reference latent; ignored by networks that read none.
        multiple: text and image are each padded to it, 0 for no padding.
    """
    grid = grid_of(image, patch)
    grids = [grid_of(size, patch) for size in references]
    parts = {
        TEXT: [Span(TEXT, text)],
        IMAGE_KIND: [Span(IMAGE_KIND, grid[0] * grid[1], grid=grid)],
        REFERENCE: [Span(REFERENCE, g[0] * g[1], number, g) for number, g in enumerate(grids)],
    }
    spans: list[Span] = []
    for kind in order.order:
        spans += parts[kind]
        fill = padding(sum(span.count for span in parts[kind]), multiple)
        if fill:
            spans.append(Span(TEXT, fill, number=1) if kind == TEXT else Span(PAD, fill))
    return spans


def length_of(spans: Sequence[Span]) -> int:
    """Return the number of tokens of a sequence."""
    return sum(span.count for span in spans)
