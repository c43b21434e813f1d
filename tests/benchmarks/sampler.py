"""What the close-up costs: against the stock sampler, and in large pictures.

    python dev.py bench sampler [STEPS] [RUNS]
    python dev.py bench sampler --family flux1 qwen-image     transformers with random weights

On the tiny world's model with random weights. Both samplers work at the same area (close-up and window are as
large as the stock sampler's latent) for the same number of steps; a VAE round trip of that area is measured
on its own. Then pictures of 1 to 24 megapixels with the same mask: time, and the most memory held while it
runs, of which the finished picture is a part.
"""

import functools
import importlib
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SIDE = 128
SHARES = (0.0, 0.5, 0.7, 1.0)
MEGAPIXELS = ((1024, 1024), (2048, 2048), (4000, 6000))
SAMPLING = (4.0, "dpmpp_2m", "karras")


def measure(jobs: dict, runs: int) -> dict:
    """Each job's seconds in every round: by the clock, and of this process's own work, which a busy machine
    does not stretch. The jobs take turns: a machine that grows slower does so for all of them."""
    spent = {name: [] for name in jobs}
    for run in range(runs + 1):
        for name, job in jobs.items():
            wall, work = time.perf_counter(), time.process_time()
            job()
            if run:  # the first one warms up
                spent[name].append((time.perf_counter() - wall, time.process_time() - work))
    return spent


def peak_mib() -> float:
    """The most memory this process has held since `forget_peak`, on Linux; 0 elsewhere."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def forget_peak() -> None:
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5", encoding="utf-8")


def bench_families(families: list[str], steps: int, runs: int) -> None:
    """Seconds of close-up and window against one run of the host's sampler at the same area."""
    import comfy.sample
    import torch

    from inlay.host.vae import PictureVae
    from inlay.lab.models.tiny_transformers import random_prompt, tiny_transformer, tiny_vae
    from inlay.nodes import DisentangledInpaintSampler

    mask = torch.zeros(1, SIDE, SIDE)
    mask[:, 48:72, 48:72] = 1
    image = torch.rand(1, SIDE, SIDE, 3, generator=torch.Generator().manual_seed(0))
    print(f"{steps} steps, {SIDE}x{SIDE}, {runs} runs: seconds by the clock / of the process's own work")
    for family in families:
        model, vae = tiny_transformer(family), tiny_vae(family)
        prompts: tuple = random_prompt(family, 1, 64), random_prompt(family, 2, 64)

        def close_up(share, model=model, vae=vae, prompts=prompts):
            node: Any = DisentangledInpaintSampler
            node.execute(
                model, *prompts, vae, image, mask, 0, steps, 1.0, "euler", "simple",
                close_up_share=share, close_up_size=SIDE, soft_edge=8,
            )  # fmt: skip

        def stock(model=model, vae=vae, prompts=prompts):
            latent = PictureVae(vae).encode(image)
            hole = mask[:, None] if latent.ndim == 4 else mask[:, None, None]
            noise = comfy.sample.prepare_noise(latent, 0)
            samples = comfy.sample.sample(
                model,
                noise,
                steps,
                1.0,
                "euler",
                "simple",
                prompts[0],
                prompts[1],
                latent,
                noise_mask=hole,
                disable_pbar=True,
            )
            PictureVae(vae).decode(samples)

        spent = measure(
            {"stock": stock} | {share: functools.partial(close_up, share) for share in SHARES}, runs
        )
        print(f"{family}: stock {show(spent['stock'])}")
        for share in SHARES:
            factor = ratio(spent[share], spent["stock"])
            print(f"  share {share:.1f}: {show(spent[share])} = {factor} x stock", flush=True)


def main() -> None:
    families = sys.argv[sys.argv.index("--family") + 1 :] if "--family" in sys.argv else []
    if families:
        sys.argv = sys.argv[: sys.argv.index("--family")]
    steps, runs = (int(number) for number in (sys.argv[1:] + ["10", "3"][len(sys.argv) - 1 :])[:2])
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    from comfy.cli_args import args

    args.cpu = True
    import comfy.sd
    import comfy.utils
    import torch

    from inlay.lab.models.assemble import random_checkpoint, write_checkpoint
    from inlay.nodes import DisentangledInpaintSampler

    nodes = importlib.import_module("nodes")
    comfy.utils.PROGRESS_BAR_ENABLED = False
    if families:
        with torch.inference_mode():
            bench_families(families, steps, runs)
        return
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        file = write_checkpoint(Path(folder) / "tiny.safetensors", random_checkpoint(0))
        model, _, vae = comfy.sd.load_checkpoint_guess_config(str(file))[:3]
        assert vae is not None
        words = [[torch.randn(1, 77, 768), {"pooled_output": None}]]

        def picture(height, width):
            mask = torch.zeros(1, height, width)
            mask[:, height // 2 : height // 2 + 30, width // 2 : width // 2 + 30] = 1
            return torch.rand(1, height, width, 3), mask

        def close_up(image, mask, share=0.7, side=SIDE):
            return DisentangledInpaintSampler.execute(
                model, words, words, vae, image, mask, 0, steps, *SAMPLING,
                close_up_share=share, close_up_size=side, soft_edge=8,
            )  # fmt: skip

        def stock(image, mask):
            conditioned = nodes.InpaintModelConditioning().encode(words, words, image, vae, mask, True)
            positive, negative, latent = conditioned
            (latent,) = nodes.KSampler().sample(model, 0, steps, *SAMPLING, positive, negative, latent)
            return nodes.VAEDecode().decode(vae, latent)

        image, mask = picture(SIDE, SIDE)
        spent = measure(
            {"stock": lambda: stock(image, mask), "trip": lambda: vae.decode(vae.encode(image))}
            | {share: functools.partial(close_up, image, mask, share) for share in SHARES},
            runs,
        )
        base, trip = spent["stock"], spent["trip"]
        print("seconds by the clock / of the process's own work")
        print(f"{steps} steps at {SIDE}x{SIDE}: stock {show(base)}, VAE round trip {show(trip)}")
        for share in SHARES:
            without = [
                (own[0] - one[0], own[1] - one[1]) for own, one in zip(spent[share], trip, strict=True)
            ]
            factor = ratio(without, base)
            print(f"  share {share:.1f}: {show(spent[share])} = {factor} x stock, and a round trip")
        pictures = {size: picture(*size) for size in MEGAPIXELS}
        spent = measure({size: functools.partial(close_up, *pictures[size]) for size in MEGAPIXELS}, runs)
        for height, width in MEGAPIXELS:
            image, mask = pictures[height, width]
            forget_peak()
            held = peak_mib()
            close_up(image, mask)
            own, first = spent[height, width], spent[MEGAPIXELS[0]]
            finished = image.nbytes / 2**20
            print(
                f"  {height * width / 1e6:4.1f} megapixels: {show(own)} = {ratio(own, first)} x the first;"
                f" {peak_mib() - held:.0f} MiB more than before, {finished:.0f} of them the finished picture"
            )


def show(times: list[tuple[float, float]]) -> str:
    """Medians: by the clock / of the process's own work."""
    wall, work = (statistics.median(part) for part in zip(*times, strict=True))
    return f"{wall:.2f} / {work:.2f}"


def ratio(times: list[tuple[float, float]], base: list[tuple[float, float]]) -> str:
    """The same as multiples of another job of the same round: mean +- standard error over the rounds."""
    from inlay.evaluation.tables import Mean

    return " / ".join(
        Mean.of([own[part] / other[part] for own, other in zip(times, base, strict=True)]).text(2)
        for part in (0, 1)
    )


if __name__ == "__main__":
    main()
