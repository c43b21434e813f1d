"""Run the loop of adapter training on accelerate: any number of processes, any precision, resumable.

`accelerate launch` starts the processes and sets how they share the work (DDP, FSDP, several machines).
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ...common import libraries
from ...common.files import atomic_write
from ...encoders import checkpoint_layouts as layouts
from ...encoders.dinov2 import DinoV2
from .. import Diverged
from .dataset import SampleDataset, StepBatchSampler, loader
from .identity_stages import Stage, TrainableAdapter, Vae, freeze, prepare_batch, rate_at
from .run_checkpoints import InterruptFlag, RunConfig, check_resumable, resume_run, save_checkpoint


def train_adapter(
    trainable: TrainableAdapter,
    stage: Stage,
    vae: Callable[[torch.device], Vae],
    samples: SampleDataset,
    run: RunConfig,
    on_step: Callable[[int, float, float], None] = lambda step, loss, seconds: None,
) -> dict[str, Tensor] | None:
    """Train an adapter; continue from the run's last checkpoint if there is one.

    Args:
        trainable: encoder, adapter and UNet.
        stage: the trained weights and their learning rates.
        vae: makes the autoencoder for a device.
        samples: the training data.
        run: length, batch and folder of the run.
        on_step: called as (step, loss, seconds so far) in the main process.

    Returns:
        The module's weights on the CPU in the main process, None in the others.

    Raises:
        Diverged: at the first loss that is not finite.
        ValueError: if the folder has another run.
        KeyboardInterrupt: after the step in which a process was interrupted; a checkpoint is saved.
    """
    accelerator = _accelerator(run)
    parts = freeze(trainable.parts, stage)
    groups = [{"params": parameters} for parameters in parts.values()]
    optimiser = torch.optim.AdamW(groups, lr=0.0, weight_decay=stage.weight_decay)
    model, optimiser = accelerator.prepare(trainable, optimiser)
    start = resume_run(accelerator, run)
    sampler = StepBatchSampler(
        start, run.steps, run.batch, run.passes, accelerator.process_index, accelerator.num_processes
    )
    batches = iter(loader(samples, sampler, run.workers))
    prepare = _preparation(trainable, stage, vae(accelerator.device), accelerator.device, run.seed)
    start_time = time.monotonic()
    with InterruptFlag() as interrupt:
        for step in range(start, run.steps):
            loss = _accumulate_gradients(accelerator, model, map(prepare, batches), run.passes)
            mean, stopped = _reduce_loss_and_stop(accelerator, loss, interrupt.received)
            if not math.isfinite(mean):
                raise Diverged(f"--rate: the loss is no number at step {step + 1}; choose a smaller rate.")
            accelerator.clip_grad_norm_(model.parameters(), stage.clip_norm)
            for part, group in zip(parts, optimiser.param_groups, strict=True):
                group["lr"] = rate_at(stage, part, step, run.steps)
            optimiser.step()
            optimiser.zero_grad()
            _log(accelerator, run, step, mean)
            if accelerator.is_main_process:
                on_step(step + 1, mean, time.monotonic() - start_time)
            last_step = step + 1 == run.steps  # saved too: the export may fail, or --steps may grow
            if stopped or last_step or (step + 1) % run.save_every == 0:
                save_checkpoint(accelerator, run, step + 1)
            if stopped and not last_step:
                accelerator.end_training()
                raise KeyboardInterrupt
    return _gather_weights(accelerator, model)


def _gather_weights(accelerator, model) -> dict[str, Tensor] | None:
    """End the training; return the weights on the CPU in the main process, None in the others."""
    weights: Any = accelerator.get_state_dict(model)  # called by every process: FSDP gathers here
    accelerator.end_training()
    if not accelerator.is_main_process:
        return None
    return {name: value.detach().cpu() for name, value in weights.items()}


def _preparation(trainable: TrainableAdapter, stage: Stage, vae: Vae, device: torch.device, seed: int):
    """Return a function from a batch of images to the inputs of `trainable` on the device."""
    spec, levels = trainable.encoder_spec, len(trainable.diffusion.sigmas)
    return lambda batch: prepare_batch(stage, vae, spec, _to_device(device, batch), seed, levels)


def _accumulate_gradients(accelerator, model, inputs: Iterator[dict[str, Tensor]], passes: int) -> Tensor:
    """Run the passes of one step; return the mean loss of this process."""
    loss = torch.zeros((), device=accelerator.device)
    for last in [False] * (passes - 1) + [True]:
        batch = next(inputs)
        with nullcontext() if last else accelerator.no_sync(model):
            share = model(batch).mean() / passes
            accelerator.backward(share)
        loss += share.detach()
    return loss


def _reduce_loss_and_stop(accelerator, loss: Tensor, stop: bool) -> tuple[float, bool]:
    """Return the mean loss over all processes, and whether any of them was interrupted."""
    local = torch.stack([loss, loss.new_tensor(float(stop))])
    mean, share = accelerator.reduce(local, "mean").tolist()
    return mean, share > 0


def export(
    weights: Mapping[str, Tensor],
    trainable: TrainableAdapter,
    stage: Stage,
    path: Path,
    training_info: Mapping[str, Any],
) -> list[Path]:
    """Write the trained weights.

    Args:
        weights: from `train_adapter`.
        trainable: the module they belong to.
        stage: its name goes into the metadata.
        path: the adapter's file with its DINOv2, for the node Load Identity Adapter. The UNet's file stands
            beside it as `<name>.unet.safetensors`, with diffusers' keys.
        training_info: more metadata.

    Returns:
        The two files.
    """
    by_part = {part: _strip_prefix(weights, f"{part}.") for part in ("encoder", "adapter", "unet")}
    config: Any = trainable.adapter.config
    dino = trainable.encoder.config if isinstance(trainable.encoder, DinoV2) else None
    state = {f"adapter.{name}": value for name, value in by_part["adapter"].items()}
    if dino is not None:
        state |= {f"encoder.{name}": value for name, value in by_part["encoder"].items()}
    common = {"inlay.training": json.dumps({"stage": stage.name, **training_info})}
    files = [path, path.with_name(f"{path.stem}.unet.safetensors")]
    _write(files[0], state, common | {layouts.METADATA: layouts.describe_checkpoint(config, dino)})
    _write(files[1], by_part["unet"], common)
    return files


def _strip_prefix(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _write(path: Path, state: dict[str, Tensor], metadata: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.contiguous() for name, value in state.items()}
    atomic_write(path, lambda partial: save_file(tensors, partial, metadata))


def _accelerator(run: RunConfig):
    check_resumable(run)
    run.folder.mkdir(parents=True, exist_ok=True)
    accelerator = libraries.accelerate().Accelerator(
        mixed_precision=run.precision,
        log_with="tensorboard" if run.tensorboard else None,
        project_dir=str(run.folder),
    )
    if run.tensorboard:
        accelerator.init_trackers("tensorboard")
    return accelerator


def _to_device(device: torch.device, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: part.to(device, non_blocking=True) for name, part in batch.items()}


def _log(accelerator, run: RunConfig, step: int, loss: float) -> None:
    if accelerator.is_main_process:
        with (run.folder / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps({"step": step + 1, "loss": loss}) + "\n")
    if run.tensorboard:
        accelerator.log({"loss": loss}, step=step + 1)
