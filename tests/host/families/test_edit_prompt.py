"""Edit Prompt: references in any sampler, cut to the view in ours, and read again by encoders of pictures."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from inlay.families.table import FAMILIES, NO_REFERENCES
from inlay.lab.models.tiny_transformers import (
    CONTEXT,
    random_latent,
    random_prompt,
    tiny_transformer,
    tiny_vae,
)
from inlay.tests.host.families.painting import SIZE, pictures, sample, spots, watched

REFERENCE_ROWS = [row.name for row in FAMILIES if row.references != NO_REFERENCES]


class ReadingClip:
    """The host's own tokenizer of Qwen-Image; its encoder of 7 B parameters gives way to a random table."""

    def __init__(self):
        from comfy.text_encoders.qwen_image import QwenImageTokenizer

        self.tokenizer = QwenImageTokenizer()
        self.seen = []

    def tokenize(self, text, images=(), **kwargs):
        self.seen.append((text, list(images)))
        return self.tokenizer.tokenize_with_weights(text, images=list(images), **kwargs)

    def encode_from_tokens_scheduled(self, tokens):
        ((row,),) = tokens.values()
        values = [
            float(entry[0]["data"].double().mean()) if isinstance(entry[0], dict) else entry[0] / 1e5
            for entry in row
        ]
        return [[torch.tensor(values)[None, :, None] * torch.ones(CONTEXT), {"pooled_output": None}]]


class BooguClip(ReadingClip):
    """The same with the tokenizer of Boogu, whose network counts its tokens in a mask."""

    def __init__(self):
        from comfy.text_encoders.boogu import BooguTokenizer

        self.tokenizer = BooguTokenizer()
        self.seen = []

    def encode_from_tokens_scheduled(self, tokens):
        return counted(super().encode_from_tokens_scheduled(tokens))


class PlainClip(ReadingClip):
    """A text encoder that reads no pictures."""

    def __init__(self):
        self.tokenizer = object()
        self.seen = []

    def tokenize(self, text, **kwargs):
        self.seen.append((text, kwargs.get("images")))
        return {"l": [[(ord(letter), 1.0) for letter in text or " "]]}


class CountingClip(PlainClip):
    """One whose network counts the tokens in a mask, as that of OmniGen2."""

    def encode_from_tokens_scheduled(self, tokens):
        return counted(super().encode_from_tokens_scheduled(tokens))


class KreaClip(PlainClip):
    def __init__(self):
        super().__init__()
        self.tokenizer = type("Krea2Tokenizer", (), {})()


def counted(conditioning):
    [[text, values]] = conditioning
    return [[text, values | {"attention_mask": torch.ones(1, text.shape[1], dtype=torch.long)}]]


@pytest.fixture(autouse=True)
def inference(in_process_host):
    with torch.inference_mode():
        yield


def execute(clip, vae, prompt="put it there", photos=None, **inputs):
    from inlay.nodes.edit_prompt import InlayEditPrompt

    photos = (
        torch.rand(2, 40, 56, 3, generator=torch.Generator().manual_seed(4)) if photos is None else photos
    )
    node: Any = InlayEditPrompt.PREPARE_CLASS_CLONE(None)
    lists = {name: [value] for name, value in inputs.items()}  # as the host hands list inputs over
    photos = photos if isinstance(photos, list) else [photos]
    return node.execute([clip], [vae], [prompt], photos, **lists).result


def photo_masks():
    masks = torch.zeros(2, 40, 56)
    masks[:, 10:30, 20:50] = 1
    return masks


def test_references_are_the_scene_and_the_photos_and_run_in_the_hosts_sampler(in_process_host):
    import comfy.sample

    vae, image, mask = tiny_vae("flux1"), pictures(1)[:, :64, :96], torch.zeros(1, 64, 96)
    mask[:, 16:32, 32:64] = 1
    positive, negative = execute(PlainClip(), vae, scene=image, mask=mask, negative="blurred")
    for ((_, values),) in (positive, negative):
        scene, first, second = values["reference_latents"]
        grey = image.clone()
        grey[mask > 0.5] = 0.5
        assert torch.equal(scene, vae.encode(grey))
        assert first.shape == second.shape == (1, 16, 4, 8)
    model, calls = watched(tiny_transformer("flux1"))
    latent = torch.zeros(1, 16, 8, 12)
    comfy.sample.sample(
        model, latent + 1, 1, 2.0, "euler", "simple", positive, negative, latent, disable_pbar=True
    )
    assert all(
        call.inlay_references == (("scene",), ("subject", 0, 1.0), ("subject", 0, 1.0)) for call in calls
    )


def clip_of(name):
    """A text encoder as the family has it: one that reads pictures, or counts its tokens, or neither."""
    kinds = {
        "qwen-image": ReadingClip,
        "qwen-image-edit-2511": ReadingClip,
        "boogu": BooguClip,
        "omnigen2": CountingClip,
        "krea2": KreaClip,
    }
    return kinds.get(name, PlainClip)()


@pytest.mark.parametrize("name", REFERENCE_ROWS)
def test_every_edit_model_reads_the_prompt_in_the_hosts_sampler(name):
    """Scene and two photos at a size that fits no grid; positive and negative prompt."""
    import comfy.sample

    from inlay.host.vae import PictureVae

    vae, image, mask = tiny_vae(name), pictures(1), spots((20, 30))
    positive, negative = execute(clip_of(name), vae, scene=image, mask=mask)
    model, calls = watched(tiny_transformer(name))
    noise = random_latent(model, 6, 7)
    result = comfy.sample.sample(
        model, noise, 1, 2.0, "euler", "simple", positive, negative, noise * 0, seed=1, disable_pbar=True
    )
    assert torch.isfinite(result).all()
    grid = PictureVae(vae).grid
    scene = (-(-SIZE[0] // grid), -(-SIZE[1] // grid))
    for call in calls:
        first, *photos = call.ref_latents
        assert first.shape[-2:] == scene
        assert len(photos) == 2
        assert call.inlay_references[0] == ("scene",)


@pytest.mark.parametrize(("hole", "value"), [("white", 1.0), ("grey", 0.5), ("as drawn", None)])
def test_the_hole_is_shown_as_chosen_in_every_view(hole, value):
    vae = tiny_vae("flux1")
    model, calls = watched(tiny_transformer("flux1"))
    image, mask = pictures(1), spots((20, 30))
    positive, _ = execute(PlainClip(), vae, hole=hole)
    sample("flux1", model, vae, image, mask, positive, random_prompt("flux1", 2), steps=2)
    close_up = calls[0]
    assert [r.shape[-2:] for r in close_up.ref_latents] == [(8, 8), (4, 8), (4, 8)]
    from inlay.imaging.boxes import bounding_box
    from inlay.imaging.latent_mask import grow_mask
    from inlay.sampling.stages import InpaintOptions, close_up_view

    view = close_up_view(bounding_box(mask[0]), *SIZE, InpaintOptions(64, soft_edge=3, grow=2, multiple=16))
    scene = view.image(image).clone()
    if value is not None:
        scene[grow_mask(view.mask(mask), 2) > 0.5] = value
    want = model.model.process_latent_in(vae.encode(scene))
    torch.testing.assert_close(close_up.ref_latents[0], want, atol=1e-5, rtol=1e-5)


def test_photos_are_cut_out_on_a_plain_ground_and_bound_to_boxes():
    vae = tiny_vae("flux1")
    positive, _ = execute(PlainClip(), vae, photo_masks=photo_masks(), ground="white", boxes="1; 2: 0.5")
    entry = positive[0][1]["inlay_edit"]
    first, second = entry.edit.photos
    assert first.picture.shape == (1, 256, 256, 3)
    assert (first.picture[0, 0] > 0.9999).all()
    assert (first.picture[0, 128, 128] < 1).any()
    assert [(photo.box, photo.strength) for photo in (first, second)] == [(1, 1.0), (2, 0.5)]


def test_an_encoder_that_reads_pictures_sees_the_view_that_is_painted():
    clip, vae = ReadingClip(), tiny_vae("qwen-image")
    model, calls = watched(tiny_transformer("qwen-image"))
    image, mask = pictures(2), spots((20, 30))
    positive, negative = execute(clip, vae)
    clip.seen.clear()
    sample("qwen-image", model, vae, image, mask, positive, negative, steps=2)
    # two stages, two prompts, two pictures of the batch
    assert len(clip.seen) == 8
    assert all(
        text.startswith("Picture 1: <|vision_start|>") and "Picture 3:" in text for text, _ in clip.seen
    )
    areas = [scene.shape[1] * scene.shape[2] for _, (scene, *_) in clip.seen]
    assert all(abs(area / 384**2 - 1) < 0.02 for area in areas)
    assert not torch.equal(clip.seen[0][1][0], clip.seen[1][1][0])
    for call in calls:
        assert call.text.shape[0] == 2
        assert not torch.equal(call.text[0], call.text[1])
        assert call.ref_latents[0].shape == call.x.shape


def test_boogu_reads_each_view_in_the_positive_prompt_alone():
    """As in the host's own node: the negative prompt has references and no pictures."""
    clip, vae = BooguClip(), tiny_vae("boogu")
    model, calls = watched(tiny_transformer("boogu"))
    image, mask = pictures(2), spots((20, 30))
    positive, negative = execute(clip, vae)
    clip.seen.clear()
    sample("boogu", model, vae, image, mask, positive, negative, steps=2, cfg=2.0)
    # two stages, two pictures of the batch; scene and two photos each
    assert [len(shown) for _, shown in clip.seen] == [3] * 4
    assert not torch.equal(clip.seen[0][1][0], clip.seen[1][1][0])
    assert all(len(call.ref_latents) == 3 for call in calls)
    with_scene = positive[0][0].shape[1] + 3  # the start of a picture, the picture, its end
    assert {call.text.shape[1] for call in calls} == {with_scene, negative[0][0].shape[1]}


@pytest.mark.parametrize("given", [False, True])
def test_text_and_references_of_a_view_know_nothing_of_the_rest(given):
    """Two scenes that differ outside the close-up's view, with the whole scene wired to the prompt or not."""
    from inlay.imaging.boxes import bounding_box
    from inlay.sampling.stages import InpaintOptions, close_up_view

    image, mask, vae = pictures(1), spots((20, 30)), tiny_vae("qwen-image")
    options = InpaintOptions(64, soft_edge=3, grow=2, multiple=32)
    rows, columns = close_up_view(bounding_box(mask[0]), *SIZE, options).box.slices
    other = 1 - image
    other[:, rows, columns] = image[:, rows, columns]
    firsts = []
    for picture in (image, other):
        model, calls = watched(tiny_transformer("qwen-image"))
        scene: dict = {"scene": picture, "mask": mask} if given else {}
        positive, negative = execute(ReadingClip(), vae, **scene)
        sample("qwen-image", model, vae, picture, mask, positive, negative, steps=2)
        firsts.append(calls)
    (first, last), (same, changed) = firsts
    assert torch.equal(first.text, same.text)
    assert torch.equal(first.x, same.x)
    assert all(torch.equal(a, b) for a, b in zip(first.ref_latents, same.ref_latents, strict=True))
    assert len(first.ref_latents) == 3
    assert not torch.equal(last.text, changed.text)
    assert not torch.equal(last.ref_latents[0], changed.ref_latents[0])


def test_ten_photos_are_ten_references():
    model, calls = watched(tiny_transformer("flux1"))
    vae, photos = tiny_vae("flux1"), torch.rand(10, 32, 32, 3)
    positive, negative = execute(PlainClip(), vae, photos=photos)
    sample("flux1", model, vae, pictures(1), spots((20, 30)), positive, negative, steps=2)
    assert all(len(call.ref_latents) == 11 for call in calls)


def test_the_easy_insert_preset_is_as_the_lora_was_trained():
    clip, vae = PlainClip(), tiny_vae("flux2-klein")
    photo = torch.rand(1, 40, 56, 3, generator=torch.Generator().manual_seed(4))
    positive, _ = execute(
        clip, vae, prompt="", photos=photo, photo_masks=photo_masks()[:1], preset="Easy-Insert"
    )
    edit = positive[0][1]["inlay_edit"].edit
    assert edit.prompt.startswith("Replace the white mask of image1 with the content in image2.")
    assert (edit.hole, edit.context) == ("white", 1.2)
    assert edit.photos[0].picture.shape == (1, 1024, 1024, 3)
    assert (edit.photos[0].picture[0, 0] > 0.9999).all()
    from inlay.sampling.view_sampler import cfg_guider, trained_context

    model = tiny_transformer("flux2-klein")
    assert trained_context(cfg_guider(model, positive, positive, 4.0)) == 1.2
    # the template's mask and soft edge: a square of 1.2 times the longer side, shown at 1024 pixels
    from inlay.imaging.boxes import Box
    from inlay.sampling.stages import InpaintOptions, close_up_view

    options = InpaintOptions(1024, context=1.2, soft_edge=16, multiple=16)
    view = close_up_view(Box(176, 56, 440, 296), 768, 768, options)
    assert (view.box.height, view.box.width) == (317, 317)  # 264 * 1.2, rounded up
    assert (view.height, view.width) == (1024, 1024)


def test_the_method_of_krea_2_is_set():
    positive, _ = execute(KreaClip(), tiny_vae("krea2"))
    assert positive[0][1]["reference_latents_method"] == "index_timestep_zero"


@pytest.mark.parametrize(("inputs", "message"), [
    ({"photos": torch.zeros(11, 16, 16, 3)}, "there are 11, but 10 are the most"),
    ({"preset": "Easy-Insert"}, "the Easy-Insert preset takes one"),
    ({"photo_masks": torch.ones(1, 40, 56)}, "1 masks for 2 photos"),
    ({"photo_masks": torch.zeros(2, 40, 56)}, "photo_masks: it is empty"),
    ({"boxes": "1; 2; 3"}, "3 boxes for 2 photos"),
    ({"boxes": "one"}, "boxes: \"one\" is no list of boxes"),
    ({"scene": torch.zeros(1, 16, 16, 3), "mask": torch.zeros(1, 8, 8)}, "the image is 16x16"),
])  # fmt: skip
def test_wrong_inputs_are_refused_in_one_sentence(inputs, message):
    with pytest.raises(ValueError, match=message) as error:
        execute(PlainClip(), SimpleNamespace(spacial_compression_encode=lambda: 8), **inputs)
    assert "\n" not in str(error.value)


def test_a_photo_keeps_out_of_what_is_outside_its_box():
    """Sampler, edit prompt and masked attention together, in the latent before compositing.

    The change that another photo makes outside its box, with region attention and without.
    """
    from inlay.attention.model_patch import mask_attention

    vae, image, mask = tiny_vae("flux1"), pictures(1), spots((30, 40))
    model = tiny_transformer("flux1")
    change = {}
    for masked in (False, True):
        painted = mask_attention(model, [mask], operator="renormalised") if masked else model
        latents = []
        for seed in (1, 2):
            photo = torch.rand(1, 40, 56, 3, generator=torch.Generator().manual_seed(seed))
            positive, negative = execute(PlainClip(), vae, photos=photo)
            *_, latent = sample(
                "flux1", painted, vae, image, mask, positive, negative, steps=1, close_up_share=0.0,
                window_area=0.0, blend="at the end",
            )  # fmt: skip
            latents.append(latent["samples"])
        difference = (latents[0] - latents[1]).abs().amax((0, 1))
        inside = torch.zeros_like(difference, dtype=torch.bool)
        inside[2:8, 4:8] = True  # every cell of a token that touches the mask
        change[masked] = (float(difference[~inside].max()), float(difference[inside].max()))
    assert change[False][0] > 1e-4
    assert change[True][0] == 0.0
    assert change[True][1] > 1e-4


@pytest.mark.parametrize("name", ["flux1", "flux2-klein", "krea2"])
def test_each_of_two_subjects_acts_in_the_box_it_is_bound_to(name):
    """Boxes of the edit prompt, one mask per subject, both masks in one run, the latent before compositing.

    Another photo of the second subject changes its own box and no other cell.
    """
    from inlay.attention.model_patch import mask_attention

    vae, image, masks = tiny_vae(name), pictures(1), spots((16, 16), (48, 64), size=16)
    painted = mask_attention(tiny_transformer(name), [masks[:1], masks[1:]], operator="renormalised")
    latents = []
    for second in (1, 2):
        seeds = (torch.Generator().manual_seed(seed) for seed in (7, second))
        photos = [torch.rand(1, 40, 56, 3, generator=seed) for seed in seeds]
        positive, negative = execute(PlainClip(), vae, photos=photos, boxes="1; 2")
        *_, latent = sample(
            name, painted, vae, image, masks, positive, negative, steps=1, close_up_share=0.0,
            window_area=0.0, blend="at the end", several_masks="together",
        )  # fmt: skip
        latents.append(latent["samples"])
    changed = (latents[0] != latents[1]).any(1).flatten(0, -3)[0]
    cell = 16 if name.startswith("flux2") else 8
    box = torch.zeros_like(changed)
    box[48 // cell : 64 // cell, 64 // cell : 80 // cell] = True
    assert torch.equal(changed, box)


@pytest.mark.parametrize(
    ("name", "size"), [("flux1", (64, 96)), ("krea2", (70, 90)), ("flux1-fill", (64, 96))]
)
def test_inpaint_conditioning_gives_a_model_what_its_family_reads(name, size):
    from inlay.families.table import FILL, named
    from inlay.host.vae import PictureVae
    from inlay.nodes.inpaint_conditioning import InlayInpaintConditioning

    model, vae = tiny_transformer(name), tiny_vae(name)
    image, mask = torch.rand(2, *size, 3), torch.zeros(1, *size)
    mask[:, 16:32, 32:64] = 1
    node: Any = InlayInpaintConditioning.PREPARE_CLASS_CLONE(None)
    result = node.execute(
        random_prompt(name, 1), random_prompt(name, 2), vae, image, mask, model=model, hole="white"
    ).result
    positive, _, latent = result
    values = positive[0][1]
    assert latent["noise_mask"].ndim == latent["samples"].ndim
    if named(name).condition == FILL:
        assert values["guidance"] == 30.0
        assert values["concat_latent_image"].shape == latent["samples"].shape
        assert "reference_latents" not in values
        return
    assert "concat_latent_image" not in values
    scene = image.clone()
    scene[:, mask[0] > 0.5] = 1
    fill = (0, -size[1] % 8, 0, -size[0] % 8)
    padded = torch.nn.functional.pad(scene.movedim(-1, 1), fill, mode="replicate").movedim(1, -1)
    want = PictureVae(vae).encode(padded)
    torch.testing.assert_close(values["reference_latents"][0], want)
    assert latent["samples"].shape == want.shape
    assert ("reference_latents_method" in values) == (name == "krea2")


def test_inpaint_conditioning_is_as_before_without_a_model():
    from inlay.nodes.inpaint_conditioning import InlayInpaintConditioning

    vae, image, mask = tiny_vae("flux1"), torch.rand(1, 64, 96, 3), torch.zeros(1, 64, 96)
    mask[:, 16:32, 32:64] = 1
    node: Any = InlayInpaintConditioning.PREPARE_CLASS_CLONE(None)
    prompts = random_prompt("flux1", 1), random_prompt("flux1", 2)
    positive, _, latent = node.execute(*prompts, vae, image, mask).result
    assert set(positive[0][1]) == {"pooled_output", "concat_latent_image", "concat_mask"}
    assert torch.equal(latent["samples"], vae.encode(image))


def test_an_identity_encoder_on_an_edit_model_is_pointed_to_the_edit_prompt():
    from inlay.sampling.identity import as_conditioning

    model, vae = tiny_transformer("flux1"), tiny_vae("flux1")
    identity = as_conditioning(torch.zeros(1, 16, 768), identity=True)
    with pytest.raises(ValueError, match=r"Identity Encoder .* use Edit Prompt with Subject Photos") as error:
        sample("flux1", model, vae, pictures(1), spots((20, 30)), identity)
    assert "\n" not in str(error.value)


def test_photos_of_several_sizes_come_as_a_list(in_process_host):
    photos = [torch.rand(1, 40, 56, 3), torch.rand(2, 64, 32, 3)]
    positive, _ = execute(PlainClip(), tiny_vae("flux1"), photos=photos)
    assert [tuple(latent.shape[-2:]) for latent in positive[0][1]["reference_latents"]] == [
        (4, 8), (8, 4), (8, 4)
    ]  # fmt: skip
