"""The loop on a small regression: same seed same bits, resume is the uninterrupted run, NaN stops."""

import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from inlay.headless.finetune_cli import interrupt_between_steps, stop_handler
from inlay.training import Diverged
from inlay.training.finetune.trainer import SINGLE_PROCESS, Callbacks, TrainingState, run_training_loop
from inlay.training.objective import generator_at
from inlay.training.optimizers import (
    MixedPrecisionOptimizer,
    OptimizerSpec,
    UnfitState,
    check_optimizer,
    eight_bit_installed,
    make_optimizer,
)

FAST = OptimizerSpec(learning_rate=1e-2)


def problem(dtype=torch.float32):
    """A linear layer and the loss of pass k, whose data follow from k alone."""
    weight = torch.nn.Parameter(torch.randn(3, 5, generator=generator_at(0, 0)).to(dtype))
    truth = torch.randn(3, 5, generator=generator_at(1, 0)).to(dtype)

    def loss_at(k):
        x = torch.randn(8, 5, generator=generator_at(2, k)).to(dtype)
        return (x @ weight.T - x @ truth.T).float().square().mean()

    return weight, loss_at


def run(steps, optimiser=FAST, **options):
    weight, loss_at = problem(options.pop("dtype", torch.float32))
    options["callbacks"] = Callbacks(
        **{name: options.pop(name) for name in ("on_step", "on_save") if name in options}
    )
    return weight, run_training_loop([weight], loss_at, optimiser, steps, **options)


def test_it_learns():
    _, losses = run(300)
    assert sum(losses[-10:]) < 0.2 * sum(losses[:10])


def test_two_runs_are_the_same_bits():
    (first, losses), (second, again) = run(20), run(20)
    assert torch.equal(first, second)
    assert losses == again


ADAFACTOR = OptimizerSpec(learning_rate=1e-1, kind="Adafactor")
EIGHT_BIT = replace(FAST, kind="AdamW8bit")
PRODIGY = OptimizerSpec(learning_rate=1.0, kind="Prodigy")
PRODIGY_INSTALLED = find_spec("prodigyopt") is not None


@pytest.mark.parametrize("options", [{}, {"optimiser": ADAFACTOR}, {"ema_decay": 0.9}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_an_interrupted_run_goes_on_bit_for_bit(dtype, accumulation, options):
    whole, losses = run(12, dtype=dtype, accumulation=accumulation, **options)
    kept: list[TrainingState] = []

    def stop_handler(step, loss):
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(12, dtype=dtype, accumulation=accumulation, on_step=stop_handler, on_save=kept.append, **options)
    assert kept[-1].step == 5
    resumed, rest = run(12, dtype=dtype, accumulation=accumulation, resume=kept[-1], **options)
    assert torch.equal(resumed, whole)
    assert rest == losses


def at_step(number, act):
    """Do something after the optimiser has moved the weights of that step, before the loop has noted it."""
    taken = []

    def moved(*_):
        taken.append(1)
        if len(taken) == number:
            act()

    return register_optimizer_step_post_hook(moved)


def interrupt():
    raise KeyboardInterrupt


def test_what_is_cut_off_while_the_weights_move_is_not_kept_as_a_step():
    kept: list[TrainingState] = []
    hook = at_step(5, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(12, on_save=kept.append, save_every=3)
    finally:
        hook.remove()
    assert [state.step for state in kept] == [3]
    resumed, losses = run(12, resume=kept[-1])
    whole, expected = run(12)
    assert torch.equal(resumed, whole)
    assert losses == expected


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_checkpoint_that_could_not_be_kept_is_kept_on_the_way_out(error):
    kept: list[TrainingState] = []
    failed = []

    def save(state):
        if not failed:
            failed.append(state.step)
            raise error
        kept.append(state)

    with pytest.raises(error):
        run(12, on_save=save, save_every=4)
    assert failed == [4]
    assert [state.step for state in kept] == [4]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_within_a_step_ends_the_run_after_it(number):
    kept: list[TrainingState] = []
    seen = []
    before = signal.signal(number, stop_handler)
    hook = at_step(5, lambda: signal.raise_signal(number))
    try:
        with (
            pytest.raises(KeyboardInterrupt),
            interrupt_between_steps(lambda step, loss: seen.append(step), SINGLE_PROCESS) as on_step,
        ):
            run(12, on_step=on_step, on_save=kept.append)
        assert signal.getsignal(number) is stop_handler
    finally:
        hook.remove()
        signal.signal(number, before)
    assert seen == [1, 2, 3, 4, 5]
    assert [state.step for state in kept] == [5]
    resumed, losses = run(12, resume=kept[-1])
    whole, expected = run(12)
    assert torch.equal(resumed, whole)
    assert losses == expected


def test_a_signal_before_the_first_step_is_done_ends_the_run_at_once():
    weight, loss_at = problem()
    passes = []

    def told(k):
        passes.append(k)
        signal.raise_signal(signal.SIGINT)
        return loss_at(k)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it may be ignored
    try:
        with (
            pytest.raises(KeyboardInterrupt),
            interrupt_between_steps(lambda step, loss: None, SINGLE_PROCESS) as on_step,
        ):
            run_training_loop([weight], told, FAST, 3, callbacks=Callbacks(on_step))
    finally:
        signal.signal(signal.SIGINT, before)
    assert passes == [0]
    assert torch.equal(weight, problem()[0])


def test_a_saved_state_does_not_move_with_the_run():
    kept: list[TrainingState] = []
    run(9, on_save=kept.append, save_every=4)
    assert [state.step for state in kept] == [4, 8]
    assert not torch.equal(kept[0].tensors["master.0"], kept[1].tensors["master.0"])
    assert len(kept[0].losses) == 4


def test_it_stops_at_the_first_loss_that_is_no_number_and_keeps_the_last_good_state():
    weight, loss_at = problem()
    kept: list[TrainingState] = []
    with pytest.raises(Diverged, match=r"learning_rate.*step 4.*\(the checkpoint of step 3 is kept\)\.$"):
        run_training_loop(
            [weight],
            lambda k: loss_at(k) * (float("nan") if k == 3 else 1),
            FAST,
            10,
            callbacks=Callbacks(on_save=kept.append),
        )
    assert [state.step for state in kept] == [3]
    assert torch.isfinite(weight).all()
    reference, _ = run(3)
    assert torch.equal(weight, reference)


def test_an_error_before_the_first_step_saves_nothing():
    weight, _ = problem()
    kept: list[TrainingState] = []

    def broken(k):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        run_training_loop([weight], broken, FAST, 3, callbacks=Callbacks(on_save=kept.append))
    assert not kept


def test_accumulation_is_the_mean_of_its_passes():
    _, loss_at = problem()
    expected = (loss_at(0) + loss_at(1)) / 2
    _, losses = run(1, accumulation=2)
    assert losses[0] == pytest.approx(float(expected.detach()), rel=1e-6)


def test_gradients_that_are_no_numbers_stop_it_before_the_weights_are_hurt():
    weight, loss_at = problem()
    kept: list[TrainingState] = []

    def steep(k):  # the root of nothing: its value is a number, its slope is not
        return loss_at(k) + (0 * weight.sum()).abs().sqrt() if k == 3 else loss_at(k)

    with pytest.raises(Diverged, match="step 4"):
        run_training_loop([weight], steep, FAST, 10, callbacks=Callbacks(on_save=kept.append))
    assert [state.step for state in kept] == [3]
    assert all(torch.isfinite(tensor).all() for tensor in kept[0].tensors.values())
    assert torch.equal(weight, run(3)[0])


def test_loss_scaling_gets_over_an_overflow():
    weight, loss_at = problem(torch.float16)
    before = weight.clone()
    losses = run_training_loop([weight], lambda k: loss_at(k) * (1e4 if k == 0 else 1), FAST, 3)
    assert len(losses) == 3
    assert torch.isfinite(weight).all()
    assert not torch.equal(weight, before)


def test_adafactor_learns():
    _, losses = run(300, ADAFACTOR)
    assert sum(losses[-10:]) < 0.2 * sum(losses[:10])


def test_the_running_mean_of_the_weights_is_the_result():
    decay, mean, seen = 0.5, None, []
    weight, loss_at = problem()
    start = weight.detach().double().clone()
    run_training_loop(
        [weight],
        loss_at,
        FAST,
        20,
        callbacks=Callbacks(lambda step, loss: seen.append(weight.detach().double().clone())),
    )
    mean = start
    for taken, after in enumerate(seen):
        share = min(decay, (1 + taken) / (10 + taken))
        mean = share * mean + (1 - share) * after
    averaged, _ = run(20, ema_decay=decay)
    torch.testing.assert_close(averaged.double(), mean, rtol=1e-5, atol=1e-6)
    assert not torch.equal(averaged, weight)


def test_the_running_mean_has_the_bits_of_lerp():
    """A checkpoint of a released version has a mean of `Tensor.lerp_`; a resumed run must continue it."""
    weight, loss_at = problem()
    seen = [weight.detach().clone()]
    keep = Callbacks(lambda step, loss: seen.append(weight.detach().clone()))
    run_training_loop([weight], loss_at, FAST, 20, callbacks=keep)
    mean = seen[0].clone()
    for taken, after in enumerate(seen[1:], 1):
        mean.lerp_(after, 1 - min(0.9, taken / (9 + taken)))
    averaged, _ = run(20, ema_decay=0.9)
    assert torch.equal(averaged, mean)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_half_precision_run_gives_its_float32_masters(dtype, ema_decay):
    """Steps of 1e-6 are lost in 16 bits, but not in what they were added up in."""
    kept: list[TrainingState] = []
    weight, losses = run(
        9,
        replace(FAST, learning_rate=1e-6),
        dtype=dtype,
        ema_decay=ema_decay,
        on_save=kept.append,
        save_every=8,
    )
    assert len(losses) == 9
    assert weight.dtype == torch.float32
    start = problem(dtype)[0].detach().float()
    moved = (weight - start).abs()
    assert (moved > 0).all()
    assert moved.max() < 1e-5
    last = kept[-1].tensors["mean.0" if ema_decay else "master.0"]
    torch.testing.assert_close(weight.detach(), last, rtol=0, atol=2e-6)


@pytest.mark.skipif(PRODIGY_INSTALLED, reason="prodigyopt is installed")
def test_prodigy_without_prodigyopt_gets_a_sentence():
    with pytest.raises(ValueError, match="optimiser: Prodigy needs the Python package prodigyopt"):
        check_optimizer(PRODIGY)


@pytest.mark.skipif(not PRODIGY_INSTALLED, reason="needs prodigyopt")
@pytest.mark.parametrize("begin", [0.0, 1.0])  # a LoRA's second matrix begins at 0
def test_prodigy_takes_the_librarys_steps_and_goes_on_bit_for_bit(begin):
    import prodigyopt  # pyright: ignore[reportMissingImports]

    def problem():
        weight, truth = (torch.randn(6, 9, generator=generator_at(n, 0)) for n in range(2))
        weight = torch.nn.Parameter(begin * weight)
        return weight, lambda k: (weight - truth).square().mean()

    whole, loss_at = problem()
    losses = run_training_loop([whole], loss_at, replace(PRODIGY, clip_norm=1e9), 120)
    assert losses[-1] < 0.2 * losses[0]
    weight, loss_at = problem()
    make: Any = prodigyopt.Prodigy  # its types take whole numbers alone
    library = make(
        [weight], lr=1.0, weight_decay=PRODIGY.weight_decay, safeguard_warmup=True, use_bias_correction=True
    )
    for k in range(120):
        library.zero_grad()
        loss_at(k).backward()
        library.step()
    assert torch.equal(weight, whole)
    kept: list[TrainingState] = []
    weight, loss_at = problem()
    save = Callbacks(on_save=kept.append)
    run_training_loop([weight], loss_at, replace(PRODIGY, clip_norm=1e9), 120, callbacks=save, save_every=70)
    weight, loss_at = problem()
    again = run_training_loop([weight], loss_at, replace(PRODIGY, clip_norm=1e9), 120, resume=kept[0])
    assert again == losses
    assert torch.equal(weight, whole)
    foreign = dict(kept[0].tensors)
    del foreign["estimate"]
    with pytest.raises(UnfitState, match="estimate"):
        MixedPrecisionOptimizer([weight], PRODIGY).load(foreign, 70)


@pytest.mark.skipif(eight_bit_installed(), reason="bitsandbytes is installed")
def test_eight_bits_without_bitsandbytes_get_a_sentence():
    with pytest.raises(ValueError, match="optimiser: AdamW8bit needs the Python package bitsandbytes"):
        check_optimizer(EIGHT_BIT)


@pytest.mark.skipif(not eight_bit_installed(), reason="needs bitsandbytes")
def test_eight_bits_learn_and_go_on_bit_for_bit():
    def problem():
        weight, truth = (torch.randn(64, 128, generator=generator_at(n, 0)) for n in range(2))
        weight = torch.nn.Parameter(weight)
        return weight, lambda k: (weight - truth).square().mean()

    whole, loss_at = problem()
    losses = run_training_loop([whole], loss_at, EIGHT_BIT, 40)
    assert losses[-1] < 0.7 * losses[0]
    kept: list[TrainingState] = []
    weight, loss_at = problem()
    run_training_loop(
        [weight], loss_at, EIGHT_BIT, 40, callbacks=Callbacks(on_save=kept.append), save_every=7
    )
    assert kept[0].tensors["state1.0"].dtype == torch.uint8
    weight, loss_at = problem()
    assert run_training_loop([weight], loss_at, EIGHT_BIT, 40, resume=kept[0]) == losses
    assert torch.equal(weight, whole)


def test_processes_that_average_take_the_same_step_as_one():
    """Two threads with the even and the odd passes against one that accumulates both, to rounding."""
    whole, losses = run(5, accumulation=2)
    meeting = threading.Barrier(2, timeout=60)
    given: dict[int, list[torch.Tensor]] = {}

    def train(rank):
        def average(tensors):
            given[rank] = [tensor.detach().clone() for tensor in tensors]
            meeting.wait()
            for tensor, *both in zip(tensors, given[0], given[1], strict=True):
                tensor.detach().copy_((both[0] + both[1]) / 2)
            meeting.wait()  # before the next call replaces what the other one reads

        weight, loss_at = problem()
        own = run_training_loop([weight], lambda k: loss_at(2 * k + rank), FAST, 5, average=average)
        return weight.detach(), own

    with ThreadPoolExecutor(2) as pool:
        (first, shared), (second, same) = pool.map(train, range(2))
    assert torch.equal(first, second)
    assert shared == same == pytest.approx(losses, rel=1e-6)
    torch.testing.assert_close(first, whole.detach(), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(first, run(5)[0].detach(), rtol=1e-3)  # nor is it what one share gives


def damaged_states(state: TrainingState):
    """A state with one thing wrong, by its name."""
    tensors = state.tensors
    yield "a master of another shape", {**tensors, "master.0": torch.zeros(3, 4)}
    yield "a moment of another shape", {**tensors, "exp_avg.0": torch.zeros(2)}
    yield "a moment of another run", {**tensors, "exp_avg.1": torch.zeros(3, 5)}
    yield "no second moment", {key: value for key, value in tensors.items() if key != "exp_avg_sq.0"}
    yield "no master", {key: value for key, value in tensors.items() if key != "master.0"}
    yield "another optimizer's", {**tensors, "row_var.0": torch.zeros(3, 1)}
    yield "no number", {**tensors, "exp_avg.x": torch.zeros(3, 5)}
    yield "steps of no number", {**tensors, "step.0": torch.zeros(3)}


def test_a_state_that_does_not_fit_is_passed_over_before_it_reaches_a_fused_kernel(caplog):
    kept: list[TrainingState] = []
    whole, losses = run(6, on_save=kept.append, save_every=3)
    for name, tensors in damaged_states(kept[0]):
        caplog.clear()
        weight, again = run(6, resume=TrainingState(3, losses[:3], tensors))
        assert "the saved state does not fit" in caplog.text, name
        assert torch.equal(weight, whole), name
        assert again == losses, name
    for step, number in ((3, 2), (7, 7)):
        caplog.clear()
        run(6, resume=TrainingState(step, [1.0] * number, kept[0].tensors))
        assert f"{number} losses for {step} steps of 6" in caplog.text


def test_a_device_without_a_fused_kernel_trains_with_the_plain_one():
    kinds = {"meta": False, "cpu": True}  # meta has no fused kernel either
    for device, fused in kinds.items():
        parameters = [torch.nn.Parameter(torch.zeros(2, 2, device=device))]
        assert make_optimizer(parameters, FAST).defaults["fused"] == fused
