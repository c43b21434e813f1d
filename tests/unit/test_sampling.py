"""Views, the split of the schedule, the two stages and the batches: geometry and order, without a model."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inlay.imaging.boxes import Box, bounding_box
from inlay.imaging.composite import soft_edge
from inlay.imaging.latent_mask import grow_mask
from inlay.imaging.views import UNET_MULTIPLE, close_up, resize_image, surroundings
from inlay.sampling.batch import EACH, IN_TURN, TOGETHER, count_steps, inpaint_batch, plan_batch
from inlay.sampling.schedule import split_schedule
from inlay.sampling.stages import InpaintOptions, MaskedRegion, PaintedView, inpaint

examples = settings(max_examples=50)
lengths = st.integers(1, 300)


@st.composite
def boxes_in_pictures(draw):
    height, width = draw(lengths), draw(lengths)
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    return (
        Box(top, left, draw(st.integers(top + 1, height)), draw(st.integers(left + 1, width))),
        height,
        width,
    )


def contains(outer: Box, inner: Box) -> bool:
    return (
        outer.top <= inner.top
        and outer.left <= inner.left
        and outer.bottom >= inner.bottom
        and outer.right >= inner.right
    )


@examples
@given(boxes_in_pictures(), st.integers(0, 40), st.floats(1, 4), st.sampled_from([64, 96, 512, 1024]))
def test_a_close_up_holds_the_mask_and_its_edge_at_the_working_area(place, edge, context, side):
    box, height, width = place
    view = close_up(box, height, width, side, context, edge)
    assert contains(Box(0, 0, height, width), view.box)
    assert contains(view.box, box.expand(edge).clamp(height, width))
    multiple = UNET_MULTIPLE if side % UNET_MULTIPLE == 0 else 8
    assert view.height % multiple == 0
    assert view.width % multiple == 0
    if view.box.height == view.box.width:
        assert (view.height, view.width) == (side, side)
    wanted = min(context * max(box.height, box.width), height, width)
    assert min(view.box.height, view.box.width) >= int(wanted)


@examples
@given(boxes_in_pictures(), st.integers(0, 40), st.sampled_from([64, 128]), st.floats(0.5, 4))
def test_the_window_holds_the_mask_and_its_edge_and_is_bounded(place, edge, side, areas):
    box, height, width = place
    view = surroundings(box, height, width, side, areas * side**2, edge)
    assert contains(Box(0, 0, height, width), view.box)
    assert contains(view.box, box.expand(edge).clamp(height, width))
    as_it_is = (view.height, view.width) == (view.box.height, view.box.width)
    shrunk, enlarged = view.box.area > areas * side**2, max(view.box.height, view.box.width) < side
    assert as_it_is or (view.height % 8 == 0 and view.width % 8 == 0 and (shrunk or enlarged))
    thinnest = min(view.box.height, view.box.width) / max(view.box.height, view.box.width)
    if thinnest > 0.3:  # sides are rounded to 8, which a sliver feels
        assert view.height * view.width <= 1.35 * areas * side**2


@pytest.mark.parametrize(
    ("longest", "held", "shown"), [(10, 64, 512), (82, 246, 512), (200, 512, 512), (300, 640, 640)]
)
def test_the_window_of_a_small_mask_is_enlarged_to_the_working_size(longest, held, shown):
    view = surroundings(Box(900, 900, 900 + longest, 900 + longest // 2), 2048, 2048, 512, 2 * 512**2)
    assert (view.box.height, view.box.width) == (held, held)
    assert (view.height, view.width) == (shown, shown)


def test_the_window_of_a_small_mask_costs_no_more_in_a_larger_picture():
    small = surroundings(Box(500, 500, 600, 600), 1024, 1024, 512, 2 * 512**2)
    large = surroundings(Box(500, 500, 600, 600), 6000, 4000, 512, 2 * 512**2)
    assert (small.height, small.width) == (large.height, large.width) == (512, 512)


@examples
@given(boxes_in_pictures(), st.sampled_from([64, 128]))
def test_a_window_in_fractions_is_the_box_with_its_padding(place, side):
    box, height, width = place
    view = surroundings(box, height, width, side, 2 * side**2)
    top, left, bottom, right = view.window(height, width, 8)
    assert top * height == pytest.approx(view.box.top)
    assert left * width == pytest.approx(view.box.left)
    if (view.height, view.width) == (view.box.height, view.box.width):
        assert bottom * height == pytest.approx(view.box.top + -(-view.height // 8) * 8)
        assert right * width == pytest.approx(view.box.left + -(-view.width // 8) * 8)


def test_a_picture_at_its_own_size_is_not_resampled():
    image = torch.rand(1, 9, 7, 3)
    assert resize_image(image, 9, 7) is image
    assert resize_image(image, 18, 14).shape == (1, 18, 14, 3)


def test_a_picture_of_half_precision_is_resampled_as_well():
    image = torch.rand(1, 9, 7, 3)
    half = resize_image(image.half(), 18, 14)
    assert half.dtype == torch.float16
    assert (half.float() - resize_image(image, 18, 14)).abs().max() < 1e-3


@examples
@given(st.integers(1, 1000), st.floats(0, 1))
def test_the_schedule_is_cut_once_and_nothing_is_lost(steps, share):
    sigmas = torch.linspace(10, 0, steps + 1)
    local, rest = split_schedule(sigmas, share)
    done = max(len(local) - 1, 0)
    if 0 < share < 1 and steps > 1:
        assert abs(done - min(max(share * steps, 1), steps - 1)) <= 0.5
        assert 0 < done < steps
    else:
        assert abs(done - share * steps) <= 0.5
    assert done + max(len(rest) - 1, 0) == steps
    if len(local) and len(rest):
        assert local[-1] == rest[0]
    assert torch.equal(torch.cat([local, rest[1:] if len(local) else rest]), sigmas)


def test_shares_0_and_1_are_one_run_each():
    sigmas = torch.linspace(10, 0, 8)
    assert [len(part) for part in split_schedule(sigmas, 0)] == [0, 8]
    assert [len(part) for part in split_schedule(sigmas, 1)] == [8, 0]
    assert [len(part) for part in split_schedule(sigmas[:0], 1)] == [0, 0]


def test_a_share_below_1_leaves_a_step_to_harmonise():
    sigmas = torch.linspace(10, 0, 11)
    assert [len(part) - 1 for part in split_schedule(sigmas, 0.95)] == [9, 1]
    assert [len(part) - 1 for part in split_schedule(sigmas, 0.04)] == [1, 9]


@pytest.mark.parametrize("share", [-0.1, 1.01, float("nan")])
def test_a_share_outside_0_to_1_is_named(share):
    with pytest.raises(ValueError, match="close_up_share"):
        split_schedule(torch.linspace(10, 0, 8), share)


@examples
@given(st.integers(0, 2**16), st.integers(0, 12))
def test_the_enlarged_mask_is_everything_within_reach(seed, grow):
    hole = (torch.rand(1, 17, 13, generator=torch.Generator().manual_seed(seed)) > 0.97).float()
    hole[0, 3, 4] = 1
    near = torch.cdist(
        torch.cartesian_prod(torch.arange(17.0), torch.arange(13.0)), hole[0].nonzero().float()
    ).amin(1)
    assert torch.equal(grow_mask(hole, grow)[0] > 0, (near <= grow + 1e-4).reshape(17, 13))


class Colours:
    """Paints every view in one colour after another and remembers what it was asked."""

    def __init__(self):
        self.calls = []

    def __call__(self, view, known, start, hole, sigmas, last):
        assert known.shape == start.shape == (len(known), view.height, view.width, 3)
        shown = known.clone()  # it may be a part of the picture that is painted
        begun = shown if start is known else start.clone()
        self.calls.append((view, shown, begun, hole, len(sigmas) - 1, last))
        shade = len(self.calls) / 10
        return PaintedView(
            torch.full_like(known, shade), {"samples": torch.full((len(known), 4, 2, 2), shade)}
        )


def spot(height, width, top, left, size=5):
    mask = torch.zeros(1, height, width)
    mask[:, top : top + size, left : left + size] = 1
    return mask


def holes(*masks):
    return [MaskedRegion(mask, bounding_box(mask[0])) for mask in masks]


SIGMAS = torch.linspace(14, 0, 11)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("size", [(33, 47), (5, 7), (200, 90)])
@pytest.mark.parametrize("edge", [0, 3])
@pytest.mark.parametrize("place", ["middle", "corner", "all"])
def test_pixels_beyond_the_soft_edge_keep_their_bits(share, size, edge, place):
    image = torch.rand(2, *size, 3, generator=torch.Generator().manual_seed(0))
    height, width = size
    mask = {
        "middle": spot(*size, top=height // 2, left=width // 2, size=2),
        "corner": spot(*size, top=0, left=0, size=3),
        "all": torch.ones(1, *size),
    }[place]
    options = InpaintOptions(side=64, share=share, soft_edge=edge)
    result = image.clone()
    inpaint(result, holes(mask), SIGMAS, options, Colours())
    beyond = (soft_edge(mask, edge) == 0)[0]
    assert torch.equal(result[:, beyond], image[:, beyond])
    assert (result[:, mask[0] > 0] != image[:, mask[0] > 0]).all()


def test_the_stages_share_the_steps_and_the_second_starts_from_the_close_up():
    image, mask, paint = torch.rand(1, 96, 96, 3), spot(96, 96, 36, 36, 22), Colours()
    result, options = image.clone(), InpaintOptions(side=64, share=0.7, soft_edge=2)
    close_ups, latent = inpaint(result, holes(mask), SIGMAS, options, paint)
    (near, known, start, hole, steps, last), (wide, seen, begun, union, rest, end) = paint.calls
    assert (steps, last, rest, end) == (7, False, 3, True)
    assert torch.equal(known, near.image(image))
    assert start is known
    assert torch.equal(seen, wide.image(image))
    inside = wide.mask(mask)[0] > 0
    assert (begun[:, inside] - 0.1).abs().max() < 1e-6  # the close-up's colour, put back into the picture
    beyond = (soft_edge(wide.mask(mask), 2) == 0)[0]
    assert torch.equal(begun[:, beyond], seen[:, beyond])
    assert (near.height, near.width) == (64, 64)
    assert near.box.height < wide.box.height
    assert hole.sum() > near.mask(mask).sum()
    assert torch.equal(union, wide.mask(mask))
    assert close_ups[0].shape == (1, 64, 64, 3)
    assert latent["samples"].unique().tolist() == [pytest.approx(0.2)]
    assert (result[:, mask[0] > 0] - 0.2).abs().max() < 1e-6


def test_share_0_leaves_the_close_up_unpainted_and_share_1_the_surroundings_unseen():
    image, mask = torch.rand(1, 96, 96, 3), spot(96, 96, 40, 40, 8)
    for share in (0.0, 1.0):
        paint = Colours()
        close_ups, _ = inpaint(
            image.clone(), holes(mask), SIGMAS, InpaintOptions(side=64, share=share), paint
        )
        ((_, known, start, _, steps, last),) = paint.calls
        assert (steps, last) == (10, True)
        assert start is known
        assert (close_ups[0].unique().numel() > 1) == (share == 0)


def test_the_close_up_that_was_not_painted_shows_what_was_there():
    image, mask = torch.rand(1, 64, 64, 3), spot(64, 64, 20, 20, 20)
    before = image.clone()
    close_ups, _ = inpaint(image, holes(mask), SIGMAS, InpaintOptions(side=64, share=0.0), Colours())
    assert not torch.equal(image, before)
    assert torch.equal(close_ups[0], before)


def test_masks_together_have_a_close_up_each_and_are_harmonised_at_once():
    image, paint = torch.rand(1, 300, 300, 3), Colours()
    masks = spot(300, 300, 20, 20), spot(300, 300, 250, 260)
    options = InpaintOptions(side=64, share=0.5, soft_edge=2, window=0)
    inpaint(image.clone(), holes(*masks), SIGMAS, options, paint)
    assert [call[4] for call in paint.calls] == [5, 5, 5]
    begun = paint.calls[2][2]
    assert begun[0, 22, 22, 0].item() == pytest.approx(0.1)
    assert begun[0, 252, 262, 0].item() == pytest.approx(0.2)
    assert torch.equal(paint.calls[1][1], paint.calls[1][0].image(image))  # not what was painted before it


def test_the_window_of_masks_far_apart_is_shrunk():
    image, paint = torch.rand(1, 300, 300, 3), Colours()
    masks = spot(300, 300, 20, 20), spot(300, 300, 250, 260)
    result = image.clone()
    inpaint(result, holes(*masks), SIGMAS, InpaintOptions(side=64, share=0.5, soft_edge=2), paint)
    window, known, begun, *_ = paint.calls[2]
    assert window.height * window.width <= 1.1 * 2 * 64**2
    assert window.box.height > 200
    assert not torch.equal(known, begun)
    for mask in masks:
        assert (result[:, mask[0] > 0] - 0.3).abs().max() < 1e-6


def test_masks_whose_edges_meet_both_stay():
    image = torch.zeros(1, 64, 64, 3)
    masks = spot(64, 64, 20, 20), spot(64, 64, 20, 26)
    result = image.clone()
    inpaint(result, holes(*masks), SIGMAS, InpaintOptions(side=64, share=1.0, soft_edge=4), Colours())
    assert (result[0, 20:25, 20] - 0.1).abs().max() < 1e-6
    assert (result[0, 20:25, 26:31] - 0.2).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("images", "masks", "several", "jobs"),
    [
        (1, 1, EACH, [(range(1), 1, 1)]),
        (3, 1, EACH, [(range(3), 1, 1)]),
        (1, 2, EACH, [(range(1), 1, 1), (range(1, 2), 1, 1)]),
        (2, 2, EACH, [(range(1), 1, 1), (range(1, 2), 1, 1)]),
        (2, 3, IN_TURN, [(range(2), 3, 1)]),
        (2, 3, TOGETHER, [(range(2), 1, 3)]),
    ],
)
def test_who_is_painted_with_whom(images, masks, several, jobs):
    image, planned = plan_batch(torch.rand(images, 9, 9, 3), torch.ones(masks, 9, 9), several)
    assert [(job.rows, len(job.turns), len(job.turns[0])) for job in planned] == jobs
    assert len(image) == (max(images, masks) if several == EACH else images)


def test_empty_masks_have_no_job():
    mask = torch.cat([torch.zeros(1, 9, 9), torch.ones(1, 9, 9)])
    image = torch.rand(2, 9, 9, 3)
    assert [job.rows for job in plan_batch(image, mask, EACH)[1]] == [range(1, 2)]
    assert [len(job.turns) for job in plan_batch(image, mask, IN_TURN)[1]] == [1]
    for several in (EACH, IN_TURN, TOGETHER):
        assert plan_batch(image, torch.zeros(2, 9, 9), several)[1] == []


def test_batches_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="mask: there are 2 in the batch but 3 in image"):
        plan_batch(torch.rand(3, 9, 9, 3), torch.ones(2, 9, 9), EACH)


@pytest.mark.parametrize("several", [EACH, IN_TURN, TOGETHER])
def test_a_batch_keeps_what_no_mask_covers_and_its_input(several):
    image = torch.rand(2, 60, 70, 3)
    before = image.clone()
    mask = torch.cat([spot(60, 70, 10, 10), spot(60, 70, 40, 50)])
    _, jobs = plan_batch(image, mask, several)
    painters = []

    def runs(rows):
        painters.append(Colours())
        return painters[-1]

    options = InpaintOptions(side=64, share=0.5, soft_edge=2)
    result = inpaint_batch(image, jobs, SIGMAS, options, runs)
    assert torch.equal(image, before)
    beyond = soft_edge(mask, 2) == 0
    beyond = beyond if several == EACH else beyond.all(0).expand(2, -1, -1)
    assert torch.equal(result.image[beyond], image[beyond])
    assert (result.image[~beyond] != image[~beyond]).any(-1).float().mean() > 0.9
    assert len(result.close_up) == (2 if several == EACH else 4)
    assert len(result.latent["samples"]) == 2
    steps = sum(call[4] for paint in painters for call in paint.calls)
    assert steps == count_steps(jobs, SIGMAS, 0.5)


def test_one_after_another_sees_what_came_before():
    image, paint = torch.zeros(1, 60, 60, 3), Colours()
    _, jobs = plan_batch(image, torch.cat([spot(60, 60, 10, 10), spot(60, 60, 36, 36, 22)]), IN_TURN)
    result = inpaint_batch(
        image, jobs, SIGMAS, InpaintOptions(side=64, share=0.0, soft_edge=0), lambda rows: paint
    )
    view, known, *_ = paint.calls[1]
    assert known[0, 12 - view.box.top, 12 - view.box.left, 0].item() == pytest.approx(0.1)
    assert result.image[0, 12, 12, 0].item() == pytest.approx(0.1)
    assert result.image[0, 42, 42, 0].item() == pytest.approx(0.2)


def test_a_long_strip_makes_no_view_longer_than_two_sides():
    """A mask of 32 x 1400 pixels in a picture as narrow: 64 x 2816 before."""
    view = close_up(Box(0, 0, 32, 1400), 32, 1408, 512)
    assert max(view.height, view.width) <= 1024
    assert min(view.height, view.width) >= 64
    wide = close_up(Box(0, 0, 300, 1200), 300, 1200, 512)  # 4 : 1 is as long as it may be
    assert (wide.height, wide.width) == (256, 1024)
