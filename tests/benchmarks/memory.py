"""Memory that a finetuning of every transformer family needs at full size, without its weights.

    python dev.py bench memory                    the table of docs/which_model_to_train.md
    python dev.py bench memory --family z-image --side 768
    python dev.py bench memory --cards            the tables of docs/memory_and_time.md
    python dev.py bench memory --presets          what each memory preset does for each family, in fp8
    python dev.py bench memory --measure flux2-klein --side 256      the forecast beside a training

The networks are the host's own on the device "meta": shapes without numbers. What the forward pass keeps for
the backward pass is counted on it at the full size of the picture; Train Subject does so on two small ones
before its first step. One picture in a pass, the LoRA of the family's row, a reference where the family has
edit models.

With --cards, what SD models and families need without and with gradient checkpointing, the smallest card that
then has 2 GB left, and how much a step computes: the operations of a forward pass (matrix products,
convolutions, attention) times three: forward, forward again in the backward pass, and the gradients of the
activations; the frozen weights get none.

With --measure, the family's network is made at full size with random weights, in fp8 and in bf16 (--weights:
one of them), each in a process of its own, and trained for two steps by the code of Train Subject: one
picture, rank 16, gradient checkpointing. The forecast is Train Subject's own, before its first step. Measured
is the most memory over what there was before the network: on CUDA what torch allocated, else the process'
resident memory. On the CPU a second figure has what torch's tensors took of it; the rest is what the kernels
take, such as weights that are laid out anew, and the profile. glibc is set to return freed memory at once.
"""

import argparse
import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

GIGABYTE = 2**30
META = torch.device("meta")
TRAINED = (
    "flux2-klein", "z-image", "chroma", "flux1", "flux1-fill", "krea2", "qwen-image", "qwen-image-edit-2511",
    "flux2-dev",
)  # fmt: skip
TEXT = 256  # tokens; FLUX.2 pads its text to 512
# The inpainting UNets as their published configurations have them: label, own side in pixels, configuration.
SD = {"in_channels": 9, "out_channels": 4, "model_channels": 320, "use_spatial_transformer": True,
      "image_size": 32, "legacy": False}  # fmt: skip
UNETS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "sd15": ("SD 1.5 inpainting", 512, SD | {
        "num_res_blocks": [2, 2, 2, 2], "channel_mult": (1, 2, 4, 4), "num_heads": 8, "context_dim": 768,
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1,
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0]}),
    "sdxl": ("SDXL inpainting", 1024, SD | {
        "num_res_blocks": [2, 2, 2], "channel_mult": (1, 2, 4), "num_head_channels": 64, "context_dim": 2048,
        "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10,
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "use_linear_in_transformer": True,
        "num_classes": "sequential", "adm_in_channels": 2816}),
}  # fmt: skip
LEFT = 2  # gigabytes for driver, desktop and VAE
CARDS = (8, 12, 16, 24, 32, 48, 80)  # gigabytes
RATES = (10, 50, 200)  # 10^12 operations in a second
STEPS = 1000
WEIGHTS = ("fp8", "bf16")
MEASURED_RANK, MEASURED_STEPS = 16, 2  # the optimizer's moments are there from the second step on
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
attention_flops = [0]  # of the forward passes so far: the counter does not see FusedAttention


def open_host(cpu: bool = True) -> None:
    """Make the host importable."""
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    from comfy.cli_args import args

    args.cpu = cpu


def meta_model(name: str):
    """A MODEL of a family at full size without memory for its weights."""
    import comfy.model_detection
    from comfy.model_patcher import ModelPatcher

    from inlay.lab.models.full_transformers import full_network

    config: Any = comfy.model_detection.model_config_from_unet(full_network(name).state_dict(), "")
    config.set_inference_dtype(torch.bfloat16, None)
    base = config.get_model({}, "", device=META)
    base.diffusion_model.to(torch.bfloat16)
    return ModelPatcher(base, META, META)


class FusedAttention(torch.autograd.Function):
    """What a fused attention keeps for its gradient: queries, keys, values and result, no S x S matrix."""

    @staticmethod
    def forward(ctx, q, k, v):  # pyright: ignore[reportIncompatibleMethodOverride]
        out = torch.empty_like(q)
        attention_flops[0] += 4 * q.numel() * k.shape[-2]  # q k^T and its product with v
        ctx.save_for_backward(q, k, v, out)
        return out


def attend(q, k, v, heads, mask=None, skip_reshape=False, skip_output_reshape=False, **kwargs):
    """The host's attention with shapes alone."""
    if not skip_reshape:
        q, k, v = (t.view(t.shape[0], t.shape[1], heads, -1).transpose(1, 2) for t in (q, k, v))
    out: Any = FusedAttention.apply(q, k, v)
    return out if skip_output_reshape else out.transpose(1, 2).reshape(out.shape[0], out.shape[2], -1)


def in_fp8(network: torch.nn.Module) -> None:
    """Store the weights of every linear layer in fp8, as the published fp8 files do."""
    from inlay.host.training import FrozenLinear

    for path, layer in list(network.named_modules()):
        if isinstance(layer, torch.nn.Linear):
            layer.weight = torch.nn.Parameter(
                torch.empty(layer.weight.shape, dtype=torch.float8_e4m3fn, device=META), requires_grad=False
            )
            network.set_submodule(path, FrozenLinear(layer, torch.bfloat16))


class Step(NamedTuple):
    """What a step of one picture needs: its activations, its trained shapes, and bytes of frozen weights.

    `offloadable` of these bytes are in the linear layers of blocks. `gradients`: bytes of each block's;
    `in_use`: bytes that using the largest frozen layer adds.
    """

    kept: Any
    shapes: list[torch.Size]
    recipe: Any
    frozen: int
    offloadable: int
    gradients: list[float]
    in_use: int

    def need(self, checkpointing: bool, optimiser=None):
        from inlay.training.finetune.memory import MemoryNeed, trained_need, update_need

        optimiser, size = optimiser or self.recipe.optimiser, torch.bfloat16.itemsize
        parts = trained_need(self.shapes, size, optimiser, False)
        kept = round(self.kept.activations(checkpointing, self.gradients)) + self.in_use
        return MemoryNeed(self.frozen, *parts, max(kept, update_need(self.shapes, size)))


def step_of(name: str, side: int, fp8: bool, rank: int = 0) -> Step:
    """A step of one picture, measured on a family's network of shapes."""
    from inlay.families.table import named
    from inlay.host.training import blocks_of, bytes_in_use, bytes_of, training_switches, weight_bytes
    from inlay.lab.models.full_transformers import text_width
    from inlay.training.finetune.data import Examples
    from inlay.training.finetune.diffusion_transformers import (
        BY_REFERENCE,
        resolved_recipe,
        transformer_pass,
        with_family_numbers,
    )
    from inlay.training.finetune.lora import attach_adapter
    from inlay.training.finetune.memory import trace
    from inlay.training.finetune.recipes import DREAMCOM

    family, model = named(name), meta_model(name)
    way = BY_REFERENCE if family.references != "none" else "auto"  # the edit model of the family
    recipe = with_family_numbers(replace(DREAMCOM, hole_condition=way), model)
    recipe = resolved_recipe(recipe.with_choices(rank=rank), model)
    network = model.model.diffusion_model
    if fp8:
        in_fp8(network)
    frozen = weight_bytes(network)
    linear = [m for block in blocks_of(network) for m in block.modules() if isinstance(m, torch.nn.Linear)]
    parts = [part for m in linear for part in getattr(m, "frozen", (m.weight, m.bias)) if part is not None]
    offloadable = sum(map(bytes_of, parts))
    with META:
        adapter = attach_adapter(network, recipe.adapter, torch.bfloat16, 0)
    values = {"cross_attn": torch.empty(1, TEXT, text_width(model), device=META)}
    values["pooled_output"] = torch.empty(1, 768, device=META)
    host_pass = transformer_pass(model, network, torch.bfloat16, recipe, [values])
    cell = 16 if model.model.latent_format.latent_channels == 128 else 8
    grid = torch.empty(1, model.model.latent_format.latent_channels, side // cell, side // cell, device=META)
    one = torch.ones(1, 1, *grid.shape[-2:], device=META)
    row = Examples(grid, one, grid, one, torch.zeros(1, 0, 0), caption=torch.zeros(1, dtype=torch.long))
    host_pass.host.attend = attend
    blocks = blocks_of(network)
    with training_switches(network):
        kept = trace(network, blocks, lambda: host_pass(row, grid, torch.empty(1, device=META)))
    trained = [sum(p.numel() for p in block.parameters() if p.requires_grad) for block in blocks]
    return Step(
        kept,
        [p.shape for p in adapter.parameters],
        recipe,
        frozen,
        offloadable,
        [float(number * torch.bfloat16.itemsize) for number in trained],
        bytes_in_use(network),
    )


def forecast(name: str, side: int, fp8: bool, rank: int = 0) -> dict[bool, int]:
    """Bytes that a step of one picture needs, without and with gradient checkpointing."""
    step = step_of(name, side, fp8, rank)
    return {checkpointing: step.need(checkpointing).total for checkpointing in (False, True)}


def preset_cells(step: Step) -> list[str]:
    """What each preset with a card does for a step: gigabytes on the card and in the computer's memory."""
    from inlay.training.finetune.memory import need_on, room_on, with_preset
    from inlay.training.finetune.recipes import MEMORY_PRESETS

    cells = []
    for preset in MEMORY_PRESETS.values():
        if not preset.card:
            continue
        optimiser = with_preset(step.recipe, preset, True).optimiser

        def need(checkpointing: bool, optimiser=optimiser):
            return step.need(checkpointing, optimiser)

        whole = need_on(preset.card, preset.checkpointing, need)
        found = need_on(preset.card, preset.checkpointing, need, step.offloadable)
        away = (whole.total - found.total) / GIGABYTE
        cell = (
            f"{found.total / GIGABYTE:.1f} GB" + " c" * found.checkpointing + f" + {away:.1f} GB" * (away > 0)
        )
        cells.append(cell if found.total <= room_on(preset.card) else "does not fit")
    return cells


def print_presets(sides: list[int]) -> None:
    from inlay.families.table import named
    from inlay.training.finetune.recipes import MEMORY_PRESETS

    heads = ["model", "side", *(name for name, preset in MEMORY_PRESETS.items() if preset.card)]
    for row in (heads, ["---"] * len(heads)):
        print("|", " | ".join(row), "|")
    for name in TRAINED:
        for side in sides:
            cells = preset_cells(step_of(name, side, fp8=True))
            print("|", " | ".join([named(name).label, str(side), *cells]), "|", flush=True)


class Cost(NamedTuple):
    """Of a step of one picture: bytes without and with checkpointing, operations of the forward pass."""

    bytes: dict[bool, int]
    operations: float


def counted(forward: Callable[[], Any]) -> tuple[Any, float]:
    """What `forward` returns, and its operations."""
    from torch.utils.flop_counter import FlopCounterMode

    attention_flops[0] = 0
    with FlopCounterMode(display=False) as counter:
        result = forward()
    return result, counter.get_total_flops() + attention_flops[0]


def unet_cost(name: str) -> Cost:
    """DreamCom's LoRA on an inpainting UNet, at the model's own side."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    from inlay.host.models import block_modules
    from inlay.host.training import training_switches
    from inlay.training.finetune.lora import attach_adapter
    from inlay.training.finetune.memory import trace, trained_need, with_preset
    from inlay.training.finetune.recipes import DREAMCOM, MEMORY_PRESETS

    _, side, sizes = UNETS[name]
    half = torch.bfloat16
    network = UNetModel(**sizes, dtype=half, device=META, operations=comfy.ops.disable_weight_init)
    network.requires_grad_(False)
    frozen = sum(p.numel() for p in network.parameters()) * half.itemsize
    with META:
        adapter = attach_adapter(network, DREAMCOM.adapter, half, 0)
    grid = torch.empty(1, 9, side // 8, side // 8, dtype=half, device=META)
    context = torch.empty(1, 77, sizes["context_dim"], dtype=half, device=META)
    pooled = torch.empty(1, 2816, dtype=half, device=META) if "adm_in_channels" in sizes else None
    options = {"optimized_attention_override": lambda host, *args, **kwargs: attend(*args, **kwargs)}

    def forward():
        time = torch.empty(1, device=META)
        return network(grid, time, context=context, y=pooled, transformer_options=options)

    with training_switches(network):
        kept, operations = counted(lambda: trace(network, block_modules(network), forward))
    trained = [[p for p in b.parameters() if p.requires_grad] for b in block_modules(network)]
    gradients = [float(sum(p.numel() for p in part) * half.itemsize) for part in trained]
    needs = {}
    for preset in MEMORY_PRESETS.values():
        if preset.half:
            optimiser = with_preset(DREAMCOM, preset, True).optimiser
            parts = trained_need([p.shape for p in adapter.parameters], half.itemsize, optimiser, False)
            checkpointing = bool(preset.checkpointing)
            needs[checkpointing] = round(frozen + sum(parts) + kept.activations(checkpointing, gradients))
    return Cost(needs, operations)


def memory_cells(cost: Cost) -> list[str]:
    """Without and with checkpointing, and the smallest card that holds the latter."""
    needs = [cost.bytes[checkpointing] / GIGABYTE for checkpointing in (False, True)]
    card = next((f"{size} GB" for size in CARDS if needs[1] + LEFT <= size), f"more than {CARDS[-1]} GB")
    return [*(f"{need:.1f} GB" for need in needs), card]


def time_cells(cost: Cost) -> list[str]:
    """Operations of a step with checkpointing, and the time of many steps at some rates."""
    step = 3 * cost.operations / 1e12
    minutes = [step * STEPS / rate / 60 for rate in RATES]
    return [f"{step:.0f}" if step >= 10 else f"{step:.1f}", *map(duration, minutes)]


def duration(minutes: float) -> str:
    if minutes < 1:
        return "under 1 min"
    return f"{minutes:.0f} min" if minutes < 60 else f"{minutes / 60:.1f} h"


def print_cards() -> None:
    from inlay.families.table import named

    costs = [([label, str(side), "16 bits"], unet_cost(name)) for name, (label, side, _) in UNETS.items()]
    for name in TRAINED:
        for side in (512, 1024):
            need, operations = counted(lambda name=name, side=side: forecast(name, side, fp8=True))
            costs.append(([named(name).label, str(side), "fp8"], Cost(need, operations)))
    heads = ["model", "side", "weights"]
    tables = [
        (["without checkpointing", "with checkpointing", "smallest card"], memory_cells),
        (["10^12 operations of a step", *(f"{STEPS} steps at {rate}" for rate in RATES)], time_cells),
    ]
    for number, (more, cells) in enumerate(tables):
        if number:
            print()
        rows = [heads + more, ["---"] * (3 + len(more)), *(start + cells(cost) for start, cost in costs)]
        for row in rows:
            print("|", " | ".join(row), "|")


def row_of(name: str, side: int) -> str:
    from inlay.families.table import named

    count = sum(p.numel() for p in meta_model(name).model.diffusion_model.parameters()) / 1e9
    full, small = forecast(name, side, fp8=False), forecast(name, side, fp8=True)
    cells = [full[False], full[True], small[True]]
    figures = " | ".join(f"{cell / GIGABYTE:.1f} GB" for cell in cells)
    return f"| {named(name).label} | {count:.1f} | {side} | {figures} |"


class PeakMemory:
    """The most bytes in use over those at the start: of the device, and on the CPU of torch's tensors."""

    def __init__(self):
        self.cuda = torch.cuda.is_available()
        self.start = self._now()
        activities = [torch.profiler.ProfilerActivity.CPU]
        self.profile: Any = (
            nullcontext()
            if self.cuda
            else torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True)
        )

    def _now(self) -> int:
        return torch.cuda.memory_allocated() if self.cuda else resident("VmRSS")

    def reset(self) -> None:
        """Measure the peak from here on: what was built before is not part of the training."""
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        elif CLEAR.exists():
            CLEAR.write_text("5", encoding="ascii")

    def most(self) -> int:
        peak = torch.cuda.max_memory_allocated() if self.cuda else resident("VmHWM")
        return peak - self.start

    def tensors(self) -> int:
        """Of torch's tensors on the CPU, after the profile has ended."""
        held = peak = 0
        for event in self.profile.profiler.kineto_results.events():
            if event.name() == "[memory]":
                held += event.nbytes()
                peak = max(peak, held)
        return peak


def resident(name: str) -> int:
    """Bytes of this process in memory: now (VmRSS), or the most so far (VmHWM)."""
    if not STATUS.exists():  # macOS has the most alone, in bytes
        import resource  # not on Windows

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def train_measured(name: str, model, side: int, rank: int, before: Callable[[], None]):
    """Train for a few steps as Train Subject does; return its forecast and the seconds of the last step.

    `before` is called between the forecast and the first step.
    """
    from inlay.families.table import named
    from inlay.lab.models.full_transformers import random_examples, text_width
    from inlay.training.finetune import pipeline
    from inlay.training.finetune.diffusion_transformers import BY_REFERENCE, resolved_recipe
    from inlay.training.finetune.recipes import DREAMCOM
    from inlay.training.finetune.trainer import Callbacks, RunOptions

    examples, generator = random_examples(model, side, 2), torch.Generator().manual_seed(0)
    values = {"cross_attn": torch.randn(1, TEXT, text_width(model), generator=generator)}
    values["pooled_output"] = torch.randn(1, 768, generator=generator)
    text = pipeline.EncodedText(values["cross_attn"], None, values)
    way = BY_REFERENCE if named(name).references != "none" else "auto"
    recipe = replace(DREAMCOM, hole_condition=way).with_choices(rank=rank, steps=MEASURED_STEPS)
    forecasts, check, times = [], pipeline.check_step_fits, [time.perf_counter()]

    def recorded(*args, **kwargs):
        forecasts.append(check(*args, **kwargs))
        return forecasts[0]

    def on_stage(stage: str) -> None:
        if stage.startswith("first step"):
            before()

    # the node's own forecast, which it does not return
    pipeline.check_step_fits = recorded
    callbacks = Callbacks(on_step=lambda step, loss: times.append(time.perf_counter()), on_stage=on_stage)
    data = pipeline.EncodedData([examples], [text])
    options = RunOptions(checkpointing=True, callbacks=callbacks)
    with torch.inference_mode():
        pipeline.train_lora(
            pipeline.Pipeline(model, None, None), data, resolved_recipe(recipe, model), 0, options
        )
    pipeline.check_step_fits = check
    return forecasts[0], times[-1] - times[-2]


def print_measured(name: str, weights: str, side: int) -> None:
    """Print a row with the forecast beside what a training took, in this process."""
    open_host(cpu=not torch.cuda.is_available())
    import comfy.model_management

    from inlay.families.table import named
    from inlay.lab.models.full_transformers import random_model
    from inlay.lab.models.tiny_transformers import tiny_transformer

    with torch.inference_mode():  # what a first training imports and opens is no memory of this one
        tiny = tiny_transformer(name, torch.bfloat16)
    tiny.load_device = comfy.model_management.get_torch_device()
    train_measured(name, tiny, 64, 4, lambda: None)
    del tiny
    gc.collect()
    peak = PeakMemory()
    with peak.profile:
        with torch.inference_mode():
            model = random_model(name, weights)
        need, seconds = train_measured(name, model, side, MEASURED_RANK, peak.reset)
        most = peak.most()
    cells = [f"{most / GIGABYTE:.2f} GB", f"{need.total / most - 1:+.1%}"]
    if not peak.cuda:
        tensors = peak.tensors()
        cells += [f"{tensors / GIGABYTE:.2f} GB", f"{need.total / tensors - 1:+.1%}"]
    row = [named(name).label, weights, str(side), f"{need.total / GIGABYTE:.2f} GB", *cells]
    print("|", " | ".join([*row, f"{seconds:.0f} s"]), "|", flush=True)
    print(f"  forecast: {need}", file=sys.stderr)


def measure_apart(options) -> None:
    """Print the table of --measure, each row from a process of its own."""
    heads = ["model", "weights", "side", "forecast", "measured", "forecast over measured"]
    if not torch.cuda.is_available():
        heads += ["tensors", "forecast over tensors"]
    print("|", " | ".join([*heads, "last step"]), "|")
    print("|", " | ".join(["---"] * (len(heads) + 1)), "|", flush=True)
    # Without it the C library keeps the memory of freed tensors for later ones.
    surroundings = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**16)}
    for weights in [options.weights] if options.weights else WEIGHTS:
        command = [sys.executable, __file__, "--one", "--measure", options.measure, "--weights", weights]
        done = subprocess.run([*command, "--side", str(options.side or 256)], env=surroundings)
        if done.returncode:
            sys.exit(f"{weights}: the process ended with {done.returncode}; -9 means out of memory.")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", choices=TRAINED, help="one family (default: all)")
    parser.add_argument("--side", type=int, help="of the square pictures in pixels (default: 512, 768, 1024)")
    parser.add_argument("--cards", action="store_true", help="memory and time by graphics card")
    parser.add_argument("--presets", action="store_true", help="what each memory preset does")
    parser.add_argument(
        "--measure", choices=TRAINED, help="train the network of this family, with random weights"
    )
    parser.add_argument("--weights", choices=WEIGHTS, help="with --measure: one kind (default: both)")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # measure in this process
    options = parser.parse_args()
    if options.measure and not options.one:
        return measure_apart(options)
    if options.measure:
        return print_measured(options.measure, options.weights, options.side)
    open_host()
    if options.cards:
        return print_cards()
    if options.presets:
        return print_presets([options.side] if options.side else [512, 1024])
    sides = [options.side] if options.side else [512, 768, 1024]
    print("| model | billions of weights | side | bf16 | bf16, checkpointing | fp8, checkpointing |")
    print("|---|---|---|---|---|---|")
    for name in [options.family] if options.family else TRAINED:
        for side in sides:
            print(row_of(name, side), flush=True)


if __name__ == "__main__":
    main()
