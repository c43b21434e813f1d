"""Train what inserts an object from one picture: IMPRINT's two stages, or mask-free insertion.

    python -m inlay train pack photos/ shards/          one record for every picture, or folder of views
    python -m inlay train views   --data shards/ --unet sd15/unet --vae sd15/vae --encoder dinov2/ --out a.safetensors
    python -m inlay train compose --data shards/ --unet sd15/unet --vae sd15/vae --adapter a.safetensors --out b.safetensors
    python -m inlay train insert  --data pipe/   --unet add-base/unet --vae add-base/vae --encoder clip/ --out c.safetensors

    accelerate launch --num_processes 8 -m inlay train views ...

--data is a folder of WebDataset shards or a Hugging Face datasets folder. Under `accelerate launch` every
process takes its share of a batch, and one process with the same batch gets the same losses up to rounding.
Stopped or killed, the same command goes on from the last checkpoint, in <out>.run; Ctrl-C and SIGTERM leave one
of the step they came in. `accelerate launch` kills its processes 30 seconds after the signal: where the step and
its checkpoint take longer, what is left is the last one of --save-every. The adapter, with its DINOv2, is --out;
the UNet stands beside it as <name>.unet.safetensors.

https://github.com/inlay-nodes/inlay/blob/main/docs/adapters.md says more.

Exit codes: 0 done, 1 the training failed, 2 what was asked for is wrong, 130 stopped.
"""  # noqa: E501 - commands to copy

import argparse
import errno
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..training.finetune.trainer import Diverged
from .errors import DONE, FAILED, STOPPED, WRONG

# What a resumed run must be asked for again; --steps may grow, and the rest changes no more than the speed.
SAME = (
    "stage", "data", "unet", "unet_weights", "vae", "scheduler", "encoder", "adapter", "side", "size",
    "window", "width", "depth", "heads", "tokens", "rate", "warm_up", "seed",
)  # fmt: skip
COMMANDS_BY_STAGE = {
    "views": "IMPRINT's first stage: another view of an object",
    "compose": "its second stage: an object into the hole of a picture",
    "insert": "an object into a picture, without a mask",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="stage", metavar="STAGE", required=True)
    for name, what in COMMANDS_BY_STAGE.items():
        _stage_arguments(commands.add_parser(name, help=what))
    pack = commands.add_parser("pack", help="make shards of a folder of pictures")
    pack.add_argument("pictures", type=Path, help="pictures with masks, or a folder of views for each object")
    pack.add_argument("shards", type=Path)
    pack.add_argument("--per-shard", type=int, default=1000, metavar="N")


def _stage_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="DIR", help="shards or a datasets folder")
    add("--unet", type=Path, required=True, metavar="DIR", help="diffusers' UNet; missing channels are added")
    add("--unet-weights", type=Path, metavar="FILE", help="its weights from an earlier training")
    add("--vae", type=Path, required=True, metavar="DIR", help="diffusers' autoencoder")
    add("--scheduler", type=Path, metavar="DIR", help="diffusers' scheduler (default: Stable Diffusion's)")
    add("--encoder", type=Path, metavar="DIR", help="DINOv2 or CLIP, in transformers' layout")
    add("--adapter", type=Path, metavar="FILE", help="an earlier training to start from")
    add("--out", type=Path, required=True, metavar="FILE")
    add("--steps", type=int, default=10000)
    add("--batch", type=int, help="records of a step, of all processes together (default: the stage's)")
    add("--passes", type=int, default=1, help="in how many portions a process takes its share")
    add("--side", type=int, default=512, help="pixels of the pictures that are asked for")
    add("--size", type=int, default=224, help="pixels of the pictures the encoder sees")
    add("--window", type=int, default=7, help="most frames between two views")
    add("--width", type=int, default=1024, help="of a new content adapter")
    add("--depth", type=int, default=5)
    add("--heads", type=int, default=1)
    add("--tokens", type=int, default=0, help="learned queries (0: one row for each of the encoder's tokens)")
    add("--rate", type=float, help="one learning rate for everything (default: the stage's)")
    add("--warm-up", type=int, help="steps (default: the stage's)")
    add("--workers", type=int, default=4, help="processes that read data")
    add("--save-every", type=int, default=500, metavar="STEPS")
    add("--precision", choices=["no", "fp16", "bf16"], help="default: as accelerate is configured")
    add("--tensorboard", action="store_true")
    add("--seed", type=int, default=0)


def main(options: argparse.Namespace) -> int:
    try:
        if options.stage == "pack":
            from ..training.adapters.make_shards import pack_pictures

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
            f"Weights could not be read or written ({error}); see that the disk has room and that the files"
            " asked for are whole.",
        )
    except OSError as error:  # not there, which diffusers says without a number; else a full disk or the like
        missing = error.errno in (None, errno.ENOENT, errno.ENOTDIR)
        return _end(WRONG if missing else FAILED, error)
    except KeyboardInterrupt:
        return _end(STOPPED, "Stopped; the same command goes on from the last checkpoint.")
    return DONE


def _end(code: int, why) -> int:
    print(why, file=sys.stderr)
    return code


def _train(options: argparse.Namespace) -> None:
    from ..training.adapters import identity_stages as adapters
    from ..training.adapters import pretrained as foundations
    from ..training.adapters import trainer as accelerated
    from ..training.adapters.dataset import SampleDataset
    from ..training.adapters.run_checkpoints import RunConfig
    from ..training.adapters.shards import open_source

    stage = _stage(adapters.STAGE_CONFIGS[options.stage], options)
    trainee = assemble_adapter(options, stage)
    examples = SampleDataset(open_source(options.data), options.seed, _maker(options, stage, trainee.reading))
    run = RunConfig(
        options.out.with_suffix(".run"), options.steps, options.batch or stage.batch, options.passes,
        options.workers, options.save_every, options.seed, options.precision, options.tensorboard,
        resume_config(options) | {"batch": options.batch or stage.batch},
    )  # fmt: skip

    def tell(step: int, loss: float, seconds: float) -> None:
        if step % 10 == 0 or step == options.steps:
            print(f"step {step} of {options.steps}, loss {loss:.5f}, {seconds:.0f} s", file=sys.stderr)

    weights = accelerated.train_adapter(
        trainee, stage, lambda device: foundations.DiffusersVae(options.vae, device), examples, run, tell
    )
    if weights is not None:
        facts = {"steps": options.steps, "batch": run.batch, "seed": options.seed, "data": options.data.name}
        for file in accelerated.export(weights, trainee, stage, options.out, facts):
            print(file)


def resume_config(options: argparse.Namespace) -> dict[str, Any]:
    """The options of `SAME` as JSON holds them, by the names they have on the command line."""
    values = {name.replace("_", "-"): getattr(options, name) for name in SAME}
    return {name: str(v.resolve()) if isinstance(v, Path) else v for name, v in values.items()}


def _stage(stage, options: argparse.Namespace):
    if options.rate is not None:
        phases = tuple(replace(p, rates=dict.fromkeys(p.rates, options.rate)) for p in stage.phases)
        stage = replace(stage, phases=phases)
    return stage if options.warm_up is None else replace(stage, warm_up=options.warm_up)


def assemble_adapter(options: argparse.Namespace, stage):
    """The module to train, from the folders and files that were named."""
    import torch

    from ..encoders.dinov2 import DinoV2
    from ..training.adapters import identity_stages as adapters
    from ..training.adapters import pretrained as foundations

    torch.manual_seed(options.seed)  # fresh adapters are the same in every process
    if options.encoder is None and options.adapter is None:
        raise ValueError("--encoder: there is none; give the folder of a DINOv2 or a CLIP.")
    unet = foundations.load_unet(options.unet, stage.channels, options.unet_weights)
    config: Any = unet.config
    adapter, encoder = foundations.read_adapter(options.adapter) if options.adapter else (None, None)
    if options.encoder is not None:
        if encoder is not None:
            raise ValueError(
                f"--encoder: {options.adapter.name} holds the encoder it was trained with; leave --encoder"
                " out."
            )
        encoder = foundations.load_object_encoder(options.encoder)
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
        adapter = foundations.new_content_adapter(
            encoder, stage.name == "insert", width, options.size, **numbers
        )
    else:
        foundations.check_encoder_matches(encoder, adapter, config.cross_attention_dim)
    diffusion = foundations.load_diffusion(options.scheduler)
    return adapters.TrainableAdapter(encoder, adapter, unet, diffusion, adapters.by_diffusers)


def _maker(options: argparse.Namespace, stage, reading):
    from ..training.adapters import samples as examples

    if stage.data == "insertions":
        return examples.Insertions(reading, options.side)
    kind = examples.ViewPairs if stage.data == "views" else examples.Compositions
    return kind(reading, options.side, options.window)
