"""Steps per second and peak memory of a finetuning, side by side at equal settings.

    python dev.py bench training [--full] [--steps N] [--rank R]

`inlay` is SubjectFinetune's engine, without and with DreamCom's masked cross-attention; `host` is ComfyUI's
own Train LoRA node, patching weights or bypassing them; `diffusers` is its DreamBooth inpainting loop, built
from its own parts. All train one UNet of random weights (the tiny one at 64 px, with --full SD 1.5 at 512 px)
at batch 1 in float32 on the CPU, each in a process of its own. The time of a step is the difference between a
long and a short run over the steps between them, so loading and encoding beforehand do not count;
`cpu s` is the processor time of a step, which a busy machine disturbs less.
"""

import argparse
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import torch

SIDES = ("inlay", "inlay masked", "host", "host bypass", "diffusers")
WRITE = "checkpoint"  # not a side: written by a process of its own, so that no side's memory holds it
HERE = Path(__file__).resolve().parent


def checkpoint_in(folder: Path, full: bool) -> Path:
    """A checkpoint of random weights, written on the first call; from then on the host can be imported."""
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    from comfy.cli_args import args

    args.cpu = True
    path = folder / ("full.safetensors" if full else "tiny.safetensors")
    if not path.exists() and full:
        runpy.run_path(str(HERE.parent / "host" / "full_size.py"))["write_checkpoint"](path)
    elif not path.exists():
        from inlay.lab.models.checkpoint import assemble, random_parts

        assemble(path, random_parts(0))
    return path


def open_host(path: Path):
    """MODEL, CLIP and VAE of a checkpoint, through the host's loader."""
    import comfy.sd

    with torch.inference_mode():
        return comfy.sd.load_checkpoint_guess_config(str(path))[:3]


def inlay_side(parts, size: int, rank: int, masked: bool):
    """A function that trains for n steps; everything before the first step is done once."""
    from dataclasses import replace

    from inlay.training.finetune.data import Examples
    from inlay.training.finetune.pipeline import Pipeline, train_lora
    from inlay.training.finetune.recipes import DREAMCOM

    pipeline = Pipeline(*parts)
    grid, generator = size // 8, torch.Generator().manual_seed(0)
    mask = torch.zeros(8, 1, grid, grid)
    mask[..., grid // 4 : -grid // 4, grid // 4 : -grid // 4] = 1
    latent, other = (torch.randn(8, 4, grid, grid, generator=generator) for _ in range(2))
    context = torch.randn(1, 77, 768, generator=generator)
    examples = Examples(latent, mask, other, torch.ones_like(mask), context)
    recipe = replace(DREAMCOM, masked_cross_attention=masked).with_choices(rank=rank)

    def train(steps: int) -> None:
        with torch.inference_mode():
            train_lora(pipeline, [examples], recipe.with_choices(steps=steps), seed=0)

    return train


def host_side(parts, size: int, rank: int, bypass: bool):
    from comfy_extras.nodes_train import TrainLoraNode

    latents = {"samples": torch.randn(8, 4, size // 8, size // 8, generator=torch.Generator().manual_seed(0))}
    options = {
        "model": parts[0], "batch_size": 1, "grad_accumulation_steps": 1, "learning_rate": 1e-4,
        "rank": rank, "optimizer": "AdamW", "loss_function": "MSE", "seed": 0, "training_dtype": "fp32",
        "lora_dtype": "fp32", "quantized_backward": False, "algorithm": "LoRA",
        "gradient_checkpointing": False, "checkpoint_depth": 1,
        "offloading": False, "existing_lora": "[None]", "bucket_mode": False, "bypass_mode": bypass,
    }  # fmt: skip

    def train(steps: int) -> None:
        conditioning = [[torch.randn(1, 77, 768), {}]]
        wired = {name: [value] for name, value in options.items()}
        with torch.inference_mode():
            cast(Any, TrainLoraNode).execute(
                latents=[latents], positive=[conditioning], steps=[steps], **wired
            )

    return train


def diffusers_side(size: int, rank: int, full: bool):
    """train_dreambooth_inpaint_lora.py: pictures and words are encoded in every step."""
    import diffusers
    import transformers
    from peft import LoraConfig

    library, words = cast(Any, diffusers), cast(Any, transformers)
    torch.manual_seed(0)
    down, up = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
    shape = {"in_channels": 9, "cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": size // 8}
    if full:
        unet = library.UNet2DConditionModel(**shape)
        vae = library.AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        )  # fmt: skip
    else:
        shape |= {"block_out_channels": (320,), "down_block_types": (down,), "up_block_types": (up,)}
        unet = library.UNet2DConditionModel(**shape, layers_per_block=1)
        vae = library.AutoencoderTiny()
    tower = words.CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12)
    text_encoder = words.CLIPTextModel(tower)
    scheduler = library.DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    for part in (unet, vae, text_encoder):
        part.requires_grad_(False)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets))
    lora = [p for p in unet.parameters() if p.requires_grad]
    picture, mask = torch.rand(1, 3, size, size) * 2 - 1, torch.zeros(1, 1, size, size)
    mask[..., size // 4 : -size // 4, size // 4 : -size // 4] = 1
    tokens = torch.randint(0, 49408, (1, 77))

    def encode(pixels):
        found = vae.encode(pixels)
        latent = found.latent_dist.sample() if full else found.latents
        return latent * vae.config.scaling_factor

    def train(steps: int) -> None:
        adamw = torch.optim.AdamW(lora, lr=1e-4)
        for _ in range(steps):
            with torch.no_grad():
                clean, masked = encode(picture), encode(picture * (1 - mask))
                states = text_encoder(tokens)[0]
            small = torch.nn.functional.interpolate(mask, scale_factor=1 / 8)
            noise, t = torch.randn_like(clean), torch.randint(0, 1000, (1,))
            noisy = scheduler.add_noise(clean, noise, t)
            predicted = unet(torch.cat([noisy, small, masked], 1), t, states).sample
            torch.nn.functional.mse_loss(predicted, noise).backward()
            torch.nn.utils.clip_grad_norm_(lora, 1.0)
            adamw.step()
            adamw.zero_grad()

    return train


def measure(side: str, options) -> dict[str, float]:
    """One side in this process: seconds and processor seconds per step, and peak memory in GB."""
    size = 512 if options.full else 64
    if side == WRITE:
        checkpoint_in(options.folder, options.full)
        return {}
    if side == "diffusers":
        train = diffusers_side(size, options.rank, options.full)
    else:
        parts = open_host(checkpoint_in(options.folder, options.full))
        make = inlay_side if side.startswith("inlay") else host_side
        train = make(parts, size, options.rank, " " in side)
    first = 1 if options.full else 3
    spent = []
    for steps in (first, first, first + options.steps):  # the first warms up
        start = time.perf_counter(), time.process_time()
        train(steps)
        spent.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    scale = 2**30 if sys.platform == "darwin" else 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale
    seconds, cpu = ((long - short) / options.steps for short, long in zip(spent[1], spent[2], strict=True))
    return {"seconds": seconds, "cpu": cpu, "peak": peak}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--full", action="store_true", help="SD 1.5 at 512 px instead of the tiny UNet at 64 px"
    )
    parser.add_argument("--steps", type=int, help="steps to time (20; 2 with --full)")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.steps = options.steps or (2 if options.full else 20)
    if options.folder:
        print(json.dumps(measure(options.sides, options)))
        return
    print(f"{'':14} {'steps/s':>8} {'s/step':>8} {'cpu s':>8} {'peak GB':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for side in (WRITE, *options.sides.split(",")):
            command = [
                sys.executable,
                __file__,
                "--folder",
                folder,
                "--sides",
                side,
                "--steps",
                str(options.steps),
            ]
            command += ["--rank", str(options.rank)] + ["--full"] * options.full
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            if done.returncode == -signal.SIGKILL:
                print(f"{side:14} killed: out of memory?", flush=True)
                continue
            if done.returncode:
                sys.exit(f"{side}: {done.stderr}")
            if side == WRITE:
                continue
            found = json.loads(done.stdout.splitlines()[-1])
            seconds = found["seconds"]
            print(
                f"{side:14} {1 / seconds:8.2f} {seconds:8.3f} {found['cpu']:8.3f} {found['peak']:8.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
