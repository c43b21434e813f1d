"""What a base is known by: all that decides a result counts, and nothing else does."""

import pytest
import torch


@pytest.fixture(scope="module")
def model_fingerprint(parts):
    """Of the parts, or of others wired in their place."""
    from inlay.training.finetune.pipeline import Pipeline, encode_captions, pipeline_fingerprint

    def identify(**other):
        pipeline = Pipeline(**vars(parts) | other)
        with torch.inference_mode():
            return pipeline_fingerprint(pipeline, encode_captions(pipeline, ["a photo of sks cat"], 64))

    return identify


def test_a_prediction_of_another_kind_is_another_base(parts, model_fingerprint):
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    def predicting(kind):
        return ModelSamplingDiscrete().patch(parts.model, kind, False)[0]

    assert model_fingerprint(model=predicting("eps")) == model_fingerprint()
    assert model_fingerprint(model=predicting("v_prediction")) != model_fingerprint()


def test_a_text_encoder_that_stops_at_another_layer_is_another_base(parts, model_fingerprint):
    def stopping(layer):
        clip = parts.clip.clone()
        clip.clip_layer(layer)
        return clip

    assert model_fingerprint(clip=stopping(-2)) == model_fingerprint(clip=stopping(-2)) != model_fingerprint()


@pytest.mark.parametrize("kind", ["ModelMergeSimple", "ModelSubtract"])
def test_the_same_merge_made_twice_is_the_same_base(parts, random_tiny, model_fingerprint, kind):
    from comfy_extras import nodes_model_merging

    def merged(share, other=None):
        return getattr(nodes_model_merging, kind)().merge(parts.model, other or random_tiny(9)[0], share)[0]

    assert model_fingerprint(model=merged(0.5)) == model_fingerprint(model=merged(0.5))
    assert (
        model_fingerprint(model=merged(0.25)) != model_fingerprint(model=merged(0.5)) != model_fingerprint()
    )
    # A merge of a merge: what was merged into the other model counts as well.
    twice = [merged(0.5, merged(share, parts.model)) for share in (0.5, 0.5, 0.25)]
    assert (
        model_fingerprint(model=twice[0])
        == model_fingerprint(model=twice[1])
        != model_fingerprint(model=twice[2])
    )
    assert model_fingerprint(model=merged(0.5, parts.model)) != model_fingerprint(model=merged(0.5))
