"""Steps per second and peak memory of a finetuning, side by side at equal settings.

    python dev.py bench training [--full] [--steps N] [--rank R]
    python dev.py bench training --family flux1 [--side PIXELS] [--steps N] [--rank R] [--rounds N]
    python dev.py bench training --paired flux1,krea2 [--side PIXELS] [--steps N] [--rank R] [--rounds N]
    python dev.py bench training --paired flux2-klein --full [--side PIXELS] [--steps N] [--rounds N]

`inlay` is SubjectFinetune's engine, without and with DreamCom's masked cross-attention; `host` is ComfyUI's
own Train LoRA node, patching weights or bypassing them; `diffusers` is its DreamBooth inpainting loop, built
from its own parts. All train one UNet of random weights (26 M in one level at 64 px, with --full SD 1.5 at
512 px) at batch 1 in float32 on the CPU, each in a process of its own. The time of a step is the difference
between a long and a short run over the steps between them, so loading and encoding beforehand do not count;
`cpu s` is the processor time of a step, which a busy machine disturbs less.

With --family all train one small random transformer of that family. `bare` is a forward and a backward pass
of the same network with the same adapter and an optimizer step: the limit of what a trainer can reach. The
host's node runs with its own switches; its error is printed where it cannot train a family. diffusers' loop,
from its FluxTransformer2DModel, runs for flux1 alone. `--rounds` repeats all sides in turn and prints the
median of each, which other work on the machine disturbs less.

With --paired all sides of a family take turns in one process, --steps at a time, so that other work on the
machine disturbs all of them alike. Each is warmed up first. A row has the median of the steps per second, the
processor time of a step, and our processor time over that of the side: means over the rounds and standard
errors. All train without a reference picture, which Train LoRA cannot show, and in float32. With --full the
network has its full size, in bf16 (24 GB for FLUX.2 klein), and is on CUDA where that is there; the ratio is
then of seconds, and diffusers' loop, which has other sizes, is left out. `--sides inlay,bare` measures these
alone: of FLUX.2 klein, Train LoRA does not fit into 24 GB.
"""

import argparse
import json
import os
import resource
import runpy
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

SIDES = ("inlay", "inlay masked", "host", "host bypass", "diffusers")
FAMILY_SIDES = ("inlay", "bare", "host", "host bypass", "diffusers")
# Sizes of the networks that are measured, over those of `lab.models.tiny_transformers`.
FLUX_SIZES = {"hidden_size": 512, "num_heads": 4, "axes_dim": [16, 56, 56], "mlp_ratio": 4.0, "depth": 2,
              "depth_single_blocks": 4, "context_in_dim": 768, "vec_in_dim": 768}  # fmt: skip
WIDE = {
    "flux1": FLUX_SIZES,
    "flux1-fill": FLUX_SIZES,
    "flux2-klein": {"hidden_size": 512, "num_heads": 4, "axes_dim": [32] * 4, "mlp_ratio": 3.0, "depth": 2,
                    "depth_single_blocks": 4},
    "chroma": {"hidden_size": 512, "num_heads": 4, "axes_dim": [16, 56, 56], "mlp_ratio": 4.0, "depth": 2,
               "depth_single_blocks": 4, "out_dim": 512},
    "qwen-image": {"num_layers": 4, "num_attention_heads": 4, "attention_head_dim": 128,
                   "axes_dims_rope": (16, 56, 56)},
    "z-image": {"dim": 512, "n_layers": 6, "n_heads": 4, "n_kv_heads": 4, "axes_dims": [32, 48, 48],
                "ffn_dim_multiplier": 8 / 3},
    "krea2": {"features": 512, "layers": 6, "heads": 4, "kvheads": 4, "multiplier": 4},
}  # fmt: skip
TOKENS = 77  # of text
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
        from inlay.lab.models.assemble import random_checkpoint, write_checkpoint

        write_checkpoint(path, random_checkpoint(0))
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
    from inlay.training.finetune.pipeline import EncodedData, Pipeline, train_lora
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
            train_lora(pipeline, EncodedData([examples]), recipe.with_choices(steps=steps), seed=0)

    return train


def host_side(parts, size: int, rank: int, bypass: bool, samples=None, text=None, dtype: str = "fp32"):
    from comfy_extras.nodes_train import TrainLoraNode

    if samples is None:
        samples = torch.randn(8, 4, size // 8, size // 8, generator=torch.Generator().manual_seed(0))
    latents = {"samples": samples}
    options = {
        "model": parts[0], "batch_size": 1, "grad_accumulation_steps": 1, "learning_rate": 1e-4,
        "rank": rank, "optimizer": "AdamW", "loss_function": "MSE", "seed": 0, "training_dtype": dtype,
        "lora_dtype": dtype, "quantized_backward": False, "algorithm": "LoRA",
        "gradient_checkpointing": False, "checkpoint_depth": 1,
        "offloading": False, "existing_lora": "[None]", "bucket_mode": False, "bypass_mode": bypass,
    }  # fmt: skip

    def train(steps: int) -> None:
        conditioning = text or [[torch.randn(1, 77, 768), {}]]
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


def family_parts(name: str, full: bool):
    """MODEL and CONDITIONING of a random transformer, a small one or one of full size."""
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    from comfy.cli_args import args

    args.cpu = not (full and torch.cuda.is_available())
    from inlay.lab.models.full_transformers import random_model, text_width
    from inlay.lab.models.tiny_transformers import random_prompt, tiny_transformer

    with torch.inference_mode():
        if full:
            model = random_model(name, "bf16")
            model.cached_patcher_init = (lambda disable_dynamic=False: random_model(name, "bf16"), ())
            generator = torch.Generator().manual_seed(2)
            text = torch.randn(1, TOKENS, text_width(model), generator=generator)
            return model, [[text, {"pooled_output": torch.randn(1, 768, generator=generator)}]]
        if name.startswith("flux1"):
            model = reopened(tiny_transformer(name, **FLUX_SIZES))
            generator = torch.Generator().manual_seed(2)
            pooled = torch.randn(1, 768, generator=generator)
            return model, [[torch.randn(1, TOKENS, 768, generator=generator), {"pooled_output": pooled}]]

        def opened(disable_dynamic: bool = False):
            return tiny_transformer(name, **WIDE.get(name, {}))

        model = opened()
        model.cached_patcher_init = (opened, ())  # Train LoRA opens the model a second time
        return model, random_prompt(name, 2, TOKENS)


def reopened(model):
    """The same MODEL from a file, through the host's loader: Train LoRA opens it a second time."""
    import comfy.sd
    from safetensors.torch import save_file

    path = Path.cwd() / "flux.safetensors"
    save_file({key: w.clone() for key, w in model.model.diffusion_model.state_dict().items()}, path)
    return comfy.sd.load_diffusion_model(str(path))


def inlay_family_side(parts, size: int, rank: int, bare: bool):
    """Subject Finetune's engine on a transformer; `bare`: its network, adapter and optimizer without it."""
    from dataclasses import replace

    from inlay.host.models import load_fully
    from inlay.host.training import text_values, training_switches
    from inlay.lab.models.full_transformers import random_examples
    from inlay.training.finetune.checks import precision_of
    from inlay.training.finetune.diffusion_transformers import resolved_recipe
    from inlay.training.finetune.pipeline import (
        EncodedData,
        EncodedText,
        Pipeline,
        train_lora,
        trainable_model,
    )
    from inlay.training.finetune.recipes import DREAMCOM

    model, conditioning = parts
    with torch.inference_mode(False):
        values = {k: v.clone() for k, v in text_values(conditioning).items() if isinstance(v, torch.Tensor)}
        examples = random_examples(model, size, 8)
    data = EncodedData([examples], [EncodedText(values["cross_attn"], None, values)])
    # Train LoRA shows no reference picture; Fill has its channels.
    way = "channels" if model.model.model_config.unet_config.get("in_channels") == 96 else "loss"
    recipe = resolved_recipe(replace(DREAMCOM, hole_condition=way).with_choices(rank=rank), model)

    def train(steps: int) -> None:
        with torch.inference_mode():
            chosen = recipe.with_choices(steps=steps)
            train_lora(Pipeline(model, None, None), data, chosen, seed=0)

    if not bare:
        return train
    with torch.inference_mode(False), torch.enable_grad():
        dtype = precision_of(model, recipe)
        trainable = trainable_model(load_fully(model), recipe, dtype, 0, data)
        host: Any = trainable.host_pass
        row = examples.take(torch.zeros(1, dtype=torch.long)).to(trainable.device)
        calls = []
        hook = trainable.unet.register_forward_pre_hook(
            lambda network, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
        )
        with training_switches(trainable.unet):
            predicted = host(row, torch.randn_like(row.latent), torch.tensor([0.5], device=trainable.device))
        hook.remove()
        (args, kwargs), wanted = calls[0], torch.randn_like(predicted).to(dtype)

    def passes(steps: int) -> None:
        with torch.inference_mode(False), torch.enable_grad(), training_switches(trainable.unet):
            adamw = torch.optim.AdamW(trainable.adapter.parameters, lr=1e-4, fused=True)
            for _ in range(steps):
                found = trainable.unet(*args, **kwargs).reshape(wanted.shape)
                torch.nn.functional.mse_loss(found, wanted).backward()
                adamw.step()
                adamw.zero_grad()

    return passes


def diffusers_family_side(size: int, rank: int):
    """The step of train_dreambooth_lora_flux.py, with pictures and words encoded beforehand."""
    import diffusers
    from peft import LoraConfig

    library = cast(Any, diffusers)
    torch.manual_seed(0)
    heads = FLUX_SIZES["num_heads"]
    network = library.FluxTransformer2DModel(
        in_channels=64, num_layers=FLUX_SIZES["depth"], num_single_layers=FLUX_SIZES["depth_single_blocks"],
        attention_head_dim=FLUX_SIZES["hidden_size"] // heads, num_attention_heads=heads,
        joint_attention_dim=768, pooled_projection_dim=768, guidance_embeds=True,
        axes_dims_rope=tuple(FLUX_SIZES["axes_dim"]),
    )  # fmt: skip
    network.requires_grad_(False)
    # every layer that FLUX_LORA names, in diffusers' words
    targets = (
        r".*transformer_blocks\.\d+\.(attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
        r"|ff(_context)?\.net\.(0\.proj|2)|proj_mlp|proj_out)"
    )
    network.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets))
    lora = [p for p in network.parameters() if p.requires_grad]
    grid, pack = size // 8, library.FluxPipeline._pack_latents
    clean, text, pooled = torch.randn(1, 16, grid, grid), torch.randn(1, TOKENS, 768), torch.randn(1, 768)
    places = library.FluxPipeline._prepare_latent_image_ids(1, grid // 2, grid // 2, "cpu", torch.float32)
    words = torch.zeros(TOKENS, 3)

    def train(steps: int) -> None:
        adamw = torch.optim.AdamW(lora, lr=1e-4)
        for _ in range(steps):
            noise, sigma = torch.randn_like(clean), torch.randn(1).sigmoid()
            noisy = (1 - sigma) * clean + sigma * noise
            predicted = network(
                hidden_states=pack(noisy, 1, 16, grid, grid), timestep=sigma, guidance=torch.ones(1),
                pooled_projections=pooled, encoder_hidden_states=text, txt_ids=words, img_ids=places,
                return_dict=False,
            )[0]  # fmt: skip
            wanted = pack(noise - clean, 1, 16, grid, grid)
            torch.nn.functional.mse_loss(predicted, wanted).backward()
            torch.nn.utils.clip_grad_norm_(lora, 1.0)
            adamw.step()
            adamw.zero_grad()

    return train


def family_side(side: str, options, parts=None):
    """The function of one side that trains a transformer for n steps."""
    if side == "diffusers":
        return diffusers_family_side(options.side, options.rank)
    parts = parts or family_parts(options.family, options.full)
    if side in ("inlay", "bare"):
        return inlay_family_side(parts, options.side, options.rank, side == "bare")
    latents = parts[0].model.latent_format
    grid = options.side // (16 if latents.latent_channels == 128 else 8)
    time_axis = (1,) * (latents.latent_dimensions - 2)
    samples = torch.randn(8, latents.latent_channels, *time_axis, grid, grid)
    return host_side(
        parts[:1], options.side, options.rank, " " in side, samples, parts[1],
        "bf16" if options.full else "fp32",
    )  # fmt: skip


def interval(train, steps: int) -> tuple[float, float]:
    """Train for one step and `steps` more; return seconds and processor seconds of one of these.

    The time is taken when an optimizer has made its step, so what comes before the first one does not count.
    """
    stamps: list[tuple[float, float]] = []

    def stamp(*_) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        stamps.append((time.perf_counter(), time.process_time()))

    hook = register_optimizer_step_post_hook(stamp)
    try:
        train(steps + 1)
    finally:
        hook.remove()
    (start, cpu), (end, cpu_end) = stamps[-1 - steps], stamps[-1]  # a first training tries a fused kernel
    return (end - start) / steps, (cpu_end - cpu) / steps


def open_sides(family: str, options) -> tuple[dict[str, Any], dict[str, str]]:
    """The sides of a family that train, warmed up, and the errors of ComfyUI's node where it does not."""
    options.family, sides, errors = family, {}, {}
    parts = family_parts(family, options.full)
    every = FAMILY_SIDES if family == "flux1" and not options.full else FAMILY_SIDES[:-1]
    for side in options.sides.split(",") if options.sides else every:
        train = family_side(side, options, parts)
        try:
            interval(train, 1)
            sides[side] = train
        except Exception as error:
            if not side.startswith("host"):
                raise
            errors[side] = f"{type(error).__name__}: {error}".splitlines()[0]
    return sides, errors


def paired(family: str, options) -> None:
    """Print the rows of a family's sides, which take turns in this process."""
    sides, errors = open_sides(family, options)
    names, found = list(sides), {side: [] for side in sides}
    for number in range(options.rounds):
        for side in names[number % len(names) :] + names[: number % len(names)]:
            found[side].append(interval(sides[side], options.steps))
    for side, times in found.items():
        speed = 1 / statistics.median(seconds for seconds, _ in times)
        own = mean_and_error([cpu for _, cpu in times])
        clock = 0 if options.full and torch.cuda.is_available() else 1  # seconds, or the processor's
        ratio = [ours[clock] / other[clock] for ours, other in zip(found["inlay"], times, strict=True)]
        cells = [family, side, f"{speed:.2f}", own, "" if side == "inlay" else mean_and_error(ratio)]
        print("|", " | ".join([*cells, str(len(times))]), "|", flush=True)
    for side, error in errors.items():
        print("|", " | ".join([family, side, "fails", error[:150], "", ""]), "|", flush=True)


def mean_and_error(values: list[float]) -> str:
    """A mean and its standard error."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.3f} +- {error:.3f}"


def print_paired(options) -> None:
    """Print the table of --paired; each family in a process of its own."""
    if options.folder:
        return paired(options.paired, options)
    heads = ["family", "side", "steps/s", "processor s of a step", "inlay's step over this one", "n"]
    print("|", " | ".join(heads), "|")
    print("|", " | ".join(["---"] * len(heads)), "|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for family in options.paired.split(","):
            command = [sys.executable, __file__, "--folder", folder, "--paired", family]
            for name in ("steps", "rank", "side", "rounds"):
                command += [f"--{name}", str(getattr(options, name))]
            command += ["--full"] * options.full + (["--sides", options.sides] if options.sides else [])
            done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                sys.exit(f"{family}: ended with {done.returncode}")
            print("\n".join(line for line in done.stdout.splitlines() if line.startswith("|")), flush=True)


def measure(side: str, options) -> dict[str, float]:
    """One side in this process: seconds and processor seconds per step, and peak memory in GB."""
    size = 512 if options.full else 64
    if side == WRITE and not options.family:
        checkpoint_in(options.folder, options.full)
        return {}
    if options.family:
        train = family_side(side, options)
    elif side == "diffusers":
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


def print_median(side: str, runs: list[dict[str, float]]) -> None:
    """Print one line with the median over the rounds of each figure."""
    seconds, cpu, peak = (statistics.median(run[name] for run in runs) for name in ("seconds", "cpu", "peak"))
    print(f"{side:14} {1 / seconds:8.2f} {seconds:8.3f} {cpu:8.3f} {peak:8.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--full", action="store_true", help="SD 1.5 at 512 px instead of a UNet of one level at 64 px"
    )
    parser.add_argument("--steps", type=int, help="steps to time (20; 2 with --full)")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--sides", help="what is measured, with commas between; otherwise everything")
    parser.add_argument(
        "--family", default="", help="one of our names of a transformer family, such as flux1"
    )
    parser.add_argument("--side", type=int, default=512, help="of the pictures with --family, in pixels")
    parser.add_argument("--rounds", type=int, default=1, help="of all sides in turn, for the median")
    parser.add_argument(
        "--paired", help="families whose sides take turns in one process, with commas between"
    )
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.steps = options.steps or (2 if options.full else 20)
    if options.paired:
        return print_paired(options)
    sides = FAMILY_SIDES if options.family else SIDES
    sides = sides if options.family in ("", "flux1") else sides[:-1]
    options.sides = options.sides or ",".join(sides)
    if options.folder:
        print(json.dumps(measure(options.sides, options)))
        return
    print(f"{'':14} {'steps/s':>8} {'s/step':>8} {'cpu s':>8} {'peak GB':>8}")
    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for side in (*[WRITE] * (not options.family), *options.sides.split(",") * options.rounds):
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
            command += ["--rank", str(options.rank), "--family", options.family]
            command += ["--side", str(options.side)] + ["--full"] * options.full
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            if done.returncode == -signal.SIGKILL:
                print(f"{side:14} killed: out of memory?", flush=True)
                continue
            if done.returncode and options.family and side.startswith("host"):
                if side not in found:
                    error = next(line for line in reversed(done.stderr.splitlines()) if "Error: " in line)
                    print(f"{side:14} ComfyUI's own node fails here: {error[:200]}", flush=True)
                found[side] = []
                continue
            if done.returncode:
                sys.exit(f"{side}: {done.stderr}")
            if side == WRITE:
                continue
            found.setdefault(side, []).append(json.loads(done.stdout.splitlines()[-1]))
            if len(found[side]) == options.rounds:
                print_median(side, found[side])


if __name__ == "__main__":
    main()
