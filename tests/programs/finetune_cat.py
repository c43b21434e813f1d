"""The training that is killed, of a checkpoint or of a tiny transformer."""

from dataclasses import replace
from pathlib import Path

import torch

from inlay.lab.models.tiny_transformers import RandomText, tiny_transformer, tiny_vae
from inlay.training.finetune.data import Concept, Reference
from inlay.training.finetune.diffusion_transformers import resolved_recipe
from inlay.training.finetune.finetune_subject import finetune_subject
from inlay.training.finetune.pipeline import Pipeline
from inlay.training.finetune.recipes import RECIPES
from inlay.training.finetune.spec import FinetuneSpec
from inlay.training.finetune.store import Store
from inlay.training.finetune.trainer import Callbacks, RunOptions


def open_base(name):
    """MODEL, CLIP and VAE of a checkpoint's file, or of one of our family names."""
    import comfy.sd

    with torch.inference_mode():
        if Path(name).is_file():
            return comfy.sd.load_checkpoint_guess_config(name)[:3]
        return tiny_transformer(name, seed=1), RandomText(name), tiny_vae(name)


def finetune_cat(wired, folder, on_step):
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(64, 64)
    mask[10:50, 20:50] = 1
    references = [Reference(torch.rand(64, 64, 3, generator=generator), mask) for _ in range(3)]
    recipe = RECIPES["DreamCom"].with_choices(steps=8, rank=4, batch_size=2)
    if isinstance(wired[1], RandomText):
        optimiser = replace(recipe.optimiser, schedule="cosine", warmup=2)
        recipe = resolved_recipe(replace(recipe, optimiser=optimiser, caption_dropout=0.5), wired[0])
    spec = FinetuneSpec("sks", "cat", recipe, Concept("a photo of sks cat", references), [], 64, 3)
    options = RunOptions(save_every=1, callbacks=Callbacks(on_step))
    return finetune_subject(Pipeline(*wired), spec, Store(folder), options)
