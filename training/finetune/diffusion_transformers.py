"""Finetuning of diffusion transformers: what a family's row means for a recipe, a pass through the host."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...families.table import FILL, NO_REFERENCES, Family
from ...host import families, models
from ...host.training import HostPass
from ..objective import NoiseSchedule, draw_sigmas
from .data import Examples
from .recipes import RECIPES, AdapterSpec, Recipe

# Of the loss outside the hole, where the loss alone shows the hole: ai-toolkit's mask_min_value and
# OneTrainer's unmasked_weight. With 1 the backgrounds are learned as well as the subject.
WEIGHT_OUTSIDE = 0.1
FILL_CELL = 8  # pixels to a latent pixel of FLUX.1
BY_CHANNELS, BY_REFERENCE, BY_LOSS = "channels", "reference", "loss"  # values of Recipe.hole_condition


def check_transformer(model, row: Family, recipe: Recipe, inpaint_patch: bool = False) -> None:
    """Raise ValueError, naming the mend, for a transformer that the recipe cannot train."""
    if row.trainable:
        raise ValueError(f"model: {row.label} cannot be trained here: {row.trainable}.")
    if models.prediction_of(model) is None:
        raise ValueError(
            "model: a node before this one changes what the model predicts in a way that cannot be trained;"
            " wire the model as its loader gives it."
        )
    if inpaint_patch:
        raise ValueError(f"inpaint_patch: it is made for SDXL and this is {row.label}; leave the patch out.")
    if recipe.adapter.kind == "full":
        raise ValueError(
            f"recipe: {recipe.name} trains every weight, which is made for Stable Diffusion; choose a recipe"
            f" with a LoRA for {row.label}, such as DreamCom."
        )
    reads = {BY_CHANNELS: row.condition == FILL, BY_REFERENCE: row.references != NO_REFERENCES, BY_LOSS: True}
    if not reads[recipe.hole_condition]:
        missing = "has no mask channels" if recipe.hole_condition == BY_CHANNELS else "reads no references"
        raise ValueError(
            f'hole: {row.label} {missing}; leave it at "preset" (in a TOML file, hole_condition at "auto").'
        )
    if recipe.subject_references and recipe.hole_condition != BY_REFERENCE:
        raise ValueError(
            f"subject_references: {row.label} reads no reference pictures here; set it to 0, or train an edit"
            " model such as FLUX.2, Kontext or Qwen-Image-Edit."
        )


def distilled_note(model) -> str:
    """Return a sentence for the user where a distilled model is wired in, else ""."""
    row = families.family_of(model)
    if row is None or not row.transformer or not row.distilled(families.file_name(model)):
        return ""
    return (
        f"model: {families.file_name(model)} is distilled to a few steps, and training makes it blurred;"
        f" train on {row.train_on} and use the LoRA with this model."
    )


def with_family_numbers(recipe: Recipe, model) -> Recipe:
    """Return a recipe with the numbers of the MODEL's family where it still has its own; for transformers."""
    row, base = families.family_of(model), RECIPES.get(recipe.name)
    if row is None or not row.transformer or base is None:
        return recipe
    numbers = row.training
    if recipe.steps == base.steps:
        recipe = replace(recipe, steps=numbers.steps)
    if recipe.adapter.rank == base.adapter.rank:
        alpha = None if base.adapter.alpha is None else float(numbers.rank)
        recipe = replace(recipe, adapter=replace(recipe.adapter, rank=numbers.rank, alpha=alpha))
    if recipe.optimiser == base.optimiser:
        recipe = replace(recipe, optimiser=replace(recipe.optimiser, learning_rate=numbers.learning_rate))
    return recipe


def resolved_recipe(recipe: Recipe, model) -> Recipe:
    """Return a recipe with everything decided that it leaves to the MODEL's family; UNets' stay."""
    row = families.family_of(model)
    if row is None or not row.transformer:
        return recipe
    name, numbers = families.file_name(model), row.training
    condition = recipe.hole_condition
    if condition == "auto":
        condition = BY_CHANNELS if row.condition == FILL else BY_REFERENCE if row.edits(name) else BY_LOSS
    weights = recipe.weight_inside, recipe.weight_outside
    return replace(
        recipe,
        adapter=replace(recipe.adapter, targets=(), pattern=_pattern(recipe.adapter, row)),
        hole_condition=condition,
        timesteps=numbers.timesteps if recipe.timesteps == "auto" else recipe.timesteps,
        shift=numbers.shift if recipe.shift is None else recipe.shift,
        guidance=numbers.guidance if recipe.guidance is None else recipe.guidance,
        weight_outside=WEIGHT_OUTSIDE if condition == BY_LOSS and weights == (1.0, 1.0) else weights[1],
        masked_cross_attention=False,  # there is no cross-attention: text and picture attend together
        inpainting_only=False,
    )


def _pattern(spec: AdapterSpec, row: Family) -> str:
    if spec.pattern:
        return spec.pattern
    return row.lora.attention if spec.layers == "attention" and row.lora.attention else row.lora.targets


def transformer_schedule(model, recipe: Recipe) -> NoiseSchedule:
    """Return the noise levels that a resolved recipe draws, and the prediction of a MODEL."""
    prediction = models.prediction_of(model)
    assert prediction is not None
    table = models.noise_levels(model).clone().cpu()
    if prediction != "velocity":
        return NoiseSchedule(table, prediction)
    draw = partial(draw_sigmas, shift=recipe.shift or 0.0, logit_normal=recipe.timesteps == "logit-normal")
    return NoiseSchedule(table, prediction, draw)


@dataclass(frozen=True)
class TransformerPass:
    """A training pass of a transformer through the host.

    Attributes:
        host: the host's own forward pass.
        family: the model's row.
        condition: how the network learns where the hole is, a value of `Recipe.hole_condition`.
        guidance: of the guidance embedding, None where the network has none.
        texts: keyword arguments of the host's `extra_conds`, by the number of a caption.
        references: latents (1, C, h, w) of the subject's pictures, as the VAE gives them.
    """

    host: HostPass
    family: Family
    condition: str
    guidance: float | None
    texts: Sequence[Mapping[str, Any]]
    references: Sequence[Tensor] = ()

    def __call__(self, rows: Examples, noise: Tensor, sigma: Tensor) -> Tensor:
        """Return the prediction (B, C, h, w) for rows at `sigma` (B,).

        Rows of different captions or references run one after another: text is never repeated or padded,
        because every token of it takes part in the attention.
        """
        assert rows.caption is not None
        shown = [()] * len(rows) if rows.subject_references is None else rows.subject_references.tolist()
        keys = list(zip(rows.caption.tolist(), map(tuple, shown), strict=True))
        if len(set(keys)) == 1:
            return self._predict(rows, noise, sigma, *keys[0])
        groups = [
            torch.tensor([i for i, other in enumerate(keys) if other == key]) for key in dict.fromkeys(keys)
        ]
        parts = [
            self._predict(rows.take(group.to(sigma.device)), noise[group], sigma[group], *keys[int(group[0])])
            for group in groups
        ]
        return torch.cat(parts)[torch.cat(groups).argsort()]

    def _predict(
        self, rows: Examples, noise: Tensor, sigma: Tensor, caption: int, shown: Sequence[int]
    ) -> Tensor:
        return self.host(rows.latent, noise, sigma, self.values(rows, caption, shown))

    def values(self, rows: Examples, caption: int, shown: Sequence[int] = ()) -> dict[str, Any]:
        """Return the entries of a CONDITIONING for rows of one caption, as in sampling.

        shown: numbers of the subject's pictures that stand beside the rows; -1: none.
        """
        values = dict(self.texts[caption])
        if self.guidance is not None:
            values["guidance"] = self.guidance
        masked = self.host.raw(rows.masked)
        references = [self.references[number].to(masked) for number in shown if number >= 0]
        return values | hole_values(self.condition, self.family, masked, hole_in_pixels(rows), references)


def hole_in_pixels(rows: Examples) -> Tensor:
    """Return the holes (B, 1, H, W) in pixels; without them, those of the latents' grid."""
    if rows.pixel_mask is not None:
        return rows.pixel_mask.to(rows.mask)
    return rows.mask.repeat_interleave(FILL_CELL, -1).repeat_interleave(FILL_CELL, -2)


def hole_values(
    condition: str, row: Family, masked: Tensor, mask: Tensor, references: Sequence[Tensor] = ()
) -> dict[str, Any]:
    """Return the entries of a CONDITIONING by which a network learns where the hole is.

    Args:
        condition: a value of `Recipe.hole_condition`.
        row: the model's family.
        masked: latents of the pictures with a grey hole, as the VAE gives them.
        mask: the holes (B, 1, H, W) in pixels.
        references: latents (1, C, h, w) of the subject's pictures, which follow the picture with the hole.
    """
    if condition == BY_CHANNELS:
        return {"concat_latent_image": masked, "concat_mask": mask}
    if condition == BY_REFERENCE:
        method = {"reference_latents_method": row.reference_method} if row.reference_method else {}
        return {"reference_latents": [masked, *references]} | method
    return {}


def transformer_pass(
    model,
    network: nn.Module,
    dtype: torch.dtype,
    recipe: Recipe,
    texts: Sequence[Mapping[str, Any]],
    references: Sequence[Tensor] = (),
) -> TransformerPass:
    """Return the pass of a MODEL's trainable network by a resolved recipe."""
    row = families.require_family(model)
    host = HostPass(model, network, dtype, row.time_axis)
    return TransformerPass(host, row, recipe.hole_condition, recipe.guidance, texts, references)
