"""Train a small network in a group of processes."""

import sys

import torch
from safetensors.torch import save_file
from torch import nn

from inlay.headless.errors import end_process
from inlay.training.finetune.data import Examples
from inlay.training.finetune.lora import attach_adapter
from inlay.training.finetune.recipes import AdapterSpec, OptimizerSpec, Recipe
from inlay.training.finetune.trainer import (
    NoiseSchedule,
    TrainableModel,
    Trainer,
    close_group,
    open_group,
)


class Net(nn.Module):
    """The host's signature around one attention layer."""

    def __init__(self):
        super().__init__()
        self.to_q, self.to_k, self.to_v = nn.Linear(9, 16), nn.Linear(12, 16), nn.Linear(12, 4)

    def forward(self, x, t, context, y, transformer_options):
        query = self.to_q(x.flatten(2).mT)
        seen = torch.softmax(query @ self.to_k(context).mT + t[:, None, None] / 1000, -1) @ self.to_v(context)
        return seen.mT.unflatten(2, x.shape[2:])


def examples(count, seed):
    g = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(count, *shape, generator=g)

    mask = (draw(1, 4, 4) > 0).float()
    return Examples(draw(4, 4, 4), mask, draw(4, 4, 4), torch.ones(count, 1, 4, 4), draw(5, 12))


out, accumulation, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
group = open_group()
torch.manual_seed(0)
net = Net().requires_grad_(False)
cpu = torch.device("cpu")
lora = AdapterSpec(rank=2, targets=("to_q", "to_k", "to_v"))
recipe = Recipe(
    "test",
    lora,
    OptimizerSpec(1e-2),
    steps=steps,
    batch_size=4,
    accumulation=accumulation,
    beta=0.4,
    weight_inside=1.5,
    weight_outside=0.7,
)
adapter = attach_adapter(net, recipe.adapter, torch.float32, 0)
schedule = NoiseSchedule(torch.linspace(0.03, 14, 1000), "epsilon")
trainable = TrainableModel(net, schedule, adapter, torch.float32, cpu)
losses = Trainer(trainable, recipe, 7, group).fit(examples(6, 1), examples(5, 2))
if group.number == 0:
    facts = {"losses": torch.tensor(losses), "processes": torch.tensor(group.size)}
    save_file(adapter.export(lambda path: path) | facts, out)
close_group(group)
end_process(0)
