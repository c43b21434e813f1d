"""Read a LoRA file; diffusers' and PEFT's names of a UNet's layers become kohya's.

kohya's are those that the host and diffusers read. diffusers writes `unet.<path>.lora.down.weight`
(DreamMix's file), PEFT and newer diffusers `unet.<path>.lora_A.weight`, and diffusers before 0.22 wrote
`<path>.processor.to_k_lora.down.weight`; of these the host reads only the last.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

PARTS = {
    "lora_A": "lora_down.weight",
    "lora_B": "lora_up.weight",
    "lora.down": "lora_down.weight",
    "lora.up": "lora_up.weight",
    "lora_linear_layer.down": "lora_down.weight",
    "lora_linear_layer.up": "lora_up.weight",
    "lora_magnitude_vector": "dora_scale",
}
PART_PATTERN = "|".join(map(re.escape, PARTS))
DIFFUSERS_KEY = re.compile(
    rf"(?:unet\.)?((?:down|mid|up)_blocks?\..+?)[._]({PART_PATTERN})(?:\.default)?(?:\.weight)?"
)


def read_lora_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a LoRA file, with diffusers' names turned into kohya's, and its metadata.

    Raises ValueError when it is no safetensors file.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            # copied: Windows neither replaces nor deletes a file that is mapped into memory
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"lora_name: {path.name} is no safetensors file or damaged; download it again."
        ) from error
    try:
        return as_kohya(tensors, _settings(metadata.get("lora_adapter_metadata", "{}"))), metadata
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise ValueError(
            f"lora_name: {path.name} holds no weights or settings of a LoRA; download it again."
        ) from error


def _settings(text: str) -> dict:
    """PEFT's settings; none where another program wrote something else under their name."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def peft_config(path: Path) -> dict:
    """Return PEFT's settings in a LoRA file, as newer diffusers write them; empty where there are none."""
    with safe_open(path, "pt") as file:
        return _settings((file.metadata() or {}).get("lora_adapter_metadata", "{}"))


def as_kohya(tensors: Mapping[str, Tensor], config: Mapping) -> dict[str, Tensor]:
    """Return the tensors under kohya's keys; names that are not diffusers' stay as they are.

    `config`: PEFT's settings as newer diffusers write them into the file, "unet.lora_alpha" and so on;
    without them the scale alpha / rank is 1, as diffusers has it.
    """
    renamed = {}
    for key, tensor in tensors.items():
        match = DIFFUSERS_KEY.fullmatch(key)
        if not match:
            renamed[key] = tensor
            continue
        path = re.sub(r"to_out$", "to_out.0", match[1].replace(".processor", ""))
        name, part = "lora_unet_" + path.replace(".", "_"), PARTS[match[2]]
        renamed[f"{name}.{part}"] = tensor[:, None] if part == "dora_scale" and tensor.ndim == 1 else tensor
        if part == "lora_down.weight" and config.get("unet.lora_alpha") is not None:
            settings = {key.removeprefix("unet."): value for key, value in config.items()}
            renamed[f"{name}.alpha"] = torch.tensor(alpha_of(path, tensor.shape[0], settings))
    return renamed


def alpha_of(path: str, rank: int, config: Mapping) -> float:
    """Return the alpha of a layer by PEFT's settings, "lora_alpha" and so on.

    kohya's scale is alpha / rank; rank-stabilised LoRA's is alpha / sqrt(rank).
    """
    own = config.get("alpha_pattern") or {}
    alpha = next((a for end, a in own.items() if f".{path}".endswith(f".{end}")), config["lora_alpha"])
    return float(alpha) * (math.sqrt(rank) if config.get("use_rslora") else 1.0)
