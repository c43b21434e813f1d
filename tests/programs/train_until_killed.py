"""Train in a host, and wait after step 5 to be killed."""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, os.environ["COMFYUI_PATH"])
from comfy.cli_args import args

args.cpu = True
import torch

sys.path.insert(0, sys.argv[3])
import finetune_cat

wired = finetune_cat.open_base(sys.argv[1])
with torch.inference_mode():

    def on_step(step, loss):
        if step == 5:
            print("here", flush=True)
            time.sleep(600)

    finetune_cat.finetune_cat(wired, Path(sys.argv[2]), on_step)
