"""What the close-up costs: against the stock sampler, and in large pictures.

    python dev.py bench sampler [STEPS] [RUNS]

On the tiny world's model with random weights. Both samplers work at the same area (close-up and window are as
large as the stock sampler's latent) for the same number of steps; a VAE round trip of that area is measured
on its own. Then pictures of 1 to 24 megapixels with the same mask: time, and the most memory held while it
runs, of which the finished picture is a part.
"""

import importlib
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

SIDE = 128
SHARES = (0.0, 0.5, 0.7, 1.0)
MEGAPIXELS = ((1024, 1024), (2048, 2048), (4000, 6000))
SAMPLING = (4.0, "dpmpp_2m", "karras")


def measure(job, runs: int) -> tuple[float, float]:
    """Median seconds by the clock, and of this process's own work, which a busy machine does not stretch."""
    job()
    walls, works = [], []
    for _ in range(runs):
        wall, work = time.perf_counter(), time.process_time()
        job()
        walls.append(time.perf_counter() - wall)
        works.append(time.process_time() - work)
    return statistics.median(walls), statistics.median(works)


def peak_mib() -> float:
    """The most memory this process has held since `forget_peak`, on Linux; 0 elsewhere."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def forget_peak() -> None:
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5", encoding="utf-8")


def main() -> None:
    steps, runs = (int(number) for number in (sys.argv[1:] + ["10", "3"][len(sys.argv) - 1 :])[:2])
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    from comfy.cli_args import args

    args.cpu = True
    import comfy.sd
    import comfy.utils
    import torch

    from inlay.lab.checkpoint import assemble, random_parts
    from inlay.nodes import DisentangledInpaintSampler

    nodes = importlib.import_module("nodes")
    comfy.utils.PROGRESS_BAR_ENABLED = False
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        file = assemble(Path(folder) / "tiny.safetensors", random_parts(0))
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
        base = measure(lambda: stock(image, mask), runs)
        trip = measure(lambda: vae.decode(vae.encode(image)), runs)
        print("seconds by the clock / of the process's own work")
        print(f"{steps} steps at {SIDE}x{SIDE}: stock {show(*base)}, VAE round trip {show(*trip)}")
        for share in SHARES:
            spent = measure(lambda share=share: close_up(image, mask, share), runs)
            ratios = ((own - one) / whole for own, one, whole in zip(spent, trip, base, strict=True))
            print(f"  share {share:.1f}: {show(*spent)} = {show(*ratios)} x stock, and a round trip")
        first = None
        for height, width in MEGAPIXELS:
            image, mask = picture(height, width)
            spent = measure(lambda image=image, mask=mask: close_up(image, mask), runs)
            forget_peak()
            held = peak_mib()
            close_up(image, mask)
            first = first or spent
            ratios = (own / one for own, one in zip(spent, first, strict=True))
            finished = image.nbytes / 2**20
            print(
                f"  {height * width / 1e6:4.1f} megapixels: {show(*spent)} = {show(*ratios)} x the first;"
                f" {peak_mib() - held:.0f} MiB more than before, {finished:.0f} of them the finished picture"
            )


def show(wall: float, work: float) -> str:
    return f"{wall:.2f} / {work:.2f}"


if __name__ == "__main__":
    main()
