"""SubjectFinetune: train a model on a few pictures of a subject."""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import folder_paths
import torch
from comfy_api.latest import io

from ..conditioning.fooocus import InpaintPatch
from ..training.finetune.recipes import MEMORY_PRESETS, RECIPE_NAMES, LayerChoice, describe_preset
from ..training.optimizers import ADAFACTOR_RATE, OptimizerKind
from .checks import check_inpaint_patch, check_list_inputs, check_wired
from .training_progress import NodeProgress, workflow_id

PRESET = "preset"  # as the memory preset has it
# How a transformer learns where the hole is, and `Recipe.hole_condition`.
HOLE_WAYS = {"mask channels": "channels", "reference": "reference", "loss alone": "loss"}
RARE_NUMBERS = ("caption_dropout", "min_snr", "preservation")

LoraType, LossType = io.Custom("LORA_MODEL"), io.Custom("LOSS_MAP")
SubjectType, OptionsType = io.Custom("INLAY_SUBJECT"), io.Custom("INLAY_TRAINING_OPTIONS")
FooocusPatchType = io.Custom("INPAINT_PATCH")


class SubjectFinetune(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="SubjectFinetune",
            display_name="Train Subject (Inlay)",
            category="Inlay/train a subject",
            description="Teach an inpainting model your subject from a few pictures (DreamCom, DreamMix). The"
            " result is stored under models/loras/inlay; the same inputs are never trained twice.",
            search_aliases=[
                "subject finetune",
                "product photo",
                "train lora",
                "dreambooth",
                "dreamcom",
                "dreammix",
                "personalise",
                "subject",
                "inlay",
            ],
            is_input_list=True,
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model to teach; it is not changed. An inpainting checkpoint of SD 1.5, 2 or"
                    " SDXL (9 channels), FLUX.1 (Fill, Kontext, dev), FLUX.2, Qwen-Image (Edit), Z-Image,"
                    " Krea 2 or Chroma.",
                ),
                io.Clip.Input("clip", tooltip="The text encoder of the same checkpoint."),
                io.Vae.Input("vae", tooltip="The VAE of the same checkpoint."),
                io.Image.Input(
                    "images",
                    tooltip="Three to five pictures of the subject: a batch, or a list of different sizes."
                    " A fourth channel is taken as the subject's mask.",
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="One mask per picture, 1 on the subject, of the picture's size. Not wired: the"
                    " images' alpha; without one, the whole picture is the subject.",
                ),
                io.String.Input(
                    "class_name",
                    default="",
                    tooltip="What the subject is, in a word or two: cat, coffee mug.",
                ),
                io.String.Input(
                    "token",
                    default="sks",
                    tooltip='A rare word that will stand for your subject in prompts: "a photo of sks cat".',
                ),
                io.Combo.Input(
                    "recipe",
                    options=list(RECIPE_NAMES),
                    tooltip="Whose training. DreamCom: box holes, words kept inside them. DreamMix: free-form"
                    " holes, the subject weighed higher. DreamMix (released): what its code does.",
                ),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=100000,
                    tooltip="Training steps; 0 = the recipe's own (DreamCom 400, DreamMix 1000), or 1000 on a"
                    " transformer such as FLUX.",
                ),
                io.Int.Input(
                    "rank",
                    default=0,
                    min=0,
                    max=1024,
                    tooltip="Rank of the LoRA; 0 = the recipe's own (DreamCom 16, DreamMix 4), on a"
                    " transformer its family's (16 or 32).",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=1e-6,
                    round=1e-7,
                    tooltip="0 = the recipe's own (LoRA 1e-4, full UNet 5e-6).",
                ),
                io.Int.Input(
                    "batch_size",
                    default=0,
                    min=0,
                    max=256,
                    tooltip="Pictures in one pass; 0 = the recipe's own (1). DreamMix adds up four passes"
                    " to a step.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=io.ControlAfterGenerate.fixed,  # another seed is another training
                    tooltip="The same seed on the same machine gives the same weights.",
                ),
                io.Int.Input(
                    "resolution",
                    default=0,
                    min=0,
                    max=4096,
                    step=8,
                    advanced=True,
                    tooltip="Side in pixels of the square crops it trains on, or of a square with the area of"
                    " the buckets; 0 = the model's own (SD 1.5 512, SD 2 512 or 768, the others 1024).",
                ),
                io.Image.Input(
                    "regular_images",
                    optional=True,
                    tooltip="Other pictures of the class, which keep the model from forgetting what it knew"
                    " (DreamMix eq. 8). DreamMix's recipes use them.",
                ),
                io.Mask.Input(
                    "regular_masks", optional=True, tooltip="One mask per regular picture, as for the images."
                ),
                io.String.Input(
                    "regular_prompt",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip='What the regular pictures show; empty = "a" and the class name. A list: one for'
                    " each of them.",
                ),
                SubjectType.Input(
                    "previous",
                    optional=True,
                    tooltip="A subject to go on from: the training starts with its weights. Wire the model it"
                    " was trained on, and the same recipe and rank.",
                ),
                io.Int.Input(
                    "preview_every",
                    default=100,
                    min=0,
                    max=100000,
                    optional=True,
                    tooltip="Every so many steps, fill the first hole with what is learned so far: on the"
                    " node while it trains, and in the picture it gives. 0 = never. Changes no weight.",
                ),
                io.Combo.Input(
                    "memory",
                    options=list(MEMORY_PRESETS),
                    default="recipe",
                    optional=True,
                    tooltip="For a graphics card of that size. "
                    + " ".join(
                        f"{name}: {describe_preset(preset)}." for name, preset in MEMORY_PRESETS.items()
                    ),
                ),
                io.Combo.Input(
                    "precision",
                    options=[PRESET, "fp32", "bf16", "fp16"],
                    default=PRESET,
                    optional=True,
                    advanced=True,
                    tooltip="Of the network's arithmetic, over the preset. The trained weights are float32 in"
                    " any case; fp16 scales its loss.",
                ),
                io.Combo.Input(
                    "optimiser",
                    options=[PRESET, *get_args(OptimizerKind)],
                    default=PRESET,
                    optional=True,
                    advanced=True,
                    tooltip="AdamW, with its moments in 8 bits (needs bitsandbytes), or Adafactor, which"
                    f" keeps least; its own learning rate is {ADAFACTOR_RATE:g}, of each weight's size."
                    " Prodigy (needs prodigyopt) finds the learning rate itself: leave learning_rate at 0,"
                    " which is 1.",
                ),
                io.Combo.Input(
                    "gradient_checkpointing",
                    options=[PRESET, "on", "off"],
                    default=PRESET,
                    optional=True,
                    advanced=True,
                    tooltip="Compute each block twice instead of keeping what it computed: less memory, up"
                    " to half more time, the same weights.",
                ),
                io.Float.Input(
                    "ema_decay",
                    default=0.0,
                    min=0.0,
                    max=0.9999,
                    step=0.0001,
                    optional=True,
                    advanced=True,
                    tooltip="Give the running mean of the weights instead of the last ones, which is"
                    " smoother: 0.99 is a mean over about 100 steps. 0 = off.",
                ),
                io.String.Input(
                    "attributes",
                    default="",
                    optional=True,
                    multiline=True,
                    tooltip="What the subject looks like, as Attribute Dictionary gives it or typed: colour:"
                    " brown; material: clay. It goes into the subject, for Edit Subject Prompt;"
                    " it changes no weight.",
                ),
                OptionsType.Input(
                    "options",
                    optional=True,
                    tooltip="From Training Options: the settings that few users change. What is set there is"
                    " used instead of this node's own value.",
                ),
                FooocusPatchType.Input(
                    "inpaint_patch",
                    optional=True,
                    tooltip="Fooocus' inpaint patch for a plain SDXL model, from Load Fooocus Inpaint:"
                    " DreamMix's own base. Wire the same patch into Inpaint Subject.",
                ),
                io.String.Input(
                    "captions",
                    default="",
                    optional=True,
                    multiline=True,
                    advanced=True,
                    tooltip="What each picture shows, beside the subject: a list, one for each, or one for"
                    " all. The recipe's own words are put before a caption that lacks the token.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The wired-in model with the LoRA applied."),
                LoraType.Output(display_name="lora", tooltip="For Save LoRA Weights and Load LoRA Model."),
                LossType.Output(display_name="loss", tooltip="For Plot Loss Graph."),
                SubjectType.Output(
                    display_name="subject",
                    tooltip="The subject's words, weights and history, for Inlay's other nodes.",
                ),
                io.Image.Output(display_name="curve", tooltip="The loss and samples over the steps."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
        )

    @classmethod
    @check_list_inputs
    def execute(
        cls, model, clip, vae, images, class_name, token, recipe, steps, rank, learning_rate, batch_size,
        seed, resolution=(0,), masks=None, regular_images=None, regular_masks=None, regular_prompt=("",),
        previous=(None,), preview_every=(0,), memory=("recipe",), precision=(PRESET,), optimiser=(PRESET,),
        gradient_checkpointing=(PRESET,), ema_decay=(0.0,), attributes=("",), options=(None,),
        inpaint_patch=(None,), captions=("",),
    ):  # fmt: skip
        """Train the subject or load it from the store; return its model, LoRA, losses, subject and curve."""
        if options[0] is not None and not isinstance(options[0], dict):
            raise ValueError(f"options: it is a {type(options[0]).__name__}; wire Training Options.")
        settings = {
            "rank": rank[0], "learning_rate": learning_rate[0], "batch_size": batch_size[0],
            "resolution": resolution[0], "precision": precision[0], "optimiser": optimiser[0],
            "gradient_checkpointing": gradient_checkpointing[0], "ema_decay": ema_decay[0],
            "attributes": attributes[0],
        } | (options[0] or {})  # fmt: skip
        # The trainer is loaded when it is needed: a host starts sooner without.
        from ..host.models import apply_lora
        from ..training.finetune.attribute_dictionary import parse_attributes
        from ..training.finetune.finetune_subject import RunOptions, finetune_subject
        from ..training.finetune.pipeline import Pipeline
        from ..training.finetune.progress import draw_curve, image_to_tensor
        from ..training.finetune.spec import spec_from_node
        from ..training.finetune.store import Store

        check_wired(model=model[0], clip=clip[0], vae=vae[0])
        if previous[0] is not None:
            check_wired(previous=previous[0])
        check_inpaint_patch(inpaint_patch[0])
        pipeline = Pipeline(model[0], clip[0], vae[0], inpaint_patch[0] and InpaintPatch(*inpaint_patch[0]))
        preset = MEMORY_PRESETS[memory[0]]
        chosen = chosen_recipe(recipe[0], steps[0], settings, preset, model[0])
        spec, notes = spec_from_node(
            pipeline, chosen, token[0], class_name[0], images, masks, regular_images, regular_masks,
            regular_prompt, seed[0], previous[0], parse_attributes(settings["attributes"]), captions,
            settings.get("held_out", False),
        )  # fmt: skip
        workflow = workflow_id(cls.hidden.extra_pnginfo)
        progress = NodeProgress(chosen.steps, cls.hidden.unique_id, notes, workflow)
        run_options = RunOptions(
            checkpointing=checkpointing_of(settings, preset),
            card=preset.card,
            preview_every=preview_every[0],
            samples=samples_of(settings),
            callbacks=progress_callbacks(progress),
        )
        store = Store(Path(folder_paths.get_folder_paths("loras")[0]) / "inlay")
        with progress:
            trained = finetune_subject(pipeline, spec, store, run_options)
            subject, lora, strip = trained.subject, trained.lora, trained.strip
            if trained.was_stored:
                progress.show_stored(Path(subject.lora).name, subject.losses, strip, subject.held_out)
        title = f"{subject.words}, {subject.recipe}, {len(subject.losses)} steps"
        curve = draw_curve(subject.losses, title, notes=notes, held_out=subject.held_out)
        if strip:
            curve = torch.cat([curve, image_to_tensor(strip)], dim=1)
        patched = apply_lora(pipeline.model, lora)
        return io.NodeOutput(
            patched, lora, {"loss": subject.losses}, subject, curve, ui={"inlay_notes": notes}
        )


def checkpointing_of(settings: dict[str, Any], preset) -> bool | None:
    """Return whether gradient checkpointing is on, as chosen or as the memory preset has it."""
    return {PRESET: preset.checkpointing, "on": True, "off": False}[settings["gradient_checkpointing"]]


def progress_callbacks(progress: NodeProgress):
    """Return the callbacks that show a training on the node."""
    from ..training.finetune.trainer import Callbacks

    return Callbacks(
        on_step=progress,
        on_preview=progress.show,
        on_stage=progress.stage,
        on_held_out=progress.show_held_out,
    )


def samples_of(settings: dict[str, Any]):
    """Return what the samples of a training show. Raises ValueError for a picture without a place to fill."""
    from ..training.finetune.data import collect_background
    from ..training.finetune.generation import prompts_in
    from ..training.finetune.trainer import SampleOptions

    background = collect_background(settings.get("sample_image"), settings.get("sample_mask"))
    return SampleOptions(prompts_in(settings.get("sample_prompts", "")), background)


def chosen_recipe(name: str, steps: int, settings: dict[str, Any], preset, model):
    """Return the recipe of that name with the family's numbers, the user's settings and the memory preset."""
    from ..training.finetune.diffusion_transformers import with_family_numbers
    from ..training.finetune.memory import with_preset
    from ..training.finetune.recipes import RECIPES
    from ..training.optimizers import eight_bit_installed

    chosen = with_family_numbers(RECIPES[name], model).with_choices(
        steps=steps,
        rank=settings["rank"],
        learning_rate=settings["learning_rate"],
        batch_size=settings["batch_size"],
        resolution=settings["resolution"],
        optimiser=None if settings["optimiser"] == PRESET else settings["optimiser"],
        precision=None if settings["precision"] == PRESET else settings["precision"],
        ema_decay=settings["ema_decay"],
    )
    chosen = with_rare_choices(chosen, settings)
    return with_preset(chosen, preset, eight_bit_installed() and settings["optimiser"] == PRESET)


def with_rare_choices(recipe, settings: dict[str, Any]):
    """Return a recipe with the settings that only Training Options has.

    What is missing keeps the recipe's own.
    """
    adapter, optimiser, changes = {}, {}, {}
    if "hole" in settings:
        changes["hole_condition"] = HOLE_WAYS[settings["hole"]]
    if "layers" in settings:
        adapter["layers"] = settings["layers"]
    if "aspect_ratios" in settings:
        changes["aspect_ratios"] = settings["aspect_ratios"]
    if "adapter" in settings:
        adapter |= {name.lower(): settings["adapter"] == name for name in ("DoRA", "LoKr")}
    if "schedule" in settings:
        optimiser["schedule"] = settings["schedule"]
    if "warmup_steps" in settings:
        optimiser["warmup"] = settings["warmup_steps"]
    changes |= {name: settings[name] for name in RARE_NUMBERS if name in settings}
    if "subject_references" in settings:
        changes["subject_references"] = settings["subject_references"]
        changes["reference_dropout"] = settings.get("reference_dropout", 0.0)
    return replace(
        recipe,
        adapter=replace(recipe.adapter, **adapter),
        optimiser=replace(recipe.optimiser, **optimiser),
        **changes,
    )


class InlayTrainingOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InlayTrainingOptions",
            display_name="Training Options (Inlay)",
            category="Inlay/train a subject",
            description="The settings of Train Subject that few users change; what is left as it is keeps the"
            " recipe's own value.",
            search_aliases=[
                "finetune options",
                "learning rate",
                "lora rank",
                "optimizer",
                "advanced training",
            ],
            inputs=[
                io.Int.Input(
                    "rank",
                    default=0,
                    min=0,
                    max=1024,
                    tooltip="Rank of the LoRA; 0 = the recipe's own (DreamCom 16, DreamMix 4), on a"
                    " transformer its family's (16 or 32).",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=1e-6,
                    round=1e-7,
                    tooltip="0 = the recipe's own (LoRA 1e-4, full UNet 5e-6).",
                ),
                io.Int.Input(
                    "batch_size",
                    default=0,
                    min=0,
                    max=256,
                    tooltip="Pictures in one pass; 0 = the recipe's own (1). DreamMix adds up four passes"
                    " to a step.",
                ),
                io.Int.Input(
                    "resolution",
                    default=0,
                    min=0,
                    max=4096,
                    step=8,
                    tooltip="Side in pixels of the square crops it trains on, or of a square with the area of"
                    " the buckets; 0 = the model's own (SD 1.5 512, SD 2 512 or 768, the others 1024).",
                ),
                io.Combo.Input(
                    "precision",
                    options=[PRESET, "fp32", "bf16", "fp16"],
                    default=PRESET,
                    tooltip="Of the network's arithmetic, over the preset. The trained weights are float32 in"
                    " any case; fp16 scales its loss.",
                ),
                io.Combo.Input(
                    "optimiser",
                    options=[PRESET, *get_args(OptimizerKind)],
                    default=PRESET,
                    tooltip="AdamW, with its moments in 8 bits (needs bitsandbytes), or Adafactor, which"
                    f" keeps least; its own learning rate is {ADAFACTOR_RATE:g}, of each weight's size."
                    " Prodigy (needs prodigyopt) finds the learning rate itself: leave learning_rate at 0,"
                    " which is 1.",
                ),
                io.Combo.Input(
                    "gradient_checkpointing",
                    options=[PRESET, "on", "off"],
                    default=PRESET,
                    tooltip="Compute each block twice instead of keeping what it computed: less memory, up"
                    " to half more time, the same weights.",
                ),
                io.Float.Input(
                    "ema_decay",
                    default=0.0,
                    min=0.0,
                    max=0.9999,
                    step=0.0001,
                    tooltip="Give the running mean of the weights instead of the last ones, which is"
                    " smoother: 0.99 is a mean over about 100 steps. 0 = off.",
                ),
                io.String.Input(
                    "attributes",
                    default="",
                    multiline=True,
                    tooltip="What the subject looks like, as Attribute Dictionary gives it or typed: colour:"
                    " brown; material: clay. It goes into the subject, for Edit Subject Prompt;"
                    " it changes no weight.",
                ),
                io.Combo.Input(
                    "hole",
                    options=[PRESET, *HOLE_WAYS],
                    default=PRESET,
                    optional=True,
                    tooltip="How a transformer such as FLUX learns where the subject goes: mask channels"
                    " (FLUX.1 Fill), the picture with a grey hole as a reference (edit models), or the loss"
                    " alone. preset: as its model does. Other models: no effect.",
                ),
                io.Combo.Input(
                    "layers",
                    options=[PRESET, *get_args(LayerChoice)],
                    default=PRESET,
                    optional=True,
                    tooltip="Which layers of a transformer get the LoRA; attention alone makes a smaller"
                    " file. Other models: no effect.",
                ),
                io.Combo.Input(
                    "adapter",
                    options=[PRESET, "LoRA", "DoRA", "LoKr"],
                    default=PRESET,
                    optional=True,
                    tooltip="DoRA trains the size of each weight row apart from its direction: slower, and"
                    " according to its paper closer to training every weight. LoKr makes a far smaller file.",
                ),
                io.Combo.Input(
                    "schedule",
                    options=[PRESET, "constant", "cosine"],
                    default=PRESET,
                    optional=True,
                    tooltip="The learning rate stays as it is, or falls to 0 as half a cosine.",
                ),
                io.Int.Input(
                    "warmup_steps",
                    default=0,
                    min=0,
                    max=10000,
                    optional=True,
                    tooltip="Steps in which the learning rate rises from 0. 0 = as the recipe has it.",
                ),
                io.Float.Input(
                    "caption_dropout",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="Share of the pictures shown without a caption, which helps guidance: 0.05 is"
                    " usual. 0 = as the recipe has it.",
                ),
                io.Float.Input(
                    "min_snr",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.5,
                    optional=True,
                    tooltip="Weighs nearly clean pictures less (gamma of min-SNR; 5 is usual). SD models"
                    " only. 0 = off.",
                ),
                io.Float.Input(
                    "preservation",
                    default=0.0,
                    min=0.0,
                    max=10.0,
                    step=0.1,
                    optional=True,
                    tooltip="How strongly other things of the class are kept as the model knew them, without"
                    " regular pictures; 1 is usual. A step takes two more passes. 0 = as the recipe has it.",
                ),
                io.String.Input(
                    "sample_prompts",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="What the samples during the training show, one prompt on each line, each with a"
                    " seed of its own that stays. Empty: the caption of the training. Changes no weight.",
                ),
                io.Image.Input(
                    "sample_image",
                    optional=True,
                    tooltip="The picture that the samples fill, with sample_mask. Not wired: the first"
                    " training picture. Changes no weight.",
                ),
                io.Mask.Input(
                    "sample_mask",
                    optional=True,
                    tooltip="1 where the subject goes in sample_image, of its size.",
                ),
                io.Boolean.Input(
                    "held_out",
                    default=False,
                    optional=True,
                    tooltip="Keep the last of five or more pictures out of the training and plot the loss on"
                    " it, at noise that stays the same: it rises once the others are learned by heart. One"
                    " picture fewer is trained on.",
                ),
                io.Int.Input(
                    "subject_references",
                    default=0,
                    min=0,
                    max=4,
                    optional=True,
                    tooltip="For edit models (FLUX.2, Kontext, Qwen-Image-Edit, Krea 2): show so many other"
                    " pictures of the subject beside the one that is painted, as Edit Prompt does. Each takes"
                    " as much memory as the picture, at most.",
                ),
                io.Float.Input(
                    "reference_dropout",
                    default=0.1,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="With subject_references: probability of showing none of them, so that the LoRA"
                    " works alone too.",
                ),
                io.Combo.Input(
                    "aspect_ratios",
                    options=["square", "buckets"],
                    default="square",
                    optional=True,
                    tooltip="square: square crops. buckets: crops keep about the shape of their photo, at the"
                    " area of the resolution; use it for photos that are not square on transformers such as"
                    " FLUX.",
                ),
            ],
            outputs=[OptionsType.Output(display_name="options", tooltip="For Train Subject.")],
        )

    @classmethod
    def execute(cls, **settings) -> io.NodeOutput:
        """Return the settings that were changed, by name."""
        from ..training.finetune.data import collect_background

        background = collect_background(settings.get("sample_image"), settings.get("sample_mask"))
        if background is not None:
            settings |= {"sample_image": background.image[None], "sample_mask": background.mask[None]}
        return io.NodeOutput({name: value for name, value in settings.items() if not is_unchanged(value)})


UNCHANGED = (0, "", PRESET, None)  # values that leave a setting to the recipe or the preset


def is_unchanged(value: Any) -> bool:
    """Return whether a value leaves its setting as it is."""
    return not isinstance(value, torch.Tensor) and value in UNCHANGED
