"""Regular data: the published folders, prompts and rows that stay together, masks from what was changed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inlay.imaging.boxes import Box
from inlay.imaging.masks import fill_box
from inlay.imaging.references import read_reference
from inlay.lab import scenes
from inlay.lab.studies import quality
from inlay.training.finetune.data import Examples, Reference, concatenate_examples
from inlay.training.finetune.regular_data import (
    LONGEST,
    changed_mask,
    group_by_prompt,
    list_regular,
    otsu,
    random_box,
    save_regular,
    write_regular,
)


def picture(seed, height=24, width=40):
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(256, (height, width, 3), generator=generator)  # what eight bits can hold
    mask = torch.zeros(height, width)
    mask[4:12, 3 + seed : 20] = 1
    return Reference(levels / 255, mask)


def test_what_is_written_is_read_back_with_its_prompts(tmp_path):
    folder = tmp_path / "regular_teapot"
    wanted = {("a sks brown teapot, round", "7"): picture(0), ("a sks clay teapot", "7"): picture(1),
              ("a sks clay teapot", "11"): picture(2)}  # fmt: skip
    for (prompt, name), (image, mask) in wanted.items():
        write_regular(folder, prompt, name, image, mask)
    assert (folder / "a_sks_clay_teapot" / "7-mask.png").is_file()
    found = list_regular(folder)
    assert {(file.prompt, file.image.name.split("-")[0]) for file in found} == set(wanted)
    for file in found:
        image, mask = read_reference(file.image, file.mask)
        want = wanted[file.prompt, file.image.name.split("-")[0]]
        assert torch.equal(image[0], want.image)
        assert torch.equal(mask[0], want.mask)
    assert [path.suffix for path in folder.rglob("*.p*")] == [".png"] * 6  # nothing half-written is left


LONG = ["x" * 300, "\u732b" * 94, "a cat, " * 40 + "asleep"]
UNFIT = ["a cat/../dog", "..", "what?", "?" * 300, "sks_cat", "cat.", "a (red:1.2) cat", 'a "cat"']


@pytest.mark.parametrize("prompt", [*LONG, *UNFIT])
def test_a_prompt_that_no_folder_can_be_named_by_comes_back(tmp_path, prompt):
    path = write_regular(tmp_path, prompt, "1", *picture(0))
    assert path.parents[1] == tmp_path
    assert len(path.parent.name.encode()) <= LONGEST
    assert not set(path.parent.name) & set('<>:"/\\|?*')
    assert not path.parent.name.startswith((".", " "))
    assert not path.parent.name.endswith((".", " "))
    write_regular(tmp_path, f"{prompt} too", "1", *picture(1))
    assert {file.prompt for file in list_regular(tmp_path)} == {prompt, f"{prompt} too"}


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_another_mask_of_the_same_picture_replaces_nothing(tmp_path):
    image, mask = picture(0)
    save_regular(tmp_path, [(image, mask)], ["a cat"])
    before = contents(tmp_path)
    save_regular(tmp_path, [(image, mask)], ["a cat"])
    assert contents(tmp_path) == before
    save_regular(tmp_path, [(image, 1 - mask)], ["a cat"])
    after = contents(tmp_path)
    assert before.items() < after.items()
    found = [read_reference(file.image, file.mask)[1][0] for file in list_regular(tmp_path)]
    assert sorted(float(found_mask.sum()) for found_mask in found) == sorted(
        [float(mask.sum()), float((1 - mask).sum())]
    )


@pytest.mark.parametrize("wrong", [torch.ones(8, 24), torch.zeros(16, 24)])
def test_nothing_is_written_where_one_mask_is_wrong(tmp_path, wrong):
    good, other = picture(0, 16, 24), picture(1, 16, 24)
    save_regular(tmp_path, [good], ["a cat"])
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"^masks: mask 2"):
        save_regular(tmp_path, [other, (other.image, wrong)], ["a cat"])
    with pytest.raises(ValueError, match=r"^prompts: "):
        save_regular(tmp_path, [other, other], ["a cat", " "])
    assert contents(tmp_path) == before


def test_an_empty_folder_and_a_missing_mask_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"holds no <prompt>/<seed>-image\.png"):
        list_regular(tmp_path)
    path = write_regular(tmp_path, "a cat", "3", *picture(0))
    path.with_name("3-mask.png").unlink()
    with pytest.raises(ValueError, match=r"'a_cat/3-image.png' has no mask; add 3-mask.png"):
        list_regular(tmp_path)


def test_pictures_are_grouped_by_prompt():
    pictures = [picture(i) for i in range(3)]
    (all_of_them,) = group_by_prompt(pictures, ["a cat"])
    assert all_of_them.references == pictures
    two = group_by_prompt(pictures, ["a cat", "a dog", "a cat"])
    assert [(part.caption, len(part.references)) for part in two] == [("a cat", 2), ("a dog", 1)]
    assert two[0].references[1] is pictures[2]
    with pytest.raises(ValueError, match="there are 2 prompts for 3 pictures"):
        group_by_prompt(pictures, ["a cat", "a dog"])


def rows(count, value):
    """`count` examples whose every number is `value`, with one context row for all of them."""
    four, one = (torch.full((count, channels, 2, 2), value) for channels in (4, 1))
    return Examples(four, one, four, one, torch.full((1, 77, 3), value))


def test_every_row_keeps_its_own_context():
    whole = concatenate_examples([rows(2, 1.0), rows(1, 2.0), rows(3, 3.0)])
    assert len(whole) == 6
    assert whole.context.shape == (6, 77, 3)
    assert whole.context[:, 0, 0].tolist() == [1, 1, 2, 3, 3, 3] == whole.latent[:, 0, 0, 0].tolist()


def test_contexts_of_different_length_meet_without_changing_what_attention_sees():
    torch.manual_seed(0)
    long, short = torch.randn(1, 154, 8), torch.randn(1, 77, 8)
    met = concatenate_examples(
        [replace(rows(1, 1.0), context=long), replace(rows(1, 2.0), context=short)]
    ).context
    assert met.shape == (2, 154, 8)
    query = torch.randn(5, 8)
    for before, after in ((long[0], met[0]), (short[0], met[1])):
        attend = lambda keys: torch.softmax(query @ keys.T, -1) @ keys  # noqa: E731
        torch.testing.assert_close(attend(before), attend(after))


@given(st.integers(32, 200), st.integers(32, 200), st.integers(0, 2**62))
def test_a_random_box_lies_inside_and_is_large(height, width, seed):
    mask = random_box(height, width, seed)
    assert mask.shape == (1, height, width)
    assert torch.equal(mask, random_box(height, width, seed))
    share = float(mask.mean())
    assert 0.28 < share < 0.77
    ys, xs = torch.nonzero(mask[0], as_tuple=True)
    assert len(ys) == (ys.max() - ys.min() + 1) * (xs.max() - xs.min() + 1)


@given(st.floats(0.05, 0.45), st.floats(0.55, 0.95), st.integers(0, 99))
def test_otsu_stands_between_two_heaps(low, high, seed):
    spread = np.random.default_rng(seed).normal(0, 0.01, 400)
    values = torch.from_numpy(np.concatenate([low + spread, high + spread[:300]])).clamp(0, 1)
    assert low + 0.02 < otsu(values) < high - 0.02


def test_the_outline_of_what_was_painted_is_found():
    """On the tiny world's truth: the thing's own pixels, the thing's shadow left out as far as can be."""
    overlap = []
    for task in quality.held_out_tasks(40):
        found = changed_mask(task.truth, task.background, task.hole)
        assert (found <= task.hole).all()
        both = (found * task.outline).sum()
        overlap.append(float(both / (found + task.outline - found * task.outline).sum()))
    box = [float(t.outline.sum() / t.hole.sum()) for t in quality.held_out_tasks(40)]
    print(f"overlap {np.mean(overlap):.3f}, worst {min(overlap):.3f}; of the box {np.mean(box):.3f}")
    assert np.mean(overlap) > 0.85
    assert np.mean(overlap) > np.mean(box) + 0.2


def overlap_of(scene: scenes.Scene) -> float:
    """How far the outline that is found is the true one: intersection over union."""
    truth, empty = scenes.render(scene), scenes.render(replace(scene, subject=None))
    reach = truth.reach()
    assert reach
    hole, outline = fill_box(Box(*reach), *truth.mask.shape)[0], torch.from_numpy(truth.mask > 0.5)
    shown, room = (torch.from_numpy(picture.image).float() / 255 for picture in (truth, empty))
    found = changed_mask(shown, room, hole) > 0.5
    return float((found & outline).sum() / (found | outline).sum())


def test_the_shadow_of_what_was_painted_is_left_out():
    """On renderings with a lamp at one side; with the shadow as a part of the thing the overlap is 0.69."""
    overlap = [overlap_of(scenes.sample_scene(np.random.default_rng([3, index]))) for index in range(40)]
    print(f"overlap {np.mean(overlap):.3f}, worst {min(overlap):.3f}")
    assert np.mean(overlap) > 0.88


def test_a_grey_thing_before_a_grey_wall_is_not_taken_for_a_shadow(monkeypatch):
    """With its shadow as a part of it the overlap is 0.61, and 0.29 where the thing is taken for one."""
    monkeypatch.setitem(scenes.COLOURS, "grey", (0.5, 0.5, 0.5))
    overlap = []
    for index in range(24):
        rng = np.random.default_rng([5, index])
        thing = scenes.sample_thing(rng, colour="grey", trim="navy", pattern="plain", emblems=())
        room = scenes.sample_room(rng)
        wall, floor = ((float(np.mean(colour)),) * 3 for colour in (room.wall, room.floor))
        overlap.append(overlap_of(scenes.sample_scene(rng, thing, replace(room, wall=wall, floor=floor))))
    print(f"overlap {np.mean(overlap):.3f}, worst {min(overlap):.3f}")
    assert np.mean(overlap) > 0.5


def test_without_an_outline_the_hole_is_the_mask():
    hole = random_box(64, 64, 0)[0]
    background = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(changed_mask(background, background, hole), hole)
    speck = background.clone()
    speck[30:32, 30:32] = 1 - speck[30:32, 30:32]
    assert torch.equal(changed_mask(speck, background, hole), hole)
