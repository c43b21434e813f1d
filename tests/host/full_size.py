"""A full-size SD 1.5 inpainting checkpoint with random weights, made on the spot (UNet: 860 M)."""

from pathlib import Path

import torch
from safetensors.torch import save_file

# The SD 1.5 inpainting UNet, as its published configuration has it.
UNET = {
    "image_size": 32,
    "in_channels": 9,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": (1, 2, 4, 4),
    "num_heads": 8,
    "use_spatial_transformer": True,
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "context_dim": 768,
    "legacy": False,
}
# The SD autoencoder (KL, 8x) and CLIP ViT-L/14's text tower.
VAE = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}
CLIP = {
    "num_hidden_layers": 12,
    "hidden_size": 768,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "quick_gelu",
    "max_position_embeddings": 77,
    "eos_token_id": 49407,
}


def write_checkpoint(path: Path, seed: int = 0) -> Path:
    """Write it as float16 (2.1 GB), as the stock checkpoint loader reads it; the host must be importable."""
    import comfy.ops
    from comfy.clip_model import CLIPTextModel
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    operations = comfy.ops.disable_weight_init
    with torch.device("meta"):
        parts = {
            "model.diffusion_model.": UNetModel(**UNET, operations=operations),
            "first_stage_model.": AutoencoderKL(ddconfig=VAE, embed_dim=4),
            "cond_stage_model.transformer.": CLIPTextModel(CLIP, torch.float16, "meta", operations),
        }
    generator = torch.Generator().manual_seed(seed)
    state = {
        prefix + name: _draw(name, weight.shape, generator)
        for prefix, part in parts.items()
        for name, weight in part.state_dict().items()
        if "text_projection" not in name
    }
    save_file(state, path)
    return path


def _draw(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Biases 0, norms 1, matrices and kernels of variance 1 / fan-in, so that activations keep their size."""
    if len(shape) < 2:
        return torch.full(shape, 0.0 if name.endswith("bias") else 1.0, dtype=torch.float16)
    weight = torch.randn(shape, generator=generator)
    return (weight / shape[1:].numel() ** 0.5).half()
