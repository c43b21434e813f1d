"""Pictures, masks and the sampler's node for the tests of this folder."""

from types import SimpleNamespace
from typing import Any

import torch

from inlay.lab.models.tiny_transformers import random_prompt

SIZE = (90, 110)


def pictures(batch=2, seed=0):
    rough = torch.rand(batch, 3, 9, 11, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(rough, SIZE, mode="bilinear").movedim(1, -1).contiguous()


def spots(*corners, size=12):
    masks = torch.zeros(len(corners), *SIZE)
    for mask, (top, left) in zip(masks, corners, strict=True):
        mask[top : top + size, left : left + size] = 1
    return masks


def sample(name, model, vae, image, mask, positive=None, negative=None, steps=4, cfg=1.0, **choices):
    from inlay.nodes.disentangled_inpaint_sampler import DisentangledInpaintSampler

    inputs = {
        "close_up_size": 64,
        "soft_edge": 3,
        "grow": 2,
        "close_up_share": 0.5,
        "window_area": 1.0,
    } | choices
    node: Any = DisentangledInpaintSampler.PREPARE_CLASS_CLONE(None)
    return node.execute(
        model, positive or random_prompt(name, 1), negative or random_prompt(name, 2), vae, image, mask, 3,
        steps, cfg, "euler", "simple", **inputs,
    ).result  # fmt: skip


def watched(model):
    """A clone of the model and a list of the calls of its network."""
    calls = []

    def watch(executor, x, t, c_concat=None, c_crossattn=None, control=None, options=None, **kwargs):
        calls.append(SimpleNamespace(x=x.clone(), sigma=float(t.max()), text=c_crossattn, **kwargs))
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)

    model = model.clone()
    model.add_wrapper_with_key("apply_model", "watch", watch)
    return model, calls
