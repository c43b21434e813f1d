"""The whole graph on a full-size SD 1.5 inpainting model and real photographs: shapes, names, memory."""

import resource
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from skimage import data

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("in_process_host", "memory_turn")]

write_checkpoint = runpy.run_path(str(Path(__file__).parents[1] / "full_size.py"))["write_checkpoint"]

# The subject's box in each photograph, as (top, left, bottom, right).
PHOTOGRAPHS = {"chelsea": (10, 60, 290, 400), "coffee": (70, 150, 330, 450), "astronaut": (0, 80, 500, 400)}


def photograph(name):
    """(1,H,W,3) in [0,1] and its box as a mask (1,H,W)."""
    image = torch.from_numpy(getattr(data, name)().copy()).float()[None, ..., :3] / 255
    top, left, bottom, right = PHOTOGRAPHS[name]
    mask = torch.zeros(image.shape[:3])
    mask[:, top:bottom, left:right] = 1
    return image, mask


@pytest.fixture(scope="module")
def full_size(in_process_host, tmp_path_factory):
    """MODEL, CLIP and VAE of a full-size checkpoint, which is deleted again."""
    import comfy.sd

    folder = tmp_path_factory.mktemp("full")
    with torch.inference_mode():
        yield comfy.sd.load_checkpoint_guess_config(str(write_checkpoint(folder / "sd15.safetensors")))[:3]
    shutil.rmtree(folder)


@pytest.fixture
def store_folder(in_process_host):
    """An empty store for this test."""
    shutil.rmtree(in_process_host.models / "loras" / "inlay", ignore_errors=True)


def run(node, images, masks, **inputs):
    """The outputs of a node whose inputs all come as lists."""
    node = node.PREPARE_CLASS_CLONE(None)
    return node.execute(
        images=images, masks=masks, **{name: [value] for name, value in inputs.items()}
    ).result


def peak_gigabytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


@pytest.mark.parametrize(("height", "width", "resolution"), [(384, 384, 384), (300, 451, 256)])
def test_the_whole_graph(full_size, store_folder, height, width, resolution, capsys):
    import nodes

    from inlay.nodes.crop_and_paste import InlayPasteBack
    from inlay.nodes.inpaint_conditioning import InlayInpaintConditioning
    from inlay.nodes.masked_attention_patch import MaskedAttentionPatch
    from inlay.nodes.subject_finetune import SubjectFinetune

    host, (model, clip, vae) = cast(Any, nodes), full_size
    images, masks = zip(*(photograph(name) for name in PHOTOGRAPHS), strict=True)
    background = photograph("astronaut")[0][:, :height, :width]
    hole = torch.zeros(1, height, width)
    hole[:, 100:250, 150:330] = 1
    with torch.inference_mode():
        trained, lora, loss, subject, _ = run(
            SubjectFinetune, model=model, clip=clip, vae=vae, class_name="cat", token="sks",
            recipe="DreamCom", steps=2, rank=4, learning_rate=0.0, batch_size=1, seed=0,
            resolution=resolution,
            images=list(images), masks=list(masks),
        )  # fmt: skip
        trained_peak = peak_gigabytes()
        patched = cast(Any, MaskedAttentionPatch).execute(trained, hole).result[0]
        words = [host.CLIPTextEncode().encode(clip, text)[0] for text in (subject.caption, "")]
        positive, negative, latent = (
            cast(Any, InlayInpaintConditioning).execute(*words, vae, background, hole).result
        )
        (sampled,) = host.common_ksampler(patched, 0, 2, 7.5, "euler", "normal", positive, negative, latent)
        (decoded,) = host.VAEDecode().decode(vae, sampled)
        pasted = cast(Any, InlayPasteBack).execute(background, decoded, hole, 8).result[0]
    assert len(trained.patches) == 16 * 8  # 16 transformer blocks, q k v and out of both attentions
    assert len(lora) == 3 * 16 * 8
    assert all(torch.isfinite(torch.tensor(loss["loss"])))
    assert pasted.shape == background.shape
    assert torch.isfinite(pasted).all()
    far = torch.ones(1, height, width, dtype=torch.bool)
    far[:, 60:290, 110:370] = False
    assert torch.equal(pasted[far], background[far])
    with capsys.disabled():
        print(f"\n{width}x{height}: peak {trained_peak:.1f} GB in training, {peak_gigabytes():.1f} GB in all")
