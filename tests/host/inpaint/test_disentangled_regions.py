"""Regional prompts and ControlNets under Inpaint Subject: they keep to their place."""

import importlib
from typing import Any

import pytest
import torch

from inlay.tests.stock_inpaint import stock_conditions

SIZE, SPOT = (150, 170), (60, 100)
RUN = (3, 2, 2.0, "euler", "normal", 1.0)


@pytest.fixture
def parts(random_tiny):
    with torch.inference_mode():
        yield random_tiny(9)


@pytest.fixture(scope="module")
def control_net(in_process_host):
    """The host's own ControlNet, as shallow as the tiny UNet, with random weights."""
    import comfy.controlnet
    import comfy.ops
    from comfy.cldm.cldm import ControlNet

    from inlay.lab.models.inpainting_unet import SHALLOW, SHAPE

    shape: Any = SHAPE | SHALLOW | {"in_channels": 4, "hint_channels": 3}
    network = ControlNet(**shape, operations=comfy.ops.disable_weight_init)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.05, generator=generator)
    return comfy.controlnet.ControlNet(network, load_device=torch.device("cpu"))


def node(name) -> Any:
    return getattr(importlib.import_module("nodes"), name)()


def words(seed):
    text = torch.randn(1, 77, 768, generator=torch.Generator().manual_seed(seed))
    return [[text, {"pooled_output": None}]]


def picture(seed=0, channels=3):
    return torch.rand(1, *SIZE, channels, generator=torch.Generator().manual_seed(seed))


def spot():
    mask = torch.zeros(1, *SIZE)
    mask[:, SPOT[0] : SPOT[0] + 30, SPOT[1] : SPOT[1] + 30] = 1
    return mask


def views():
    """Close-up and window of the spot."""
    from inlay.imaging.boxes import bounding_box
    from inlay.sampling.stages import InpaintOptions, close_up_view, window_view

    place = bounding_box(spot()[0]), *SIZE, InpaintOptions(side=64, soft_edge=2)
    return close_up_view(*place), window_view(*place)


def sample(parts, positive, negative, share=0.0, mask=None):
    from inlay import nodes

    model, _, vae = parts
    sampler: Any = nodes.DisentangledInpaintSampler.PREPARE_CLASS_CLONE(None)
    return sampler.execute(
        model, positive, negative, vae, picture(), spot() if mask is None else mask, *RUN,
        close_up_share=share, close_up_size=64, soft_edge=2, grow=2,
    ).result  # fmt: skip


def by_hand(parts, positive, negative):
    """The latent of the stock nodes, wired for the window."""
    model, _, vae = parts
    rows, columns = views()[1].box.slices
    conditioned = stock_conditions(
        positive, negative, picture()[:, rows, columns], vae, spot()[:, rows, columns]
    )
    seed, steps, cfg, *schedule, denoise = RUN
    return node("KSampler").sample(model, seed, steps, cfg, *schedule, *conditioned, denoise)[0]["samples"]


def test_a_control_net_sees_the_window_of_its_hint_bit_for_bit(parts, control_net):
    apply = node("ControlNetApplyAdvanced").apply_controlnet
    rows, columns = views()[1].box.slices
    hint = picture(seed=9)
    ours = sample(parts, *apply(words(1), words(2), control_net, hint, 0.8, 0.0, 1.0))[2]["samples"]
    part = hint[:, rows, columns]
    stock = by_hand(parts, *apply(words(1), words(2), control_net, part, 0.8, 0.0, 1.0))
    assert torch.equal(ours, stock)
    assert not torch.equal(ours, sample(parts, words(1), words(2))[2]["samples"])


def test_an_area_and_a_mask_stay_where_they_were_bit_for_bit(parts):
    window = views()[1].box
    assert (window.height, window.width) == (64, 64)
    rows, columns = window.slices
    mask = (picture(seed=4, channels=1)[..., 0] > 0.5).float()

    def prompts(area, painted):
        return (
            words(1)
            + area(words(3))
            + node("ConditioningSetMask").append(words(4), painted, "default", 0.7)[0]
        )

    def in_the_picture(conditioning):
        place = 32 / SIZE[1], 40 / SIZE[0], (window.left + 24) / SIZE[1], (window.top + 16) / SIZE[0]
        return node("ConditioningSetAreaPercentage").append(conditioning, *place, 1.5)[0]

    def in_the_window(conditioning):
        return node("ConditioningSetArea").append(conditioning, 32, 40, 24, 16, 1.5)[0]

    ours = sample(parts, prompts(in_the_picture, mask), words(2))[2]["samples"]
    stock = by_hand(parts, prompts(in_the_window, mask[:, rows, columns]), words(2))
    assert torch.equal(ours, stock)
    assert not torch.equal(ours, sample(parts, words(1), words(2))[2]["samples"])


def test_a_prompt_for_elsewhere_is_not_heard(parts):
    elsewhere = node("ConditioningSetAreaPercentage").append(words(3), 0.2, 0.2, 0.0, 0.0, 1.0)[0]
    plain, regional = (
        sample(parts, positive, words(2), share=0.5)[0] for positive in (words(1), words(1) + elsewhere)
    )
    assert torch.equal(plain, regional)
    with pytest.raises(ValueError, match="positive: none of its areas and masks reaches the place"):
        sample(parts, elsewhere, words(2))


def test_each_picture_has_its_own_extra_of_the_hint(parts, in_process_host):
    """Such as the mask of an inpainting ControlNet; one of a batch has the size of its hint's row."""
    from comfy.controlnet import ControlBase

    seen = []

    class Watching(ControlBase):
        def get_control(self, x_noisy, *_):
            hint: Any = self.cond_hint_original
            seen.append((hint.mean().item(), self.extra_concat_orig[0].mean().item()))
            return {"input": [], "middle": [], "output": []}

        def copy(self):
            other = Watching()
            self.copy_to(other)
            return other

    levels = torch.tensor([0.25, 0.75])[:, None, None, None]
    hint, extra = levels.expand(2, 3, *SIZE), [levels.expand(2, 1, *SIZE)]
    control = Watching().set_cond_hint(hint, extra_concat=extra)
    prompts = [[text, values | {"control": control}] for text, values in words(1)]
    sample(parts, prompts, words(2), mask=torch.cat([spot(), spot().flip(2)]))
    assert set(seen) == {(0.25, 0.25), (0.75, 0.75)}


def test_each_stage_has_its_part_of_the_hint_and_the_control_net_is_left_alone(parts, in_process_host):
    from comfy.controlnet import ControlBase

    seen = []

    class Watching(ControlBase):
        def get_control(self, x_noisy, *_):
            seen.append((tuple(x_noisy.shape[-2:]), self.cond_hint_original))
            return {"input": [], "middle": [], "output": []}

        def copy(self):
            other = Watching()
            self.copy_to(other)
            return other

    hint = picture(seed=9)
    control = Watching().set_cond_hint(hint.movedim(-1, 1))
    prompts = [[text, values | {"control": control}] for text, values in words(1)]
    sample(parts, prompts, words(2), share=0.5)
    assert len(seen) == 2
    for (latent, shown), view in zip(seen, views(), strict=True):
        assert latent == (view.height // 8, view.width // 8)
        rows, columns = view.box.slices
        part = hint[:, rows, columns].movedim(-1, 1)
        enlarged = torch.nn.functional.interpolate(part, (view.height, view.width), mode="nearest-exact")
        assert torch.equal(shown, enlarged)
    assert torch.equal(prompts[0][1]["control"].cond_hint_original, hint.movedim(-1, 1))
    assert control.timestep_range is None  # nothing ran on the one that is wired in
