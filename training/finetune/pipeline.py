"""MODEL, CLIP and VAE of the host as a training needs them: what identifies them, examples, a network."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...attention.patch import region_options
from ...conditioning.edit_prompt import prepare_photo
from ...conditioning.fooocus import InpaintPatch, block_patch, patch_weights
from ...host import devices, families, models
from ...host.sampling import condition
from ...host.training import blocks_of, frozen_copy, text_values, training_switches
from ...host.vae import PictureVae, encode_distribution, encoder_weights
from ...imaging.latent_mask import inpaint_pictures
from ...imaging.references import is_whole_frame
from ...imaging.views import resize_image
from .checks import (
    check_parameters_fit,
    check_step_fits,
    crop_grid,
    diffusion_of,
    keeps_quantised,
    needs_offload,
    precision_of,
)
from .data import (
    Concept,
    Examples,
    Reference,
    TrainingSet,
    bucketed,
    buckets_of,
    prepare_examples,
    shrunk_hole,
)
from .diffusion_transformers import transformer_pass, transformer_schedule
from .lora import attach_adapter
from .lora_formats import lora_names
from .memory import GIGABYTE, recompute
from .recipes import Recipe
from .store import fingerprint, rounded_samples
from .trainer import (
    DEFAULT_OPTIONS,
    HELD_OUT_LEVELS,
    Callbacks,
    HeldOutLoss,
    RunOptions,
    TrainableModel,
    Trainer,
    TrainingState,
)


class Pipeline(NamedTuple):
    """MODEL, CLIP and VAE of one checkpoint, as the host's loader gives them.

    `inpaint_patch`: Fooocus' deltas and head for a plain SDXL model, which `with_deltas` adds to the MODEL.
    """

    model: Any
    clip: Any
    vae: Any
    inpaint_patch: InpaintPatch | None = None

    def with_deltas(self) -> "Pipeline":
        """Return this pipeline with the inpaint patch's deltas on its MODEL."""
        if self.inpaint_patch is None:
            return self
        return self._replace(model=patch_weights(self.model, self.inpaint_patch))


class EncodedText(NamedTuple):
    """A caption's context (1, L, D), and its label embedding (1, P) where the network has one (SDXL).

    `values`: for a transformer, all keyword arguments of the host's `extra_conds`.
    """

    context: Tensor
    label: Tensor | None
    values: Mapping[str, Any] | None = None


def encode_captions(pipeline: Pipeline, captions: Sequence[str], size: int) -> dict[str, EncodedText]:
    """Return every caption as the network sees it; `size` is the side of the training's crops in pixels."""
    texts = {}
    for caption in dict.fromkeys(captions):
        clip = pipeline.clip
        if families.is_transformer(pipeline.model):
            values = text_values(condition(clip, caption))
            pooled = values.get("pooled_output")
            texts[caption] = EncodedText(values["cross_attn"], pooled, values)
            continue
        context, pooled = clip.encode_from_tokens(clip.tokenize(caption), return_pooled=True)
        texts[caption] = EncodedText(
            context, models.label_embedding(pipeline.model, pooled, size, context.device)
        )
    return texts


# What identifies a pipeline


def pipeline_fingerprint(pipeline: Pipeline, texts: Mapping[str, EncodedText]) -> str:
    """Return a fingerprint of what decides a training's result: network, encoding of pictures, encoded text.

    It holds no weight that takes no part. A file may lack some of a text encoder's, such as the projection of
    the pooled vector, and the host leaves those uninitialised.
    """
    return fingerprint(_deciding_tensors(pipeline, texts))


def _deciding_tensors(pipeline: Pipeline, texts: Mapping[str, EncodedText]) -> Iterator[tuple[str, Tensor]]:
    yield f"sigmas {models.prediction_of(pipeline.model)}", models.noise_levels(pipeline.model)
    for key, weight in models.weights_of(pipeline.model):
        yield f"model.{key}", weight
    for key, weight in encoder_weights(pipeline.vae):
        yield f"vae.{key}", weight
    if pipeline.inpaint_patch is not None:
        yield "head", pipeline.inpaint_patch.head.get_parameter("head")
    for caption, text in texts.items():
        yield f"context {caption}", rounded_samples(text.context)
        if text.label is not None:
            yield f"label {caption}", rounded_samples(text.label)
    parts = (("model", pipeline.model), ("clip", pipeline.clip.patcher), ("vae", pipeline.vae.patcher))
    for part, patcher in parts:
        for number, (key, patch) in enumerate(models.patches_of(patcher)):
            yield f"{part}.{key} patch {number} {patch.facts}", torch.empty(0)
            for i, tensor in enumerate(patch.tensors):
                yield f"{part}.{key} patch {number} {i}", tensor


def released_fingerprints(pipeline: Pipeline) -> list[str]:
    """Return the fingerprints that version 0.1.0 may have given these models.

    It hashed every weight of the text encoder. The first is of the weights as they are; in the second the
    projection of CLIP-L's pooled vector is 0, as unused memory of a new process usually is.
    """
    model, clip = pipeline.model, pipeline.clip
    parts = (("model", model), ("clip", clip.patcher), ("vae", pipeline.vae.patcher))
    head = f"sigmas {models.prediction_of(model)} {clip.layer_idx}", models.noise_levels(model)
    tensors = [head]
    for part, patcher in parts:
        tensors += [(f"{part}.{key}", weight) for key, weight in models.weights_of(patcher)]
        tensors += [(f"{part}.{name}", weight) for name, weight in models.patch_names_as_released(patcher)]
    zeroed = [
        (name, torch.zeros_like(weight) if name.startswith("clip.clip_l.") and "text_projection" in name
         else weight)
        for name, weight in tensors
    ]  # fmt: skip
    return list(dict.fromkeys([fingerprint(tensors), fingerprint(zeroed)]))


# Examples


def encode_examples(
    pipeline: Pipeline,
    concept: Concept,
    text: EncodedText,
    recipe: Recipe,
    size: int,
    seed: int,
    captions: Sequence[int] = (),
    class_captions: Sequence[int] = (),
) -> TrainingSet:
    """Return a concept as examples of ordinary tensors on the CPU.

    captions, class_captions: the number of each picture's text, and of the one with the class instead of the
        token. Without them every example has `text`, which transformers cannot read.
    """
    vae = PictureVae(pipeline.vae)

    def encode(pictures: Tensor) -> Tensor:
        devices.raise_if_interrupted()
        if not recipe.sample_posterior:
            return _scaled_latent(pipeline, vae.encode(pictures))
        if vae.film:  # the host's film autoencoders give the mean alone
            scaled = _scaled_latent(pipeline, vae.encode(pictures))
            return torch.cat([scaled, torch.zeros_like(scaled)], dim=1)
        mean, deviation = encode_distribution(pipeline.vae, pictures)
        scaled = _scaled_latent(pipeline, mean)
        return torch.cat([scaled, _scaled_latent(pipeline, mean + deviation) - scaled], dim=1)

    step = crop_grid(pipeline.model)
    examples = prepare_examples(
        concept.references, recipe, size, encode, text.context, text.label, seed, step
    )

    def captioned(part: Examples) -> Examples:
        if not captions:
            return part
        assert part.photo is not None
        return replace(
            part,
            context=torch.zeros(1, 0, 0),
            pooled=None,
            caption=torch.tensor(captions)[part.photo],
            class_caption=torch.tensor(class_captions)[part.photo] if class_captions else None,
        )

    with torch.inference_mode(False):
        return examples.map(lambda part: captioned(part).cloned())


def encode_references(pipeline: Pipeline, concept: Concept, size: int) -> list[Tensor]:
    """Return the latent (1, C, h, w) of every picture as an edit model is shown it in sampling.

    The subject is cut out on white, a picture without a mask stays whole; none is larger than a training
    crop of `size`.
    """
    vae, latents = PictureVae(pipeline.vae), []
    for image, mask in concept.references:
        own = None if is_whole_frame(mask) else mask[None]
        shown = prepare_photo(image[None].float(), own, "white", most_pixels=size * size)
        latents.append(vae.encode(shown).cpu())
    return latents


def encode_held_out(
    pipeline: Pipeline,
    held_out: Concept,
    texts: Mapping[str, EncodedText],
    recipe: Recipe,
    size: int,
    number_of_photo: int,
) -> Examples:
    """Return HELD_OUT_LEVELS examples of a picture that takes no part in the training."""
    numbered = families.is_transformer(pipeline.model)
    caption = held_out.caption
    few = replace(
        recipe,
        copies=HELD_OUT_LEVELS,
        steps=HELD_OUT_LEVELS,
        batch_size=1,
        accumulation=1,
        sample_posterior=False,
    )
    number = [list(texts).index(caption)] if numbered else []
    # The seed stays, so that trainings with different seeds can be compared.
    examples = encode_examples(pipeline, held_out, texts[caption], few, size, 0, number).first
    return replace(examples, photo=torch.full((HELD_OUT_LEVELS,), number_of_photo))


def encode_background(
    pipeline: Pipeline, background: Reference, size: int
) -> tuple[Examples, tuple[int, int]]:
    """Return a picture with its hole as one example, and its height and width without padding.

    It is resized to the area of a training crop of `size`.
    """
    height, width = background.mask.shape
    scale = size / math.sqrt(height * width)
    rows, columns = (max(1, round(length * scale)) for length in (height, width))
    image = resize_image(background.image[None].float(), rows, columns)
    # A maximum, so that no small hole vanishes.
    hole = F.adaptive_max_pool2d(background.mask[None], (rows, columns))
    picture, masked, hole = inpaint_pictures(image, hole, crop_grid(pipeline.model))
    vae = PictureVae(pipeline.vae)
    latent, masked = (_scaled_latent(pipeline, vae.encode(part)) for part in (picture, masked))
    mask = shrunk_hole(hole[:, None], latent.shape[-2:])
    row = Examples(
        latent, mask, masked, torch.ones_like(mask), torch.zeros(1, 0, 0), pixel_mask=hole[:, None].byte()
    )
    return row, (rows, columns)


def _scaled_latent(pipeline: Pipeline, latent: Tensor) -> Tensor:
    """Return latents of the VAE as the network sees them, (B, C, h, w) on the CPU."""
    scaled = models.latent_in(pipeline.model, latent).float().cpu()
    return scaled.squeeze(2) if scaled.ndim == 5 else scaled  # pictures: one frame


def encode_concepts(
    pipeline: Pipeline,
    concepts: Sequence[Concept],
    texts: Mapping[str, EncodedText],
    recipe: Recipe,
    size: int,
    seed: int,
    captions: Sequence[str] = (),
    class_captions: Sequence[str] = (),
) -> list[TrainingSet]:
    """Return the subject's examples and, where `concepts` go on with regular pictures, all of theirs.

    Args:
        captions: of each picture of the subject, where they have their own.
        class_captions: the same with the class instead of the token, for output preservation.
    """
    subject, *regular = concepts
    numbers = {caption: number for number, caption in enumerate(texts)}
    numbered = captions or class_captions or recipe.caption_dropout or families.is_transformer(pipeline.model)

    def encode(part: Concept, recipe: Recipe, own: Sequence[str], of_class: Sequence[str]) -> TrainingSet:
        chosen: list[int] = []
        if numbered:
            chosen = [numbers[caption] for caption in own or [part.caption] * len(part.references)]
        others = [numbers[caption] for caption in of_class]
        return encode_examples(pipeline, part, texts[part.caption], recipe, size, seed, chosen, others)

    examples = [encode(subject, recipe, captions, class_captions)]
    if regular:
        fewer = replace(recipe, copies=recipe.regular_copies)
        parts = [encode(part, fewer, (), ()) for part in regular]
        others = bucketed([bucket for part in parts for bucket in buckets_of(part)])
        with torch.inference_mode(False):
            examples.append(others.map(lambda part: replace(part, photo=torch.full((len(part),), -1))))
    return examples


# Training


class EncodedData(NamedTuple):
    """What a training is shown, encoded beforehand.

    Attributes:
        examples: the subject's and, where there are regular pictures, theirs.
        texts: every caption by its number; none where the examples hold the only caption's context.
        blank: the number of the empty caption.
        references: latents of the subject's pictures, where an edit model is shown them.
    """

    examples: Sequence[TrainingSet] = ()
    texts: Sequence[EncodedText] = ()
    blank: int = 0
    references: Sequence[Tensor] = ()


NO_DATA = EncodedData()


def train_lora(
    pipeline: Pipeline,
    data: EncodedData,
    recipe: Recipe,
    seed: int,
    options: RunOptions = DEFAULT_OPTIONS,
    start: Mapping[str, Tensor] | None = None,
    resume: TrainingState | None = None,
    held_out: HeldOutLoss | None = None,
    after_step: Callable[[Any, int], None] | None = None,
) -> tuple[dict[str, Tensor], list[float]]:
    """Finetune a pipeline's MODEL without changing it.

    Args:
        data: what it is shown.
        start: a LoRA to begin with, as `LoraAdapter.export` names it.
        resume: where an earlier run with the same arguments stopped.
        held_out: measured before the first step and after some of the others.
        after_step: called as `after_step(model, step)` with a MODEL over the weights of that step.

    Returns:
        The LoRA's tensors, and the loss of every step.

    Raises:
        ValueError: before the first step, when it will not fit into memory.
    """
    callbacks, card, examples = options.callbacks, options.card, data.examples
    dtype, offload = precision_of(pipeline.model, recipe), needs_offload(pipeline.model, recipe, card)
    check_parameters_fit(pipeline.model, recipe, dtype, offload)
    callbacks.on_stage("loading the model")
    model = models.load_fully(pipeline.model, offload)
    with torch.inference_mode(False), torch.enable_grad(), ExitStack() as switches:
        trainable = trainable_model(model, recipe, dtype, seed, data, start, pipeline.inpaint_patch, offload)
        transformer = trainable.host_pass is not None
        if transformer:
            switches.enter_context(training_switches(trainable.unet))
        blocks = blocks_of(trainable.unet) if transformer else models.block_modules(trainable.unet)
        callbacks.on_stage("measuring memory")
        step = check_step_fits(
            model, trainable, recipe, examples, blocks, options.checkpointing, options.group, card
        )
        devices.raise_if_interrupted()
        callbacks.on_stage(f"first step, with about {step.total / GIGABYTE:.1f} GB of memory")
        if step.checkpointing:
            switches.callback(recompute(blocks, in_place=transformer))
        live = models.model_around(model, trainable.unet, dtype) if after_step else None
        measure = held_out.begin(trainable, recipe) if held_out else None
        on_step = _step_hook(callbacks, measure, partial(after_step, live) if after_step else None)
        regular = examples[1] if len(examples) > 1 else None
        trainer = Trainer(trainable, recipe, seed, options.group)
        losses = trainer.fit(
            examples[0], regular, resume, replace(callbacks, on_step=on_step), options.save_every
        )
        return trainable.adapter.export(lora_names(model)), losses


def _step_hook(
    callbacks: Callbacks, measure: Callable[[int], None] | None, sample: Callable[[int], None] | None
) -> Callable[[int, float], None]:
    """Return what is called after a step. It measures first: a run that is stopped then has its point."""

    def on_step(step: int, loss: float) -> None:
        if measure:
            measure(step)
        callbacks.on_step(step, loss)
        if sample:
            sample(step)
        devices.raise_if_interrupted()

    return on_step


def trainable_model(
    model,
    recipe: Recipe,
    dtype: torch.dtype,
    seed: int,
    data: EncodedData = NO_DATA,
    start: Mapping[str, Tensor] | None = None,
    inpaint_patch: InpaintPatch | None = None,
    offload: bool = False,
) -> TrainableModel:
    """Return the network of a MODEL that `models.load_fully` gave, with its adapter.

    `recipe` is a resolved one; of `data` all but the examples is used; `offload`: the weights were loaded so.
    """
    if keeps_quantised(model):
        unet = frozen_copy(model, dtype, offload)
    else:
        unet = models.trainable_copy(model, dtype)
    adapter = attach_adapter(unet, recipe.adapter, dtype, seed)
    if start:
        adapter.load(dict(start), lora_names(model))
    if families.is_transformer(model):
        order = families.token_order(unet)
        return TrainableModel(
            unet,
            transformer_schedule(model, recipe),
            adapter,
            dtype,
            device=model.load_device,
            host_pass=transformer_pass(
                model,
                unet,
                dtype,
                recipe,
                [ordinary(text.values or {}) for text in data.texts],
                [reference.clone() for reference in data.references],
            ),
            patch=1 if order is None else families.patch_of(unet, order),
            blank=data.blank,
            pictures=len(data.references),
        )
    return TrainableModel(
        unet,
        diffusion_of(model),
        adapter,
        dtype,
        inpainting=models.input_channels(model) == 9,
        options=step_options(unet, recipe.masked_cross_attention, model.load_device, inpaint_patch),
        device=model.load_device,
        texts=[
            (text.context.clone(), None if text.label is None else text.label.clone()) for text in data.texts
        ],
        blank=data.blank,
        label_at=partial(models.label_at_size, model) if recipe.aspect_ratios == "buckets" else None,
    )


def ordinary(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same values with copies of the tensors, which the host may have made in inference mode."""
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in values.items()}


def step_options(
    unet: torch.nn.Module, masked: bool, device: torch.device, inpaint_patch: InpaintPatch | None = None
) -> Callable[[Examples], dict]:
    """Return the function that makes the `transformer_options` of a training step from its rows on the CPU.

    Args:
        masked: words reach the hole only (DreamCom eq. 2); self-attention is masked in inference only.
        inpaint_patch: its head's feature of mask and masked latent is added to the first convolution's
            output, as Fooocus does.
    """

    def differentiable(chosen, *args, **kwargs):
        return models.pytorch_attention(*args, **kwargs)  # SageAttention has no gradients

    def options(rows: Examples) -> dict:
        chosen: dict[str, Any] = {"optimized_attention_override": differentiable}
        if inpaint_patch is not None:
            add = block_patch(inpaint_patch, rows.mask.to(device), rows.masked.to(device))
            chosen["patches"] = {"input_block_patch": [add]}
        if not masked:
            return chosen
        return region_options(
            unet,
            rows.mask[:, 0],
            attend=models.pytorch_attention,
            device=device,
            transformer_options=chosen,
        )

    return options
