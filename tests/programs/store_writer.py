"""Write one stored subject again and again, as one of several processes."""

import sys
from dataclasses import replace
from pathlib import Path

import torch

from inlay.training.finetune.store import Store
from inlay.training.finetune.subject import Subject
from inlay.training.finetune.trainer import TrainingState

store, step = Store(Path(sys.argv[1])), 0
subject = Subject("sks", "cat", "", "", "", "SD15", 0, 0, 4)
while True:
    step += 1
    numbers = torch.full((1_000_000,), float(step))
    store.save_state("cat", TrainingState(step, [float(step)], {"master.0": numbers}))
    store.save("dog", replace(subject, steps=step), {"up": numbers}, {})
    if step == 2:
        print("ready", flush=True)
