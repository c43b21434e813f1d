"""What is trained, a PEFT adapter or the weights themselves, and the LoRA files of other programs.

Files have kohya's keys, which the host and diffusers read too. diffusers writes
`unet.<path>.lora.down.weight` (DreamMix's file), PEFT and newer diffusers `unet.<path>.lora_A.weight`, and
diffusers before 0.22 wrote `<path>.processor.to_k_lora.down.weight`; of these the host reads only the last.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .recipes import AdapterSpec

Name = Callable[[str], str]  # a module's path in the UNet -> its key in a LoRA file


class LoraAdapter:
    """A low-rank adapter on the linear layers whose path ends with one of `spec.targets` (Hu et al. 2021)."""

    def __init__(self, unet: nn.Module, spec: AdapterSpec, dtype: torch.dtype, seed: int):
        from peft import LoraConfig, inject_adapter_in_model  # slow to import, so not before somebody trains

        config = LoraConfig(
            r=spec.rank,
            lora_alpha=spec.rank if spec.alpha is None else spec.alpha,  # type: ignore[arg-type]
            target_modules=spec.pattern or list(spec.targets),
            init_lora_weights="gaussian" if spec.init == "gaussian" else True,
            use_dora=spec.dora,
            use_rslora=spec.rslora,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inject_adapter_in_model(config, unet)
        self.layers: dict[str, Any] = {
            path: layer for path, layer in unet.named_modules() if hasattr(layer, "lora_A")
        }
        self.parameters = [p for p in unet.parameters() if p.requires_grad]
        for p in self.parameters:
            p.data = p.data.to(dtype)

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """Within the block the network predicts as without the adapter."""
        for layer in self.layers.values():
            layer._disable_adapters = True  # enable_adapters would also change what is trained
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer._disable_adapters = False

    def export(self, name: Name) -> dict[str, Tensor]:
        """Return the weights under kohya's keys, which the host and diffusers read too: down, up, alpha."""
        tensors = {}
        for path, layer in self.layers.items():
            key = name(path)
            down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            tensors[f"{key}.lora_down.weight"] = _stored(down)
            tensors[f"{key}.lora_up.weight"] = _stored(up)
            # Readers scale by alpha / rank; writing scale * rank holds for rsLoRA too.
            tensors[f"{key}.alpha"] = torch.tensor(float(layer.scaling["default"] * down.shape[0]))
            if layer.use_dora["default"]:
                tensors[f"{key}.dora_scale"] = _stored(layer.lora_magnitude_vector["default"].weight)[:, None]
        return tensors

    def load(self, tensors: dict[str, Tensor], name: Name) -> None:
        """Set the weights to those that `export` gave; a file of another alpha keeps its strength."""
        for path, layer in self.layers.items():
            key = name(path)
            down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            scale = tensors[f"{key}.alpha"] / down.shape[0] / layer.scaling["default"]
            down.data.copy_(tensors[f"{key}.lora_down.weight"])
            up.data.copy_(tensors[f"{key}.lora_up.weight"] * scale)
            if layer.use_dora["default"]:
                magnitude = layer.lora_magnitude_vector["default"].weight
                magnitude.data.copy_(tensors[f"{key}.dora_scale"][:, 0])


class FullAdapter:
    """Every weight of the UNet, kept as a difference so that it can be applied and removed like a LoRA."""

    def __init__(self, unet: nn.Module, dtype: torch.dtype):
        self.base = dict(unet.named_parameters())
        for path, weight in self.base.items():
            owner, _, leaf = path.rpartition(".")
            setattr(unet.get_submodule(owner), leaf, nn.Parameter(weight.detach().to(dtype, copy=True)))
        self.trained = dict(unet.named_parameters())
        self.parameters = list(self.trained.values())

    def export(self, name: Name) -> dict[str, Tensor]:
        """Return `<layer>.diff` and `<layer>.diff_b`, as the host's LoRA loader reads them."""
        return {
            _difference(path, name): _stored(weight.float() - self.base[path].float())
            for path, weight in self.trained.items()
        }

    def load(self, tensors: dict[str, Tensor], name: Name) -> None:
        """Set the weights to those that `export` gave."""
        for path, weight in self.trained.items():
            weight.data.copy_(self.base[path].float() + tensors[_difference(path, name)].to(weight.device))


def attach_adapter(
    unet: nn.Module, spec: AdapterSpec, dtype: torch.dtype, seed: int
) -> LoraAdapter | FullAdapter:
    """Make `unet` trainable in place by `spec`; its other weights stay frozen.

    `dtype` is that of the network's arithmetic, so no layer has to cast. `seed` draws a LoRA's first weights.
    Raises ValueError as `lora_layers` does.
    """
    if spec.kind == "full":
        return FullAdapter(unet, dtype)
    lora_layers(unet, spec)
    return LoraAdapter(unet, spec, dtype, seed)


def lora_layers(unet: nn.Module, spec: AdapterSpec) -> dict[str, nn.Linear]:
    """Return the layers a LoRA goes on, by path. Raises ValueError for none, or for one that is too small."""
    layers: dict[str, Any] = {path: layer for path, layer in unet.named_modules() if is_target(path, spec)}
    if not layers:
        named = spec.pattern or ", ".join(spec.targets)
        raise ValueError(f"The model has no layers called {named} to put a LoRA on.")
    smallest = min(min(layer.in_features, layer.out_features) for layer in layers.values())
    if spec.rank > smallest:
        raise ValueError(
            f"rank: {spec.rank} is larger than the model's smallest layer ({smallest});"
            f" choose {smallest} or less."
        )
    return layers


def is_target(path: str, spec: AdapterSpec) -> bool:
    """Return whether a LoRA of `spec` goes on the layer at a module path."""
    if spec.pattern:
        return re.fullmatch(spec.pattern, path) is not None
    return any(path == end or path.endswith(f".{end}") for end in spec.targets)


def exported_shapes(unet: nn.Module, spec: AdapterSpec, name: Name) -> dict[str, tuple[int, ...]]:
    """Return the keys and shapes that `export` will give, before anything is attached."""
    if spec.kind == "full":
        return {_difference(path, name): tuple(weight.shape) for path, weight in unet.named_parameters()}
    shapes: dict[str, tuple[int, ...]] = {}
    for path, layer in lora_layers(unet, spec).items():
        key = name(path)
        shapes[f"{key}.lora_down.weight"] = (spec.rank, layer.in_features)
        shapes[f"{key}.lora_up.weight"] = (layer.out_features, spec.rank)
        shapes[f"{key}.alpha"] = ()
        if spec.dora:
            shapes[f"{key}.dora_scale"] = (layer.out_features, 1)
    return shapes


def _difference(path: str, name: Name) -> str:
    layer, _, leaf = path.rpartition(".")
    return f"{name(layer)}.{'diff' if leaf == 'weight' else 'diff_b'}"


def _stored(weight: Tensor) -> Tensor:
    return weight.detach().float().cpu().contiguous()


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
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
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
