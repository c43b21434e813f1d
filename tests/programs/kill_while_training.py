"""Kill a training at random moments, as often as asked and until one kill has left a checkpoint."""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, os.environ["COMFYUI_PATH"])
from comfy.cli_args import args

args.cpu = True
import torch
from safetensors import safe_open

from inlay.common import libraries

sys.path.insert(0, sys.argv[3])
import finetune_cat

torch.set_num_threads(1)  # so that a fork is whole
libraries.peft()  # so that no child spends its time on it
wired = finetune_cat.open_base(sys.argv[1])
store, count, rng = Path(sys.argv[2]), int(sys.argv[4]), random.Random(0)


def start():
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with torch.inference_mode():
            finetune_cat.finetune_cat(wired, store, lambda step, loss: None)
        code = 0
    finally:
        os._exit(code)


def result():
    (lora,), (facts,) = store.glob("*.safetensors"), store.glob("*.json")
    left = [path.name for path in store.iterdir() if path.suffix not in (".safetensors", ".json")]
    with safe_open(lora, "pt") as file:  # the order of the metadata in the file is random
        weights = {key: file.get_tensor(key).numpy().tobytes() for key in file.keys()}  # noqa: SIM118 - no dict
        return (weights, file.metadata()), facts.read_bytes(), left


begun = time.monotonic()
assert os.waitpid(start(), 0)[1] == 0
seconds, whole = time.monotonic() - begun, result()
shutil.rmtree(store)
kills = finished = failed = 0
states = set()
while kills < count or kills % 5 or (kills < 20 * count and not any(".resume" in s for s in states)):
    child = start()
    time.sleep(rng.uniform(0, seconds))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        kills += 1
        states.add(tuple(sorted(path.suffix for path in store.iterdir())) if store.exists() else ())
        if kills % 5:
            continue  # the next one goes on, and is killed as well
        assert os.waitpid(start(), 0)[1] == 0
    finished += 1
    lora, facts, left = result()
    failed += (lora, facts, left) != (*whole[:2], [])
    print(kills, finished, failed, flush=True)
    shutil.rmtree(store)
print(json.dumps({"kills": kills, "finished": finished, "failed": failed, "states": sorted(states)}))
