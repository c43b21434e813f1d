"""Masks of every rank and type give one result, in every node and input that takes a mask."""

import importlib
from dataclasses import asdict, is_dataclass
from typing import Any

import pytest
import torch
from PIL import Image

from .conftest import TAKEN, VALUES
from .test_fuzz import GOOD, SPOT, good

__all__ = ["good"]  # a fixture

FORMS = {
    "rank 2": SPOT[0],
    "rank 4": SPOT[None],
    "one channel": SPOT[..., None],
    "booleans": SPOT.bool(),
    "bytes": (SPOT * 255).byte(),
    "half": SPOT.half(),
    "bfloat16": SPOT.bfloat16(),
    "double": SPOT.double(),
    "not contiguous": SPOT.mT.contiguous().mT,
}
TAKERS = [
    *((node, name) for node, inputs in GOOD.items() for name, value in inputs.items() if value == "@mask"),
    ("InlayBoxMask", "mask"),  # which GOOD leaves out
]


def plain(value: Any) -> Any:
    """An output as tensors, numbers and texts in lists and dictionaries."""
    if isinstance(value, torch.Tensor):
        return value.double()
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if hasattr(value, "model_options"):  # a MODEL: what it samples
        return sampled(value)
    return value if isinstance(value, str | int | float | bool | None) else type(value).__name__


def sampled(model: Any) -> torch.Tensor:
    import comfy.sample

    latent = torch.zeros(1, 4, 8, 8)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
    words = VALUES["words"]
    return comfy.sample.sample(
        model, noise, 2, 2.0, "euler", "normal", words, words, latent, disable_pbar=True
    ).double()  # fmt: skip


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def outcome(host, node: str, inputs: dict[str, Any]) -> tuple[str, str, Any]:
    answer = host.run(node, inputs)
    with torch.inference_mode():
        return answer.outcome, answer.text, plain(dict(TAKEN))


def from_load_image(folder) -> torch.Tensor:
    """SPOT as the host's Load Image gives it: transparent where the mask is 1."""
    clear = Image.fromarray(((1 - SPOT[0]) * 255).byte().numpy())
    picture = Image.new("RGBA", clear.size, "#336699")
    picture.putalpha(clear)
    picture.save(folder / "spot.png")
    return importlib.import_module("nodes").LoadImage().load_image("spot.png")[1]


@pytest.mark.parametrize(("node", "name"), TAKERS)
def test_a_mask_of_any_form_gives_one_result(host, stock, good, node, name):
    inputs = {**good[node], name: "@mask"}
    VALUES["mask"] = SPOT
    expected = outcome(host, node, inputs)
    assert expected[0] == "finished", expected[1]
    assert len(expected[2]) == len(host.nodes[node].RETURN_TYPES)
    for label, mask in {**FORMS, "Load Image": from_load_image(stock.folders.input)}.items():
        VALUES[f"form {label}"] = mask
        found = outcome(host, node, {**inputs, name: f"@form {label}"})
        assert found[:2] == expected[:2], label
        assert same(found[2], expected[2]), label


@pytest.mark.parametrize(("node", "name"), TAKERS)
def test_half_is_outside_in_every_node(host, stock, good, node, name):
    """A mask of exactly 0.5 is an empty one."""
    inputs = good[node]
    VALUES["mask"], VALUES["empty"], VALUES["half"] = SPOT, 0 * SPOT, 0.5 * SPOT
    assert same(
        *(list(outcome(host, node, {**inputs, name: f"@{value}"})) for value in ("empty", "half"))
    )  # fmt: skip


def test_every_input_for_masks_is_tried(host):
    takers = {
        (node, name) for node in GOOD for name, (kind, *_) in host.inputs_of(node).items() if kind == "MASK"
    }
    assert takers == set(TAKERS)
