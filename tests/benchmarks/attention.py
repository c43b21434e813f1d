"""What masked attention costs, side by side: unpatched, ours, and a dense mask doing the same.

    python dev.py bench attention --layer               one layer, by token count and mask share
    python dev.py bench attention --unet [--sizes 512]  one step of a full-size UNet, random weights
    python dev.py bench attention --family flux1        one step of a transformer with random weights
    options: --model sd15|sdxl  --shares 0.25  --batch 1  --threads 2  --repeat 5  --host-attention

(a) unpatched  (b) ours, paper  (c) ours, renormalised  (d) dense-mask attention (renormalised).
In --unet, (b) masks the layers of preset `paper`, (c) and (d) those of preset `all`; all mask the text too.
Times are medians of rounds in which the variants take turns, in ms by the clock. Ratios are to (a) of the
same round, mean +- standard error over the rounds: by the clock, and of the process's own work, which a busy
machine stretches less. Peak memory is the
process's (CPU, Linux) or the allocator's (CUDA), weights included. The error is the largest difference to the
operator's formula in float64, on 256 random queries.
"""

import argparse
import ctypes
import math
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import torch

from inlay.attention.masked import cross_blocks, masked_rows, self_blocks
from inlay.attention.patch import PLAN, region_options
from inlay.attention.regions import RegionPlan, region_labels
from inlay.evaluation.tables import Mean
from inlay.lab.models.host import open_host

HEADS, HEAD_WIDTH, TEXT = 8, 40, 77
UNETS = {
    "sd15": {
        "channel_mult": [1, 2, 4, 4],
        "num_res_blocks": [2, 2, 2, 2],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        "transformer_depth_middle": 1,
        "context_dim": 768,
        "num_heads": 8,
    },
    "sdxl": {
        "channel_mult": [1, 2, 4],
        "num_res_blocks": [2, 2, 2],
        "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
        "transformer_depth_middle": 10,
        "context_dim": 2048,
        "num_head_channels": 64,
        "use_linear_in_transformer": True,
    },
}


def box_mask(height: int, width: int, share: float) -> torch.Tensor:
    """(1,H,W): a centred box that covers `share` of the picture."""
    tall, wide = (max(1, round(side * math.sqrt(share))) for side in (height, width))
    top, left = (height - tall) // 2, (width - wide) // 2
    mask = torch.zeros(1, height, width)
    mask[:, top : top + tall, left : left + wide] = 1
    return mask


def resident() -> tuple[int, int]:
    """(resident now, peak) of this process in bytes; zeros where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0, 0
    values = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return int(values["VmRSS"]) * 1024, int(values["VmHWM"]) * 1024


def peak_memory(run, device: torch.device) -> int:
    """Bytes at the peak of one run: what was held before, and what the run adds."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    if not resident()[1]:
        run()
        return 0
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # Linux: forget the peak so far
    run()
    return resident()[1]


def timed(variants: dict, device: torch.device, repeat: int) -> dict[str, list[tuple[float, float]]]:
    """(milliseconds by the clock, of the process's own work) of each variant in every round.

    The variants take turns, so that a slow minute hits all of them.
    """
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    for name in variants:
        variants[name]()
    for _ in range(repeat):
        for name, run in variants.items():
            wait()
            start, work = time.perf_counter(), time.process_time()
            run()
            wait()
            times[name].append(((time.perf_counter() - start) * 1000, (time.process_time() - work) * 1000))
    return times


def report(title: str, variants: dict, device: torch.device, repeat: int, errors: dict | None = None) -> None:
    """One line per variant: median, ratios to (a), peak memory, its ratio, error."""
    times = timed(variants, device, repeat)
    peaks = {name: peak_memory(run, device) for name, run in variants.items()}
    first = next(iter(variants))
    print(f"\n{title}, {repeat} rounds")
    for name, runs in times.items():
        median = statistics.median(wall for wall, _ in runs)
        clock, work = (
            Mean.of([run[part] / base[part] for run, base in zip(runs, times[first], strict=True)]).text(2)
            for part in (0, 1)
        )
        peak = f"{peaks[name] / 2**20:8.0f} MiB {peaks[name] / max(1, peaks[first]):5.2f}x"
        error = f"  error {errors[name]:.1e}" if errors and name in errors else ""
        print(f"  {name:<28}{median:10.1f} ms {clock} x, work {work} x  {peak}{error}", flush=True)


def exact(q, k, v, labels, operator: str, queries: torch.Tensor) -> torch.Tensor:
    """The operator's formula in float64 on some of the queries, on the CPU."""
    q, k, v = (x.cpu().double().unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (q[:, queries], k, v))
    sees = labels[queries][:, None] == labels[None, :]
    scores = q @ k.transpose(-1, -2) / HEAD_WIDTH**0.5
    p = (
        scores.softmax(-1) * sees
        if operator == "paper"
        else scores.masked_fill(~sees, -torch.inf).softmax(-1)
    )
    return (p @ v).transpose(1, 2).flatten(2)


def dense_mask(labels: torch.Tensor, dtype: torch.dtype, attention) -> torch.Tensor:
    """(S,S), which tokens see which: boolean, or additive for kernels that would add a boolean as 0 and 1."""
    same = labels[:, None] == labels[None, :]
    if attention.__name__ == "attention_pytorch":
        return same
    return torch.zeros(same.shape, dtype=dtype, device=same.device).masked_fill(~same, -torch.inf)


def bench_layer(tokens: int, share: float, options, device, dtype, attention) -> None:
    side = math.isqrt(tokens)
    labels = region_labels([box_mask(side, side, share)])
    plan = RegionPlan(labels, [0] * options.batch, device=device)
    regions = plan.at((side, side), (side, side))
    q, k, v = (torch.randn(options.batch, tokens, HEADS * HEAD_WIDTH).to(device, dtype) for _ in range(3))
    same = dense_mask(regions.labels[0], dtype, attention)
    attend = partial(attention, heads=HEADS)

    variants = {
        "(a) unpatched": lambda: attend(q, k, v),
        "(b) ours, paper": lambda: masked_rows(q, k, v, regions, self_blocks, attend, "paper"),
        "(c) ours, renormalised": lambda: masked_rows(q, k, v, regions, self_blocks, attend, "renormalised"),
        "(d) dense mask": lambda: attend(q, k, v, mask=same),
    }
    queries = torch.randperm(tokens)[:256]
    errors = {}
    for name, operator in zip(list(variants)[1:], ("paper", "renormalised", "renormalised"), strict=True):
        expected = exact(q, k, v, labels.flatten(), operator, queries)
        errors[name] = (variants[name]()[:, queries].cpu().double() - expected).abs().max().item()
    report(f"self-attention, {tokens} tokens, mask share {share}", variants, device, options.repeat, errors)

    text = torch.randn(options.batch, TEXT, HEADS * HEAD_WIDTH).to(device, dtype)
    report(
        f"cross-attention, {tokens} tokens, mask share {share}",
        {
            "(a) unpatched": lambda: attend(q, text, text),
            "(b, c) ours": lambda: masked_rows(q, text, text, regions, cross_blocks(plan, TEXT), attend),
            "(d) result times mask": lambda: attend(q, text, text) * (regions.labels == 1).unsqueeze(-1),
        },
        device,
        options.repeat,
    )


def dense_options(unet, mask, attention) -> dict:
    """The layers of preset `all` masked by a dense boolean mask, made once per grid; text as in (b, c)."""
    options = region_options(unet, mask, self_layers="all", operator="renormalised", attend=attention)
    masks: dict[tuple, torch.Tensor] = {}

    def patch(q, k, v, extra_options):
        latent, grid = (tuple(extra_options[name][-2:]) for name in ("original_shape", "activations_shape"))
        if grid not in masks:
            tokens = extra_options[PLAN].at(latent, grid).labels[0]
            masks[grid] = dense_mask(tokens, q.dtype, attention)
        return attention(
            q, k, v, extra_options["n_heads"], mask=masks[grid], transformer_options=extra_options
        )

    replaced = options["patches_replace"]
    replaced["attn1"] = dict.fromkeys(replaced["attn1"], patch)
    return options


def full_size_unet(name: str, device, dtype):
    """A UNet of the host with random weights of a plausible scale."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    extra = {"num_classes": "sequential", "adm_in_channels": 2816} if name == "sdxl" else {}
    with torch.device(device):
        unet = UNetModel(
            image_size=32, in_channels=9, out_channels=4, model_channels=320, use_spatial_transformer=True,
            legacy=False, dtype=dtype, device=device, **UNETS[name], **extra,
        )  # fmt: skip
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return unet.requires_grad_(False).eval()


def bench_unet(unet, size: int, share: float, options, device, dtype, attention) -> None:
    batch, width = options.batch, UNETS[options.model]["context_dim"]
    x = torch.randn(batch, 9, size // 8, size // 8).to(device, dtype)
    context = torch.randn(batch, TEXT, width).to(device, dtype)
    steps = torch.full((batch,), 500.0, device=device)
    y = torch.randn(batch, 2816).to(device, dtype) if options.model == "sdxl" else None
    mask = box_mask(size, size, share)
    ours = partial(region_options, unet, mask, batch=batch, attend=attention, device=device)

    def step(transformer_options):
        return unet(x, steps, context=context, y=y, transformer_options=transformer_options)

    variants = {
        "(a) unpatched": partial(step, {}),
        "(b) ours, paper": partial(step, ours(self_layers="paper")),
        "(c) ours, renormalised": partial(step, ours(self_layers="all", operator="renormalised")),
        "(d) dense mask": partial(step, dense_options(unet, mask, attention) if batch == 1 else {}),
    }
    if batch > 1:
        del variants["(d) dense mask"]
    else:
        expected = variants["(d) dense mask"]()
        error = (variants["(c) ours, renormalised"]() - expected).abs().max() / expected.abs().max()
        print(f"\nlargest difference of (c) and (d), relative: {error.item():.1e}")
    title = f"one step of {options.model}, {size}x{size}, batch {batch}, mask share {share}"
    report(title, variants, device, options.repeat)


WIDER = {  # heads of 128 as in the real models, one block of each kind
    "flux1": {"hidden_size": 256, "num_heads": 2, "axes_dim": [16, 56, 56]},
    "flux2-klein": {"hidden_size": 256, "num_heads": 2, "axes_dim": [32, 32, 32, 32]},
    "qwen-image": {"num_attention_heads": 2, "attention_head_dim": 128, "axes_dims_rope": (16, 56, 56)},
    "z-image": {"dim": 256, "n_heads": 2, "n_kv_heads": 2, "axes_dims": [32, 48, 48]},
    "krea2": {"features": 256, "heads": 2, "kvheads": 1},
}
PROMPT = 512  # text tokens


def dense_wrapper(labels: torch.Tensor):
    """Wraps `apply_model`: the same policy by one mask of S x S, made once; text first, then the image."""
    inside = labels.flatten() > 0
    count = PROMPT + len(inside)
    kinds = torch.cat([torch.ones(PROMPT, dtype=torch.bool), inside])
    blocked = kinds[:, None] != kinds[None, :]
    dense = torch.zeros(1, 1, count, count).masked_fill_(blocked, -torch.inf)

    def override(function, q, k, v, heads, mask=None, *args, **kwargs):
        whole = q.shape[2 if kwargs.get("skip_reshape") else 1] == count
        return function(q, k, v, heads, dense.to(q) if whole else mask, *args, **kwargs)

    def wrapper(executor, x, t, c_concat, c_crossattn, control, options, **kwargs):
        options = {**options, "optimized_attention_override": override}
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)

    return wrapper


def bench_family(family: str, tokens: int, share: float, options, device, dtype) -> None:
    """One step: the image's tokens and 512 of text, with reference pictures of the same size if asked for."""
    import comfy.sample

    from inlay.attention.model_patch import mask_attention
    from inlay.lab.models.tiny_transformers import random_latent, random_prompt, tiny_transformer

    model = tiny_transformer(family, dtype, **WIDER.get(family, {}))
    model.load_device = device
    side = round(tokens**0.5)
    cells = side * (1 if family.startswith("flux2") else 2)
    mask = box_mask(cells, cells, share)
    latent = random_latent(model, cells, cells, options.batch)
    extras: dict = (
        {"reference_latents": [random_latent(model, cells, cells, seed=2)]} if options.reference else {}
    )
    if options.reference and family == "krea2":
        extras["reference_latents_method"] = "index_timestep_zero"
    prompt = random_prompt(family, 1, PROMPT, **extras)

    def step(model):
        def run():
            comfy.sample.sample(
                model,
                latent,
                1,
                1.0,
                "euler",
                "simple",
                prompt,
                prompt,
                latent * 0,
                seed=1,
                disable_pbar=True,
            )

        return run

    variants = {"(a) unmasked": model}
    for name, operator in (("(b) paper", "paper"), ("(c) renormalised", "renormalised")):
        variants[name] = mask_attention(model, [mask], operator=operator)
    if not options.reference:
        dense = model.clone()
        grid = torch.nn.functional.interpolate(mask[None], (side, side), mode="nearest")
        dense.add_wrapper_with_key("apply_model", "dense", dense_wrapper(grid))
        variants["(d) dense mask"] = dense
    total = PROMPT + side * side * (2 if options.reference else 1)
    title = f"{family}, {total} tokens, mask share {share}, batch {options.batch}"
    report(title, {name: step(variant) for name, variant in variants.items()}, device, options.repeat)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layer", action="store_true")
    parser.add_argument("--unet", action="store_true")
    parser.add_argument(
        "--family", nargs="+", help="of inlay.families, as built by lab/models/tiny_transformers"
    )
    parser.add_argument("--reference", action="store_true", help="for --family: with a scene reference")
    parser.add_argument("--model", choices=list(UNETS), default="sd15")
    parser.add_argument("--sizes", type=int, nargs="+", help="tokens for --layer, pixels for --unet")
    parser.add_argument("--shares", type=float, nargs="+")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--host-attention", action="store_true", help="the host's choice, not PyTorch's SDPA")
    options = parser.parse_args()
    arguments, sys.argv = sys.argv, sys.argv[:1]  # the host reads the command line, too
    open_host()
    import comfy.ldm.modules.attention as host

    sys.argv = arguments
    attention = host.optimized_attention if options.host_attention else host.attention_pytorch
    host.optimized_attention = attention
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    print(f"{device}, {dtype}, {options.threads} threads, {attention.__name__}, torch {torch.__version__}")
    with torch.inference_mode():
        for family in options.family or ():
            for tokens in options.sizes or (4096,):
                for share in options.shares or (0.25,):
                    bench_family(family, tokens, share, options, device, dtype)
        if options.layer or not (options.unet or options.family):
            for tokens in options.sizes or (1024, 4096, 16384):
                for share in options.shares or (0.1, 0.25, 0.5):
                    bench_layer(tokens, share, options, device, dtype, attention)
        if options.unet:
            unet = full_size_unet(options.model, device, dtype)
            for size in options.sizes or (512, 1024):
                for share in options.shares or (0.25,):
                    bench_unet(unet, size, share, options, device, dtype, attention)


if __name__ == "__main__":
    main()
