"""The published recipes as data, and the memory presets: a user picks one of each and changes what they like.

Every number carries its source. Where a paper and its released code differ, the paper is the default; the
comment gives the number of the code. Lines marked "ours" are choices that neither states.
"""

from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from ...imaging.augment import Augmentation
from ..optimizers import OWN_RATES, OptimizerKind, OptimizerSpec

# Of the network's arithmetic. "model": the host's choice; "half": 16 bits of whatever kind suits the device.
Precision = Literal["model", "half", "fp32", "bf16", "fp16"]


LayerChoice = Literal["attention", "attention and feed-forward"]


@dataclass(frozen=True)
class AdapterSpec:
    """What is trained: a low-rank addition to some layers, or every weight (stored as a difference)."""

    kind: Literal["lora", "full"] = "lora"
    rank: int = 16
    alpha: float | None = None  # None: equal to the rank, so that the scale alpha / rank is 1
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")  # ends of module paths
    init: Literal["gaussian", "kaiming"] = "kaiming"  # of A; B starts at zero
    dora: bool = False  # DoRA: magnitude and direction apart (Liu et al. 2024)
    lokr: bool = False  # LoKr: a Kronecker product instead of a product (Yeh et al. 2024)
    rslora: bool = False  # scale alpha / sqrt(rank) (Kalajdzievski 2023)
    # Which layers of a transformer, in words: its family's row has their paths.
    layers: LayerChoice = "attention and feed-forward"
    pattern: str = ""  # regular expression of module paths, which is then used instead of `targets`


@dataclass(frozen=True)
class Recipe:
    """One way to train a model on a subject. `resolution` 0 means the model's own working size."""

    name: str
    adapter: AdapterSpec = field(default_factory=AdapterSpec)
    optimiser: OptimizerSpec = field(default_factory=OptimizerSpec)
    prompt: str = "a photo of {token} {class_name}"  # DreamCom, released code
    steps: int = 400
    batch_size: int = 1
    accumulation: int = 1
    resolution: int = 0
    hole: Literal["box", "bezier"] = "box"
    copies: int = 16  # augmented copies of each reference, encoded once and kept
    regular_copies: int = 3  # and of each regular picture (DreamMix, released code)
    augmentation: Augmentation = field(default_factory=Augmentation)  # DreamCom's numbers, named there
    masked_cross_attention: bool = False  # the text acts in the hole only (DreamCom eq. 2)
    weight_inside: float = 1.0  # tau 1 of DreamMix eq. 7
    weight_outside: float = 1.0  # tau 2 of DreamMix eq. 7
    weights_squared: bool = False  # weigh prediction and target before squaring, as DreamMix's code does
    beta: float = 0.0  # share of the regular data's loss, DreamMix eq. 8
    regular_chance: float = (
        0.0  # probability of a pass on regular data instead of the subject (DreamMix's code)
    )
    inpainting_only: bool = True
    precision: Precision = "model"
    ema_decay: float = 0.0  # of a running mean of the weights, which is then the result; 0: none
    sample_posterior: bool = (
        False  # draw latents from the VAE's distribution, as released codes do; else its mean
    )
    # How a transformer learns where the hole is: mask channels, the picture with a grey hole as a reference
    # latent, or from the weights of the loss alone. "auto", None: as the model's family has it.
    hole_condition: Literal["auto", "channels", "reference", "loss"] = "auto"
    timesteps: Literal["auto", "logit-normal", "uniform"] = "auto"
    shift: float | None = None  # of the noise levels; 0: by the number of image tokens
    guidance: float | None = None  # of the guidance embedding in training
    min_snr: float = 0.0  # gamma of the weights by the signal-to-noise ratio, for noise and v; 0: none
    caption_dropout: float = 0.0  # share of the pictures that are shown with an empty caption
    # Output preservation (ai-toolkit's "differential output preservation"): times the difference between the
    # predictions with and without the LoRA for the caption without the token; 0: none.
    preservation: float = 0.0
    # Other pictures of the subject that an edit model is shown beside the one it paints, and the probability
    # of showing none of them, so that the LoRA works alone too (ours).
    subject_references: int = 0
    reference_dropout: float = 0.1
    # "square": as DreamCom crops. "buckets": crops keep about the shape of their photo, at the area of the
    # square, as kohya's sd-scripts and ai-toolkit crop.
    aspect_ratios: Literal["square", "buckets"] = "square"

    @property
    def uses_regular(self) -> bool:
        """Whether regular data take part in the training."""
        return bool(self.beta or self.regular_chance)

    def with_choices(
        self,
        *,
        steps=0,
        rank=0,
        learning_rate=0.0,
        batch_size=0,
        resolution=0,
        optimiser: OptimizerKind | None = None,
        precision: Precision | None = None,
        ema_decay=0.0,
    ) -> "Recipe":
        """Return this recipe with the user's choices; 0 and None keep the recipe's own."""
        alpha = self.adapter.alpha if self.adapter.alpha is None or not rank else float(rank)
        own_rate = OWN_RATES.get(optimiser or "", self.optimiser.learning_rate)
        return replace(
            self,
            steps=steps or self.steps,
            batch_size=batch_size or self.batch_size,
            resolution=resolution or self.resolution,
            adapter=replace(self.adapter, rank=rank or self.adapter.rank, alpha=alpha),
            optimiser=replace(
                self.optimiser,
                learning_rate=learning_rate or own_rate,
                kind=optimiser or self.optimiser.kind,
            ),
            precision=precision or self.precision,
            ema_decay=ema_decay or self.ema_decay,
        )


DREAMCOM_FULL = Recipe(
    name="DreamCom (full UNet)",
    adapter=AdapterSpec(kind="full", targets=()),
    optimiser=OptimizerSpec(learning_rate=5e-6, weight_decay=1e-2),  # released code
    steps=400,  # released code
    batch_size=1,  # released code
    hole="box",  # paper, section 4.1: the bounding box of the foreground
    copies=16,  # ours: the paper augments afresh at every step
    masked_cross_attention=True,  # paper, eq. 2: in training and in inference
)

DREAMCOM = replace(
    DREAMCOM_FULL,
    name="DreamCom",
    adapter=AdapterSpec(rank=16),  # ours: the paper trains the whole UNet
    optimiser=OptimizerSpec(learning_rate=1e-4, weight_decay=1e-2),  # ours: 5e-6 is for the whole UNet
)

DREAMMIX = Recipe(
    name="DreamMix",
    # Paper: W_k and W_v of every attention layer, rank 4. The code also trains to_out.0.
    adapter=AdapterSpec(rank=4, alpha=4.0, targets=("to_k", "to_v"), init="gaussian"),
    optimiser=OptimizerSpec(learning_rate=1e-4, weight_decay=1e-4),  # paper; released code
    prompt="a {token} {class_name}",  # paper, section 3.3
    steps=1000,  # released code
    batch_size=1,  # released code
    accumulation=4,  # released code
    hole="bezier",  # released code
    copies=10,  # released code
    augmentation=Augmentation(scale_chance=0.0),  # square crops only: the holes are what varies
    weight_inside=1.5,  # paper, eq. 7
    weight_outside=0.7,  # paper, eq. 7; README 0.6 with weights_squared
    beta=0.4,  # paper, eq. 8; the code draws regular data with probability 0.3 instead
    # The paper's base is SDXL with Fooocus' inpaint patch (input inpaint_patch). A 4-channel UNet without it
    # sees neither mask nor masked picture; the mask only weighs its loss.
    inpainting_only=False,
)

DREAMMIX_RELEASED = replace(  # what the code does where it differs from the paper
    DREAMMIX,
    name="DreamMix (released)",
    adapter=replace(DREAMMIX.adapter, targets=("to_k", "to_v", "to_out.0")),
    weight_outside=0.6,
    weights_squared=True,
    beta=0.0,
    regular_chance=0.3,
    sample_posterior=True,
)

PRESERVED = replace(
    DREAMCOM,
    name="DreamCom (output preservation)",
    preservation=1.0,  # ai-toolkit's default multiplier
)

RECIPES = {
    recipe.name: recipe for recipe in (DREAMCOM, DREAMCOM_FULL, DREAMMIX, DREAMMIX_RELEASED, PRESERVED)
}
RECIPE_NAMES = tuple(RECIPES)


class MemoryPreset(NamedTuple):
    """What a preset turns on; the effective batch stays the recipe's."""

    half: bool  # 16-bit arithmetic instead of the model's own
    checkpointing: bool | None  # None: where a step would not fit the card without
    at_once: int  # pictures in one pass, at most; the rest is accumulated. 0: the whole batch
    eight_bit: bool  # AdamW's moments in 8 bits, where bitsandbytes is installed
    # Gigabytes of the card. What does not fit of a transformer's weights is left in the computer's memory.
    # 0: any card; everything is on it.
    card: int = 0


# For a graphics card of that size. The estimate for DreamCom's LoRA on SDXL at 1024 px: 15.7, 10.4, 7.4 and
# 5.6 GB with 2, 1, 4 and 1 pictures at once; the rest of the card is for the driver, the desktop and the VAE.
MEMORY_PRESETS = {
    "recipe": MemoryPreset(half=False, checkpointing=False, at_once=0, eight_bit=False),
    "24 GB": MemoryPreset(half=True, checkpointing=None, at_once=2, eight_bit=False, card=24),
    "16 GB": MemoryPreset(half=True, checkpointing=None, at_once=1, eight_bit=False, card=16),
    "12 GB": MemoryPreset(half=True, checkpointing=True, at_once=4, eight_bit=True, card=12),
    "8 GB": MemoryPreset(half=True, checkpointing=True, at_once=1, eight_bit=True, card=8),
}


def describe_preset(preset: MemoryPreset) -> str:
    """Return what a preset turns on, in words."""
    parts = ["16-bit"] * preset.half + ["gradient checkpointing"] * bool(preset.checkpointing)
    if preset.at_once:
        parts.append(f"{preset.at_once} of a batch at a time")
    parts += ["8-bit AdamW if bitsandbytes is installed"] * preset.eight_bit
    return ", ".join(parts) or "nothing turned on"
