"""The node as a user wires it: schema, outputs, and one clear sentence for each wrong input."""

import pytest
import torch


@pytest.fixture
def node(in_process_host):
    from inlay.nodes.masked_attention_patch import MaskedAttentionPatch

    return MaskedAttentionPatch


def test_the_schema(node):
    schema = node.GET_SCHEMA()
    assert schema.node_id == "MaskedAttentionPatch"
    order = [field.id for field in schema.inputs]
    assert order[:10] == [
        "model",
        "mask",
        "cross_attention",
        "self_attention",
        "self_strength",
        "operator",
        "layers",
        "start_percent",
        "end_percent",
        "apply_to",
    ]
    assert all(field.tooltip for field in schema.inputs)
    node.VALIDATE_CLASS()


def test_model_and_mask_are_enough(node, rig):
    from inlay.attention.host import mask_attention

    model = rig.model()
    patched, preview, report = node.execute(model, rig.mask).args
    assert torch.equal(rig.sample(patched), rig.sample(mask_attention(model, [rig.mask])))
    assert preview.shape == (2, 96, 80, 3)
    assert preview.min() >= 0
    assert preview.max() <= 1
    assert report.splitlines() == [
        "10x12 tokens: 24 of 120 inside",
        "5x6 tokens: 6 of 30 inside",
    ]


def test_a_tiny_box_is_kept_and_reported(node, rig):
    mask = torch.zeros(1, 96, 80)
    mask[0, 41:44, 33:36] = 1
    out = node.execute(rig.model(), mask)
    _, preview, report = out.args
    assert "1 of 30 inside; the mask vanishes here, its nearest token is kept" in report
    assert out.ui["text"] == (report,)
    orange = torch.tensor([1.0, 0.55, 0.10])
    kept = (preview[1] - 0.8 * orange).sub(0.2 * torch.tensor([0.12, 0.12, 0.14])).abs().amax(-1) < 1e-4
    y, x = kept.nonzero().float().mean(0).tolist()
    assert abs(y - 40) < 8
    assert abs(x - 40) < 16


def test_a_batch_of_masks_can_mean_subjects(node, rig):
    from inlay.attention.host import mask_attention

    model = rig.model()
    masks = torch.cat([rig.mask, rig.mask.flip(2)])
    out = node.execute(model, masks, mask_batch="one mask per subject", subject_tokens="1-4; 6, 8")
    expected = mask_attention(model, list(masks), text=[{1, 2, 3, 4}, {6, 8}])
    assert torch.equal(rig.sample(out.args[0]), rig.sample(expected))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": torch.full((1, 8, 8), torch.nan)}, "NaN"),
        ({"mask": torch.zeros(1, 8, 8)}, "empty"),
        ({"mask": torch.ones(5)}, "which is no mask"),
        ({"self_attention": "custom"}, "layer list is empty"),
        ({"self_attention": "custom", "layers": "output 99"}, "output 99"),
        ({"start_percent": 0.8, "end_percent": 0.2}, "swap them"),
        ({"subject_tokens": "1; 2"}, "2 subject"),
        ({"subject_tokens": "one"}, "no list of tokens"),
    ],
)
def test_wrong_inputs_get_one_sentence(node, rig, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        node.execute(rig.model(), **{"mask": rig.mask, **changes})
    assert "\n" not in str(error.value)


def test_a_transformer_without_a_row_is_refused_by_name(node, rig):
    import comfy.model_patcher
    import comfy.supported_models

    config = comfy.supported_models.SD3(
        {
            "in_channels": 16,
            "out_channels": 16,
            "patch_size": 2,
            "depth": 1,
            "input_size": None,
            "adm_in_channels": 16,
            "context_embedder_config": {
                "target": "torch.nn.Linear",
                "params": {"in_features": 16, "out_features": 64},
            },
            "num_patches": 64,
            "pos_embed_max_size": 8,
            "pos_embed_scaling_factor": None,
        }
    )
    config.set_inference_dtype(torch.float32, None)
    cpu = torch.device("cpu")
    model = comfy.model_patcher.ModelPatcher(config.get_model({}, ""), cpu, cpu)
    with pytest.raises(ValueError, match="no settings for SD3 models") as error:
        node.execute(model, rig.mask)
    assert "\n" not in str(error.value)


def test_a_transformer_reports_its_tokens_and_blocks(node, rig):
    from inlay.lab.models.tiny_transformers import tiny_transformer

    result = node.execute(tiny_transformer("flux1"), rig.mask, self_attention="double", photos="1: 0.8; 0")
    _, preview, report = result.result
    assert "5x6 tokens: 6 of 30 inside" in report
    assert "1 of 3 blocks: double 0" in report
    assert "photo 1 acts in box 1 at strength 0.8, photo 2 acts in every box at strength 1" in report
    assert preview.shape[0] == 1


@pytest.mark.parametrize("photos", ["x", "1: y", "1:2:3", "1: -1"])
def test_bindings_of_photos_are_checked(node, rig, photos):
    from inlay.lab.models.tiny_transformers import tiny_transformer

    with pytest.raises(ValueError, match="write one entry for each photo"):
        node.execute(tiny_transformer("flux1"), rig.mask, photos=photos)
