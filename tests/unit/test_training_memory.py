"""What a training needs, against what is known; presets; blocks computed twice give the same gradients."""

import gc
import weakref
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from inlay.training.finetune.memory import (
    ActivationTrace,
    MemoryNeed,
    check_fits,
    need_on,
    recompute,
    room_on,
    trace,
    trained_need,
    update_need,
    with_preset,
)
from inlay.training.finetune.recipes import (
    DREAMCOM,
    DREAMMIX,
    MEMORY_PRESETS,
    RECIPE_NAMES,
    RECIPES,
    describe_preset,
)
from inlay.training.finetune.trainer import SINGLE_PROCESS, ProcessGroup
from inlay.training.optimizers import MixedPrecisionOptimizer, OptimizerSpec

GB = 2**30
NEEDS_PRODIGY = pytest.mark.skipif(find_spec("prodigyopt") is None, reason="needs prodigyopt")


def test_presets_ask_for_less_and_less():
    recipe = DREAMCOM.with_choices(batch_size=4)
    chosen = {name: with_preset(recipe, preset, True) for name, preset in MEMORY_PRESETS.items()}
    assert list(chosen) == ["recipe", "24 GB", "16 GB", "12 GB", "8 GB"]
    assert chosen["recipe"] == recipe
    for name, smaller in chosen.items():
        assert smaller.batch_size * smaller.accumulation == 4, name
    assert [r.batch_size for r in chosen.values()] == [4, 2, 1, 4, 1]
    assert [r.precision for r in chosen.values()] == ["model", *["half"] * 4]
    assert chosen["8 GB"].optimiser.kind == "AdamW8bit"
    assert with_preset(recipe, MEMORY_PRESETS["8 GB"], False).optimiser.kind == "AdamW"


@pytest.mark.parametrize(
    ("batch", "memory", "at_once"), [(3, "24 GB", 1), (6, "24 GB", 2), (6, "12 GB", 3), (5, "12 GB", 1)]
)
def test_a_batch_is_split_evenly(batch, memory, at_once):
    recipe = replace(DREAMMIX, batch_size=batch)
    smaller = with_preset(recipe, MEMORY_PRESETS[memory], True)
    assert smaller.batch_size == at_once
    assert smaller.batch_size * smaller.accumulation == batch * recipe.accumulation


def test_a_preset_knows_its_card():
    named = {name: int(name.removesuffix(" GB")) for name in MEMORY_PRESETS if name != "recipe"}
    assert {name: preset.card for name, preset in MEMORY_PRESETS.items()} == {"recipe": 0} | named
    for card in named.values():
        assert 0.7 * card * GB < room_on(card) < card * GB


@pytest.mark.parametrize(
    ("card", "wanted", "offloadable", "found"),
    [
        (24, None, 0, MemoryNeed(9 * GB, GB, GB, 11 * GB, 9 * GB)),  # 22 GB fit
        (16, None, 0, MemoryNeed(9 * GB, GB, GB, 3 * GB, 9 * GB, True)),
        (24, True, 0, MemoryNeed(9 * GB, GB, GB, 3 * GB, 9 * GB, True)),
        (16, False, 0, MemoryNeed(9 * GB, GB, GB, 11 * GB, 9 * GB)),
        (0, None, 8 * GB, MemoryNeed(9 * GB, GB, GB, 11 * GB, 9 * GB)),  # any card
        (12, None, 8 * GB, MemoryNeed(5 * GB, GB, GB, 3 * GB, 5 * GB, True)),
        (8, True, 7 * GB, MemoryNeed(2 * GB, GB, GB, 3 * GB, 2 * GB, True)),  # 7 GB do not fit
    ],
)
def test_a_step_on_a_card(card, wanted, offloadable, found):
    def need(checkpointing):
        return MemoryNeed(9 * GB, GB, GB, (3 if checkpointing else 11) * GB, 9 * GB)

    assert need_on(card, wanted, need, offloadable) == found


def test_a_preset_keeps_what_was_chosen():
    recipe = DREAMMIX.with_choices(precision="fp32", optimiser="Adafactor")
    smaller = with_preset(recipe, MEMORY_PRESETS["8 GB"], True)
    assert (smaller.precision, smaller.optimiser.kind) == ("fp32", "Adafactor")
    assert smaller.optimiser.learning_rate == 1e-2
    assert smaller.accumulation == DREAMMIX.accumulation


def test_presets_say_what_they_do():
    assert describe_preset(MEMORY_PRESETS["8 GB"]) == (
        "16-bit, gradient checkpointing, 1 of a batch at a time, 8-bit AdamW if bitsandbytes is installed"
    )
    assert describe_preset(MEMORY_PRESETS["recipe"]) == "nothing turned on"


@pytest.mark.parametrize(
    ("size", "kind", "ema", "adapter", "optimiser"),
    [
        (4, "AdamW", False, 8, 8),  # weight and gradient; two moments
        (4, "AdamW", True, 12, 8),
        (2, "AdamW", False, 8, 8),  # and a float32 master
        (2, "AdamW8bit", False, 8, 2),
    ],
)
def test_bytes_a_trained_number(size, kind, ema, adapter, optimiser):
    shapes = [(30, 20), (7,)]
    assert trained_need(shapes, size, OptimizerSpec(kind=kind), ema) == (607 * adapter, 607 * optimiser)


def test_masters_have_their_gradients_when_the_activations_are_gone():
    assert update_need([(30, 20), (7,)], 2) == 607 * 4
    assert update_need([(30, 20), (7,)], 4) == 0  # the weights are their own masters


@pytest.mark.parametrize("shape", [(300, 200), (30, 20, 3, 3), (70,)])
@pytest.mark.parametrize("kind", ["AdamW", "Adafactor", pytest.param("Prodigy", marks=NEEDS_PRODIGY)])
def test_the_optimisers_bytes_are_those_it_takes(kind, shape):
    weight = nn.Parameter(torch.randn(shape))
    stepper = MixedPrecisionOptimizer([weight], OptimizerSpec(kind=kind))
    stepper.backward(weight.square().sum())
    stepper.step()
    taken = sum(t.numel() * 4 for name, t in stepper.tensors().items() if not name.startswith("master"))
    expected = trained_need([weight.shape], 4, OptimizerSpec(kind=kind), False)[1]
    assert expected <= taken <= expected + 24  # and the number of the step, and Prodigy's estimate


def test_a_process_holds_its_share_of_a_batch():
    assert SINGLE_PROCESS.at_most(4) == 4
    four = [ProcessGroup(number, 4) for number in range(4)]
    for batch in (4, 8, 6, 2):  # the last two are what a preset might name
        shares = [len(group.share(torch.arange(batch), batch)) for group in four]
        assert {group.at_most(batch) for group in four} == {max(shares)}


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.wide, self.narrow = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, x, options=None):
        if options is not None:
            x = x * options["scale"]
        return x + self.narrow(torch.tanh(self.wide(x)))


class Network(nn.Module):
    """Blocks in a row, told apart by a dictionary that changes on the way, as the host does it."""

    def __init__(self, width=10, blocks=3):
        super().__init__()
        self.blocks: Any = nn.ModuleList(Block(width) for _ in range(blocks))

    def forward(self, x):
        options = {}
        for number, block in enumerate(self.blocks):
            options["scale"] = 1 + number
            x = block(x, options=options)
        return x


def network(seed=0):
    torch.manual_seed(seed)
    return Network()


def test_a_trace_counts_what_autograd_keeps():
    net = network()
    x = torch.randn(4, 10)
    found = trace(net, net.blocks, lambda: net(x))
    # entering the multiplication, then the first linear layer, its tanh (kept once for two layers)
    inside = 4 * (10 * 4 + 30 * 4)
    assert found.inside == (inside, inside, inside)
    assert found.entering == (160, 160, 160)
    assert found.outside == 0
    assert found.largest == 4 * 30 * 4
    assert not net.blocks[0]._forward_hooks


def test_a_trace_leaves_nothing_behind():
    net, x, alive = network(), torch.randn(4, 10), []
    net.blocks[1].wide.register_forward_hook(lambda layer, args, output: alive.append(weakref.ref(output)))
    trace(net, net.blocks, lambda: net(x))
    gc.collect()
    assert [reference() for reference in alive] == [None]


def test_a_trace_holds_none_of_what_it_counts():
    """On a small card a whole pass without checkpointing need not fit."""
    net, kept, alive = network(), [], []

    def watch(layer, args):
        kept.append(StorageWeakRef(args[0].untyped_storage()))

    net.blocks[0].narrow.register_forward_pre_hook(watch)
    net.blocks[2].register_forward_pre_hook(lambda *_: alive.append(not kept[0].expired()))
    x = torch.randn(4, 10)
    found = trace(net, net.blocks, lambda: net(x))
    assert alive == [False]
    assert found.inside[0] == 4 * (10 * 4 + 30 * 4)  # with the tensor that is gone


class TwoStreams(nn.Module):
    """Blocks with two inputs of their own and one that all of them share, which is not changed."""

    def __init__(self):
        super().__init__()
        self.blocks: Any = nn.ModuleList(Streams() for _ in range(2))

    def forward(self, x, y, places):
        for block in self.blocks:
            x, y = block(x, y, places=places)
        return x + y.sum()


class Streams(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(10, 10)

    def forward(self, x, y, places):
        x += self.layer(y).mean(0)  # in place, as several networks of the host do
        return x, self.layer(y) * places


def test_all_inputs_enter_a_block_and_a_shared_one_counts_once():
    net = TwoStreams()
    x, y, places = torch.zeros(6, 10), torch.randn(4, 10), torch.randn(4, 10)
    found = trace(net, net.blocks, lambda: net(x, y, places))
    assert found.entering == (240 + 160 + 160, 240 + 160)


def test_a_trace_grows_in_a_straight_line():
    net = network()
    small, large, other = (trace(net, net.blocks, lambda n=n: net(torch.randn(n, 10))) for n in (4, 8, 50))
    assert small.at(50, large, (4, 8)) == other


def test_checkpointing_keeps_what_enters_and_one_inside():
    found = ActivationTrace(outside=5, entering=(1, 2), inside=(100, 70), largest=10)
    assert found.activations(False) == 5 + 170 + 20
    assert found.activations(True) == 5 + 1 + 100 + 20  # the input of the second block is gone by then
    other = ActivationTrace(outside=5, entering=(1, 2), inside=(70, 100), largest=10)
    assert other.activations(True) == 5 + 3 + 100 + 20


def test_gradients_come_as_activations_go():
    found = ActivationTrace(outside=5, entering=(1, 2), inside=(100, 70), largest=10)
    assert found.activations(False, (30, 50)) == 5 + 170 - 30 + 20  # at the last block
    assert found.activations(False, (90, 50)) == 5 + 100 + 20  # at the first, where all gradients are there
    assert found.activations(True, (30, 50)) == 5 + 1 + 100 + 20
    assert ActivationTrace(5, (), (), 10).activations(True) == 25


def test_computing_blocks_twice_gives_the_same_gradients_and_keeps_less():
    plain, twice, x = network(), network(), torch.randn(4, 10)
    recompute(twice.blocks)
    outputs = [net(x).square().sum() for net in (plain, twice)]
    assert torch.equal(*outputs)
    for output in outputs:
        output.backward()
    for a, b in zip(plain.parameters(), twice.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert torch.equal(a.grad, b.grad)
    kept = [trace(net, [], lambda net=net: net(x)).outside for net in (plain, twice)]
    assert kept[1] < kept[0] / 2


def test_blocks_that_are_as_before_go_with_their_last_reference():
    """Not when Python looks for cycles: a card would hold the trained weights until then."""
    net, own = network(), network().blocks[0].forward
    net.blocks[1].forward = own  # as another pack may set it
    undo = recompute(net.blocks)
    net(torch.randn(4, 10)).sum().backward()
    undo()
    assert "forward" not in vars(net.blocks[0])
    assert net.blocks[1].forward is own
    kept = [weakref.ref(block) for block in net.blocks]
    gc.disable()
    try:
        del undo, net
        assert [ref() for ref in kept] == [None] * len(kept)
    finally:
        gc.enable()


def test_without_gradients_nothing_is_computed_twice():
    net, x = network(), torch.randn(4, 10)
    calls = []
    net.blocks[0].wide.register_forward_hook(lambda *_: calls.append(1))
    recompute(net.blocks)
    with torch.no_grad():
        net(x)
    assert len(calls) == 1


def test_what_does_not_fit_says_what_would():
    need = MemoryNeed(weights=2 * GB, adapter=GB, optimiser=GB, activations=8 * GB, loaded=2 * GB)
    smaller = {
        "recipe": need,
        "16 GB": replace(need, activations=6 * GB),
        "8 GB": replace(need, activations=2 * GB),
    }
    check_fits(need, 10 * GB, smaller, "")
    with pytest.raises(
        ValueError, match=r"needs about 10.0 GB besides .* 5.0 GB are free; .*\"8 GB\" and leave"
    ):
        check_fits(need, 5 * GB, smaller, "")
    with pytest.raises(ValueError, match=r"preset \"16 GB\" and leave optimiser and checkpointing to it\.$"):
        check_fits(need, 9 * GB, smaller, "")
    with pytest.raises(ValueError, match=r"will not fit.*; choose a resolution below 512\.$"):
        check_fits(need, GB, smaller, "choose a resolution below 512")


def test_the_node_offers_the_recipes_that_there_are():
    assert tuple(RECIPES) == RECIPE_NAMES
