"""Train an adapter that inserts an object from one picture: IMPRINT's two stages, or insertion without a mask.

    python -m inlay train pack photos/ shards/          one record for every picture, or folder of views
    python -m inlay train views   --data shards/ --unet sd15/unet --vae sd15/vae --encoder dinov2/ --out a.safetensors
    python -m inlay train compose --data shards/ --unet sd15/unet --vae sd15/vae --adapter a.safetensors --out b.safetensors
    python -m inlay train insert  --data pipe/   --unet add-base/unet --vae add-base/vae --encoder clip/ --out c.safetensors

    accelerate launch --num_processes 8 -m inlay train views ...

--data is a folder of WebDataset shards or a Hugging Face datasets folder. Under `accelerate launch` every
process computes a part of each batch; one process with the same batch size gets the same losses up to
rounding. After an interruption, the same command continues from the last checkpoint in <out>.run; Ctrl-C and
SIGTERM save a checkpoint after the current step. `accelerate launch` kills its processes 30 seconds after the
signal; if the step and its checkpoint take longer, the last checkpoint of --save-every remains. --out has the
adapter and its DINOv2; the UNet stands beside it as <name>.unet.safetensors.

See https://github.com/inlay-nodes/inlay/blob/main/docs/adapters.md for details.

Exit codes: 0 done, 1 the training failed, 2 wrong arguments or files, 130 interrupted.
"""  # noqa: E501 - commands to copy

import argparse
import errno
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..training import Diverged
from .errors import DONE, FAILED, STOPPED, WRONG

# Options that a resumed run must repeat; --steps may grow, and the others only change the speed.
RESUME_OPTIONS = (
    "stage", "data", "unet", "unet_weights", "vae", "scheduler", "encoder", "adapter", "side", "size",
    "window", "width", "depth", "heads", "tokens", "rate", "warm_up", "seed",
)  # fmt: skip
COMMANDS_BY_STAGE = {
    "views": "IMPRINT's first stage: predict another view of an object",
    "compose": "IMPRINT's second stage: paint an object into the hole of a picture",
    "insert": "add an object to a picture without a mask",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to a parser."""
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="stage", metavar="STAGE", required=True)
    for name, help_text in COMMANDS_BY_STAGE.items():
        _stage_arguments(commands.add_parser(name, help=help_text))
    pack = commands.add_parser("pack", help="make shards from a folder of pictures")
    pack.add_argument(
        "pictures", type=Path, help="folder of pictures with masks, or with one folder of views per object"
    )
    pack.add_argument("shards", type=Path)
    pack.add_argument("--per-shard", type=int, default=1000, metavar="N")


def _stage_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="DIR", help="shards or a datasets folder")
    add(
        "--unet",
        type=Path,
        required=True,
        metavar="DIR",
        help="UNet folder of diffusers; missing input channels are added",
    )
    add("--unet-weights", type=Path, metavar="FILE", help="weights of the UNet from an earlier training")
    add("--vae", type=Path, required=True, metavar="DIR", help="autoencoder folder of diffusers")
    add(
        "--scheduler",
        type=Path,
        metavar="DIR",
        help="scheduler folder of diffusers (default: Stable Diffusion's)",
    )
    add("--encoder", type=Path, metavar="DIR", help="folder of a DINOv2 or CLIP in transformers' layout")
    add("--adapter", type=Path, metavar="FILE", help="adapter of an earlier training to start from")
    add("--out", type=Path, required=True, metavar="FILE")
    add("--steps", type=int, default=10000)
    add("--batch", type=int, help="records per step over all processes (default: the stage's)")
    add("--passes", type=int, default=1, help="gradient accumulation: forward passes per step and process")
    add("--side", type=int, default=512, help="side of the target pictures in pixels")
    add("--size", type=int, default=224, help="side of the encoder's pictures in pixels")
    add("--window", type=int, default=7, help="maximum number of frames between two views")
    add("--width", type=int, default=1024, help="width of a new content adapter")
    add("--depth", type=int, default=5, help="transformer blocks of a new content adapter")
    add("--heads", type=int, default=1, help="attention heads of a new content adapter")
    add("--tokens", type=int, default=0, help="learned queries (0: one context row per encoder token)")
    add("--rate", type=float, help="one learning rate for all parts (default: the stage's)")
    add("--warm-up", type=int, help="steps of linear warm-up (default: the stage's)")
    add("--workers", type=int, default=4, help="processes that read data")
    add("--save-every", type=int, default=500, metavar="STEPS")
    add("--precision", choices=["no", "fp16", "bf16"], help="default: accelerate's own setting")
    add("--tensorboard", action="store_true")
    add("--seed", type=int, default=0)


def main(options: argparse.Namespace) -> int:
    """Run `python -m inlay train`; return the exit code."""
    try:
        if options.stage == "pack":
            from ..training.adapters.shards import pack_pictures

            print(f"{pack_pictures(options.pictures, options.shards, options.per_shard)} records")
        else:
            _train(options)
    except Diverged as error:
        return _end(FAILED, error)
    except ModuleNotFoundError as error:
        return _end(WRONG, f"{error.name} is not installed here; pip install {error.name}.")
    except ValueError as error:
        return _end(WRONG, error)
    except SafetensorError as error:
        return _end(
            FAILED,
            f"Weights could not be read or written ({error}); see that the disk has room and that the"
            " given files are complete.",
        )
    except OSError as error:
        # diffusers reports missing files without an errno; other errors are a full disk and the like
        missing = error.errno in (None, errno.ENOENT, errno.ENOTDIR)
        return _end(WRONG if missing else FAILED, error)
    except KeyboardInterrupt:
        return _end(STOPPED, "Stopped; the same command continues from the last checkpoint.")
    return DONE


def _end(code: int, why) -> int:
    print(why, file=sys.stderr)
    return code


def _train(options: argparse.Namespace) -> None:
    from ..training.adapters import identity_stages as adapters
    from ..training.adapters import pretrained, trainer
    from ..training.adapters.dataset import SampleDataset
    from ..training.adapters.run_checkpoints import RunConfig
    from ..training.adapters.shards import open_source

    stage = _stage(adapters.STAGE_CONFIGS[options.stage], options)
    trainable = assemble_adapter(options, stage)
    dataset = SampleDataset(
        open_source(options.data), options.seed, _sample_maker(options, stage, trainable.encoder_spec)
    )
    run = RunConfig(
        options.out.with_suffix(".run"), options.steps, options.batch or stage.batch, options.passes,
        options.workers, options.save_every, options.seed, options.precision, options.tensorboard,
        resume_config(options) | {"batch": options.batch or stage.batch},
    )  # fmt: skip

    def print_progress(step: int, loss: float, seconds: float) -> None:
        if step % 10 == 0 or step == options.steps:
            print(f"step {step} of {options.steps}, loss {loss:.5f}, {seconds:.0f} s", file=sys.stderr)

    weights = trainer.train_adapter(
        trainable,
        stage,
        lambda device: pretrained.DiffusersVae(options.vae, device),
        dataset,
        run,
        print_progress,
    )
    if weights is not None:
        facts = {"steps": options.steps, "batch": run.batch, "seed": options.seed, "data": options.data.name}
        for file in trainer.export(weights, trainable, stage, options.out, facts):
            print(file)


def resume_config(options: argparse.Namespace) -> dict[str, Any]:
    """Return the values of `RESUME_OPTIONS` as JSON data, by their names on the command line."""
    values = {name.replace("_", "-"): getattr(options, name) for name in RESUME_OPTIONS}
    return {name: str(v.resolve()) if isinstance(v, Path) else v for name, v in values.items()}


def _stage(stage, options: argparse.Namespace):
    if options.rate is not None:
        phases = tuple(replace(p, rates=dict.fromkeys(p.rates, options.rate)) for p in stage.phases)
        stage = replace(stage, phases=phases)
    return stage if options.warm_up is None else replace(stage, warm_up=options.warm_up)


def assemble_adapter(options: argparse.Namespace, stage):
    """Return the module to train, loaded from the folders and files in the options.

    Raises:
        ValueError: if the networks are missing or do not fit each other.
    """
    import torch

    from ..encoders.dinov2 import DinoV2
    from ..training.adapters import identity_stages as adapters
    from ..training.adapters import pretrained

    torch.manual_seed(options.seed)  # new adapters get the same weights in every process
    if options.encoder is None and options.adapter is None:
        raise ValueError("--encoder: there is none; give the folder of a DINOv2 or a CLIP.")
    unet = pretrained.load_unet(options.unet, stage.channels, options.unet_weights)
    config: Any = unet.config
    adapter, encoder = pretrained.read_adapter(options.adapter) if options.adapter else (None, None)
    if options.encoder is not None:
        if encoder is not None:
            raise ValueError(
                f"--encoder: {options.adapter.name} holds the encoder it was trained with; leave --encoder"
                " out."
            )
        encoder = pretrained.load_object_encoder(options.encoder)
    if encoder is None:
        raise ValueError("--encoder: the adapter's file holds none; give the folder it was trained with.")
    if "encoder" in stage.trains and not isinstance(encoder, DinoV2):
        raise ValueError(
            f"--encoder: stage '{stage.name}' trains the encoder, and only a DINOv2 can be written beside the"
            " adapter; give a DINOv2, or a CLIP to another stage."
        )
    if adapter is None:
        numbers = {"tokens": options.tokens}
        if stage.name != "insert":
            numbers |= {"width": options.width, "depth": options.depth, "heads": options.heads}
        width = config.cross_attention_dim
        adapter = pretrained.new_content_adapter(
            encoder, stage.name == "insert", width, options.size, **numbers
        )
    else:
        pretrained.check_encoder_matches(encoder, adapter, config.cross_attention_dim)
    diffusion = pretrained.load_diffusion(options.scheduler)
    return adapters.TrainableAdapter(encoder, adapter, unet, diffusion, adapters.denoise_with_diffusers)


def _sample_maker(options: argparse.Namespace, stage, encoder_spec):
    from ..training.adapters import samples

    if stage.data == "insertions":
        return samples.Insertions(encoder_spec, options.side)
    kind = samples.ViewPairs if stage.data == "views" else samples.Compositions
    return kind(encoder_spec, options.side, options.window)
