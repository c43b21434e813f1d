"""Write a folder of results or of regular data again and again, as one of several processes."""

import sys
from pathlib import Path

from inlay.headless.client import NodeOutput
from inlay.headless.jobs import GraphJob
from inlay.headless.results import save_result

folder, rounds, number, kind = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
graph = {"1": {"class_type": "SaveImage", "_meta": {"title": "Save"}, "inputs": {}}}
job = GraphJob(graph, ("cat", "room"))


def write_results(turn: int) -> None:
    files = [("a.png", bytes([number]) * 50_000), ("b.png", bytes([number]) * 50_000)]
    save_result(job, {"1": NodeOutput(files=files)}, number, folder)


def write_regular_data(turn: int) -> None:
    import torch  # seconds, which the other kind need not wait for

    from inlay.training.finetune.regular_data import save_regular

    image = torch.full((64, 64, 3), (turn % 4) / 8)
    save_regular(folder, [(image, torch.ones(64, 64))], ["a cup"])


write = {"results": write_results, "regular": write_regular_data}[kind]
print("ready", flush=True)
sys.stdin.readline()
failures = 0
for turn in range(rounds):
    try:
        write(turn)
    except Exception as error:
        print(repr(error), file=sys.stderr)
        failures += 1
    if not turn:
        print("written", flush=True)
print(failures, flush=True)
