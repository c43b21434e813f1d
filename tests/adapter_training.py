"""Small models, pictures and command lines for tests of the adapter trainings."""

import argparse
import json

import pytest
import torch
from PIL import Image

from inlay.headless import train_cli

UNET = {
    "sample_size": 4, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4,
    "cross_attention_dim": 16, "attention_head_dim": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip


def unet(channels=4, seed=0):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(seed)
    return diffusers.UNet2DConditionModel(in_channels=channels, **UNET)


def write_world(root):
    """Write small models and pictures in folders, as a user has them."""
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    unet(4).save_pretrained(root / "unet")
    unet(8).save_pretrained(root / "pix2pix")
    torch.manual_seed(0)
    diffusers.AutoencoderKL(block_out_channels=(4, 4), norm_num_groups=2, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).save_pretrained(root / "vae")  # fmt: skip
    transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=56, patch_size=14,
    )).save_pretrained(root / "dino")  # fmt: skip
    transformers.CLIPVisionModel(transformers.CLIPVisionConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14,
        intermediate_size=32,
    )).save_pretrained(root / "clip")  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    for i in range(6):
        folder, scene = root / "photos" / f"cup {i}", root / "scenes" / f"{i}"
        folder.mkdir(parents=True)
        scene.mkdir(parents=True)
        for view in range(2):
            pixels = 0.5 * torch.rand(20, 24, 3, generator=generator)
            mask = torch.zeros(20, 24)
            mask[4:16, 6 + view : 18] = 1
            save(pixels + 0.4 * mask[..., None], folder / f"{view}.png")
            save(mask, folder / f"{view}_mask.png")
        save(pixels, scene / "source.png")
        save(pixels + 0.4 * mask[..., None], scene / "target.png")
        save(pixels[4:16, 8:18] + 0.4, scene / "object.png")


def save(pixels, path):
    Image.fromarray((255 * pixels).byte().numpy()).save(path)


def options(*arguments):
    parser = argparse.ArgumentParser()
    train_cli.add_arguments(parser)
    return parser.parse_args([str(argument) for argument in arguments])


def common(world, data, out, unet_folder="unet"):
    return [
        "--data", world / data, "--unet", world / unet_folder, "--vae", world / "vae", "--out", out,
        "--batch", 4, "--side", 16, "--size", 28, "--workers", 0, "--width", 16, "--depth", 1,
        "--warm-up", 1, "--rate", 1e-3, "--precision", "no",
    ]  # fmt: skip


def pack_shards(root):
    """Pack the pictures of `write_world` into shards and triplets."""
    for pictures, shards in (("photos", "shards"), ("scenes", "triplets")):
        assert train_cli.main(options("pack", root / pictures, root / shards, "--per-shard", 4)) == 0


def losses(out):
    lines = (out.with_suffix(".run") / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
