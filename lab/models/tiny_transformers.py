"""Diffusion transformers of the host with random weights and a few blocks, one for each family of `families`.

They are built in the process by the host's own model configurations, so latent formats, conditions, LoRA
names, wrappers and sampling are the host's. Only the detection from a file is skipped: it fixes the width of
several families. Random weights prove behaviour, not quality.
"""

from types import SimpleNamespace
from typing import Any

import torch

CONTEXT = 48  # width of the text, where the family does not fix it
FLUX = {
    "out_channels": 16, "hidden_size": 64, "num_heads": 2, "axes_dim": [8, 12, 12], "theta": 10000,
    "patch_size": 2, "qkv_bias": True, "txt_ids_dims": [], "mlp_ratio": 2.0, "depth": 1,
    "depth_single_blocks": 2, "in_channels": 16, "context_in_dim": CONTEXT, "vec_in_dim": 16,
    "guidance_embed": True, "image_model": "flux",
}  # fmt: skip
FLUX2 = FLUX | {
    "image_model": "flux2", "axes_dim": [8, 8, 8, 8], "theta": 2000, "in_channels": 128,
    "out_channels": 128, "patch_size": 1, "qkv_bias": False, "ops_bias": False, "vec_in_dim": None,
    "global_modulation": True, "mlp_silu_act": True, "txt_ids_dims": [3], "default_ref_method": "index",
    "ref_index_scale": 10.0,
}  # fmt: skip
CHROMA = {
    key: value
    for key, value in FLUX.items()
    if key not in ("vec_in_dim", "guidance_embed", "in_channels", "out_channels")
}
QWEN = {
    "image_model": "qwen_image", "in_channels": 64, "num_layers": 2, "num_attention_heads": 2,
    "attention_head_dim": 32, "axes_dims_rope": (8, 12, 12), "joint_attention_dim": CONTEXT,
}  # fmt: skip
LUMINA = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 64, "cap_feat_dim": CONTEXT,
    "n_layers": 2, "n_refiner_layers": 1, "qk_norm": True, "n_heads": 2, "n_kv_heads": 1,
    "axes_dims": [8, 12, 12], "axes_lens": [300, 512, 512], "ffn_dim_multiplier": 1.0, "multiple_of": 32,
}  # fmt: skip
OMNIGEN = {
    "in_channels": 16, "hidden_size": 48, "num_layers": 1, "num_refiner_layers": 1,
    "num_attention_heads": 2, "num_kv_heads": 1, "multiple_of": 32, "axes_dim_rope": (8, 8, 8),
    "axes_lens": (1024, 1664, 1664), "timestep_scale": 1000.0,
}  # fmt: skip

# Our family name -> the host's configuration class and its `unet_config`.
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "flux1": ("Flux", FLUX),
    "flux1-fill": ("FluxInpaint", FLUX | {"in_channels": 96}),
    "flux1-schnell": ("FluxSchnell", FLUX | {"guidance_embed": False}),
    "flux2-dev": ("Flux2", FLUX2),
    "flux2-klein": ("Flux2", FLUX2 | {"guidance_embed": False}),
    "qwen-image": ("QwenImage", QWEN),
    "qwen-image-edit-2511": ("QwenImage", QWEN | {"default_ref_method": "index_timestep_zero"}),
    "z-image": (
        "ZImage",
        LUMINA
        | {
            "dim": 256, "n_heads": 8, "n_kv_heads": 8, "z_image_modulation": True, "time_scale": 1000.0,
            "pad_tokens_multiple": 32,
        },
    ),
    "lumina2": ("Lumina2", LUMINA),
    "krea2": (
        "Krea2",
        {
            "image_model": "krea2", "features": 64, "channels": 16, "patch": 2, "layers": 2, "heads": 2,
            "kvheads": 1, "txtlayers": 3, "txtdim": 16, "txtheads": 1, "txtkvheads": 1, "multiplier": 2,
        },
    ),
    "chroma": (
        "Chroma",
        CHROMA
        | {
            "image_model": "chroma", "in_channels": 64, "out_channels": 64, "in_dim": 64, "out_dim": 64,
            "hidden_dim": 32, "n_layers": 1, "vec_in_dim": None,
        },
    ),
    "longcat-image": (
        "LongCatImage",
        FLUX | {"vec_in_dim": None, "guidance_embed": False, "txt_ids_dims": [1, 2]},
    ),
    "omnigen2": ("Omnigen2", OMNIGEN | {"image_model": "omnigen2", "text_feat_dim": CONTEXT}),
    "lens": (
        "Lens",
        {
            "image_model": "lens", "in_channels": 128, "out_channels": 32, "num_layers": 2,
            "num_attention_heads": 2, "attention_head_dim": 32, "axes_dims_rope": (8, 12, 12),
            "enc_hidden_dim": 16, "selected_layer_index": (0, 1, 2),
        },
    ),
    "boogu": (
        "Boogu",
        OMNIGEN | {"image_model": "boogu", "num_double_stream_layers": 1, "instruction_feat_dim": CONTEXT},
    ),
    "anima": (
        "Anima",
        {
            "image_model": "anima", "in_channels": 16, "out_channels": 16, "patch_spatial": 2,
            "patch_temporal": 1, "model_channels": 64, "num_blocks": 2, "num_heads": 2,
            "crossattn_emb_channels": CONTEXT, "max_img_h": 240, "max_img_w": 240, "max_frames": 128,
            "pos_emb_cls": "rope3d", "use_adaln_lora": True, "adaln_lora_dim": 8,
        },
    ),
}  # fmt: skip


def tiny_transformer(
    family: str, dtype: torch.dtype = torch.float32, seed: int = 0, operations=None, **changes
):
    """A MODEL (ModelPatcher on the CPU) of a family with random weights.

    Args:
        family: one of the keys of TINY.
        dtype: of the weights.
        seed: of the weights.
        operations: the class of its layers, as packs give one to the host; default: the host's own.
        changes: other entries of the host's `unet_config`, for larger models.
    """
    import comfy.model_patcher
    import comfy.supported_models

    config_name, facts = TINY[family]
    config = getattr(comfy.supported_models, config_name)(dict(facts) | changes)
    config.set_inference_dtype(dtype, None)
    config.custom_operations = operations
    model = config.get_model({}, "")
    if hasattr(model.diffusion_model, "llm_adapter"):  # Anima's: of fixed size, and for other text alone
        model.diffusion_model.llm_adapter = None
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape, generator=generator) * 0.08
        if name.endswith(("norm.weight", ".scale")) or "norm" in name.rsplit(".", 2)[-2]:
            values = values + 1  # a normalisation's gain is near 1
        parameter.data = values.to(dtype)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, cpu, cpu)


def tiny_vae(family: str, seed: int = 0):
    """A VAE of the host with random weights that fits a family's latents.

    FLUX.2 and Lens have 128 channels and 16 pixels per cell, Qwen-Image, Krea 2 and Anima a film
    autoencoder, the others 16 channels and 8 pixels per cell.
    """
    import comfy.ldm.wan.vae
    import comfy.sd
    import comfy.taesd.taesd

    metadata = None
    if family.startswith(("qwen", "krea2", "anima")):
        network = comfy.ldm.wan.vae.WanVAE(dim=8, z_dim=16, temperal_downsample=[False, True, True])
    else:
        channels = 128 if family.startswith(("flux2", "lens")) else 16
        network = comfy.taesd.taesd.TAESD(latent_channels=channels)
        metadata = {"tae_latent_channels": channels}
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, value in network.state_dict().items():
        if not value.is_floating_point() or name.startswith("vae_"):
            weights[name] = value
            continue
        fan_in = value[0].numel() if value.ndim > 1 else 1
        scale = fan_in**-0.5 if value.ndim > 1 else 0.02
        weights[name] = torch.randn(value.shape, generator=generator) * scale
        if name.endswith("gamma"):
            weights[name] = torch.ones_like(value)
    return comfy.sd.VAE(sd=weights, metadata=metadata)


def context_width(family: str) -> int:
    """The width of the text that a tiny model reads."""
    facts = TINY[family][1]
    if family == "krea2":
        return facts["txtlayers"] * facts["txtdim"]
    if family == "lens":
        return facts["enc_hidden_dim"] * len(facts["selected_layer_index"])
    return CONTEXT


def random_prompt(family: str, seed: int, length: int = 7, **extras) -> list:
    """A CONDITIONING of random text for a tiny model."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(1, length, context_width(family), generator=generator)
    if family in ("omnigen2", "boogu"):  # the host counts their tokens in the mask
        extras = {"attention_mask": torch.ones(1, length, dtype=torch.long)} | extras
    if family.startswith("flux1"):
        extras = {"pooled_output": torch.randn(1, 16, generator=generator)} | extras
    return [[text, extras]]


def random_latent(model, height: int, width: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    """Random latents (B, C, h, w), or (B, C, 1, h, w) for a family with a time axis."""
    latent_format = model.model.latent_format
    time = (1,) * (latent_format.latent_dimensions - 2)
    shape = (batch, latent_format.latent_channels, *time, height, width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class RandomText:
    """A text encoder that gives every caption random tokens of its own, as many as it has words and two."""

    def __init__(self, family: str):
        self.family, self.patcher, self.tokenizer = family, SimpleNamespace(patches={}), None

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens(self, text: str, return_pooled: bool = False):
        context, values = self.encode_from_tokens_scheduled(text)[0]
        return (context, values.get("pooled_output")) if return_pooled else context

    def encode_from_tokens_scheduled(self, text: str) -> list:
        seed = sum(ord(letter) * (place + 1) for place, letter in enumerate(text))
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randn(1, len(text.split()) + 2, context_width(self.family), generator=generator)
        pooled = {"pooled_output": torch.randn(1, 16, generator=generator)}
        return [[tokens, pooled if self.family.startswith("flux1") else {}]]
