"""What a user of Train Subject chooses from; what is behind it takes its time to load, this does not."""

from typing import Literal, NamedTuple

RECIPE_NAMES = ("DreamCom", "DreamCom (full UNet)", "DreamMix", "DreamMix (released)")  # of `recipes.RECIPES`
OptimizerKind = Literal["AdamW", "AdamW8bit", "Adafactor"]
ADAFACTOR_RATE = 1e-2  # torch's default, of the root mean square of each weight


class MemoryPreset(NamedTuple):
    """What a preset turns on; the effective batch stays the recipe's."""

    half: bool  # 16-bit arithmetic instead of the model's own
    checkpointing: bool
    at_once: int  # pictures in one pass, at most; the rest is accumulated. 0: the whole batch
    eight_bit: bool  # AdamW's moments in 8 bits, where bitsandbytes is installed


# For a graphics card of that size. The estimate for DreamCom's LoRA on SDXL at 1024 px: 15.8, 10.5, 7.0 and
# 5.5 GB with 2, 1, 4 and 1 pictures at once; the rest of the card is for the driver, the desktop and the VAE.
MEMORY_PRESETS = {
    "recipe": MemoryPreset(half=False, checkpointing=False, at_once=0, eight_bit=False),
    "24 GB": MemoryPreset(half=True, checkpointing=False, at_once=2, eight_bit=False),
    "16 GB": MemoryPreset(half=True, checkpointing=False, at_once=1, eight_bit=False),
    "12 GB": MemoryPreset(half=True, checkpointing=True, at_once=4, eight_bit=True),
    "8 GB": MemoryPreset(half=True, checkpointing=True, at_once=1, eight_bit=True),
}


def describe_preset(preset: MemoryPreset) -> str:
    """What a preset turns on, in words."""
    parts = ["16-bit"] * preset.half + ["gradient checkpointing"] * preset.checkpointing
    if preset.at_once:
        parts.append(f"{preset.at_once} of a batch at a time")
    parts += ["8-bit AdamW if bitsandbytes is installed"] * preset.eight_bit
    return ", ".join(parts) or "nothing turned on"
