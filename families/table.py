"""The families of models that Inlay works with: one row each, with everything that differs between them.

Settings are those of the host's own workflow templates; LoRA targets are those of the usual trainers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

# How a model learns what stays: through input channels beside the noise, through Fill's masked picture and
# mask, or not at all (then the known latents are blended in at every step).
CHANNELS, FILL, BLEND = "channels", "fill", "blend"
# Where reference pictures enter: nowhere, as latents, or as latents and through the text encoder.
NO_REFERENCES, LATENTS, LATENTS_AND_TEXT = "none", "latents", "latents and text encoder"
EPSILON, VELOCITY = "epsilon", "velocity"
LOGIT_NORMAL, UNIFORM = "logit-normal", "uniform"
FLUX2_SCHEDULE = "flux2"  # the host's Flux2Scheduler, whose shift depends on the picture's size


@dataclass(frozen=True)
class Settings:
    """What the sampler takes where a choice is `auto`; guidance: the embedded one, None if there is none."""

    sampler: str
    scheduler: str
    steps: int
    cfg: float
    guidance: float | None = None


@dataclass(frozen=True)
class Training:
    """What a family's usual trainers choose for a few photos of a subject.

    Noise levels sigma in [0, 1] are drawn as sigma = s u / (1 + (s - 1) u), with s = `shift` and u uniform or
    the sigmoid of a standard normal number (logit-normal; Esser et al. 2024, section 3.1).

    Attributes:
        shift: 0: by the number of image tokens n, s = exp(0.5 + 0.65 (n - 256) / 3840), as FLUX.1 samples.
        guidance: of the guidance embedding in training; None where the network has none.
    """

    timesteps: str = LOGIT_NORMAL
    shift: float = 1.0
    guidance: float | None = None
    rank: int = 16
    learning_rate: float = 1e-4
    steps: int = 1000


@dataclass(frozen=True)
class LoraNames:
    """Which linear layers a LoRA trains, and how other tools name them.

    targets: regular expression of the module paths below `diffusion_model`, matched in full. attention: the
    same for the attention's layers alone. diffusers: the function in the host's `comfy.utils` that maps
    diffusers' names to its own ("" where they are equal or unknown), for the tools that split a fused `qkv`.
    aliases: regular expression of the names in that map that diffusers' network of this family does not have.
    """

    targets: str
    diffusers: str = ""
    attention: str = ""
    aliases: str = ""


@dataclass(frozen=True)
class Family:
    """One family of models.

    Attributes:
        name: our own name, which is stored in files.
        label: the name that users know.
        configs: class names of the host's model configurations.
        facts: entries of the host's `unet_config` that a model of this row has, beside its class.
        channels: input channels of the network, 0 where the row does not depend on them.
        side: side in pixels of the square pictures that the family was trained on.
        picture_grid: view sizes are multiples of so many pixels; 0 for the UNets' own rule.
        time_axis: whether latents have a time axis (B, C, T, h, w).
        condition: CHANNELS, FILL or BLEND.
        references: NO_REFERENCES, LATENTS or LATENTS_AND_TEXT.
        edit_word: a word in the file names of the edit models; "" where all models that take references are.
        reference_method: must be set in the CONDITIONING, or the host ignores references; "" elsewhere.
        most_reference_pixels: area in pixels up to which a reference is neither shrunk nor shifted, and so of
            a view whose scene is one.
        prediction: EPSILON (or v for SD 2) or VELOCITY (flow matching).
        settings: of the sampler, for the family's usual model.
        variants: settings for models whose file name contains a word, such as "turbo"; first match.
        lora: what a LoRA trains.
        trainable: "" if Subject Finetune can train it, else the reason why not.
        training: noise levels and numbers of a training; UNets take their recipe's instead.
        train_on: what to train on where the model is a distilled one.
    """

    name: str
    label: str
    configs: tuple[str, ...]
    settings: Settings
    lora: LoraNames
    facts: Mapping[str, object] = field(default_factory=dict)
    channels: int = 0
    side: int = 1024
    picture_grid: int = 16
    time_axis: bool = False
    condition: str = BLEND
    references: str = NO_REFERENCES
    edit_word: str = ""
    reference_method: str = ""
    most_reference_pixels: int = 1024 * 1024
    prediction: str = VELOCITY
    variants: tuple[tuple[str, Settings], ...] = ()
    trainable: str = ""
    training: Training = Training()
    train_on: str = "the model that it was distilled from"

    @property
    def transformer(self) -> bool:
        """Whether the network is a diffusion transformer, not a UNet."""
        return self.prediction == VELOCITY

    def settings_for(self, file_name: str) -> Settings:
        """Return the sampler's settings for a model file.

        Those of the first variant whose word is in its name.
        """
        name = file_name.lower()
        return next((settings for word, settings in self.variants if word in name), self.settings)

    def edits(self, file_name: str) -> bool:
        """Whether a model file of this family is an edit model, which reads the scene as a reference."""
        return self.references != NO_REFERENCES and self.edit_word in file_name.lower()

    def distilled(self, file_name: str) -> bool:
        """Whether a model file of this family is distilled to a few steps, by its name."""
        return self.settings_for(file_name).steps <= DISTILLED_STEPS


DISTILLED_STEPS = 8  # models that take no more of them are distilled
UNMEASURED = "its training has not been measured yet"
UNET_SETTINGS = Settings("dpmpp_2m_sde", "karras", 30, 4.0)
UNET_LORA = LoraNames(
    r".*transformer_blocks\.\d+\.(attn[12]\.(to_q|to_k|to_v|to_out\.0)|ff\.net\.(0\.proj|2))",
    "unet_to_diffusers",
    r".*transformer_blocks\.\d+\.attn[12]\.(to_q|to_k|to_v|to_out\.0)",
)
FLUX_LORA = LoraNames(
    r"double_blocks\.\d+\.(img|txt)_(attn\.(qkv|proj)|mlp\.[02])|single_blocks\.\d+\.linear[12]",
    "flux_to_diffusers",
    # a single block's linear1 and linear2 hold attention and feed-forward in one
    r"double_blocks\.\d+\.(img|txt)_attn\.(qkv|proj)|single_blocks\.\d+\.linear[12]",
    r"single.*attn\.(to_qkv_mlp_proj|to_out)|.*ff(_context)?\.linear_(in|out)",
)
FLUX2_LORA = replace(
    FLUX_LORA, aliases=r"single.*(attn\.to_[qkv]|\.proj_mlp|\.proj_out)|.*ff(_context)?\.net\..*"
)
QWEN_LORA = LoraNames(
    r"transformer_blocks\.\d+\.(attn\.(to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out)"
    r"|(img|txt)_mlp\.net\.(0\.proj|2))",
    attention=r"transformer_blocks\.\d+\.attn\.(to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out)",
)
LUMINA_LORA = LoraNames(
    r"layers\.\d+\.(attention\.(qkv|out)|feed_forward\.w[123])",
    "z_image_to_diffusers",
    r"layers\.\d+\.attention\.(qkv|out)",
)
KREA_LORA = LoraNames(
    r"blocks\.\d+\.(attn\.(w[qkvo]|gate)|mlp\.(gate|up|down))",
    "krea2_to_diffusers",
    r"blocks\.\d+\.attn\.(w[qkvo]|gate)",
    r".*attn\.to_out",
)
LENS_LORA = LoraNames(
    r"transformer_blocks\.\d+\.(attn\.((img|txt)_qkv|to_out\.0|to_add_out)|(img|txt)_mlp\.w[123])"
)
OMNIGEN_LORA = LoraNames(r"layers\.\d+\.(attn\.(to_[qkv]|to_out\.0)|feed_forward\.linear_[123])")
BOOGU_LORA = LoraNames(
    r"double_stream_layers\.\d+\.(img_instruct_attn\.processor\.(img|instruct)_to_[qkv]"
    r"|img_instruct_attn\.processor\.(img|instruct)_out|img_self_attn\.(to_[qkv]|to_out\.0))"
    r"|single_stream_layers\.\d+\.(attn\.(to_[qkv]|to_out\.0)|feed_forward\.linear_[123])"
)
ANIMA_LORA = LoraNames(r"blocks\.\d+\.((self|cross)_attn\.([qkv]_proj|output_proj)|mlp\.layer[12])")

# Noise levels: kohya's sd-scripts and musubi-tuner, and musubi-tuner issue 908 for Z-Image. A guidance of 1
# switches the embedding off (kohya, SimpleTuner). Rank and rate: ai-toolkit, musubi-tuner and diffusers.
FLUX_TRAINING = Training(shift=0.0, guidance=1.0)
KLEIN_TRAINING = Training(shift=0.0, rank=32)
QWEN_TRAINING = Training(shift=2.2)
Z_IMAGE_TRAINING = Training(rank=32)
KREA_TRAINING = Training(shift=2.5, rank=32)

DISTILLED_KLEIN = Settings("euler", FLUX2_SCHEDULE, 4, 1.0)
LIGHTNING = Settings("euler", "simple", 4, 1.0)

FAMILIES = (
    Family(
        name="sd15", label="SD 1.5", configs=("SD15",), settings=UNET_SETTINGS, lora=UNET_LORA, side=512,
        picture_grid=0, condition=CHANNELS, prediction=EPSILON,
    ),
    Family(
        name="sd2", label="SD 2", configs=("SD20",), settings=UNET_SETTINGS, lora=UNET_LORA, side=512,
        picture_grid=0, condition=CHANNELS, prediction=EPSILON,
    ),
    Family(
        name="sdxl", label="SDXL", configs=("SDXL", "SSD1B", "Segmind_Vega", "KOALA_700M", "KOALA_1B"),
        settings=UNET_SETTINGS, lora=UNET_LORA, picture_grid=0, condition=CHANNELS, prediction=EPSILON,
    ),
    Family(
        name="flux1-fill", label="FLUX.1 Fill", configs=("FluxInpaint",), channels=96, condition=FILL,
        settings=Settings("euler", "normal", 20, 1.0, 30.0), lora=FLUX_LORA,
        training=FLUX_TRAINING,
    ),
    # Kontext has the same network as FLUX.1 dev: only the file's name separates them.
    Family(
        name="flux1", label="FLUX.1 dev or Kontext", configs=("Flux",), channels=16, references=LATENTS,
        edit_word="kontext",
        settings=Settings("euler", "simple", 20, 1.0, 3.5), lora=FLUX_LORA,
        variants=(("kontext", Settings("euler", "simple", 20, 1.0, 2.5)),),
        training=FLUX_TRAINING,
    ),
    Family(
        name="flux1-schnell", label="FLUX.1 schnell", configs=("FluxSchnell",), channels=16,
        settings=Settings("euler", "simple", 4, 1.0), lora=FLUX_LORA,
        trainable="it is distilled to 4 steps; train on FLUX.1 dev and use the LoRA here",
    ),
    Family(
        name="flux2-dev", label="FLUX.2 dev", configs=("Flux2",), facts={"guidance_embed": True},
        references=LATENTS, settings=Settings("euler", FLUX2_SCHEDULE, 20, 1.0, 4.0), lora=FLUX2_LORA,
        training=FLUX_TRAINING,
    ),
    # The distilled klein is klein-4b or klein-9b, the other one klein-base-4b: the word "base" comes first.
    Family(
        name="flux2-klein", label="FLUX.2 klein", configs=("Flux2",), facts={"guidance_embed": False},
        references=LATENTS, settings=Settings("euler", FLUX2_SCHEDULE, 20, 5.0), lora=FLUX2_LORA,
        variants=(
            ("base", Settings("euler", FLUX2_SCHEDULE, 20, 5.0)),
            ("klein", DISTILLED_KLEIN),
            ("distill", DISTILLED_KLEIN),
        ),
        training=KLEIN_TRAINING, train_on="FLUX.2 klein base",
    ),
    Family(
        name="qwen-image-edit-2511", label="Qwen-Image-Edit 2511", configs=("QwenImage",), time_axis=True,
        facts={"default_ref_method": "index_timestep_zero"}, references=LATENTS_AND_TEXT, picture_grid=32,
        settings=Settings("euler", "simple", 40, 4.0), lora=QWEN_LORA, variants=(("lightning", LIGHTNING),),
        training=QWEN_TRAINING,
    ),
    Family(
        name="qwen-image", label="Qwen-Image or Qwen-Image-Edit", configs=("QwenImage",), time_axis=True,
        references=LATENTS_AND_TEXT, edit_word="edit", picture_grid=32,
        settings=Settings("euler", "simple", 20, 4.0),
        lora=QWEN_LORA, variants=(("lightning", LIGHTNING),),
        training=QWEN_TRAINING,
    ),
    Family(
        name="z-image", label="Z-Image", configs=("ZImage",), lora=LUMINA_LORA,
        settings=Settings("res_multistep", "simple", 25, 4.0),
        variants=(("turbo", Settings("res_multistep", "simple", 8, 1.0)),),
        training=Z_IMAGE_TRAINING, train_on="Z-Image (base)",
    ),
    Family(
        name="lumina2", label="Lumina 2", configs=("Lumina2",), lora=LUMINA_LORA,
        settings=Settings("res_multistep", "simple", 25, 4.0), trainable=UNMEASURED,
    ),
    Family(
        name="krea2", label="Krea 2", configs=("Krea2",), time_axis=True, references=LATENTS,
        reference_method="index_timestep_zero", lora=KREA_LORA,
        settings=Settings("euler", "simple", 28, 5.5),
        variants=(("turbo", Settings("euler", "simple", 8, 1.0)),),
        training=KREA_TRAINING, train_on="Krea 2 RAW",
    ),
    Family(
        name="chroma", label="Chroma", configs=("Chroma",), lora=FLUX_LORA,
        settings=Settings("euler", "beta", 26, 4.0), training=Training(),
    ),
    Family(
        name="longcat-image", label="LongCat-Image", configs=("LongCatImage",), references=LATENTS,
        settings=Settings("euler", "simple", 50, 4.0), lora=FLUX_LORA, trainable=UNMEASURED,
    ),
    Family(
        name="omnigen2", label="OmniGen2", configs=("Omnigen2",), references=LATENTS,
        settings=Settings("euler", "simple", 20, 5.0), lora=OMNIGEN_LORA, trainable=UNMEASURED,
    ),
    Family(
        name="lens", label="Lens", configs=("Lens",), settings=Settings("euler", "simple", 20, 5.0),
        lora=LENS_LORA, trainable=UNMEASURED,
    ),
    Family(
        name="boogu", label="Boogu-Image", configs=("Boogu",), references=LATENTS_AND_TEXT,
        settings=Settings("euler", "simple", 20, 4.0), lora=BOOGU_LORA, trainable=UNMEASURED,
    ),
    Family(
        name="anima", label="Anima", configs=("Anima",), time_axis=True,
        settings=Settings("er_sde", "simple", 30, 4.0), lora=ANIMA_LORA, trainable=UNMEASURED,
    ),
)  # fmt: skip


def find_family(config: str, facts: Mapping[str, object]) -> Family | None:
    """Return the row of a host configuration (class name and `unet_config`), or None.

    The first row fits whose class name and facts agree; a missing fact counts as false.
    """
    for row in FAMILIES:
        fits = all((facts.get(key) or False) == (value or False) for key, value in row.facts.items())
        if config in row.configs and fits:
            return row
    return None


def name_of_stored(family: str) -> str:
    """Return our own name of a family in a file. Version 0.1 stored the host's class name, such as "SD15"."""
    return next((row.name for row in FAMILIES if family in row.configs), family)


def label_of(family: str) -> str:
    """Return the name that users know of one of our own names; other names stay as they are."""
    return next((row.label for row in FAMILIES if row.name == family), family)


def named(name: str) -> Family:
    """Return the row of one of our own names."""
    return next(row for row in FAMILIES if row.name == name)
