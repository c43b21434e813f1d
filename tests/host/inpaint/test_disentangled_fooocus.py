"""Fooocus' inpaint patch: its files, its arithmetic, its head in both stages. Shaped for the tiny UNet."""

import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch


@pytest.fixture(scope="module")
def parts(random_tiny):
    """`.model` and `.vae` of a plain 4-channel UNet with random weights."""
    model, _, vae = random_tiny(4)
    return SimpleNamespace(model=model, vae=vae)


@pytest.fixture
def inference():
    with torch.inference_mode():
        yield


KEY = "diffusion_model.middle_block.0.in_layers.2.weight"


def deltas(model, scale):
    weight = model.model.state_dict()[KEY]
    steps = torch.randint(0, 256, weight.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return {KEY: (steps, torch.tensor(-scale), torch.tensor(scale))}


@pytest.fixture
def files(in_process_host, parts):
    """The names of a head and a patch in models/inpaint."""
    folder = in_process_host.models / "inpaint"
    folder.mkdir(exist_ok=True)
    in_process_host.folder_paths.add_model_folder_path("inpaint", str(folder))
    head = 0.2 * torch.randn(320, 5, 3, 3, generator=torch.Generator().manual_seed(1))
    torch.save({"head": head}, folder / "head.pth")
    torch.save(deltas(parts.model, 0.05), folder / "v26.fooocus.patch")
    return SimpleNamespace(folder=folder, head="head.pth", patch="v26.fooocus.patch", weights=head)


def execute(name, *arguments, **inputs):
    from inlay import nodes

    return getattr(nodes, name).PREPARE_CLASS_CLONE(None).execute(*arguments, **inputs).result


def words():
    text = torch.randn(1, 77, 768, generator=torch.Generator().manual_seed(0))
    return [[text, {"pooled_output": None}]]


def sample(parts, patch=None, positive=None, **more):
    image = torch.rand(1, 48, 48, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 48, 48)
    mask[:, 20:26, 20:26] = 1
    return execute(
        "DisentangledInpaintSampler",
        parts.model, positive or words(), words(), parts.vae, image, mask, 3, 4, 2.0, "euler", "normal",
        close_up_size=32, soft_edge=2, inpaint_patch=patch, **more,
    )  # fmt: skip


def test_the_loaded_patch_is_what_the_files_hold(files, inference):
    (patch,) = execute("InlayLoadFooocusInpaint", files.head, files.patch)
    head, loaded = patch  # the pair that Acly's nodes hand on and take
    assert torch.equal(head.head, files.weights)
    assert [len(delta) for delta in loaded.values()] == [3]
    x = torch.randn(2, 5, 7, 6)
    padded = torch.nn.functional.pad(x.double(), (1, 1, 1, 1), "replicate")
    expected = torch.einsum(
        "bchwij,ocij->bohw", padded.unfold(2, 3, 1).unfold(3, 3, 1), files.weights.double()
    )
    assert (head(x) - expected).abs().max() < 1e-4


def test_the_weights_get_the_bytes_difference(parts, inference):
    import comfy.lora

    from inlay.conditioning.fooocus import InpaintHead, InpaintPatch, patch_weights

    steps, low, high = deltas(parts.model, 0.05)[KEY]
    patch = InpaintPatch(InpaintHead(torch.zeros(320, 5, 3, 3)), {KEY: (steps, low, high)})
    patched = patch_weights(parts.model, patch)
    weight = parts.model.model.state_dict()[KEY].float()
    got = comfy.lora.calculate_weight(patched.patches[KEY], weight.clone(), KEY)
    assert torch.allclose(got, weight + steps / 255 * (high - low) + low, atol=1e-6)
    assert KEY not in parts.model.patches


def test_the_weights_are_patched_once_for_all_executions(parts, inference):
    """The host patches anew when `patches_uuid` changes: with every seed, some 1000 weights of SDXL."""
    from inlay.conditioning.fooocus import InpaintHead, InpaintPatch, patch_weights

    def patch():
        return InpaintPatch(InpaintHead(torch.zeros(320, 5, 3, 3)), deltas(parts.model, 0.05))

    one, other = patch(), patch()
    first = patch_weights(parts.model, one).patches_uuid
    assert patch_weights(parts.model, InpaintPatch(*one)).patches_uuid == first
    assert patch_weights(parts.model, other).patches_uuid != first
    changed = parts.model.clone()
    changed.add_patches({KEY: (torch.zeros_like(parts.model.model.state_dict()[KEY]),)})
    assert patch_weights(changed, one).patches_uuid != first
    assert parts.model.patches_uuid != first


def test_the_host_can_move_the_difference_to_another_device(parts, inference):
    """Low-VRAM loading counts a patch's bytes and rebuilds it from copies of its tensors."""
    import comfy.lora
    from comfy.model_patcher import LowVramPatch

    from inlay.conditioning.fooocus import InpaintHead, InpaintPatch, patch_weights

    patch = InpaintPatch(InpaintHead(torch.zeros(320, 5, 3, 3)), deltas(parts.model, 0.05))
    patched = patch_weights(parts.model, patch)
    weight = parts.model.model.state_dict()[KEY].float()
    low: Any = LowVramPatch(KEY, patched.patches)
    assert low.memory_required() >= patch.deltas[KEY][0].nbytes
    low.prepare(None, None, copy=False)
    [(_, moved, *_)] = low.prepared_patches
    assert moved.loaded_keys == {KEY}
    expected = comfy.lora.calculate_weight(patched.patches[KEY], weight.clone(), KEY)
    assert torch.equal(moved.calculate_weight(weight.clone(), KEY, 1.0, 1.0, None, lambda w: w), expected)


def test_a_prompt_limited_to_an_area_is_named(parts, files, inference):
    (patch,) = execute("InlayLoadFooocusInpaint", files.head, files.patch)
    area = [[text, {"area": ("percentage", 0.5, 1.0, 0.0, 0.0)}] for text, _ in words()]
    with pytest.raises(ValueError, match="inpaint_patch: it does not go with prompts limited to an area"):
        sample(parts, patch, words() + area, close_up_share=0.0)


def test_head_and_weights_act_in_every_stage_and_leave_no_trace(parts, files, inference):
    from inlay.conditioning.fooocus import InpaintHead

    plain = sample(parts)[0]
    (patch,) = execute("InlayLoadFooocusInpaint", files.head, files.patch)
    nothing = InpaintHead(torch.zeros(320, 5, 3, 3)), deltas(parts.model, 0.0)
    results = {}
    for share in (0.0, 0.5, 1.0):
        results[share] = sample(parts, patch, close_up_share=share)[0]
        without = sample(parts, nothing, close_up_share=share)[0]
        assert torch.isfinite(results[share]).all()
        assert not torch.equal(results[share], without)
        assert torch.allclose(without, sample(parts, close_up_share=share)[0], atol=1e-5)
    only_head = sample(parts, (patch.head, nothing[1]))[0]
    assert not torch.equal(only_head, plain)
    assert torch.equal(sample(parts)[0], plain)


def test_a_patch_for_another_model_is_named(parts, files, inference):
    (patch,) = execute("InlayLoadFooocusInpaint", files.head, files.patch)
    other = patch.head, {f"{key}.else": delta for key, delta in patch.deltas.items()}
    with pytest.raises(ValueError, match=r"inpaint_patch: it fits 0 of 1 weights .* SDXL"):
        sample(parts, other)


def test_other_files_are_named_and_code_in_them_is_not_run(files, inference):
    with pytest.raises(ValueError, match=r"head: .* is not Fooocus' inpaint head"):
        execute("InlayLoadFooocusInpaint", files.patch, files.patch)
    with pytest.raises(ValueError, match=r"patch: .* is not Fooocus' patch"):
        execute("InlayLoadFooocusInpaint", files.head, files.head)
    with pytest.raises(ValueError, match=r"head: there is no 'nowhere\.pth'"):
        execute("InlayLoadFooocusInpaint", "nowhere.pth", files.patch)

    class Evil:
        def __reduce__(self):
            return (open, (str(files.folder / "ran"), "w"))

    (files.folder / "evil.pth").write_bytes(pickle.dumps({"head": Evil()}))
    with pytest.raises(ValueError, match=r"head: 'evil\.pth' .*holds Python objects"):
        execute("InlayLoadFooocusInpaint", "evil.pth", files.patch)
    assert not (files.folder / "ran").exists()


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_head_sees_the_hole_of_the_noise_mask(parts, files, inference, share):
    """On the close-up and on the window: a feature that is the hole itself, where only the mask weighs."""
    from comfy.patcher_extension import WrappersMP

    from inlay.conditioning.fooocus import InpaintHead, InpaintPatch, block_patch

    head = torch.zeros(320, 5, 3, 3)
    head[0, 0, 1, 1] = 1  # the mask's own pixel
    patch = InpaintPatch(InpaintHead(head), deltas(parts.model, 0.0))
    added, noise_masks = [], []

    def watch_network(executor, x, *arguments, **kwargs):
        options = arguments[4] if len(arguments) > 4 else kwargs["transformer_options"]
        plain = torch.zeros(1, 320, *x.shape[-2:])
        for add in options["patches"]["input_block_patch"]:
            plain = add(plain, options | {"block": ("input", 0)})
        added.append(plain[0, 0])
        return executor(x, *arguments, **kwargs)

    def watch_sampler(executor, *arguments, **kwargs):
        noise_masks.append(arguments[6][0, 0])
        return executor(*arguments, **kwargs)

    model = parts.model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "watch", watch_network)
    model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "watch", watch_sampler)
    sample(SimpleNamespace(model=model, vae=parts.vae), patch, close_up_share=share)
    assert len(noise_masks) == (1 if share in (0, 1) else 2)
    holes = [(mask.shape, mask.flatten().tolist()) for mask in noise_masks]
    assert all((seen.shape, seen.flatten().tolist()) in holes for seen in added)
    assert all(0 < seen.mean() < 1 for seen in added)

    # and training's rows, through the same function
    rows = torch.zeros(1, 1, 8, 8)
    rows[..., 2:5, 3:6] = 1
    add = block_patch(patch, rows, torch.zeros(1, 4, 8, 8))
    assert torch.equal(add(torch.zeros(1, 320, 8, 8), {"block": ("input", 0)})[0, 0], rows[0, 0])
