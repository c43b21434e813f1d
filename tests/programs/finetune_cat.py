"""The training that is killed."""

import torch

from inlay.training.finetune.data import Concept, Reference
from inlay.training.finetune.finetune_subject import finetune_subject
from inlay.training.finetune.pipeline import Pipeline
from inlay.training.finetune.recipes import RECIPES
from inlay.training.finetune.spec import FinetuneSpec
from inlay.training.finetune.store import Store
from inlay.training.finetune.trainer import Callbacks, RunOptions


def finetune_cat(wired, folder, on_step):
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(64, 64)
    mask[10:50, 20:50] = 1
    references = [Reference(torch.rand(64, 64, 3, generator=generator), mask) for _ in range(3)]
    recipe = RECIPES["DreamCom"].with_choices(steps=8, rank=4, batch_size=2)
    spec = FinetuneSpec("sks", "cat", recipe, Concept("a photo of sks cat", references), [], 64, 3)
    options = RunOptions(save_every=1, callbacks=Callbacks(on_step))
    return finetune_subject(Pipeline(*wired), spec, Store(folder), options)
