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
from .memory import GIGABYTE, Need, Trace, check_fits, trace, trained_need, with_preset
from .presets import PRESETS
from .recipes import Recipe
from .trainer import ALONE, Group, Trainee

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Needed = Callable[[Recipe, torch.dtype, bool], Need]  # with or without checkpointing
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

    def need(recipe: Recipe, dtype: torch.dtype, checkpointing: bool) -> Need:
        shapes = exported_shapes(unet, recipe.adapter, lora_names(model)).values()
        trained = [shape for shape in shapes if shape]
        parts = trained_need(trained, dtype.itemsize, recipe.optimiser, recipe.ema_decay > 0)
        return Need(sum(p.numel() * dtype.itemsize for p in unet.parameters() if p.dtype != dtype), *parts, 0)

    others = _with_presets(model, recipe, need)
    _check(model, need(recipe, dtype, False), others, "choose a LoRA recipe, or a lower rank")


def check_step_fits(
    model,
    trainee: Trainee,
    recipe: Recipe,
    examples: Sequence[Examples],
    blocks: Sequence[nn.Module],
    checkpointing: bool,
    group: Group = ALONE,
) -> Need:
    """What a step needs of this process' device, measured on the network.

    Raises ValueError, naming a mend, when it will not fit.
    """
    one = measured(trainee, examples[0], blocks)
    shapes = [p.shape for p in trainee.adapter.parameters]
    count = sum(p.numel() for p in trainee.unet.parameters())
    trained = sum(p.numel() for p in trainee.adapter.parameters)

    def need(recipe: Recipe, dtype: torch.dtype, checkpointing: bool) -> Need:
        size, pictures = dtype.itemsize, len(examples) * group.at_most(recipe.batch_size)
        parts = trained_need(shapes, size, recipe.optimiser, recipe.ema_decay > 0)
        kept = one.activations(checkpointing) * pictures * size / trainee.dtype.itemsize
        loaded = count * size if dtype == trainee.dtype else 0
        return Need((count - trained) * size, *parts, int(kept), loaded)

    wanted, side = need(recipe, trainee.dtype, checkpointing), examples[0].latent.shape[-1] * LATENT_PIXEL
    logging.info(f"Inlay finetune: about {wanted.total / GIGABYTE:.2f} GB of memory ({wanted})")
    others = _with_presets(model, recipe, need)
    _check(model, wanted, others, f"choose a resolution below {side}, or a LoRA of lower rank")
    return wanted


def _with_presets(
    model, recipe: Recipe, need: Callable[[Recipe, torch.dtype, bool], Need]
) -> dict[str, Need]:
    chosen = {name: with_preset(recipe, preset, eight_bit_installed()) for name, preset in PRESETS.items()}
    return {
        name: need(smaller, precision_of(model, smaller), PRESETS[name].checkpointing)
        for name, smaller in chosen.items()
    }


def measured(trainee: Trainee, examples: Examples, blocks: Sequence[nn.Module]) -> Trace:
    """What one picture of these leaves behind, from two passes on small grids."""
    side = max(SMALL, 2 ** len(trainee.unet.channel_mult))  # pyright: ignore[reportArgumentType]
    small = trace(trainee.unet, blocks, lambda: _pass(trainee, examples, side))
    large = trace(trainee.unet, blocks, lambda: _pass(trainee, examples, 2 * side))
    pixels = examples.latent.shape[-2] * examples.latent.shape[-1]
    return small.at(pixels, large, (side**2, 4 * side**2))


def _pass(trainee: Trainee, examples: Examples, side: int) -> Tensor:
    channels = 9 if trainee.inpainting else 4
    hole = torch.ones(1, side, side)
    row = examples.take(torch.zeros(1, dtype=torch.long)).to(trainee.device)
    return trainee.unet(
        torch.zeros(1, channels, side, side, dtype=trainee.dtype, device=trainee.device),
        torch.zeros(1, device=trainee.device),
        context=row.context.to(trainee.dtype),
        y=None if row.pooled is None else row.pooled.to(trainee.dtype),
        transformer_options={} if trainee.regions is None else trainee.regions(hole),
    )


def _check(model, need: Need, others: dict[str, Need], otherwise: str) -> None:
    device = model.load_device
    if device.type != "cpu":  # let other models go, but not the one that is trained
        loaded = [management.LoadedModel(model)]
        management.free_memory(need.missing, device, keep_loaded=loaded)
    free = management.get_free_memory(device)
    assert isinstance(free, int)
    check_fits(need, free, others, otherwise)
