"""The sizes of the host's full networks, made without memory for their weights or with random ones."""

import importlib
from typing import Any

import torch

QWEN_TEXT = 3584  # width of Qwen2.5-VL's text, which the host's class has as a default

FLUX = {
    "in_channels": 16, "out_channels": 16, "hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24,
    "axes_dim": [16, 56, 56], "theta": 10000, "patch_size": 2, "qkv_bias": True, "txt_ids_dims": [],
    "context_in_dim": 4096, "vec_in_dim": 768, "depth": 19, "depth_single_blocks": 38, "guidance_embed": True,
}  # fmt: skip
FLUX2 = FLUX | {
    "in_channels": 128, "out_channels": 128, "mlp_ratio": 3.0, "axes_dim": [32, 32, 32, 32], "theta": 2000,
    "patch_size": 1, "qkv_bias": False, "ops_bias": False, "txt_ids_dims": [3], "global_modulation": True,
    "mlp_silu_act": True, "vec_in_dim": None, "context_in_dim": 15360, "hidden_size": 6144, "num_heads": 48,
    "depth": 8, "depth_single_blocks": 48,
}  # fmt: skip
KLEIN = FLUX2 | {
    "context_in_dim": 7680, "hidden_size": 3072, "num_heads": 24, "depth": 5, "depth_single_blocks": 20,
    "guidance_embed": False,
}  # fmt: skip
LUMINA = {
    "patch_size": 2, "in_channels": 16, "qk_norm": True, "dim": 2304, "n_layers": 26, "n_heads": 24,
    "n_kv_heads": 8, "axes_dims": [32, 32, 32], "axes_lens": [300, 512, 512], "cap_feat_dim": 2304,
}  # fmt: skip
Z_IMAGE = LUMINA | {
    "dim": 3840, "n_layers": 30, "n_heads": 30, "n_kv_heads": 30, "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512], "ffn_dim_multiplier": 8 / 3, "z_image_modulation": True,
    "pad_tokens_multiple": 32, "cap_feat_dim": 2560,
}  # fmt: skip
UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320,
    "use_spatial_transformer": True, "legacy": False,
}  # fmt: skip
SD = UNET | {
    "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4], "transformer_depth_middle": 1,
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
}  # fmt: skip
SDXL = UNET | {
    "num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4], "transformer_depth_middle": 10,
    "context_dim": 2048, "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "num_head_channels": 64, "use_linear_in_transformer": True, "num_classes": "sequential",
    "adm_in_channels": 2816,
}  # fmt: skip

# Our family name -> the network's module and class, and its sizes.
FULL = {
    "sd15": ("modules.diffusionmodules.openaimodel:UNetModel", SD | {"context_dim": 768, "num_heads": 8}),
    "sd2": (
        "modules.diffusionmodules.openaimodel:UNetModel",
        SD | {"context_dim": 1024, "num_head_channels": 64, "use_linear_in_transformer": True},
    ),
    "sdxl": ("modules.diffusionmodules.openaimodel:UNetModel", SDXL),
    "flux1": ("flux.model:Flux", FLUX),
    "flux1-fill": ("flux.model:Flux", FLUX | {"in_channels": 96}),
    "flux1-schnell": ("flux.model:Flux", FLUX | {"guidance_embed": False}),
    "flux2-dev": ("flux.model:Flux", FLUX2),
    "flux2-klein": ("flux.model:Flux", KLEIN),
    "longcat-image": (
        "flux.model:Flux",
        FLUX | {"context_in_dim": 3584, "vec_in_dim": None, "guidance_embed": False, "txt_ids_dims": [1, 2]},
    ),
    "qwen-image": ("qwen_image.model:QwenImageTransformer2DModel", {}),
    "qwen-image-edit-2511": (
        "qwen_image.model:QwenImageTransformer2DModel",
        {"default_ref_method": "index_timestep_zero"},
    ),
    "z-image": ("lumina.model:NextDiT", Z_IMAGE),
    "lumina2": ("lumina.model:NextDiT", LUMINA),
    "krea2": ("krea2.model:SingleStreamDiT", {}),
    "chroma": (
        "chroma.model:Chroma",
        {key: value for key, value in FLUX.items() if key != "guidance_embed"}
        | {"in_channels": 64, "out_channels": 64, "in_dim": 64, "out_dim": 3072, "hidden_dim": 5120,
           "n_layers": 5, "vec_in_dim": None},
    ),
    "omnigen2": (
        "omnigen.omnigen2:OmniGen2Transformer2DModel",
        {"hidden_size": 2520, "num_layers": 32, "num_attention_heads": 21, "num_kv_heads": 7,
         "axes_dim_rope": (40, 40, 40), "axes_lens": (1024, 1664, 1664), "text_feat_dim": 2048},
    ),
    "lens": ("lens.model:LensTransformer2DModel", {}),
    "boogu": ("boogu.model:BooguTransformer2DModel", {}),
    "anima": (
        "anima.model:Anima",
        {"max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16, "out_channels": 16,
         "patch_spatial": 2, "patch_temporal": 1, "model_channels": 2048, "num_blocks": 28, "num_heads": 16,
         "crossattn_emb_channels": 1024, "pos_emb_cls": "rope3d", "use_adaln_lora": True},
    ),
}  # fmt: skip


def full_network(name: str, dtype: torch.dtype = torch.bfloat16):
    """The host's network of one of our family names at full size, on the device "meta"."""
    import comfy.ops

    place, sizes = FULL[name]
    module, cls = place.split(":")
    return getattr(importlib.import_module(f"comfy.ldm.{module}"), cls)(
        **sizes, device="meta", dtype=dtype, operations=comfy.ops.disable_weight_init
    )


def random_model(name: str, weights: str):
    """A MODEL of a family at full size with random weights, loaded to the device that the host uses.

    Args:
        name: one of the keys of FULL that are transformers.
        weights: "fp8", as the host has a file in fp8 without scales, or "bf16".
    """
    import comfy.model_detection
    import comfy.model_management
    from comfy.model_patcher import ModelPatcher

    config: Any = comfy.model_detection.model_config_from_unet(full_network(name).state_dict(), "")
    if weights == "fp8":
        config.set_inference_dtype(torch.float8_e4m3fn, torch.bfloat16)
    else:
        config.set_inference_dtype(torch.bfloat16, None)
    base = config.get_model({}, "", device=torch.device("cpu"))
    table = torch.randn(2**20, generator=torch.Generator().manual_seed(0))
    for parameter in base.diffusion_model.parameters():
        # matrices of variance 1 / fan-in, from one table of numbers, because drawing billions takes minutes
        wide = parameter.ndim > 1
        numbers = (table * parameter[0].numel() ** -0.5 if wide else torch.ones(2**20)).to(parameter.dtype)
        for part in parameter.data.view(-1).split(len(numbers)):
            part.copy_(numbers[: len(part)])
    return ModelPatcher(base, comfy.model_management.get_torch_device(), torch.device("cpu"))


def random_examples(model, side: int, count: int):
    """Examples of a transformer's random latents for a training, of pictures of `side` pixels."""
    from inlay.training.finetune.data import Examples

    channels = model.model.latent_format.latent_channels
    grid, generator = side // (16 if channels == 128 else 8), torch.Generator().manual_seed(0)
    latent, other = (torch.randn(count, channels, grid, grid, generator=generator) for _ in range(2))
    mask = torch.zeros(count, 1, grid, grid)
    mask[..., grid // 4 : -grid // 4, grid // 4 : -grid // 4] = 1
    caption = torch.zeros(1, dtype=torch.long)
    return Examples(latent, mask, other, torch.ones_like(mask), torch.zeros(1, 0, 0), caption=caption)


def text_width(model) -> int:
    """The width of the text that a full-size MODEL reads."""
    facts = model.model.model_config.unet_config
    if "txtlayers" in facts:
        return facts["txtlayers"] * facts["txtdim"]
    names = ("context_in_dim", "joint_attention_dim", "cap_feat_dim")
    return next((facts[name] for name in names if name in facts), QWEN_TEXT)
