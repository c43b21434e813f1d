"""Every row of the table agrees with the host: detection, LoRA targets, latents, token counts."""

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from inlay.families.layout import IMAGE_KIND, REFERENCE, TEXT, TOKEN_ORDERS, length_of
from inlay.families.table import CHANNELS, FAMILIES, FILL, FLUX2_SCHEDULE, NO_REFERENCES, find_family, named
from inlay.lab.models.full_transformers import full_network
from inlay.lab.models.tiny_transformers import TINY

ROWS = [row.name for row in FAMILIES]


@pytest.mark.parametrize("name", ROWS)
def test_the_full_model_is_recognised_and_its_latents_fit_the_row(full_size, name):
    from inlay.host.families import family_of, working_side

    row = named(name)
    _, config, model = full_size(name)
    assert config is not None
    assert family_of(model) is row
    assert (config.latent_format.latent_dimensions == 3) == row.time_axis
    assert working_side(model) == row.side
    reads = config.unet_config.get("in_channels")
    assert not row.channels or reads == row.channels
    assert (row.condition == CHANNELS) == (not row.transformer)
    assert (row.condition == FILL) == (reads == 96)


# Linear layers of all blocks, counted in the trainers' lists (attention and feed-forward, no modulation).
LAYERS = {
    "sd15": 16 * 10, "sdxl": 70 * 10, "flux1": 19 * 8 + 38 * 2, "flux2-klein": 5 * 8 + 20 * 2,
    "qwen-image": 60 * 12, "z-image": 30 * 5, "krea2": 28 * 8, "anima": 28 * 10,
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_lora_targets_are_linear_layers_of_every_block(full_size, name):
    row = named(name)
    network, _, _ = full_size(name)
    target = re.compile(row.lora.targets)
    found = [path for path, module in network.named_modules() if target.fullmatch(path)]
    kinds = dict(network.named_modules())
    assert all(isinstance(kinds[path], torch.nn.Linear) for path in found)
    assert len(found) == LAYERS.get(name, len(found)) > 0


@pytest.mark.parametrize("name", TINY)
def test_lora_targets_load_under_the_names_of_the_usual_tools(in_process_host, name):
    import comfy.lora
    import comfy.utils

    from inlay.lab.models.tiny_transformers import tiny_transformer

    row, model = named(name), tiny_transformer(name)
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    network = model.get_model_object("diffusion_model")
    for path, _ in network.named_modules():
        if re.fullmatch(row.lora.targets, path):
            assert keys[f"diffusion_model.{path}"] == f"diffusion_model.{path}.weight"
            assert f"lora_unet_{path.replace('.', '_')}" in keys
    if row.lora.diffusers:
        names = getattr(comfy.utils, row.lora.diffusers)(model.model.model_config.unet_config)
        weights = set(network.state_dict())
        assert {place if isinstance(place, str) else place[0] for place in names.values()} & weights


@pytest.mark.parametrize("name", ROWS)
def test_lora_targets_of_the_full_model_have_the_names_of_the_usual_tools(full_size, name):
    """Ours, kohya's and, where the host maps them, diffusers': every target of the full network has all."""
    import comfy.lora
    import comfy.utils

    row = named(name)
    network, config, _ = full_size(name)
    config.set_inference_dtype(torch.bfloat16, None)
    base = config.get_model({}, "", device="meta")
    keys = comfy.lora.model_lora_keys_unet(base, {})
    targets = [path for path, _ in network.named_modules() if re.fullmatch(row.lora.targets, path)]
    for path in targets:
        assert keys[f"diffusion_model.{path}"] == f"diffusion_model.{path}.weight"
        assert f"lora_unet_{path.replace('.', '_')}" in keys
    if row.lora.diffusers:
        names = getattr(comfy.utils, row.lora.diffusers)(config.unet_config)
        mapped = {place if isinstance(place, str) else place[0] for place in names.values()}
        assert {f"{path}.weight" for path in targets} <= mapped


# Width of the text that the full networks read, where the host's configuration does not give it.
TEXT_WIDTHS = {
    "qwen-image": 3584, "qwen-image-edit-2511": 3584, "krea2": 12 * 2560, "omnigen2": 2048, "lens": 4 * 2880,
    "boogu": 4096, "anima": 1024,
}  # fmt: skip
WORDS = 77


def inputs_of(row, network, config) -> tuple[torch.Tensor, dict]:
    """The noisy latent and the other arguments of a full network, on the device "meta"."""
    channels = config.latent_format.latent_channels
    time = (1,) if row.time_axis else ()

    def made(*shape):
        return torch.empty(shape, device="meta")

    facts = config.unet_config
    width = TEXT_WIDTHS.get(row.name) or facts.get("context_in_dim") or facts["cap_feat_dim"]
    given: dict = {"context": made(1, WORDS, width)}
    if row.references != NO_REFERENCES:
        given["ref_latents"] = [made(1, channels, *time, *size) for size in ((31, 42), (24, 17))]
    if row.reference_method:
        given["ref_latents_method"] = row.reference_method
    if row.name in ("z-image", "lumina2", "omnigen2", "boogu"):
        given["num_tokens"] = WORDS
    if row.name.startswith(("flux", "chroma", "longcat")):
        given |= {"guidance": made(1), "y": made(1, 768)}
    return made(1, row.channels or channels, *time, 31, 42), given


@pytest.mark.parametrize("name", TINY)
def test_the_layout_of_the_full_model_has_the_length_of_its_attention(full_size, monkeypatch, name):
    """Every block of the full network attends once over the sequence; without memory for its weights."""
    import comfy.model_management

    from inlay.attention.blocks import transformer_blocks
    from inlay.host.families import layout_of, token_order

    # the host's fused kernels have no form for "meta"; its training mode goes round them
    monkeypatch.setattr(comfy.model_management, "in_training", True)
    _, config, _ = full_size(name)
    row, network = named(name), full_network(name, torch.float32)
    order = token_order(network)
    assert order is not None
    latent, given = inputs_of(row, network, config)
    lengths = []

    def override(function, q, k, v, heads, mask=None, **kwargs):
        rows, queries, keys = q.shape[0], *(t.shape[2 if kwargs.get("skip_reshape") else 1] for t in (q, k))
        lengths.append((queries, keys))
        if not kwargs.get("skip_reshape"):
            return torch.empty_like(q)
        width = q.shape[-1]
        return q.new_empty(rows, queries, heads * width)

    options = {"optimized_attention_override": override}
    network(latent, torch.empty(1, device="meta"), transformer_options=options, **given)
    shapes = [tuple(reference.shape) for reference in given.get("ref_latents", ())]
    spans = layout_of(network, latent.shape, WORDS, shapes)
    assert spans is not None
    length = length_of(spans)
    assert max(lengths)[0] == length
    assert lengths.count((length, length)) == len(transformer_blocks(network, order))


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("size", [(7, 10), (8, 6)])
def test_the_layout_has_the_length_of_the_attention(in_process_host, name, size):
    """The longest sequence that the network attends over, with two references where it reads them."""
    import comfy.sample

    from inlay.host.families import family_of, layout_of
    from inlay.lab.models.tiny_transformers import random_latent, random_prompt, tiny_transformer

    row, model = named(name), tiny_transformer(name)
    assert family_of(model) is row
    latent = random_latent(model, *size)
    references = [random_latent(model, 4, 6), random_latent(model, 5, 3)]
    extras: dict = {} if row.references == NO_REFERENCES else {"reference_latents": references}
    if row.reference_method:
        extras["reference_latents_method"] = row.reference_method
    lengths = set()

    def override(function, q, k, v, heads, *args, **kwargs):
        lengths.add(q.shape[2 if kwargs.get("skip_reshape") else 1])
        return function(q, k, v, heads, *args, **kwargs)

    model.model_options["transformer_options"]["optimized_attention_override"] = override
    prompt = random_prompt(name, 1, **extras)
    with torch.inference_mode():
        comfy.sample.sample(
            model, latent, 1, 1.0, "euler", "simple", prompt, prompt, latent * 0, seed=1, disable_pbar=True
        )
    network = model.get_model_object("diffusion_model")
    text = 512 if name.startswith("flux2") else prompt[0][0].shape[1]
    reads = TEXT in TOKEN_ORDERS[type(network).__name__].order  # else cross-attention has the text
    shapes = [tuple(reference.shape) for reference in extras.get("reference_latents", ())]
    spans = layout_of(network, latent.shape, text, shapes)
    assert spans is not None
    assert length_of(spans) == max(lengths)
    counted = sum(span.count for span in spans if span.kind == TEXT and not span.number)
    assert counted == (text if reads else 0)
    assert [span.grid for span in spans if span.kind == IMAGE_KIND] == (
        [size] if name.startswith("flux2") or name == "lens" else [(-(-size[0] // 2), -(-size[1] // 2))]
    )
    assert sum(span.kind == REFERENCE for span in spans) == len(shapes)


def model_of(config: str, path: str | None = None, **facts) -> Any:
    base = SimpleNamespace(model_config=type(config, (), {"unet_config": facts})())
    return SimpleNamespace(model=base, cached_patcher_init=path and (None, (path, {})))


@pytest.mark.parametrize(
    ("config", "file", "steps", "cfg"),
    [
        ("Flux2", "flux-2-klein-4b-fp8.safetensors", 4, 1.0),
        ("Flux2", "flux-2-klein-base-4b.safetensors", 20, 5.0),
        ("Flux2", None, 20, 5.0),
        ("ZImage", "z_image_turbo_bf16.safetensors", 8, 1.0),
        ("ZImage", "z_image_bf16.safetensors", 25, 4.0),
        ("Krea2", "krea2_turbo.safetensors", 8, 1.0),
        ("SD15", "dreamshaper.safetensors", 30, 4.0),
    ],
)
def test_settings_follow_the_family_and_the_words_of_the_file_name(in_process_host, config, file, steps, cfg):
    from inlay.host.families import settings_of

    settings = settings_of(model_of(config, file and f"/models/base/{file}"))
    assert settings is not None
    assert (settings.steps, settings.cfg) == (steps, cfg)


def test_kontext_is_told_from_dev_by_its_file_alone(in_process_host):
    from inlay.host.families import settings_of

    for file, guidance in (("flux1-dev.safetensors", 3.5), ("flux1-dev-kontext_fp8_scaled.safetensors", 2.5)):
        settings = settings_of(model_of("Flux", file))
        assert settings is not None
        assert settings.guidance == guidance


def test_every_setting_names_a_sampler_and_a_scheduler_of_the_host(in_process_host):
    import comfy.samplers

    for row in FAMILIES:
        for settings in (row.settings, *(variant for _, variant in row.variants)):
            assert settings.sampler in comfy.samplers.KSampler.SAMPLERS
            assert settings.scheduler in [*comfy.samplers.KSampler.SCHEDULERS, FLUX2_SCHEDULE]


def test_a_model_without_a_row_gets_one_sentence(in_process_host):
    from inlay.host.families import family_of, require_family

    model = model_of("HiDream")
    assert family_of(model) is None
    with pytest.raises(ValueError, match="no settings for HiDream models; blending and pasting back work"):
        require_family(model)
    assert find_family("SDXLRefiner", {}) is None
