"""The adapters of the finetuning against their equations."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from inlay.training.finetune.lora import attach_adapter, exported_shapes
from inlay.training.finetune.recipes import AdapterSpec

SPEC = AdapterSpec(rank=3, alpha=6.0, targets=("wide", "small"), lokr=True)


def network() -> nn.ModuleDict:
    torch.manual_seed(0)
    layers = {"wide": nn.Linear(90, 160), "small": nn.Linear(160, 12), "other": nn.Linear(12, 2)}
    return nn.ModuleDict(layers).requires_grad_(False)


def trained(spec: AdapterSpec) -> tuple[nn.ModuleDict, dict[str, torch.Tensor], Any]:
    """A network with an adapter whose weights are drawn at random, what it exports, and the adapter."""
    net = network()
    adapter = attach_adapter(net, spec, torch.float32, seed=1)
    for parameter in adapter.parameters:
        parameter.data.normal_()
    return net, adapter.export(lambda path: f"diffusion_model.{path}"), adapter


@pytest.mark.parametrize("rank", [3, 12])
def test_a_lokr_adds_the_kronecker_product_of_its_file(rank):
    """Delta W = alpha / rank * kron(W1, W2) with W2 = A B where it has a rank (LyCORIS), in float64."""
    net, file, _ = trained(replace(SPEC, rank=rank))
    plain = network()
    for path, width in (("wide", 90), ("small", 160)):
        part = {key.rpartition(".")[2]: value.double() for key, value in file.items() if f".{path}." in key}
        second = part["lokr_w2"] if "lokr_w2" in part else part["lokr_w2_a"] @ part["lokr_w2_b"]
        scale = part["alpha"] / rank if "lokr_w2_b" in part else 1.0
        delta = scale * torch.kron(part["lokr_w1"], second)
        x = torch.randn(4, width)
        wanted = plain[path](x).double() + x.double() @ delta.T
        torch.testing.assert_close(net[path](x).double(), wanted, rtol=1e-5, atol=1e-4)
    ranked = sum(key.endswith("lokr_w2_b") for key in file)
    assert ranked == (2 if rank == 3 else 0)


DORA = replace(SPEC, lokr=False, dora=True)


@pytest.mark.parametrize("spec", [DORA, replace(DORA, rslora=True)])
def test_a_dora_gives_the_weights_that_were_trained_where_the_host_divides_by_the_bases_norm(spec):
    """W' = dora_scale (W + dW) / |W|, the host's, is m (W + dW) / |W + dW| (Liu et al. 2024, eq. 5)."""
    net, file, adapter = trained(spec)
    plain: Any = network()
    for path, width in (("wide", 90), ("small", 160)):
        part = {key.rpartition(f".{path}.")[2]: v.double() for key, v in file.items() if f".{path}." in key}
        change = part["alpha"] / 3 * part["lora_up.weight"] @ part["lora_down.weight"]
        base = plain[path].weight.double()
        magnitude = adapter.layers[path].lora_magnitude_vector["default"].weight.double()[:, None]
        trained_weight = magnitude * (base + change) / (base + change).norm(dim=1, keepdim=True)
        shown = part["dora_scale"] * (base + change) / base.norm(dim=1, keepdim=True)
        torch.testing.assert_close(shown, trained_weight, rtol=1e-5, atol=1e-6)
        x = torch.randn(4, width)
        wanted = x.double() @ trained_weight.T + plain[path].bias.double()
        torch.testing.assert_close(net[path](x).double(), wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("spec", [SPEC, replace(SPEC, rank=12), replace(SPEC, lokr=False), DORA])
def test_shapes_are_known_before_and_a_file_of_another_alpha_keeps_its_strength(spec):
    net, file, _ = trained(spec)
    shapes = exported_shapes(network(), spec, lambda path: f"diffusion_model.{path}")
    assert shapes == {key: tuple(value.shape) for key, value in file.items()}
    other, _, adapter = trained(replace(spec, alpha=1.5))
    adapter.load(file, lambda path: f"diffusion_model.{path}")
    x = torch.randn(5, 90)
    torch.testing.assert_close(other["wide"](x), net["wide"](x))
    with adapter.switched_off():
        assert torch.equal(other["wide"](x), network()["wide"](x))
