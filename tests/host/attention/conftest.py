"""A small UNet of the host with random weights, as a MODEL, and the host's sampler around it."""

from types import SimpleNamespace

import pytest
import torch

CONTEXT = 16
LATENT = (12, 10)
SIZES = {
    "shallow": {"channel_mult": [1], "transformer_depth": [1], "transformer_depth_output": [1, 1]},
    "small": {"channel_mult": [1, 2], "transformer_depth": [1, 1], "transformer_depth_output": [1, 1, 1, 1]},
    "deep": {"channel_mult": [1, 2], "transformer_depth": [1, 2], "transformer_depth_output": [1, 1, 2, 2]},
}


# The host's configuration -> what differs from SD 1.5's.
KINDS = {
    "SD15": {},
    "SD20": {"use_linear_in_transformer": True},
    "SDXL": {"use_linear_in_transformer": True, "num_classes": "sequential", "adm_in_channels": 2816},
}


def make_model(size="small", dtype=torch.float32, seed=0, kind="SD15", in_channels=4):
    """A ModelPatcher of a UNet: 32 channels, one residual block a level."""
    import comfy.model_patcher
    import comfy.supported_models

    config = getattr(comfy.supported_models, kind)(
        {
            "image_size": 32,
            "in_channels": in_channels,
            "out_channels": 4,
            "model_channels": 32,
            "num_res_blocks": [1] * len(SIZES[size]["channel_mult"]),
            "transformer_depth_middle": 1,
            "context_dim": CONTEXT,
            "use_spatial_transformer": True,
            "use_linear_in_transformer": False,
            "legacy": False,
            "adm_in_channels": None,
            **KINDS[kind],
            **SIZES[size],
        }
    )
    config.unet_config |= {"num_heads": 4, "num_head_channels": -1}
    config.set_inference_dtype(dtype, None)
    model = config.get_model({}, "")
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = (torch.randn(parameter.shape, generator=generator) * 0.08).to(dtype)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, cpu, cpu)


def prompt(seed, length=77, **extras):
    """One conditioning, as a text encoder would give it."""
    return [[torch.randn(1, length, CONTEXT, generator=torch.Generator().manual_seed(seed)), extras]]


def dense_patch(mask, kind, operator):
    """The operator with an explicit S x S (or S x L) mask in float64, as another pack might write it."""
    from inlay.attention.regions import region_labels, token_labels

    labels = region_labels([mask])

    def patch(q, k, v, extra_options):
        latent, grid = (tuple(extra_options[name][-2:]) for name in ("original_shape", "activations_shape"))
        regions = token_labels(labels, latent, grid)[0].flatten()
        if kind == "self":
            sees = regions[:, None] == regions[None, :]
        else:
            sees = (regions == 1)[:, None].expand(-1, k.shape[1])
        heads, dtype = extra_options["n_heads"], q.dtype
        q, k, v = (x.double().unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        if operator == "paper":
            p = scores.softmax(-1) * sees
        else:
            p = scores.masked_fill(~sees, -torch.inf).softmax(-1).nan_to_num(0.0)
        return (p @ v).transpose(1, 2).flatten(2).to(dtype)

    return patch


def dense_model(model, mask, operator="paper"):
    """A clone with every layer masked by `dense_patch`: what ours must equal."""
    from inlay.attention.layers import unet_layers

    model = model.clone()
    for layer in unet_layers(model.model.diffusion_model):
        model.set_model_attn1_replace(dense_patch(mask, "self", operator), layer.block, layer.number)
        model.set_model_attn2_replace(dense_patch(mask, "cross", operator), layer.block, layer.number)
    return model


@pytest.fixture
def rig(in_process_host, monkeypatch):
    """`.model(...)` makes a MODEL, `.mask` fits it, `.dense(model, mask)` is the reference patch,
    `.sample(model, ...)` runs three steps with guidance."""
    import comfy.ldm.modules.attention as attention
    import comfy.sample

    # On the CPU the host's default splits into Python loops that torch.compile cannot follow.
    monkeypatch.setattr(attention, "optimized_attention", attention.attention_pytorch)
    mask = torch.zeros(1, 96, 80)
    mask[0, 16:64, 24:56] = 1

    def sample(model, batch=1, cfg=5.0, steps=3, positive=None, negative=None, seed=1, latent=LATENT):
        noise = torch.randn(batch, 4, *latent, generator=torch.Generator().manual_seed(seed))
        positive, negative = positive or prompt(2), negative or prompt(3)
        with torch.inference_mode():
            return comfy.sample.sample(
                model, noise, steps, cfg, "euler", "normal", positive, negative, torch.zeros_like(noise),
                seed=seed, disable_pbar=True,
            )  # fmt: skip

    return SimpleNamespace(model=make_model, dense=dense_model, prompt=prompt, mask=mask, sample=sample)
