"""One-photo insertion and mask-free insertion as graphs, through the host's own executor."""

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture(scope="module")
def files(kit, server):
    """What the graphs load, in the server's folders."""
    from inlay.encoders.content_adapter import AdapterConfig, EncoderSpec
    from inlay.encoders.dinov2 import read_dino_config
    from inlay.encoders.embedding_optimizer import OptimizerConfig
    from inlay.lab.models.assemble import random_checkpoint, write_checkpoint

    models = server.work / "models"
    kit.dino().save_pretrained(models / "inlay" / "graph-dino")
    reads = EncoderSpec(width=32, size=70)
    from safetensors.torch import load_file

    encoder = load_file(models / "inlay" / "graph-dino" / "model.safetensors")
    config = AdapterConfig(reads, width=24, depth=1, heads=2, context=768)
    path = models / "inlay" / "graph_adapter.safetensors"
    kit.write_adapter(path, config, read_dino_config(encoder, heads=2), encoder)
    optimizer = OptimizerConfig(EncoderSpec(width=32, size=70, background="original", uncond="zeros"))
    kit.write_adapter(models / "inlay" / "graph_optimizer.safetensors", optimizer)
    for channels in (8, 9):
        path = models / "checkpoints" / f"graph_{channels}.safetensors"
        write_checkpoint(path, random_checkpoint(1, channels))


@pytest.fixture(scope="module")
def pictures(kit, tmp_path_factory):
    """A scene of an odd size, and an object with transparency."""
    folder = tmp_path_factory.mktemp("pictures")
    scene = kit.picture(60, 1)[:, :50]
    image, mask = kit.object_picture()
    cut = torch.cat([image, mask[..., None]], -1)
    for name, picture in (("identity_scene.png", scene), ("identity_object.png", cut)):
        Image.fromarray((255 * picture[0]).round().byte().numpy()).save(folder / name)
    return folder


def decoded(outputs, node):
    return np.asarray(Image.open(BytesIO(outputs[node].images[0])))


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def test_one_photo_insertion(client, files, pictures):
    for name in ("identity_scene.png", "identity_object.png"):
        client.upload(pictures / name)
    graph = {
        "model": node("CheckpointLoaderSimple", ckpt_name="graph_9.safetensors"),
        "scene": node("LoadImage", image="identity_scene.png"),
        "object": node("LoadImage", image="identity_object.png"),
        "shape": node("InvertMask", mask=["object", 1]),
        "adapter": node("InlayLoadAdapter", file="graph_adapter.safetensors"),
        "hole": node("InlayBoxMask", image=["scene", 0], x=20, y=16, width=24, height=20),
        "level": node("InlayMaskLevels", mask=["hole", 0], level="3 rough shape", image=["scene", 0]),
        "identity": node(
            "IdentityEncoderDINOv2", encoder=["adapter", 1], adapter=["adapter", 0], images=["object", 0],
            masks=["shape", 0], strength=1.0, tokens=12,
        ),
        "blend": node("InlayBackgroundBlending", model=["model", 0], blending="clean"),
        "inpaint": node(
            "InlayInpaintConditioning", positive=["identity", 0], negative=["identity", 1], vae=["model", 2],
            image=["scene", 0], mask=["level", 0], noise_mask=True,
        ),
        "sample": node(
            "KSampler", model=["blend", 0], seed=1, steps=2, cfg=3.0, sampler_name="euler", denoise=1.0,
            scheduler="normal", positive=["inpaint", 0], negative=["inpaint", 1], latent_image=["inpaint", 2],
        ),
        "decode": node("VAEDecode", samples=["sample", 0], vae=["model", 2]),
        "paste": node(
            "InlayPasteBack", original=["scene", 0], generated=["decode", 0], mask=["level", 0], feather=2
        ),
        "out": node("PreviewImage", images=["paste", 0]),
    }  # fmt: skip
    outputs = client.run(graph)
    result, scene = decoded(outputs, "out"), np.asarray(Image.open(pictures / "identity_scene.png"))
    assert result.shape == scene.shape == (50, 60, 3)
    assert (result[:12] == scene[:12]).all()
    assert (result[18:34, 22:42] != scene[18:34, 22:42]).any()


def test_mask_free_insertion(client, files, pictures):
    for name in ("identity_scene.png", "identity_object.png"):
        client.upload(pictures / name)
    graph = {
        "model": node("CheckpointLoaderSimple", ckpt_name="graph_8.safetensors"),
        "scene": node("LoadImage", image="identity_scene.png"),
        "object": node("LoadImage", image="identity_object.png"),
        "encoder": node("InlayLoadImageEncoder", name="graph-dino"),
        "optimizer": node("InlayLoadAdapter", file="graph_optimizer.safetensors"),
        "pix2pix": node(
            "ImageConditionedPix2Pix", model=["model", 0], vae=["model", 2], clip_vision=["encoder", 0],
            embedding_optimizer=["optimizer", 0], image=["scene", 0], object_image=["object", 0],
            object_guidance=5.0, image_guidance=1.2,
        ),
        "noise": node("RandomNoise", noise_seed=4),
        "sampler": node("KSamplerSelect", sampler_name="euler_ancestral"),
        "sigmas": node("BasicScheduler", model=["model", 0], scheduler="karras", steps=2, denoise=1.0),
        "sample": node(
            "SamplerCustomAdvanced", noise=["noise", 0], guider=["pix2pix", 3], sampler=["sampler", 0],
            sigmas=["sigmas", 0], latent_image=["pix2pix", 2],
        ),
        "decode": node("VAEDecode", samples=["sample", 0], vae=["model", 2]),
        "crop": node("InlayCropBack", generated=["decode", 0], original=["scene", 0]),
        "out": node("PreviewImage", images=["crop", 0]),
    }  # fmt: skip
    assert decoded(client.run(graph), "out").shape == (50, 60, 3)
