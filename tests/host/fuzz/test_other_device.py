"""Every node with pictures on one device and models on another, as with --gpu-only.

`cpu:1` stands for the other device. Torch keeps its tensors on the CPU; here each one is marked, and a
function that gets tensors of both kinds raises what CUDA would raise.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

from .conftest import VALUES
from .test_fuzz import GOOD, good

__all__ = ["good"]  # a fixture

OTHER = torch.device("cpu", 1)
MARK = "on_other_device"
MOVES = {Tensor.to, Tensor.cpu, Tensor.copy_, Tensor.type_as}


def marked(value: Any) -> bool:
    return isinstance(value, Tensor) and getattr(value, MARK, False)


def mark(value: Any) -> Any:
    if isinstance(value, Tensor) and not marked(value):
        value = value.view_as(value) if value.ndim else value.clone()
        setattr(value, MARK, True)
    return value


class SecondDevice(TorchFunctionMode):
    """Follows which tensors are on `OTHER`, and refuses to mix them with tensors of the CPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        flat = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
        there = [value for value in flat if marked(value)]
        if func == Tensor.device.__get__:  # pyright: ignore[reportAttributeAccessIssue]
            return OTHER if there else func(*args, **kwargs)
        if func is Tensor.numpy and there:
            raise TypeError("can't convert a tensor of the other device to numpy")
        wanted = self._wanted(func, args, kwargs)
        indexed = func is Tensor.__getitem__ and marked(args[0])  # CUDA takes indices from the CPU
        if (
            there
            and func not in MOVES
            and not indexed
            and any(value.ndim and not marked(value) for value in flat)
        ):
            raise RuntimeError(f"Expected all tensors to be on the same device ({func.__name__})")
        clean = [OTHER, "cpu:1"]
        args, kwargs = tree_map(
            lambda value: (
                torch.device("cpu") if isinstance(value, torch.device) and value in clean else value
            ),
            (args, kwargs),
        )
        result = func(*args, **kwargs)
        on_other = bool(there) if wanted is None else wanted
        if func is Tensor.copy_:
            return args[0]
        if on_other:
            return tree_map(mark, result)
        if there and wanted is False:
            return result.view_as(result).clone() if marked(result) else result
        return result

    @staticmethod
    def _wanted(func, args, kwargs) -> bool | None:
        """Whether the call asks for a device: True for the other one, False for the CPU, None for neither."""
        if func is Tensor.cpu:
            return False
        if func is Tensor.to and len(args) > 1 and isinstance(args[1], Tensor):
            return marked(args[1])
        devices = [value for value in (*args[1:], *kwargs.values()) if isinstance(value, torch.device | str)]
        named = [torch.device(value) for value in devices if str(value).split(":")[0] in ("cpu", "meta")]
        return None if not named else named[0] == OTHER


@pytest.fixture
def second_device(host, stock, good, monkeypatch):
    """Pictures and masks of `VALUES` on the other device, which is also the host's for results."""
    import comfy.model_management

    monkeypatch.setattr(comfy.model_management, "intermediate_device", lambda: OTHER)
    kept = dict(VALUES)
    for name in ("image", "other", "mask"):
        VALUES[name] = mark(VALUES[name].clone())
    yield SecondDevice()
    VALUES.clear()
    VALUES.update(kept)


def test_the_stand_in_refuses_what_cuda_refuses():
    with SecondDevice():
        there, here = mark(torch.ones(2)), torch.ones(2)
        assert there.device == OTHER
        assert here.device == torch.device("cpu")
        assert marked(here.to(there.device) + there)
        assert marked(here.to(there))
        assert not marked(there.cpu())
        assert not marked(there.to("cpu") + here)
        assert marked(torch.zeros(2, device=there.device))
        assert marked(there.new_ones(3))
        for mixed in (lambda: there + here, lambda: torch.cat([there, here]), lambda: here[there > 0]):
            with pytest.raises(RuntimeError, match="same device"):
                mixed()
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()


NODES = [name for name in GOOD if not name.startswith("InlayLoad") or "@image" in GOOD[name].values()]
UNMASKED = {"InlaySubjectScore": {"masks": None, "reference_masks": None}}  # the node makes its own


def run(host, device, node: str):
    """The node with good inputs where `device` holds."""
    inputs = {
        name: value for name, value in (GOOD[node] | UNMASKED.get(node, {})).items() if value is not None
    }
    if node == "SubjectFinetune":
        inputs["seed"] = 12345  # not stored yet
    with device:
        return host.run(node, inputs)


@pytest.mark.parametrize("node", NODES)
def test_every_node_runs_with_pictures_on_another_device(host, second_device, node):
    answer = run(host, second_device, node)
    assert answer.outcome == "finished", answer.text


def test_examples_of_photos_anywhere_go_into_one_batch(host):
    """Photos on the card and regular pictures in the computer's memory, or the other way round."""
    from inlay.training.finetune.data import Reference, _encoded, _views
    from inlay.training.finetune.recipes import RECIPES

    image, mask = torch.rand(64, 64, 3), torch.zeros(64, 64)
    mask[16:48, 16:48] = 1
    for place in (lambda x: x, mark):
        with SecondDevice():
            reference = Reference(place(image.clone()), place(mask.clone()))
            drawn = list(
                _views([reference], RECIPES["DreamMix"], (64, 64), 2, torch.Generator().manual_seed(0))
            )
            kept = _encoded(drawn, lambda pictures: torch.zeros(len(pictures), 4, 8, 8))
        assert not any(marked(part) for part in kept)


@pytest.fixture
def only_device(second_device, monkeypatch):
    """As with --gpu-only: models and everything wired in are on the other device, and stay there."""
    import comfy.model_management

    for name in ("get_torch_device", "text_encoder_device", "text_encoder_offload_device", "vae_device",
                 "vae_offload_device", "unet_offload_device"):  # fmt: skip
        monkeypatch.setattr(comfy.model_management, name, lambda: OTHER)
    held = [VALUES[name] for name in ("model", "clip", "vae", "edit", "vision", "adapter", "optimizer")]
    patchers = [getattr(part, "patcher", part) for part in held]
    marks: list[Tensor] = []
    for patcher in patchers:
        monkeypatch.setattr(patcher, "load_device", OTHER)
        monkeypatch.setattr(patcher, "offload_device", OTHER)
        marks += [*patcher.model.parameters(), *patcher.model.buffers()]
    for part, name in (("vae", "device"), ("vae", "output_device"), ("vision", "load_device")):
        monkeypatch.setattr(VALUES[part], name, OTHER)
    for tensor in marks:
        setattr(tensor, MARK, True)
    for name in ("words", "sigmas"):
        VALUES[name] = tree_map(
            lambda value: mark(value.clone()) if isinstance(value, Tensor) else value, VALUES[name]
        )
    yield second_device
    for tensor in marks:
        if hasattr(tensor, MARK):
            delattr(tensor, MARK)


@pytest.mark.parametrize("node", NODES)
def test_every_node_runs_with_everything_on_another_device(host, only_device, node):
    answer = run(host, only_device, node)
    assert answer.outcome == "finished", answer.text
