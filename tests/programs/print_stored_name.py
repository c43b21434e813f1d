"""Print the name under which a training of the checkpoint is stored."""

import os
import sys

sys.path.insert(0, os.environ["COMFYUI_PATH"])
from comfy.cli_args import args

args.cpu = True
import comfy.sd
import torch

from inlay.training.finetune.data import Concept, Reference
from inlay.training.finetune.finetune_subject import stored_names
from inlay.training.finetune.pipeline import Pipeline, encode_captions
from inlay.training.finetune.recipes import RECIPES
from inlay.training.finetune.spec import FinetuneSpec

with torch.inference_mode():
    pipeline = Pipeline(*comfy.sd.load_checkpoint_guess_config(sys.argv[1])[:3])
    picture = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(0))
    concept = Concept("a photo of sks cat", [Reference(picture, torch.ones(64, 64))])
    spec = FinetuneSpec("sks", "cat", RECIPES["DreamCom"], concept, [], 64, 3)
    print(stored_names(pipeline, spec, encode_captions(pipeline, spec.texts(), 64))[0])
