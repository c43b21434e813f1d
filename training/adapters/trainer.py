"""The loop of adapter training, on accelerate: one process or many, any precision, stopped and resumed.

`accelerate launch` starts the processes and says how they share the work (DDP, FSDP, several machines).
"""

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ...common.atomic_io import atomic_replace
from ...encoders import checkpoint_layouts as layouts
from ...encoders.dinov2 import DinoV2
from ..finetune.trainer import Diverged
from .dataset import SampleDataset, StepBatchSampler, loader
from .identity_stages import Stage, TrainableAdapter, Vae, freeze, prepare_batch, rate_at
from .run_checkpoints import InterruptFlag, RunConfig, check_resumable, resume_run, save_checkpoint


def train_adapter(
    trainee: TrainableAdapter,
    stage: Stage,
    vae: Callable[[torch.device], Vae],
    examples: SampleDataset,
    run: RunConfig,
    tell: Callable[[int, float, float], None] = lambda step, loss, seconds: None,
) -> dict[str, Tensor] | None:
    """Train and return the trained module's weights on the CPU, in the main process; None in the others.

    Goes on from the run's last checkpoint. `tell(step, loss, seconds so far)` is called in the main process.
    Raises `Diverged` at the first loss that is no number, ValueError where the folder holds another run, and
    KeyboardInterrupt, with a checkpoint, after the step in which a process was told to stop.
    """
    accelerator = _accelerator(run)
    parts = freeze(trainee.parts, stage)
    groups = [{"params": parameters} for parameters in parts.values()]
    optimiser = torch.optim.AdamW(groups, lr=0.0, weight_decay=stage.weight_decay)
    model, optimiser = accelerator.prepare(trainee, optimiser)
    start = resume_run(accelerator, run)
    own = StepBatchSampler(
        start, run.steps, run.batch, run.passes, accelerator.process_index, accelerator.num_processes
    )
    batches = iter(loader(examples, own, run.workers))
    autoencoder, levels = vae(accelerator.device), len(trainee.diffusion.sigmas)
    began = time.monotonic()
    with InterruptFlag() as interrupt:
        for step in range(start, run.steps):
            loss = torch.zeros((), device=accelerator.device)
            for last in [False] * (run.passes - 1) + [True]:
                batch = _on(accelerator.device, next(batches))
                inputs = prepare_batch(stage, autoencoder, trainee.reading, batch, run.seed, levels)
                with nullcontext() if last else accelerator.no_sync(model):
                    share = model(inputs).mean() / run.passes
                    accelerator.backward(share)
                loss += share.detach()
            mean, stopped = _agree(accelerator, loss, interrupt.came)
            if not math.isfinite(mean):
                raise Diverged(f"--rate: the loss is no number at step {step + 1}; choose a smaller rate.")
            accelerator.clip_grad_norm_(model.parameters(), stage.clip_norm)
            for part, group in zip(parts, optimiser.param_groups, strict=True):
                group["lr"] = rate_at(stage, part, step, run.steps)
            optimiser.step()
            optimiser.zero_grad()
            _log(accelerator, run, step, mean)
            if accelerator.is_main_process:
                tell(step + 1, mean, time.monotonic() - began)
            last_step = step + 1 == run.steps  # kept too: the export may fail, and --steps may grow
            if stopped or last_step or (step + 1) % run.save_every == 0:
                save_checkpoint(accelerator, run, step + 1)
            if stopped and not last_step:
                accelerator.end_training()
                raise KeyboardInterrupt
    weights: Any = accelerator.get_state_dict(model)  # FSDP gathers them, so the processes are still together
    accelerator.end_training()
    if not accelerator.is_main_process:
        return None
    return {name: value.detach().cpu() for name, value in weights.items()}


def _agree(accelerator, loss: Tensor, stop: bool) -> tuple[float, bool]:
    """The mean loss of all processes, and whether any of them was told to stop."""
    own = torch.stack([loss, loss.new_tensor(float(stop))])
    mean, share = accelerator.reduce(own, "mean").tolist()
    return mean, share > 0


def export(
    weights: Mapping[str, Tensor],
    trainee: TrainableAdapter,
    stage: Stage,
    path: Path,
    facts: Mapping[str, Any],
) -> list[Path]:
    """Write the adapter, with its DINOv2, as `path`, and the UNet beside it as `<name>.unet.safetensors`.

    The first loads in Load Identity Adapter, the second as diffusers' and the host's own UNets do. `facts`
    go into their metadata.
    """
    named = {part: _under(weights, f"{part}.") for part in ("encoder", "adapter", "unet")}
    config: Any = trainee.adapter.config
    dino = trainee.encoder.config if isinstance(trainee.encoder, DinoV2) else None
    state = {f"adapter.{name}": value for name, value in named["adapter"].items()}
    if dino is not None:
        state |= {f"encoder.{name}": value for name, value in named["encoder"].items()}
    about = {"inlay.training": json.dumps({"stage": stage.name, **facts})}
    files = [path, path.with_name(f"{path.stem}.unet.safetensors")]
    _write(files[0], state, about | {layouts.METADATA: layouts.describe_checkpoint(config, dino)})
    _write(files[1], named["unet"], about)
    return files


def _under(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _write(path: Path, state: dict[str, Tensor], metadata: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        save_file({name: value.contiguous() for name, value in state.items()}, partial, metadata)
        atomic_replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _accelerator(run: RunConfig):
    from accelerate import Accelerator  # slow to import, so not before somebody trains

    check_resumable(run)
    run.folder.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(
        mixed_precision=run.precision,
        log_with="tensorboard" if run.tensorboard else None,
        project_dir=str(run.folder),
    )
    if run.tensorboard:
        accelerator.init_trackers("tensorboard")
    return accelerator


def _on(device: torch.device, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: part.to(device, non_blocking=True) for name, part in batch.items()}


def _log(accelerator, run: RunConfig, step: int, loss: float) -> None:
    if accelerator.is_main_process:
        with (run.folder / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps({"step": step + 1, "loss": loss}) + "\n")
    if run.tensorboard:
        accelerator.log({"loss": loss}, step=step + 1)
