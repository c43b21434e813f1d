"""A stranger's object from real photographs through every identity node, at full size with random weights.

DINOv2 ViT-g/14 with registers, CLIP ViT-L/14, the default adapter and optimizer, SD 1.5 UNets of 9 and 8
channels: about 10 GB on disk and of memory, one model after another.
"""

import gc
import importlib
import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("in_process_host", "memory_turn")]

full_size: Any = runpy.run_path(str(Path(__file__).parents[1] / "full_size.py"))
BOX = (70, 150, 330, 450)  # of the cup in skimage's photograph


def random_state(module, seed=0):
    """Weights in half precision for a module made without memory: norms 1, biases 0, matrices 1 / fan-in."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, weight in module.state_dict().items():
        if weight.ndim < 2:
            state[name] = torch.full(weight.shape, float(not name.endswith("bias")), dtype=torch.float16)
        else:
            drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float32)
            state[name] = (drawn / weight.shape[1:].numel() ** 0.5).half()
    return state


@pytest.fixture(scope="module")
def photograph():
    """The coffee on its table (1, 400, 600, 3), and the cup's mask."""
    from skimage import data

    image = torch.from_numpy(data.coffee().copy()).float()[None] / 255
    mask = torch.zeros(image.shape[:3])
    mask[:, BOX[0] : BOX[2], BOX[1] : BOX[3]] = 1
    return image, mask


@pytest.fixture(scope="module")
def scene():
    """Another photograph, of an odd size, and the hole in it."""
    from skimage import data

    image = torch.from_numpy(data.astronaut().copy()).float()[None, :251, :317] / 255
    hole = torch.zeros(image.shape[:3])
    hole[:, 120:230, 30:170] = 1
    return image, hole


@pytest.fixture(scope="module")
def identity(kit, in_process_host, photograph):
    """positive, negative of ViT-g/14 with registers and the default adapter, which are gone again."""
    from inlay.encoders.checkpoint_layouts import METADATA, describe_checkpoint
    from inlay.encoders.content_adapter import AdapterConfig, ContentAdapter
    from inlay.encoders.dinov2 import DinoConfig, DinoV2

    folder = in_process_host.models / "inlay" / "dinov2-g"
    folder.mkdir()
    with torch.device("meta"):
        encoder, adapter = DinoV2(DinoConfig()), ContentAdapter(AdapterConfig())
    save_file(random_state(encoder), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"num_attention_heads": 24}), encoding="utf-8")
    state = {f"adapter.{name}": value for name, value in random_state(adapter).items()}
    save_file(state, folder.with_name("full.safetensors"), {METADATA: describe_checkpoint(AdapterConfig())})
    with torch.inference_mode():
        (vision,) = kit.execute("InlayLoadImageEncoder", "dinov2-g")
        loaded = kit.execute("InlayLoadAdapter", "full.safetensors")[0]
        image, mask = photograph
        made = kit.execute("IdentityEncoderDINOv2", [vision], [loaded], [image], [mask])
    del vision, loaded
    forget()
    shutil.rmtree(folder)
    return made


def forget():
    import comfy.model_management

    comfy.model_management.unload_all_models()
    gc.collect()


def test_the_object_becomes_a_token_for_each_patch(identity):
    positive, negative, seen = identity
    assert positive[0][0].shape == negative[0][0].shape == (1, 1 + 4 + 256, 768)
    assert torch.isfinite(positive[0][0]).all()
    assert seen.shape == (1, 224, 224, 3)


@pytest.fixture(scope="module")
def sd15(in_process_host, tmp_path_factory):
    """model, clip, vae of a full-size inpainting checkpoint, and where its file lies."""
    import comfy.sd

    file = full_size["write_checkpoint"](tmp_path_factory.mktemp("full") / "sd15.safetensors")
    with torch.inference_mode():
        yield *comfy.sd.load_checkpoint_guess_config(str(file))[:3], file
    shutil.rmtree(file.parent)


def test_it_is_painted_into_another_photograph(kit, sd15, identity, scene):
    host_nodes = importlib.import_module("nodes")

    model, _, vae, _ = sd15
    image, hole = scene
    (rough, _) = kit.execute("InlayMaskLevels", hole, "3 rough shape", image)
    (clean,) = kit.execute("InlayBackgroundBlending", model, "clean")
    turned, positive, negative, latent = kit.execute(
        "InlayObjectStitchConditioning", clean, *identity[:2], vae, image, rough
    )
    samples = host_nodes.KSampler().sample(turned, 0, 1, 3.0, "euler", "normal", positive, negative, latent)[
        0
    ]
    decoded = host_nodes.VAEDecode().decode(vae, samples)[0]
    result, *_ = kit.execute("InlayPasteBack", image, decoded, rough, feather=4)
    assert result.shape == image.shape
    assert torch.isfinite(result).all()
    assert torch.equal(result[:, :100], image[:, :100])


def test_it_is_inserted_without_a_mask(kit, in_process_host, sd15, photograph, scene):
    import comfy.clip_vision
    import comfy.sd
    from comfy_extras.nodes_custom_sampler import KSamplerSelect, Noise_RandomNoise, SamplerCustomAdvanced

    from inlay.encoders.checkpoint_layouts import METADATA, describe_checkpoint
    from inlay.encoders.embedding_optimizer import EmbeddingOptimizer, OptimizerConfig

    _, _, vae, file = sd15
    prefix = "model.diffusion_model."
    state = {k.removeprefix(prefix): v for k, v in load_file(file).items() if k.startswith(prefix)}
    state["input_blocks.0.0.weight"] = state["input_blocks.0.0.weight"][:, :8].contiguous()
    model = comfy.sd.load_diffusion_model_state_dict(state)
    configuration = Path(comfy.clip_vision.__file__).with_name("clip_vision_config_vitl.json")
    vision = comfy.clip_vision.ClipVisionModel(str(configuration))
    vision.load_sd(random_state(vision.model))
    with torch.device("meta"):
        fresh = EmbeddingOptimizer(OptimizerConfig())
    path = in_process_host.models / "inlay" / "full_optimizer.safetensors"
    weights = {f"adapter.{name}": value for name, value in random_state(fresh).items()}
    save_file(weights, path, {METADATA: describe_checkpoint(OptimizerConfig())})
    optimizer = kit.execute("InlayLoadAdapter", path.name)[0]
    image, (cup, mask) = scene[0], photograph
    _, _, latent, guider = kit.execute(
        "ImageConditionedPix2Pix", model, vae, vision, optimizer, image, torch.cat([cup, mask[..., None]], -1)
    )
    wired: Any = guider, KSamplerSelect.execute("euler"), torch.tensor([14.6, 0.0])
    sampled: Any = SamplerCustomAdvanced.execute(
        Noise_RandomNoise(0), wired[0], wired[1].result[0], wired[2], latent
    )
    decoded = importlib.import_module("nodes").VAEDecode().decode(vae, sampled.result[0])[0]
    (result,) = kit.execute("InlayCropBack", decoded, image)
    assert result.shape == image.shape
    assert torch.isfinite(result).all()
