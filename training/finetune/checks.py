"""Which models, and which earlier subjects, a training takes; the host's classes tell."""

import sys
from importlib.util import find_spec

from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_sampling import EPS, V_PREDICTION, ModelSamplingDiscrete
from torch import Tensor

from ...conditioning.family import family, working_side
from ..objective import Prediction
from ..optimizers import check_optimizer
from .data import LATENT_PIXEL
from .lora import exported_shapes, lora_layers
from .lora_formats import lora_names
from .recipes import Recipe
from .subject import Subject
from .trainer import NoiseSchedule

# What a network predicts, told by how the host undoes it; subclasses that do it otherwise are not these.
PREDICTIONS: dict[object, Prediction] = {
    EPS.calculate_denoised: "epsilon",
    V_PREDICTION.calculate_denoised: "v",
}


def check_trainable_model(model, recipe: Recipe) -> None:
    """Raises ValueError, naming the mend, for a model the recipe cannot train."""
    base = model.model
    if not isinstance(base.diffusion_model, UNetModel) or prediction_of(model) is None:
        raise ValueError(
            f"model: {family(model)} is no Stable Diffusion UNet; load an SD 1.5, SD 2 or SDXL"
            " inpainting checkpoint."
        )
    channels = base.diffusion_model.in_channels
    if channels == 4 and recipe.inpainting_only:
        raise ValueError(
            f"model: this is a text-to-image model ({family(model)}, 4 channels); load an"
            " inpainting checkpoint (9 channels)."
        )
    if channels not in (4, 9) or (channels == 9 and tuple(base.concat_keys) != ("mask", "masked_image")):
        raise ValueError(
            f"model: its UNet takes {channels} channels, which is no inpainting model; load an"
            " inpainting checkpoint (9 channels)."
        )
    if recipe.adapter.kind == "lora":
        lora_layers(base.diffusion_model, recipe.adapter)
        check_peft()
    check_optimizer(recipe.optimiser)


def check_peft() -> None:
    """Raises ValueError where PEFT, which makes the LoRA, is not installed."""
    if find_spec("peft") is None:
        raise ValueError(
            f"recipe: a LoRA needs peft, which is not installed; run {sys.executable} -m pip install peft,"
            " then start ComfyUI anew."
        )


def check_previous(model, recipe: Recipe, subject: Subject, lora: dict[str, Tensor]) -> None:
    """Raises ValueError for a subject that this training cannot go on from."""
    if subject.family != family(model):
        raise ValueError(
            f"previous: {subject.words} was trained for {subject.family} but the model is {family(model)};"
            " load the model it was trained on."
        )
    ranks = {tensor.shape[0] for key, tensor in lora.items() if key.endswith(".lora_down.weight")}
    if recipe.adapter.kind == "lora" and ranks and ranks != {recipe.adapter.rank}:
        raise ValueError(
            f"previous: {subject.words} was trained with rank {max(ranks)} but this run asks for rank"
            f" {recipe.adapter.rank}; set rank to {max(ranks)}."
        )
    shapes = exported_shapes(model.model.diffusion_model, recipe.adapter, lora_names(model))
    if {key: tuple(tensor.shape) for key, tensor in lora.items()} != shapes:
        raise ValueError(
            f"previous: {subject.words} was trained on other layers than this run would train; choose its"
            f" recipe ({subject.recipe}) and the model it was trained on."
        )


def crop_size(model, recipe: Recipe) -> int:
    """The side of the crops to train on: what the recipe asks for, fitted to VAE and UNet levels."""
    step = LATENT_PIXEL * 2 ** (len(model.model.diffusion_model.channel_mult) - 1)
    return max(step, round((recipe.resolution or working_side(model)) / step) * step)


def prediction_of(model) -> Prediction | None:
    """What the network of a MODEL with a table of noise levels predicts, as it is wired; else None."""
    sampling = type(model.get_model_object("model_sampling"))
    tabled = sampling.timestep is ModelSamplingDiscrete.timestep
    return PREDICTIONS.get(sampling.calculate_denoised) if tabled else None


def diffusion_of(model) -> NoiseSchedule:
    """The noise levels and the prediction of a MODEL that `check_trainable_model` takes."""
    prediction = prediction_of(model)
    assert prediction is not None
    return NoiseSchedule(model.get_model_object("model_sampling").sigmas.clone().cpu(), prediction)
