"""The trainer's door to ComfyUI: what decides a result, encoding, trainable twins, the run itself."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import comfy.model_management
import comfy.sd
import torch
from comfy.ldm.modules.attention import BasicTransformerBlock, attention_pytorch
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from torch import Tensor, nn

from ...attention.patch import region_options
from .checks import diffusion_of, prediction_of
from .data import Concept, Examples, prepare_examples
from .gradient_checkpointing import recompute
from .lora import attach_adapter
from .lora_formats import lora_names
from .preflight import check_parameters_fit, check_step_fits, precision_of
from .preview import as_model
from .recipes import Recipe
from .store import fingerprint
from .trainer import SINGLE_PROCESS, ProcessGroup, TrainableModel, finetune
from .training_loop import TrainingState

BLOCKS = (ResBlock, BasicTransformerBlock)  # what gradient checkpointing computes twice


def model_fingerprint(model, clip, vae) -> str:
    """A fingerprint of everything wired in that decides the result; see `store.fingerprint`."""
    parts = (("model", model), ("clip", clip.patcher), ("vae", vae.patcher))
    sigmas = model.get_model_object("model_sampling").sigmas
    said = f"sigmas {prediction_of(model)} {clip.layer_idx}"
    return fingerprint(
        [(said, sigmas), *(pair for part, patcher in parts for pair in _weights(part, patcher))]
    )


def _weights(part: str, patcher):
    """The weights without patches, wherever the host keeps them now, and the patches beside them."""
    for key, weight in patcher.model.state_dict().items():
        yield f"{part}.{key}", patcher.backup[key].weight if key in patcher.backup else weight
    for key, patches in patcher.patches.items():
        yield from _patches(f"{part}.{key}", patches)


def _patches(place: str, patches):
    """One weight's patches as the host lists them; a merge's is another model's weight and its patches."""
    for number, (strength, patch, strength_model, offset, *_) in enumerate(patches):
        said = f"{place} {number} {strength} {strength_model} {offset}"
        if isinstance(patch, list):
            yield f"{said} merged", patch[0][0]  # the function beside it is the layer's own
            yield from _patches(said, patch[1:])
            continue
        values = list(_flat(getattr(patch, "weights", patch)))
        rest = [type(patch).__name__, *(value for value in values if not isinstance(value, Tensor))]
        for i, tensor in enumerate(value for value in values if isinstance(value, Tensor)):
            yield f"{said} {i} {rest}", tensor


def _flat(values):
    """What lists and tuples inside one another hold, in order."""
    if not isinstance(values, list | tuple):
        yield values
        return
    for value in values:
        yield from _flat(value)


def trainable_copy(model, dtype: torch.dtype) -> nn.Module:
    """The model's UNet as modules of its own over the same memory, ready for gradients.

    The host makes its weights in inference mode, where autograd refuses them; a tensor made outside over the
    same storage is an ordinary one. Nothing is copied unless `dtype` differs, nothing is written, and the
    wired-in model never learns of it.
    """
    unet = model.model.diffusion_model
    shared = {
        id(w): nn.Parameter(outside_inference_mode(w).to(dtype), requires_grad=False)
        for w in unet.parameters()
    }
    shared |= {id(b): outside_inference_mode(b) for b in unet.buffers()}
    network = copy.deepcopy(unet, shared)
    for layer in network.modules():
        if hasattr(layer, "comfy_cast_weights"):
            layer.comfy_cast_weights = False  # the weights have the right type already
    return network


def outside_inference_mode(tensor: Tensor) -> Tensor:
    trainable_copy = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return trainable_copy.set_(
        tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride()
    )


def encode_text(model, clip, caption: str, size: int) -> tuple[Tensor, Tensor | None]:
    """The caption's context (1,L,D), and the label embedding (1,P) where the UNet has one (SDXL)."""
    context, pooled = clip.encode_from_tokens(clip.tokenize(caption), return_pooled=True)
    label = model.model.encode_adm(pooled_output=pooled, width=size, height=size, device=context.device)
    return context, label


def encode_examples(model, clip, vae, material: Concept, recipe: Recipe, size: int, seed: int) -> Examples:
    """The material as `Examples` of ordinary tensors on the CPU."""
    context, pooled = encode_text(model, clip, material.caption, size)

    def encode(picture: Tensor) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        return model.model.process_latent_in(vae.encode(picture)).float().cpu()

    examples = prepare_examples(material.references, recipe, size, encode, context, pooled, seed)
    with torch.inference_mode(False):
        return examples.cloned()


def train_lora(
    model,
    examples: Sequence[Examples],
    recipe: Recipe,
    seed: int,
    resume: TrainingState | None = None,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
    on_save: Callable[[TrainingState], None] | None = None,
    save_every: int = 0,
    start: dict[str, Tensor] | None = None,
    checkpointing: bool = False,
    watch: Callable[[Any, int], None] | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> tuple[dict[str, Tensor], list[float]]:
    """Finetune on the wired-in MODEL without touching it: the LoRA's tensors and the loss of every step.

    `examples` are the subject's and, where there are regular pictures, theirs. `start`: a LoRA to begin with.
    `watch(model, step)` is called after every step with a MODEL over the weights of the moment; `on_stage`
    with what happens before the first step.
    Raises ValueError before the first step when it will not fit into memory.
    """
    # Where the host pages weights in and out by itself, training needs a copy that stays.
    model = model.clone(disable_dynamic=True) if model.is_dynamic() else model
    dtype = precision_of(model, recipe)
    check_parameters_fit(model, recipe, dtype)
    on_stage("loading the model")
    comfy.model_management.load_models_gpu([model], force_full_load=True)
    with torch.inference_mode(False), torch.enable_grad():
        trainable = _trainable_model(model, recipe, dtype, seed, start)
        blocks = [layer for layer in trainable.unet.modules() if isinstance(layer, BLOCKS)]
        on_stage("measuring memory")
        check_step_fits(model, trainable, recipe, examples, blocks, checkpointing, group)
        comfy.model_management.throw_exception_if_processing_interrupted()
        on_stage("first step")
        if checkpointing:
            recompute(blocks)
        live = as_model(model, trainable.unet, dtype) if watch else None

        def after_step(step: int, loss: float) -> None:
            on_step(step, loss)
            if watch:
                watch(live, step)
            comfy.model_management.throw_exception_if_processing_interrupted()

        losses = finetune(
            trainable,
            recipe,
            examples[0],
            seed,
            examples[1] if len(examples) > 1 else None,
            resume=resume,
            on_step=after_step,
            on_save=on_save,
            save_every=save_every,
            group=group,
        )
        return trainable.adapter.export(lora_names(model)), losses


def _trainable_model(
    model, recipe: Recipe, dtype: torch.dtype, seed: int, start: dict[str, Tensor] | None
) -> TrainableModel:
    unet = trainable_copy(model, dtype)
    adapter = attach_adapter(unet, recipe.adapter, dtype, seed)
    if start:
        adapter.load(start, lora_names(model))
    return TrainableModel(
        unet,
        diffusion_of(model),
        adapter,
        dtype,
        inpainting=model.model.diffusion_model.in_channels == 9,
        regions=attention_options(unet, recipe.masked_cross_attention, model.load_device),
        device=model.load_device,
    )


def attention_options(unet: nn.Module, masked: bool, device: torch.device) -> Callable[[Tensor], dict]:
    """The `transformer_options` of a training step from its holes (B,h,w) on the CPU.

    `masked` keeps the words inside the hole (DreamCom eq. 2); self-attention is masked in inference only. The
    host may run SageAttention or another kernel without gradients; training takes PyTorch's.
    """

    def differentiable(chosen, *args, **kwargs):
        return attention_pytorch(*args, **kwargs)

    options = {"optimized_attention_override": differentiable}
    if not masked:
        return lambda hole: dict(options)
    return lambda hole: region_options(
        unet, hole, attend=attention_pytorch, device=device, transformer_options=options
    )


def apply(model, lora: dict[str, Tensor]):
    """A clone of MODEL with the LoRA on it, through the host's own loader."""
    patched, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
    return patched
