"""Will it fit? The memory that a training needs on the host's device, before its first step."""

import logging
from collections.abc import Callable, Sequence

import comfy.model_management as management
import torch
from torch import Tensor, nn

from ..optimizers import eight_bit_installed
from .data import LATENT_PIXEL, Examples
from .lora import exported_shapes
from .lora_formats import lora_names
from .memory import GIGABYTE, ActivationTrace, MemoryNeed, check_fits, trace, trained_need, with_preset
from .presets import MEMORY_PRESETS
from .recipes import Recipe
from .trainer import SINGLE_PROCESS, ProcessGroup, TrainableModel

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Needed = Callable[[Recipe, torch.dtype, bool], MemoryNeed]  # with or without checkpointing
SMALL = 8  # latent pixels, the side of the smallest grid to measure on


def precision_of(model, recipe: Recipe) -> torch.dtype:
    """The type of the network's arithmetic; "half" is the model's own where that has 16 bits."""
    own = model.model.get_dtype_inference()
    if recipe.precision == "model" or (recipe.precision == "half" and own.itemsize == 2):
        return own
    if recipe.precision == "half":
        device = model.load_device
        plain = device.type == "cpu" or management.should_use_bf16(device)
        return torch.bfloat16 if plain else torch.float16
    return TYPES[recipe.precision]


def check_parameters_fit(model, recipe: Recipe, dtype: torch.dtype) -> None:
    """Raises ValueError when adapter and optimiser alone will not fit; nothing is allocated yet."""
    unet = model.model.diffusion_model

    def need(recipe: Recipe, dtype: torch.dtype, checkpointing: bool) -> MemoryNeed:
        shapes = exported_shapes(unet, recipe.adapter, lora_names(model)).values()
        trained = [shape for shape in shapes if shape]
        parts = trained_need(trained, dtype.itemsize, recipe.optimiser, recipe.ema_decay > 0)
        return MemoryNeed(
            sum(p.numel() * dtype.itemsize for p in unet.parameters() if p.dtype != dtype), *parts, 0
        )

    others = _with_presets(model, recipe, need)
    _check(model, need(recipe, dtype, False), others, "choose a LoRA recipe, or a lower rank")


def check_step_fits(
    model,
    trainable: TrainableModel,
    recipe: Recipe,
    examples: Sequence[Examples],
    blocks: Sequence[nn.Module],
    checkpointing: bool,
    group: ProcessGroup = SINGLE_PROCESS,
) -> MemoryNeed:
    """What a step needs of this process' device, measured on the network.

    Raises ValueError, naming a mend, when it will not fit.
    """
    one = measured(trainable, examples[0], blocks)
    shapes = [p.shape for p in trainable.adapter.parameters]
    count = sum(p.numel() for p in trainable.unet.parameters())
    trained = sum(p.numel() for p in trainable.adapter.parameters)

    def need(recipe: Recipe, dtype: torch.dtype, checkpointing: bool) -> MemoryNeed:
        size, pictures = dtype.itemsize, len(examples) * group.at_most(recipe.batch_size)
        parts = trained_need(shapes, size, recipe.optimiser, recipe.ema_decay > 0)
        kept = one.activations(checkpointing) * pictures * size / trainable.dtype.itemsize
        loaded = count * size if dtype == trainable.dtype else 0
        return MemoryNeed((count - trained) * size, *parts, int(kept), loaded)

    wanted, side = need(recipe, trainable.dtype, checkpointing), examples[0].latent.shape[-1] * LATENT_PIXEL
    logging.info(f"Inlay finetune: about {wanted.total / GIGABYTE:.2f} GB of memory ({wanted})")
    others = _with_presets(model, recipe, need)
    _check(model, wanted, others, f"choose a resolution below {side}, or a LoRA of lower rank")
    return wanted


def _with_presets(
    model, recipe: Recipe, need: Callable[[Recipe, torch.dtype, bool], MemoryNeed]
) -> dict[str, MemoryNeed]:
    chosen = {
        name: with_preset(recipe, preset, eight_bit_installed()) for name, preset in MEMORY_PRESETS.items()
    }
    return {
        name: need(smaller, precision_of(model, smaller), MEMORY_PRESETS[name].checkpointing)
        for name, smaller in chosen.items()
    }


def measured(trainable: TrainableModel, examples: Examples, blocks: Sequence[nn.Module]) -> ActivationTrace:
    """What one picture of these leaves behind, from two passes on small grids."""
    side = max(SMALL, 2 ** len(trainable.unet.channel_mult))  # pyright: ignore[reportArgumentType]
    small = trace(trainable.unet, blocks, lambda: _pass(trainable, examples, side))
    large = trace(trainable.unet, blocks, lambda: _pass(trainable, examples, 2 * side))
    pixels = examples.latent.shape[-2] * examples.latent.shape[-1]
    return small.at(pixels, large, (side**2, 4 * side**2))


def _pass(trainable: TrainableModel, examples: Examples, side: int) -> Tensor:
    channels = 9 if trainable.inpainting else 4
    hole = torch.ones(1, side, side)
    row = examples.take(torch.zeros(1, dtype=torch.long)).to(trainable.device)
    return trainable.unet(
        torch.zeros(1, channels, side, side, dtype=trainable.dtype, device=trainable.device),
        torch.zeros(1, device=trainable.device),
        context=row.context.to(trainable.dtype),
        y=None if row.pooled is None else row.pooled.to(trainable.dtype),
        transformer_options={} if trainable.regions is None else trainable.regions(hole),
    )


def _check(model, need: MemoryNeed, others: dict[str, MemoryNeed], otherwise: str) -> None:
    device = model.load_device
    if device.type != "cpu":  # let other models go, but not the one that is trained
        loaded = [management.LoadedModel(model)]
        management.free_memory(need.missing, device, keep_loaded=loaded)
    free = management.get_free_memory(device)
    assert isinstance(free, int)
    check_fits(need, free, others, otherwise)
