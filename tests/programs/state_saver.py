"""Save one training state again and again, as one of several processes."""

import sys
from pathlib import Path

import torch

from inlay.training.finetune.store import Store
from inlay.training.finetune.subject import Subject
from inlay.training.finetune.trainer import TrainingState

store, number = Store(Path(sys.argv[1])), float(sys.argv[3])
subject = Subject("sks", "cat", "", "", "", "SD15", 0, 0, 4)
numbers = torch.full((200_000,), number)
print("ready", flush=True)
sys.stdin.readline()
failures = 0
for _ in range(int(sys.argv[2])):
    try:
        store.save_state("cat", TrainingState(1, [number], {"master.0": numbers}))
        store.save("cat", subject, {"up": numbers}, {})
    except Exception as error:
        print(error, file=sys.stderr)
        failures += 1
print(failures, flush=True)
