"""Control models that hold a picture, in the sampler: the host's networks with random weights."""

import pytest
import torch

from inlay.lab.models.tiny_transformers import random_prompt, tiny_transformer, tiny_vae
from inlay.tests.host.families.painting import SIZE, pictures, sample, spots

MASK = spots((20, 30))


def randomised(network):
    generator = torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        values = torch.randn(parameter.shape, generator=generator) * 0.1
        parameter.data = values + 1 if "norm" in name and name.endswith("weight") else values
    return network.eval()


def as_patch(network):
    import comfy.model_patcher

    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(randomised(network), cpu, cpu)


def z_image_control(model, vae, image, mask):
    """Z-Image's inpainting control model: masked picture and mask."""
    import comfy.ops
    from comfy.ldm.lumina.controlnet import ZImage_Control
    from comfy_extras.nodes_model_patch import ZImageFunControlnet

    network = ZImage_Control(
        dim=256, n_heads=8, n_kv_heads=8, multiple_of=32, ffn_dim_multiplier=1.0, n_control_layers=2,
        additional_in_dim=17, refiner_control=True, operations=comfy.ops.manual_cast,
    )  # fmt: skip
    given = {"inpaint_image": image, "mask": mask}
    return ZImageFunControlnet().diffsynth_controlnet(model, as_patch(network), vae, **given)[0]


def qwen_control(model, vae, image, mask, inpaint=True):
    """Qwen-Image's control model of DiffSynth, with a mask channel or without."""
    import comfy.ops
    from comfy_extras.nodes_model_patch import QwenImageBlockWiseControlNet, QwenImageDiffsynthControlnet

    network = QwenImageBlockWiseControlNet(
        num_layers=2, additional_in_dim=4 if inpaint else 0, dim=64, operations=comfy.ops.manual_cast
    )
    given = {"mask": mask} if inpaint else {}
    return QwenImageDiffsynthControlnet().diffsynth_controlnet(model, as_patch(network), vae, image, **given)[
        0
    ]


def qwen_control_without_mask(model, vae, image, mask):
    return qwen_control(model, vae, image, mask, inpaint=False)


def anima_control(model, vae, image, mask):
    """Anima's LLLite, which reads pixels and changes queries, keys and values of the blocks."""
    import comfy.ops
    from comfy.ldm.anima import lllite
    from comfy_extras.nodes_model_patch import AnimaLLLiteApply

    operations = comfy.ops.manual_cast
    first = lllite.AnimaLLLiteConditioning(4, 16, 8, 1, (), operations=operations)
    parts: dict[str, torch.nn.Module] = {"lllite_conditioning1": first}
    for target in ("self_attn_q_proj", "self_attn_v_proj", "cross_attn_q_proj", "mlp_layer1"):
        parts[f"lllite_dit_blocks_0_{target}"] = lllite.AnimaLLLiteModule(64, 8, 4, operations=operations)
    weights = {f"{name}.{key}": v for name, part in parts.items() for key, v in part.state_dict().items()}
    patch = as_patch(lllite.AnimaLLLite(weights, {}, operations=operations))
    return AnimaLLLiteApply().apply_patch(model, patch, image, 1.0, 0.0, 1.0, mask)[0]


CONTROLS = {
    "z-image": [z_image_control],
    "qwen-image": [qwen_control, qwen_control_without_mask],
    "anima": [anima_control],
}
CASES = [(name, control) for name, controls in CONTROLS.items() for control in controls]


@pytest.fixture(autouse=True)
def inference(in_process_host):
    with torch.inference_mode():
        yield


def paint(name, control, controlled, image, mask=MASK, control_mask=MASK, **choices):
    """The node's results with a control model that was given the picture `controlled`."""
    model, vae = tiny_transformer(name), tiny_vae(name)
    model = control(model, vae, controlled, control_mask)
    prompts = random_prompt(name, 1), random_prompt(name, 2)
    options = {"steps": 2, "close_up_share": 1.0} | choices
    return sample(name, model, vae, image, mask, *prompts, **options)


def seen_box():
    from inlay.imaging.boxes import bounding_box
    from inlay.sampling.stages import InpaintOptions, close_up_view

    options = InpaintOptions(64, soft_edge=3, grow=2, multiple=32)
    return close_up_view(bounding_box(MASK[0]), *SIZE, options).box


@pytest.mark.parametrize(("name", "control"), CASES)
def test_a_control_model_sees_the_view_and_nothing_outside(name, control):
    """Its picture changes the close-up by what lies in the view alone, bit for bit."""
    image, picture = pictures(1), pictures(1, seed=5)
    rows, columns = seen_box().slices
    elsewhere, here = 1 - picture, picture.clone()
    elsewhere[:, rows, columns] = picture[:, rows, columns]
    here[:, rows, columns] = 1 - here[:, rows, columns]
    one, other, changed = (paint(name, control, shown, image)[1] for shown in (picture, elsewhere, here))
    assert torch.equal(one, other)
    assert not torch.equal(one, changed)
    assert torch.isfinite(one).all()


# with a mask channel the host's own node takes one picture for Qwen-Image: its VAE reads a batch as a film
BATCHES = [case for case in CASES if case[1] is not qwen_control]


@pytest.mark.parametrize(("name", "control"), BATCHES)
def test_each_picture_of_a_batch_has_its_own_control_picture(name, control):
    image, masks, controlled = pictures(2), spots((20, 30), (20, 30)), pictures(2, seed=5)
    both = paint(name, control, controlled, image, masks, masks)[1]
    swapped = paint(name, control, controlled.flip(0), image, masks, masks)[1]
    same = paint(name, control, controlled[:1].expand(2, -1, -1, -1), image, masks, masks)[1]
    assert torch.equal(both[0], same[0])
    assert not torch.equal(both[1], same[1])
    assert not torch.equal(both[0], swapped[0])
