"""What is trained: a PEFT adapter in the network's layers, or the weights themselves."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...common import libraries
from .recipes import AdapterSpec

SMALLEST_NORM = torch.finfo(torch.float32).tiny  # of the norm of a row
Name = Callable[[str], str]  # a module's path in the UNet -> its key in a LoRA file


class PeftAdapter:
    """An adapter of PEFT in a network: its layers by path, and the parameters that are trained."""

    def __init__(self, unet: nn.Module, config: Any, mark: str, dtype: torch.dtype, seed: int):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            libraries.peft().inject_adapter_in_model(config, unet)
        self.layers: dict[str, Any] = {
            path: layer for path, layer in unet.named_modules() if hasattr(layer, mark)
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


class LoraAdapter(PeftAdapter):
    """A low-rank adapter on the linear layers whose path ends with one of `spec.targets` (Hu et al. 2021)."""

    def __init__(self, unet: nn.Module, spec: AdapterSpec, dtype: torch.dtype, seed: int):
        config = libraries.peft().LoraConfig(
            r=spec.rank,
            lora_alpha=spec.rank if spec.alpha is None else spec.alpha,  # type: ignore[arg-type]
            target_modules=spec.pattern or list(spec.targets),
            init_lora_weights="gaussian" if spec.init == "gaussian" else True,
            use_dora=spec.dora,
            use_rslora=spec.rslora,
        )
        super().__init__(unet, config, "lora_A", dtype, seed)

    def export(self, name: Name) -> dict[str, Tensor]:
        """Return the weights under kohya's keys, which the host and diffusers read too: down, up, alpha.

        DoRA's magnitudes are those with which the host gives the weights that were trained.
        """
        tensors = {}
        for path, layer in self.layers.items():
            key = name(path)
            down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            tensors[f"{key}.lora_down.weight"] = _stored(down)
            tensors[f"{key}.lora_up.weight"] = _stored(up)
            # Readers scale by alpha / rank; writing scale * rank holds for rsLoRA too.
            tensors[f"{key}.alpha"] = torch.tensor(float(layer.scaling["default"] * down.shape[0]))
            if layer.use_dora["default"]:
                magnitude = layer.lora_magnitude_vector["default"].weight
                tensors[f"{key}.dora_scale"] = _stored(magnitude * _norm_ratio(layer))[:, None]
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
                ratio = _norm_ratio(layer)
                magnitude.data.copy_(tensors[f"{key}.dora_scale"][:, 0].to(ratio) / ratio)


def _norm_ratio(layer: Any) -> Tensor:
    """Return |W| / |W + dW| (out,), of each row of a DoRA layer's weight.

    The host divides the magnitudes by |W|, where DoRA divides them by |W + dW| (Liu et al. 2024, eq. 5).
    """
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    base = layer.base_layer.weight.detach().float()
    change = layer.scaling["default"] * up.detach().float() @ down.detach().float()
    before, after = (weight.norm(dim=1).clamp(min=SMALLEST_NORM) for weight in (base, base + change))
    return before / after


LOKR_PARTS = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")


class LokrAdapter(PeftAdapter):
    """LoKr on the layers of a LoRA: kron(W1, W2), W2 of low rank where that is smaller (Yeh et al. 2024).

    The names and the scale alpha / rank are LyCORIS', which the host and other trainers read.
    """

    def __init__(self, unet: nn.Module, spec: AdapterSpec, dtype: torch.dtype, seed: int):
        config = libraries.peft().LoKrConfig(
            r=spec.rank,
            alpha=spec.rank if spec.alpha is None else spec.alpha,  # type: ignore[arg-type]
            target_modules=spec.pattern or list(spec.targets),
        )
        super().__init__(unet, config, "lokr_w1", dtype, seed)

    def export(self, name: Name) -> dict[str, Tensor]:
        """Return the weights under LyCORIS' keys. Where no part has a rank, W2 holds the scale."""
        tensors = {}
        for path, layer in self.layers.items():
            key, scale = name(path), layer.scaling["default"]
            parts = {part: _stored(weight) for part, weight in _lokr_parts(layer)}
            if not any(part.endswith("_b") for part in parts):
                parts["lokr_w2"] = parts["lokr_w2"] * scale
                scale = 1.0
            tensors |= {f"{key}.{part}": weight for part, weight in parts.items()}
            tensors[f"{key}.alpha"] = torch.tensor(float(scale * layer.r["default"]))
        return tensors

    def load(self, tensors: dict[str, Tensor], name: Name) -> None:
        """Set the weights to those that `export` gave; a file of another alpha keeps its strength."""
        for path, layer in self.layers.items():
            key, ranked = name(path), False
            for part, weight in _lokr_parts(layer):
                weight.data.copy_(tensors[f"{key}.{part}"])
                ranked |= part.endswith("_b")
            scale = float(tensors[f"{key}.alpha"]) / layer.r["default"] if ranked else 1.0
            last = next(weight for part, weight in _lokr_parts(layer) if part in ("lokr_w2", "lokr_w2_a"))
            last.data.mul_(scale / layer.scaling["default"])


def _lokr_parts(layer: Any) -> list[tuple[str, nn.Parameter]]:
    """Return the matrices that a LoKr layer has, by their names."""
    return [
        (part, getattr(layer, part)["default"]) for part in LOKR_PARTS if "default" in getattr(layer, part)
    ]


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
) -> LoraAdapter | LokrAdapter | FullAdapter:
    """Make `unet` trainable in place by `spec`; its other weights stay frozen.

    `dtype` is that of the network's arithmetic, so no layer has to cast. `seed` draws a LoRA's first weights.
    Raises ValueError as `lora_layers` does.
    """
    if spec.kind == "full":
        return FullAdapter(unet, dtype)
    lora_layers(unet, spec)
    return (LokrAdapter if spec.lokr else LoraAdapter)(unet, spec, dtype, seed)


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
        if spec.lokr:
            shapes |= {f"{key}.{part}": shape for part, shape in lokr_shapes(layer, spec.rank).items()}
            shapes[f"{key}.alpha"] = ()
            continue
        shapes[f"{key}.lora_down.weight"] = (spec.rank, layer.in_features)
        shapes[f"{key}.lora_up.weight"] = (layer.out_features, spec.rank)
        shapes[f"{key}.alpha"] = ()
        if spec.dora:
            shapes[f"{key}.dora_scale"] = (layer.out_features, 1)
    return shapes


def lokr_shapes(layer: nn.Linear, rank: int) -> dict[str, tuple[int, int]]:
    """Return the shapes of the parts that PEFT gives a layer: factors near the square root, W1 whole."""
    factorization = libraries.peft().tuners.lokr.layer.factorization
    out_1, out_2 = factorization(layer.out_features)
    in_1, in_2 = factorization(layer.in_features)
    if rank < max(out_2, in_2) / 2:
        second = {"lokr_w2_a": (out_2, rank), "lokr_w2_b": (rank, in_2)}
    else:
        second = {"lokr_w2": (out_2, in_2)}
    return {"lokr_w1": (out_1, in_1), **second}


def _difference(path: str, name: Name) -> str:
    layer, _, leaf = path.rpartition(".")
    return f"{name(layer)}.{'diff' if leaf == 'weight' else 'diff_b'}"


def _stored(weight: Tensor) -> Tensor:
    return weight.detach().float().cpu().contiguous()
