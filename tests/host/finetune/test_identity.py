"""What a base is known by: all that decides a result counts, and nothing else does."""

import pytest


@pytest.fixture(scope="module")
def identity(parts):
    """Of the parts, or of others wired in their place."""
    from inlay.training.finetune.host import identity

    return lambda **other: identity(**vars(parts) | other)


def test_a_prediction_of_another_kind_is_another_base(parts, identity):
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    def predicting(kind):
        return ModelSamplingDiscrete().patch(parts.model, kind, False)[0]

    assert identity(model=predicting("eps")) == identity()
    assert identity(model=predicting("v_prediction")) != identity()


def test_a_text_encoder_that_stops_at_another_layer_is_another_base(parts, identity):
    def stopping(layer):
        clip = parts.clip.clone()
        clip.clip_layer(layer)
        return clip

    assert identity(clip=stopping(-2)) == identity(clip=stopping(-2)) != identity()


@pytest.mark.parametrize("kind", ["ModelMergeSimple", "ModelSubtract"])
def test_the_same_merge_made_twice_is_the_same_base(parts, random_tiny, identity, kind):
    from comfy_extras import nodes_model_merging

    def merged(share, other=None):
        return getattr(nodes_model_merging, kind)().merge(parts.model, other or random_tiny(9)[0], share)[0]

    assert identity(model=merged(0.5)) == identity(model=merged(0.5))
    assert identity(model=merged(0.25)) != identity(model=merged(0.5)) != identity()
    # A merge of a merge: what was merged into the other model counts as well.
    twice = [merged(0.5, merged(share, parts.model)) for share in (0.5, 0.5, 0.25)]
    assert identity(model=twice[0]) == identity(model=twice[1]) != identity(model=twice[2])
    assert identity(model=merged(0.5, parts.model)) != identity(model=merged(0.5))
