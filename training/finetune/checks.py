"""What a training takes: models, earlier subjects, and the memory of the device. All known before a step."""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from ...common.log import logger
from ...families.table import label_of
from ...host import devices, models
from ...host.families import config_name, family_name, family_of, is_transformer, working_side
from ...host.training import (
    FrozenLinear,
    bytes_in_use,
    bytes_of,
    has_special_weights,
    is_quantised,
    load_layers,
    offloaded_layers,
    stays_frozen,
    unreadable_format,
    weight_bytes,
)
from ..objective import NoiseSchedule
from ..optimizers import check_optimizer, eight_bit_installed
from .data import LATENT_PIXEL, Examples, TrainingSet
from .diffusion_transformers import TransformerPass, check_transformer
from .lora import exported_shapes, lora_layers
from .lora_formats import lora_names
from .memory import (
    GIGABYTE,
    ActivationTrace,
    MemoryNeed,
    check_fits,
    need_on,
    room_on,
    trace,
    trained_need,
    update_need,
    with_preset,
)
from .recipes import MEMORY_PRESETS, Recipe
from .subject import Subject
from .trainer import SINGLE_PROCESS, ProcessGroup, TrainableModel, text_of

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Needed = Callable[[Recipe, torch.dtype, bool], MemoryNeed]  # with or without checkpointing
SMALL = 8  # latent pixels, the side of the smallest grid to measure on


def check_trainable_model(model, recipe: Recipe, inpaint_patch: bool = False) -> None:
    """Raise ValueError, naming the mend, for a model the recipe cannot train.

    `inpaint_patch`: whether Fooocus' patch goes with the model.
    """
    unet, row = models.unet_of(model), family_of(model)
    if row is not None and row.transformer:
        check_transformer(model, row, recipe, inpaint_patch)
        unet = models.network_of(model)
    elif unet is None or models.prediction_of(model) not in ("epsilon", "v"):
        raise ValueError(
            f"model: {config_name(model)} is no Stable Diffusion UNet and no transformer that can be trained"
            " here; load an SD 1.5, SD 2 or SDXL inpainting checkpoint, or a FLUX, Qwen-Image, Z-Image or"
            " Krea 2 model."
        )
    else:
        _check_channels(model, recipe, inpaint_patch)
        if recipe.subject_references:
            raise ValueError(
                f"subject_references: {config_name(model)} reads no reference pictures; set it to 0, or train"
                " an edit model such as FLUX.2, Kontext or Qwen-Image-Edit."
            )
    _check_weights(model, unet, recipe)
    if not models.can_load_fully(model):
        raise ValueError(
            "model: the node that loaded it gives no way to load a copy, which training needs; load it with"
            " Load Checkpoint, or start ComfyUI with --disable-dynamic-vram."
        )
    if recipe.adapter.lokr and recipe.adapter.dora:
        raise ValueError("adapter: LoKr and DoRA do not go together; choose one of them.")
    if recipe.preservation and recipe.adapter.kind == "full":
        raise ValueError(
            f"preservation: it compares the model with and without a LoRA, and {recipe.name} trains every"
            " weight; choose a recipe with a LoRA."
        )
    if recipe.adapter.kind == "lora":
        lora_layers(unet, recipe.adapter)
        check_peft()
    check_optimizer(recipe.optimiser)


def keeps_quantised(model) -> bool:
    """Return whether a training leaves the quantised weights of a MODEL as they are.

    A UNet in fp8 without scales is widened instead.
    """
    return is_transformer(model) or has_special_weights(models.network_of(model))


def _check_weights(model, network: nn.Module, recipe: Recipe) -> None:
    """Raise ValueError for quantised weights that cannot be read, or that the recipe would have to change."""
    unreadable = unreadable_format(network)
    if unreadable:
        raise ValueError(
            f"model: its weights are in a format that cannot be trained on ({unreadable}); load the same"
            " model with weights in fp16, bf16, fp8 or GGUF."
        )
    if not keeps_quantised(model) or not any(is_quantised(layer) for layer in network.modules()):
        return
    if recipe.adapter.kind == "full":
        raise ValueError(
            f"recipe: {recipe.name} trains every weight, and this model's are quantised; choose a recipe"
            " with a LoRA, or load the model in fp16 or bf16."
        )
    wide = "DoRA" if recipe.adapter.dora else "LoKr" if recipe.adapter.lokr else ""
    if wide:
        raise ValueError(
            f"adapter: {wide} needs weights in 16 bits, and this model's are quantised; choose LoRA."
        )


def _check_channels(model, recipe: Recipe, inpaint_patch: bool) -> None:
    """Raise ValueError for a UNet whose input channels the recipe cannot train."""
    channels = models.input_channels(model)
    if channels != 4 and inpaint_patch:
        raise ValueError(
            f"inpaint_patch: it is made for a plain SDXL model (4 channels) and this one has {channels}; wire"
            " a plain SDXL model, or leave the patch out."
        )
    if channels == 4 and recipe.inpainting_only and not inpaint_patch:
        raise ValueError(
            f"model: this is a text-to-image model ({config_name(model)}, 4 channels); load an"
            " inpainting checkpoint (9 channels)."
        )
    if channels not in (4, 9) or (channels == 9 and models.concat_keys(model) != ("mask", "masked_image")):
        raise ValueError(
            f"model: its UNet takes {channels} channels, which is no inpainting model; load an"
            " inpainting checkpoint (9 channels)."
        )


def check_peft() -> None:
    """Raise ValueError where PEFT, which makes the LoRA, is not installed."""
    if find_spec("peft") is None:
        raise ValueError(
            f"recipe: a LoRA needs peft, which is not installed; run {sys.executable} -m pip install peft,"
            " then start ComfyUI anew."
        )


def check_previous(model, recipe: Recipe, subject: Subject, lora: Mapping[str, Tensor]) -> None:
    """Raise ValueError for a subject that this training cannot go on from."""
    if subject.family != family_name(model):
        raise ValueError(
            f"previous: {subject.words} was trained for {label_of(subject.family)} but the model is"
            f" {label_of(family_name(model))}; load the model it was trained on."
        )
    ranks = {tensor.shape[0] for key, tensor in lora.items() if key.endswith(".lora_down.weight")}
    if recipe.adapter.kind == "lora" and ranks and ranks != {recipe.adapter.rank}:
        raise ValueError(
            f"previous: {subject.words} was trained with rank {max(ranks)} but this run asks for rank"
            f" {recipe.adapter.rank}; set rank to {max(ranks)}."
        )
    shapes = exported_shapes(models.network_of(model), recipe.adapter, lora_names(model))
    if {key: tuple(tensor.shape) for key, tensor in lora.items()} != shapes:
        own = f"its recipe ({subject.recipe})" if subject.recipe else "a recipe of its layers"
        if subject.recipe == recipe.name:
            own = "the layers and the adapter (LoRA, DoRA or LoKr) that it has"
        raise ValueError(
            f"previous: {subject.words} was trained on other layers than this run would train; choose {own}"
            " and the model it was trained on."
        )


def crop_grid(model) -> int:
    """Return the number of pixels that the sides of a picture are multiples of, for VAE and network."""
    row = family_of(model)
    step = row.picture_grid if row is not None else 0
    return step or LATENT_PIXEL * 2 ** (models.unet_levels(model) - 1)


def crop_size(model, recipe: Recipe) -> int:
    """Return the side of the crops: what the recipe asks for, a multiple that VAE and network take."""
    step = crop_grid(model)
    return max(step, round((recipe.resolution or working_side(model)) / step) * step)


def diffusion_of(model) -> NoiseSchedule:
    """Return the noise levels and the prediction of a MODEL that `check_trainable_model` takes."""
    prediction = models.prediction_of(model)
    assert prediction is not None
    return NoiseSchedule(models.noise_levels(model).clone().cpu(), prediction)


def precision_of(model, recipe: Recipe) -> torch.dtype:
    """Return the type of the network's arithmetic; "half" is the model's own where that has 16 bits."""
    own = models.inference_dtype(model)
    if recipe.precision == "model" or (recipe.precision == "half" and own.itemsize == 2):
        return own
    if recipe.precision == "half":
        return torch.bfloat16 if devices.prefers_bfloat16(model.load_device) else torch.float16
    return TYPES[recipe.precision]


def can_offload(model, recipe: Recipe) -> bool:
    """Return whether a training of a MODEL can leave weights in the computer's memory."""
    adapter = recipe.adapter
    whole = adapter.kind == "full" or adapter.dora or adapter.lokr  # these read the weights themselves
    return is_transformer(model) and devices.has_own_memory(model.load_device) and not whole


def needs_offload(model, recipe: Recipe, card: int) -> bool:
    """Return whether the weights of a transformer go to the device as far as a preset's card has room.

    That is asked before they are loaded: where they alone take more than half of it.
    """
    if not card or not can_offload(model, recipe):
        return False
    return sum(bytes_of(weight) for weight in models.network_of(model).parameters()) > room_on(card) / 2


def check_parameters_fit(model, recipe: Recipe, dtype: torch.dtype, offload: bool = False) -> None:
    """Raise ValueError when adapter and optimizer alone will not fit; nothing is allocated yet."""
    unet = models.network_of(model)

    def need(recipe: Recipe, dtype: torch.dtype, checkpointing: bool) -> MemoryNeed:
        shapes = exported_shapes(unet, recipe.adapter, lora_names(model)).values()
        trained = [shape for shape in shapes if shape]
        parts = trained_need(trained, dtype.itemsize, recipe.optimiser, recipe.ema_decay > 0)
        widened = [] if offload else [p for p in _widened(model) if p.dtype != dtype]
        update = update_need(trained, dtype.itemsize)
        return MemoryNeed(sum(p.numel() * dtype.itemsize for p in widened), *parts, update)

    others = _with_presets(model, recipe, need)
    _check(model, need(recipe, dtype, False), others, "choose a LoRA recipe, or a lower rank")


def _widened(model) -> list[Tensor]:
    """Return the weights of a MODEL that its copy has in the type of the arithmetic."""
    network = models.network_of(model)
    kept = set()
    if keeps_quantised(model):
        kept = {id(layer.weight) for layer in network.modules() if stays_frozen(layer)}
    return [weight for weight in network.parameters() if id(weight) not in kept]


def check_step_fits(
    model,
    trainable: TrainableModel,
    recipe: Recipe,
    examples: Sequence[TrainingSet],
    blocks: Sequence[nn.Module],
    checkpointing: bool | None,
    group: ProcessGroup = SINGLE_PROCESS,
    card: int = 0,
) -> MemoryNeed:
    """Return what a step needs of this process' device, measured on the network.

    Offloaded layers are moved to the device as far as `card`, in gigabytes, has room. Where `checkpointing`
    is None, the step uses it if `card` would not hold it otherwise.

    Raises ValueError, naming a mend, when it will not fit.
    """
    references = min(recipe.subject_references, trainable.pictures)
    one = measured(trainable, examples[0].largest, blocks, references)
    shapes = [p.shape for p in trainable.adapter.parameters]
    trained = sum(p.numel() for p in trainable.adapter.parameters)
    count = sum(p.numel() for p in trainable.unet.parameters())
    quantised = weight_bytes(trainable.unet) - count * trainable.dtype.itemsize  # which no preset changes
    numbers = [sum(p.numel() for p in block.parameters() if p.requires_grad) for block in blocks]
    in_use = bytes_in_use(trainable.unet) if not offloaded_layers(trainable.unet) else 0

    def need(recipe: Recipe, dtype: torch.dtype, checkpointing: bool) -> MemoryNeed:
        sets = 1 if recipe.regular_chance else len(examples)  # with a chance, a pass is on one set alone
        size, pictures = dtype.itemsize, sets * group.at_most(recipe.batch_size)
        pictures *= 2 if recipe.preservation else 1  # a second pass is kept as well
        parts = trained_need(shapes, size, recipe.optimiser, recipe.ema_decay > 0)
        scale = pictures * size / trainable.dtype.itemsize
        fresh = [number * size / scale for number in numbers] if recipe.accumulation == 1 else []
        kept = int(one.activations(checkpointing, fresh) * scale) + in_use
        kept = max(kept, update_need(shapes, size))
        loaded = quantised + (count * size if dtype == trainable.dtype else 0)
        return MemoryNeed(quantised + (count - trained) * size, *parts, kept, loaded)

    step = need_on(card, checkpointing, partial(need, recipe, trainable.dtype))
    away = sum(layer.nbytes() for layer in offloaded_layers(trainable.unet))
    if away:
        step = step.without(away)
        free = devices.free_memory_for(model, room_on(card)) + step.loaded
        stays = load_layers(trainable.unet, min(room_on(card), free) - step.total)[0]
        step = step.without(stays - away)
        step = replace(step, weights=step.weights + bytes_in_use(trainable.unet))
        logger.info(f"Inlay finetune: {stays / GIGABYTE:.2f} GB of weights stay in the computer's memory")
    side = math.isqrt(examples[0].largest.latent[0, 0].numel()) * LATENT_PIXEL
    logger.info(f"Inlay finetune: about {step.total / GIGABYTE:.2f} GB of memory ({step})")
    others = _with_presets(model, recipe, need, _offloadable(model, trainable.unet, recipe, blocks))
    _check(model, step, others, f"choose a resolution below {side}, or a LoRA of lower rank")
    return step


def _offloadable(model, network: nn.Module, recipe: Recipe, blocks: Sequence[nn.Module]) -> int:
    """Return the bytes of weights that a preset may leave in the computer's memory."""
    if not can_offload(model, recipe):
        return 0
    inside = {id(layer) for block in blocks for layer in block.modules()}
    layers = [layer for layer in network.modules() if id(layer) in inside and isinstance(layer, nn.Linear)]
    frozen = [layer.nbytes() for layer in layers if isinstance(layer, FrozenLinear)]
    plain = [p for layer in layers for p in layer.parameters() if not p.requires_grad]
    return sum(frozen) + sum(map(bytes_of, plain))


def _with_presets(
    model,
    recipe: Recipe,
    need: Callable[[Recipe, torch.dtype, bool], MemoryNeed],
    offloadable: int = 0,
) -> dict[str, MemoryNeed]:
    needs = {}
    for name, preset in MEMORY_PRESETS.items():
        smaller = with_preset(recipe, preset, eight_bit_installed())
        of_preset = partial(need, smaller, precision_of(model, smaller))
        needs[name] = need_on(preset.card, preset.checkpointing, of_preset, offloadable)
    return needs


def measured(
    trainable: TrainableModel, examples: Examples, blocks: Sequence[nn.Module], references: int = 0
) -> ActivationTrace:
    """Return what one picture's forward pass keeps, extrapolated from two passes on small grids.

    references: the subject's pictures that stand beside it.
    """
    levels = getattr(trainable.unet, "channel_mult", ())
    side = max(SMALL, 2 ** len(levels))  # pyright: ignore[reportArgumentType]
    small = trace(trainable.unet, blocks, lambda: _pass(trainable, examples, side, references))
    large = trace(trainable.unet, blocks, lambda: _pass(trainable, examples, 2 * side, references))
    pixels = examples.latent.shape[-2] * examples.latent.shape[-1]
    return small.at(pixels, large, (side**2, 4 * side**2))


def _pass(trainable: TrainableModel, examples: Examples, side: int, count: int) -> Tensor:
    first = examples.take(torch.zeros(1, dtype=torch.long))
    if trainable.host_pass is not None:
        grid = torch.zeros(1, examples.latent.shape[1], side, side)
        row = replace(first, latent=grid, masked=grid, mask=torch.ones(1, 1, side, side), pixel_mask=None)
        row, host_pass = row.to(trainable.device), trainable.host_pass
        if isinstance(host_pass, TransformerPass) and host_pass.references and count:
            # A reference takes as much room as the picture, at most.
            host_pass = replace(host_pass, references=[host_pass.host.raw(row.latent)])
            row = replace(row, subject_references=torch.zeros(1, count, dtype=torch.long))
        return host_pass(row, row.latent, torch.full((1,), 0.5, device=trainable.device))
    grid, channels = (1, 4, side, side), 9 if trainable.inpainting else 4
    row = replace(first, mask=torch.ones(1, 1, side, side), masked=torch.zeros(grid))
    context, pooled = text_of(trainable, row.to(trainable.device))
    return trainable.unet(
        torch.zeros(1, channels, side, side, dtype=trainable.dtype, device=trainable.device),
        torch.zeros(1, device=trainable.device),
        context=context.to(trainable.dtype),
        y=None if pooled is None else pooled.to(trainable.dtype),
        transformer_options={} if trainable.options is None else trainable.options(row),
    )


def _check(model, need: MemoryNeed, others: dict[str, MemoryNeed], otherwise: str) -> None:
    check_fits(need, devices.free_memory_for(model, need.missing), others, otherwise)
