"""InlaySubjectScore in a real host, with the host's own CLIP in small and random weights."""

import pytest
import torch

CONFIG = {
    "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2,
    "image_size": 32, "patch_size": 8, "projection_dim": 16, "num_channels": 3, "hidden_act": "quick_gelu",
    "model_type": "clip_vision_model",
}  # fmt: skip


@pytest.fixture(scope="module")
def vision(in_process_host):
    from comfy.clip_vision import ClipVisionModel

    model = ClipVisionModel(CONFIG)
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        for weight in model.model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
    return model


def score(vision, images, references, **inputs):
    from inlay.nodes.subject_score import InlaySubjectScore

    lists = {name: value if isinstance(value, (list, tuple)) else [value] for name, value in inputs.items()}
    with torch.inference_mode():
        result = InlaySubjectScore.execute([vision], images, references, **lists).result
    assert result is not None
    return result


def noise(seed, *shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def boxed(height, width):
    mask = torch.zeros(1, height, width)
    mask[:, 4:20, 8:30] = 1
    return mask


def test_a_picture_is_itself_and_another_is_less_so(vision):
    one, other = noise(0, 1, 40, 48, 3), noise(1, 1, 40, 48, 3)
    mean, scores, text = score(vision, [torch.cat([one, other])], [one])
    assert scores[0] == pytest.approx(1, abs=1e-5)
    assert scores[1] < scores[0]
    assert mean == pytest.approx(sum(scores) / 2)
    assert "n = 2), CLIP of width 32, subject" in text


def test_the_background_counts_only_when_whole_pictures_are_asked_for(vision):
    subject, mask = noise(0, 1, 40, 48, 3), boxed(40, 48)
    moved = torch.where(mask[..., None] > 0.5, subject, noise(2, 1, 40, 48, 3))
    masks = {"masks": [mask], "reference_masks": [mask]}
    assert score(vision, [moved], [subject], **masks)[0] == pytest.approx(1, abs=1e-5)
    assert score(vision, [moved], [subject], **masks, region="whole picture")[0] < 1 - 1e-4


def test_one_mask_serves_all_pictures_and_references_may_differ_in_size(vision):
    images, mask = noise(0, 3, 40, 48, 3), boxed(40, 48)
    references = [noise(1, 1, 33, 21, 3), noise(2, 2, 64, 64, 4)]
    one = score(vision, [images], references, masks=[mask])
    three = score(vision, [images], references, masks=[mask.expand(3, -1, -1)])
    assert one == three
    assert len(one[1]) == 3


@pytest.mark.parametrize(
    ("masks", "said"),
    [
        ([torch.zeros(1, 40, 48)], r"^masks: mask 1 is empty"),
        ([torch.ones(1, 20, 20)], r"^masks: mask 1"),
        ([torch.ones(2, 40, 48)], r"2 masks for 1 images"),
    ],
)
def test_masks_that_do_not_fit_are_named(vision, masks, said):
    with pytest.raises(ValueError, match=said):
        score(vision, [noise(0, 1, 40, 48, 3)], [noise(1, 1, 40, 48, 3)], masks=masks)
