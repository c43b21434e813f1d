"""One LoRA file, three readers: the host's loader, diffusers' and kohya's way of naming and merging."""

import runpy
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file

RANK = 4


@pytest.fixture(scope="module")
def lora(in_process_host, host_work):
    """A MODEL, its weights, a LoRA file for it, and a twin that has it: `.model .weights .path .twin`."""
    import comfy.model_management
    import comfy.sd

    from inlay.host.models import trainable_copy
    from inlay.lab.models.assemble import random_checkpoint, write_checkpoint
    from inlay.training.finetune.lora import attach_adapter
    from inlay.training.finetune.lora_formats import lora_names
    from inlay.training.finetune.recipes import AdapterSpec

    checkpoint = write_checkpoint(host_work / "random" / "formats.safetensors", random_checkpoint(1))
    with torch.inference_mode():
        model: Any = comfy.sd.load_checkpoint_guess_config(str(checkpoint), output_vae=False)[0]
        comfy.model_management.load_models_gpu([model], force_full_load=True)
    weights = {key: weight.clone() for key, weight in model.model.diffusion_model.state_dict().items()}
    twin = trainable_copy(model, torch.float32)
    adapter = attach_adapter(twin, AdapterSpec(rank=RANK, alpha=2.0), torch.float32, 0)
    generator = torch.Generator().manual_seed(0)
    for p in adapter.parameters:
        p.data = 0.1 * torch.randn(p.shape, generator=generator)
    path = host_work / "random" / "cat.safetensors"
    save_file(adapter.export(lora_names(model)), path)
    return SimpleNamespace(model=model, weights=weights, path=path, twin=twin)


@pytest.fixture(scope="module")
def question():
    generator = torch.Generator().manual_seed(1)
    x, context = torch.randn(1, 9, 8, 8, generator=generator), torch.randn(1, 77, 768, generator=generator)
    return x, torch.tensor([500.0]), context


@pytest.fixture(scope="module")
def answer(lora, question):
    """What the network says with the LoRA it was trained with."""
    x, t, context = question
    with torch.no_grad():
        return lora.twin(x, t, context=context)


@pytest.fixture
def pipeline(lora):
    """diffusers' inpainting pipeline around the same UNet, without the LoRA."""
    import comfy.utils

    # loosely typed on purpose: both packages hide their classes from type checkers
    diffusers, transformers = (cast(Any, import_module(name)) for name in ("diffusers", "transformers"))

    unet = diffusers.UNet2DConditionModel(
        sample_size=64,
        in_channels=9,
        block_out_channels=(320,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        layers_per_block=1,
        cross_attention_dim=768,
        attention_head_dim=8,
    )
    names = comfy.utils.unet_to_diffusers(lora.model.model.model_config.unet_config)
    converted = {theirs: lora.weights[ours] for theirs, ours in names.items() if ours in lora.weights}
    assert len(converted) == len(lora.weights)
    unet.load_state_dict(converted)
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    return diffusers.StableDiffusionInpaintPipeline(
        vae=diffusers.AutoencoderKL(block_out_channels=(32,)),
        text_encoder=transformers.CLIPTextModel(transformers.CLIPTextConfig(vocab_size=8, **shape)),
        tokenizer=None,
        unet=unet,
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def diffusers_answer(pipeline, question):
    x, t, context = question
    with torch.no_grad():
        return pipeline.unet(x, t, encoder_hidden_states=context).sample


def close(ours, theirs):
    return (ours - theirs).norm() <= 1e-4 * theirs.norm()


def test_the_lora_matters(lora, question, answer):
    x, t, context = question
    with torch.inference_mode():
        assert not close(lora.model.model.diffusion_model(x, t, context=context), answer)


def test_the_hosts_lora_loader_reads_it(lora, question, answer, in_process_host):
    import shutil

    import comfy.model_management
    from nodes import LoraLoader  # pyright: ignore[reportAttributeAccessIssue]  (the host's, not ours)

    shutil.copy(lora.path, in_process_host.models / "loras" / "cat.safetensors")
    x, t, context = question
    with torch.inference_mode():
        patched, _ = LoraLoader().load_lora(lora.model, None, "cat.safetensors", 1.0, 0.0)
        comfy.model_management.load_models_gpu([patched])
        assert close(patched.model.diffusion_model(x, t, context=context), answer)


def test_diffusers_reads_it(lora, question, answer, pipeline):
    assert not close(diffusers_answer(pipeline, question), answer)
    pipeline.load_lora_weights(str(lora.path))
    assert close(diffusers_answer(pipeline, question), answer)


def test_it_is_named_and_scaled_as_kohya_does(lora, question, answer, pipeline):
    """kohya's networks/lora.py: lora_unet_<path with _>, W + alpha / rank * up @ down."""
    tensors = load_file(lora.path)
    used = set()
    for path, layer in pipeline.unet.named_modules():
        name = f"lora_unet_{path}".replace(".", "_")
        if f"{name}.lora_up.weight" in tensors:
            up, down, alpha = (
                tensors[f"{name}.{part}"] for part in ("lora_up.weight", "lora_down.weight", "alpha")
            )
            layer.weight.data += alpha / down.shape[0] * up @ down
            used |= {key for key in tensors if key.startswith(f"{name}.")}
    assert used == set(tensors)
    assert close(diffusers_answer(pipeline, question), answer)


def test_a_dora_shows_in_the_host_the_weights_that_were_trained(lora, question):
    import comfy.model_management

    from inlay.host.models import apply_lora, trainable_copy
    from inlay.training.finetune.lora import attach_adapter
    from inlay.training.finetune.lora_formats import lora_names
    from inlay.training.finetune.recipes import AdapterSpec

    x, t, context = question
    with torch.inference_mode():  # another test's LoRA may be on the weights
        comfy.model_management.load_models_gpu([lora.model], force_full_load=True)
    twin = trainable_copy(lora.model, torch.float32)
    adapter = attach_adapter(twin, AdapterSpec(rank=RANK, dora=True), torch.float32, 0)
    generator = torch.Generator().manual_seed(2)
    for p in adapter.parameters:
        p.data += 0.1 * torch.randn(p.shape, generator=generator)
    with torch.inference_mode():
        trained = twin(x, t, context=context)
        patched = apply_lora(lora.model, adapter.export(lora_names(lora.model)))
        comfy.model_management.load_models_gpu([patched])
        assert close(patched.model.diffusion_model(x, t, context=context), trained)


SDXL = {
    "num_res_blocks": [2, 2, 2], "channel_mult": (1, 2, 4), "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "transformer_depth_middle": 10,
    "context_dim": 2048, "adm_in_channels": 2816, "num_classes": "sequential",
}  # fmt: skip
LINEAR = {"use_linear_in_transformer": True, "num_heads": -1, "num_head_channels": 64}
DIFFUSERS_SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10), "attention_head_dim": (5, 10, 20),
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
FULL_SIZE = {  # what the host's UNet has besides SD 1.5's shape, and diffusers' besides its defaults
    "SD15": ({}, {"cross_attention_dim": 768, "attention_head_dim": 8}),
    "SD20": (
        {"context_dim": 1024, **LINEAR},
        {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
    ),
    "SDXL": (
        {**SDXL, **LINEAR},
        {**DIFFUSERS_SDXL, "cross_attention_dim": 2048, "use_linear_projection": True},
    ),
}


@pytest.mark.parametrize("family", list(FULL_SIZE))
def test_diffusers_finds_every_layer_of_a_full_size_model(in_process_host, family):
    """Names and shapes only: both UNets are on the meta device, which holds no numbers."""
    import comfy.ops
    import comfy.supported_models
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    from inlay.training.finetune.lora import exported_shapes
    from inlay.training.finetune.lora_formats import lora_names
    from inlay.training.finetune.recipes import AdapterSpec

    size = runpy.run_path(str(Path(__file__).parents[1] / "full_size.py"))["UNET"]
    ours, theirs = FULL_SIZE[family]
    diffusers = cast(Any, import_module("diffusers"))
    with torch.device("meta"):
        unet = UNetModel(**{**size, **ours}, operations=comfy.ops.disable_weight_init)
        other = diffusers.UNet2DConditionModel(in_channels=9, **theirs)
    config = getattr(comfy.supported_models, family)({**size, **ours})
    model = SimpleNamespace(model=SimpleNamespace(model_config=config))
    shapes = exported_shapes(unet, AdapterSpec(rank=RANK), lora_names(model))
    state = {
        key: torch.empty(shape, device="meta")
        if shape
        else torch.tensor(float(RANK))  # diffusers reads alpha
        for key, shape in shapes.items()
    }
    pipeline = "StableDiffusionXLPipeline" if family == "SDXL" else "StableDiffusionPipeline"
    count = len(state) // 3  # diffusers takes them out of it
    found, _ = getattr(diffusers, pipeline).lora_state_dict(state, unet_config=other.config)[:2]
    layers = dict(other.named_modules())
    downs = {key: tensor for key, tensor in found.items() if key.endswith("_lora.down.weight")}
    for key, tensor in downs.items():
        path = key.removeprefix("unet.").removesuffix("_lora.down.weight").replace(".processor", "")
        path += ".0" if path.endswith("to_out") else ""
        assert tensor.shape == (RANK, layers[path].weight.shape[1]), key
    assert len(downs) == count == sum(path.endswith("to_q") for path in layers) * 4
