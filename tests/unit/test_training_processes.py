"""Two processes that share every batch against one that takes it whole, on the CPU, started by accelerate."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from inlay.headless.server import loopback_port
from inlay.training.finetune.recipes import DREAMMIX
from inlay.training.finetune.trainer import SINGLE_PROCESS, open_group, split_batch

TRAIN = """
import sys
import torch
from safetensors.torch import save_file
from torch import nn
from inlay.training.finetune.lora import attach_adapter
from inlay.training.finetune.data import Examples
from inlay.training.finetune.trainer import NoiseSchedule, TrainableModel, Trainer
from inlay.training.finetune.trainer import close_group, open_group
from inlay.training.finetune.recipes import AdapterSpec, OptimizerSpec, Recipe

class Net(nn.Module):
    '''The host's signature around one attention layer.'''

    def __init__(self):
        super().__init__()
        self.to_q, self.to_k, self.to_v = nn.Linear(9, 16), nn.Linear(12, 16), nn.Linear(12, 4)

    def forward(self, x, t, context, y, transformer_options):
        query = self.to_q(x.flatten(2).mT)
        seen = torch.softmax(query @ self.to_k(context).mT + t[:, None, None] / 1000, -1) @ self.to_v(context)
        return seen.mT.unflatten(2, x.shape[2:])

def examples(count, seed):
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(count, *shape, generator=g)
    mask = (draw(1, 4, 4) > 0).float()
    return Examples(draw(4, 4, 4), mask, draw(4, 4, 4), torch.ones(count, 1, 4, 4), draw(5, 12))

out, accumulation, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
group = open_group()
torch.manual_seed(0)
net = Net().requires_grad_(False)
cpu = torch.device("cpu")
lora = AdapterSpec(rank=2, targets=("to_q", "to_k", "to_v"))
recipe = Recipe("test", lora, OptimizerSpec(1e-2), steps=steps, batch_size=4,
                accumulation=accumulation, beta=0.4, weight_inside=1.5, weight_outside=0.7)
adapter = attach_adapter(net, recipe.adapter, torch.float32, 0)
schedule = NoiseSchedule(torch.linspace(0.03, 14, 1000), "epsilon")
trainable = TrainableModel(net, schedule, adapter, torch.float32, cpu)
losses = Trainer(trainable, recipe, 7, group).fit(examples(6, 1), examples(5, 2))
if group.number == 0:
    facts = {"losses": torch.tensor(losses), "processes": torch.tensor(group.size)}
    save_file(adapter.export(lambda path: path) | facts, out)
close_group(group)
"""


STOP = """
import signal
import sys
from pathlib import Path
from inlay.headless.finetune_cli import interrupt_between_steps, stop_handler
from inlay.training.finetune.trainer import close_group, open_group

signal.signal(signal.SIGTERM, stop_handler)
group, step = open_group(), 0
try:
    with interrupt_between_steps(lambda step, loss: None, group) as on_step:
        for step in range(1, 10):
            if group.number == 1 and step == 4:
                signal.raise_signal(signal.SIGTERM)
            on_step(step, 0.0)
except KeyboardInterrupt:
    (Path(sys.argv[1]) / f"stopped-{group.number}").write_text(str(step))
close_group(group)
"""


def launch(tmp_path, processes, accumulation, steps):
    out = tmp_path / f"{processes}.safetensors"
    run(tmp_path, TRAIN, processes, out, accumulation, steps)
    return load_file(out)


def run(tmp_path, text, processes, *arguments):
    script = tmp_path / "train.py"
    script.write_text(text, encoding="utf-8")
    start = [sys.executable]
    if processes > 1:
        # what `accelerate launch` itself uses on accelerators; of CPU processes it starts one alone
        start += ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
        start += ["--master_port", str(loopback_port())]
    command = [*start, str(script), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_processes_learn_what_one_learns(tmp_path):
    """The same examples, noise and steps; only the order of float32 sums differs: 1e-5 after 20 steps."""
    one, two = (launch(tmp_path, processes, accumulation=2, steps=20) for processes in (1, 2))
    assert (one.pop("processes"), two.pop("processes")) == (1, 2)
    assert one.keys() == two.keys()
    assert one["losses"][-1] < one["losses"][0]
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-5, atol=1e-5, msg=name)


def test_processes_stop_after_the_same_step(tmp_path):
    """Only the second is told, and the first keeps the state."""
    run(tmp_path, STOP, 2, tmp_path)
    assert [(tmp_path / f"stopped-{number}").read_text() for number in range(2)] == ["4", "4"]


def test_without_a_launcher_a_process_is_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert open_group() is SINGLE_PROCESS


def test_a_steps_pictures_are_laid_out_so_that_every_process_has_its_share():
    assert split_batch(DREAMMIX, 1) is DREAMMIX
    assert split_batch(DREAMMIX, 2) == replace(DREAMMIX, batch_size=2, accumulation=2)
    assert split_batch(DREAMMIX, 4) == replace(DREAMMIX, batch_size=4, accumulation=1)
    wide = replace(DREAMMIX, batch_size=6)
    assert split_batch(wide, 3) is wide
    with pytest.raises(ValueError, match="the 4 pictures of a step cannot be shared by 3 processes"):
        split_batch(DREAMMIX, 3)
