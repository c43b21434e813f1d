"""Through the nodes: mask channel, noise mask and attention get one hole, in close-up and window."""

import pytest
import torch


@pytest.fixture
def parts(random_tiny):
    with torch.inference_mode():
        yield random_tiny(9)


def execute(name, *arguments, **inputs):
    from inlay import nodes

    return getattr(nodes, name).PREPARE_CLASS_CLONE(None).execute(*arguments, **inputs).result


def words(seed):
    text = torch.randn(1, 77, 768, generator=torch.Generator().manual_seed(seed))
    return [[text, {"pooled_output": None}]]


def test_boxes_of_any_place_and_size(parts):
    """58 of 60 differed before, by 0.55 of the hole's cells on average."""
    from comfy.patcher_extension import WrappersMP

    model, _, vae = parts
    seen, noise_masks = [], []

    def watch_model(executor, x, t, c_concat, *arguments, **kwargs):
        options = arguments[2] if len(arguments) > 2 else kwargs["transformer_options"]
        (plan,) = (value for key, value in options.items() if key.startswith("inlay_regions"))
        grid = tuple(x.shape[-2:])
        labels = plan.at(grid, grid).labels[0].reshape(grid)
        assert c_concat is not None
        seen.append((c_concat[0, 0].clone(), labels.float()))
        return executor(x, t, c_concat, *arguments, **kwargs)

    def watch_sampler(executor, *arguments, **kwargs):
        noise_masks.append(arguments[6][0, 0].clone())
        return executor(*arguments, **kwargs)

    generator = torch.Generator().manual_seed(0)
    for number in range(12):
        top, left = torch.randint(0, 60, (2,), generator=generator).tolist()
        height, width = torch.randint(12, 60, (2,), generator=generator).tolist()
        mask = torch.zeros(1, 128, 128)
        mask[:, top : top + height, left : left + width] = 1
        patched = execute("MaskedAttentionPatch", model, mask)[0]
        patched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "watch", watch_model)
        patched.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "watch", watch_sampler)
        execute(
            "DisentangledInpaintSampler",
            patched, words(1), words(2), vae, torch.rand(1, 128, 128, 3), mask, 3, 2, 1.0, "euler", "normal",
            close_up_size=64, soft_edge=3, close_up_share=0.5, grow=number % 5,
        )  # fmt: skip
    assert len(noise_masks) == 24
    assert len(seen) >= 24
    for channel, labels in seen:
        assert torch.equal(channel, labels)
    shapes = [channel.shape for channel, _ in seen]
    holes = {
        (shape, tuple(mask.flatten().tolist()))
        for shape, mask in zip(shapes, (c for c, _ in seen), strict=True)
    }
    assert {(mask.shape, tuple(mask.flatten().tolist())) for mask in noise_masks} == holes
