"""Region attention of every transformer against one dense softmax with an explicit mask."""

import math
from types import SimpleNamespace

import pytest
import torch

from inlay.families.layout import IMAGE_KIND, PAD, REFERENCE, TEXT, TOKEN_ORDERS, Span
from inlay.families.table import NO_REFERENCES, named
from inlay.lab.models.tiny_transformers import TINY, random_latent, random_prompt, tiny_transformer

SIZE = (9, 12)
TEXT_TOKENS = 7
OWN_TEXT = [{1, 2, 5}, {3, 5}]  # token 5 belongs to both, token 0 to none
PHOTOS = [(1, 0.5), (2, 1.0), (0, 1.0)]
KEY = "optimized_attention_override"


def masks_of(batch=2):
    """Two boxes, in other places in every picture of the batch."""
    first, second = torch.zeros(batch, 72, 96), torch.zeros(batch, 72, 96)
    for image in range(batch):
        first[image, 8 + 8 * image : 40, 16:48] = 1
        second[image, 40:64, 56 : 88 - 16 * image] = 1
    return [first, second]


def prompt_of(name, model, seed, length=TEXT_TOKENS, photos=4, **extras):
    """A prompt with a scene and three photos of other sizes, where the family reads references."""
    row = named(name)
    if row.references != NO_REFERENCES:
        sizes = [SIZE, (4, 6), (5, 3), (2, 2)][:photos]
        extras["reference_latents"] = [random_latent(model, *s, seed=20 + i) for i, s in enumerate(sizes)]
    if row.reference_method:
        extras["reference_latents_method"] = row.reference_method
    return random_prompt(name, seed, length, pooled_output=torch.ones(1, 16), **extras)


def run(name, model, positive=None, negative=None, batch=2, cfg=3.0, size=SIZE, percent=1.0):
    """The outputs of the network in one step: of the positive and of the negative prompt."""
    import comfy.sample

    outputs = []
    network = model.get_model_object("diffusion_model")
    hook = network.register_forward_hook(lambda module, args, output: outputs.append(output))
    latent = random_latent(model, *size, batch=batch)
    positive = positive or prompt_of(name, model, 2)
    negative = negative or prompt_of(name, model, 3, length=5)
    try:
        with torch.inference_mode():
            comfy.sample.sample(
                model, latent, 1, cfg, "euler", "simple", positive, negative, latent * 0, seed=1,
                disable_pbar=True, denoise=percent,
            )  # fmt: skip
    finally:
        hook.remove()
    return outputs


def roles(spans, tokens, start):
    """One (kind, readers, (photo, strength)) per token, written from the contract and not from the code."""
    both = {1, 2}
    listed = []
    for span in spans:
        if span.kind == IMAGE_KIND:
            listed += [("in", {int(t)}, 1) if t else ("out", set(), 1) for t in tokens]
        elif span.kind == TEXT:
            for position in range(span.count):
                own = {k for k in both if position - start in OWN_TEXT[k - 1]}
                listed.append(("text", set() if span.number else own, 1))  # number 1: padding
        elif span.kind == REFERENCE:
            box, strength = PHOTOS[span.number - 1] if span.number else (0, 1)
            kind = "photo" if span.number else "scene"
            listed += [(kind, {box} if box else both, (span.number, strength))] * span.count
        else:
            assert span.kind == PAD
            listed += [("pad", set(), 1)] * span.count
    return listed


def weight(query, key):
    """What a token sees of another one."""
    (kind, readers, own), (other, others, photo) = query, key
    if other == "pad":
        return 1
    visible = {
        "in": {"in", "text", "photo", "scene"},
        "out": {"out", "scene"},
        "scene": {"out", "scene"},
        "text": {"text", "in", "photo"},
        "photo": {"photo", "text"},
        "pad": set(),
    }[kind]
    if other not in visible:
        return 0
    if other in ("in", "text", "photo") and not readers <= others:
        return 0
    return photo[1] if other == "photo" and own != photo else 1


def weights_of(queries, keys):
    """(queries, keys) weights of every query (row) and key."""
    queries, keys = (
        [(kind, frozenset(readers), photo) for kind, readers, photo in r] for r in (queries, keys)
    )
    kinds = list(dict.fromkeys([*queries, *keys]))
    of_kind = torch.tensor([[weight(q, k) for k in kinds] for q in kinds], dtype=torch.float64)
    rows, columns = (torch.tensor([kinds.index(role) for role in listed]) for listed in (queries, keys))
    return of_kind[rows][:, columns]


def dense(model, operator, strength, tokens_of, kinds=None):
    """An override with an S x S matrix of weights: what ours must equal."""
    from inlay.host.families import layout_of

    network = model.get_model_object("diffusion_model")
    order = TOKEN_ORDERS[type(network).__name__]
    seen = SimpleNamespace(calls=0, skipped=0, sequences={})

    def plan(x, context, references):
        starts = (context == 0).all(-1).sum(1).tolist()  # FLUX.2's text is padded on the left
        spans = layout_of(network, x.shape, context.shape[1], [r.shape for r in references])
        assert spans is not None
        parts = [(spans, spans)]
        for names in order.alone:
            alone = [span for span in spans if span.kind in names]
            parts.append((alone, alone))
        if not order.joint:
            parts.append((spans, [Span(TEXT, context.shape[1])]))
        seen.sequences = {}
        for part, keys in parts:
            counts = tuple(sum(span.count for span in side) for side in (part, keys))
            if all(counts) and (part is keys is spans or counts not in seen.sequences):
                images = []
                for row, start in enumerate(starts):
                    tokens = tokens_of[row % len(tokens_of)]
                    images.append(weights_of(*(roles(side, tokens, start) for side in (part, keys))))
                seen.sequences[counts] = torch.stack(images)
        refined = {TEXT: context.shape[1]}
        refined[IMAGE_KIND] = sum(span.count for span in spans if span.kind == IMAGE_KIND)
        seen.left_alone = [
            refined[kind]
            for kind, attribute in order.refiners
            if kind in refined
            for _ in getattr(network, attribute)
        ]

    def override(function, q, k, v, heads, mask=None, *args, **kwargs):
        dim = 2 if kwargs.get("skip_reshape") else 1
        count = q.shape[dim]
        if seen.left_alone and count == seen.left_alone[0]:
            seen.left_alone.pop(0)
            return function(q, k, v, heads, mask, *args, **kwargs)
        counts = (count, k.shape[dim])
        if counts not in seen.sequences:
            return function(q, k, v, heads, mask, *args, **kwargs)
        seen.calls += 1
        if dim == 1:
            q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        if k.shape[1] != q.shape[1]:
            k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
        weights = seen.sequences[counts][:, None].to(q)
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = scores + (mask if mask.ndim == 4 else mask.unsqueeze(1))
        if operator == "paper":
            p = scores.softmax(-1) * (1 - strength * (1 - weights))
        else:
            own = (scores + weights.log()).softmax(-1).nan_to_num()  # a query that sees nothing gets nothing
            p = own * strength + (1 - strength) * scores.softmax(-1)
        out = p @ v
        return out if kwargs.get("skip_output_reshape") else out.transpose(1, 2).flatten(2)

    def wrapper(executor, x, t, c_concat=None, c_crossattn=None, control=None, options=None, **kwargs):
        references = list(kwargs.get("ref_latents") or ()) if REFERENCE in order.order else []
        plan(x, c_crossattn, references)
        return executor(x, t, c_concat, c_crossattn, control, {**(options or {}), KEY: override}, **kwargs)

    model = model.clone()
    model.add_wrapper_with_key("apply_model", "dense", wrapper)
    return model, seen


def tokens_of(masks, patch):
    """Labels of the image's tokens, from the top-left cell of each: a cell is 8 pixels here."""
    rows, columns = range(0, SIZE[0], patch), range(0, SIZE[1], patch)
    first, second = masks
    return [
        [1 if first[i, 8 * y, 8 * x] else 2 if second[i, 8 * y, 8 * x] else 0 for y in rows for x in columns]
        for i in range(len(first))
    ]


def ours(model, masks, **options):
    from inlay.attention.model_patch import mask_attention

    return mask_attention(model, masks, **({"text": OWN_TEXT, "photos": PHOTOS} | options))


def patch_of(model):
    from inlay.host import families

    network = model.get_model_object("diffusion_model")
    order = families.token_order(network)
    assert order is not None
    return families.patch_of(network, order)


@pytest.fixture
def double_precision(in_process_host, monkeypatch):
    """The host's fused kernels refuse float64; its training mode goes round them.

    Not round that of Anima, whose plain form in the same library computes in the precision of the angles.
    """
    import comfy.model_management
    import comfy.quant_ops
    from comfy_kitchen.backends.eager import rope

    def rms_rope_split_half(q, k, angles, *scales):
        return rope.rms_rope_split_half(q, k, angles.double(), *scales)

    monkeypatch.setattr(comfy.quant_ops.ck, "rms_rope_split_half", rms_rope_split_half)
    monkeypatch.setattr(comfy.model_management, "in_training", True)
    return torch.float64


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("operator", ["paper", "renormalised"])
@pytest.mark.parametrize("name", TINY)
def test_equals_one_dense_softmax_in_float64(double_precision, name, operator, strength):
    model, masks = tiny_transformer(name, double_precision), masks_of()
    options = {"operator": operator, "cross_strength": strength, "self_strength": strength}
    got = run(name, ours(model, masks, **options))
    reference, seen = dense(model, operator, strength, tokens_of(masks, patch_of(model)))
    want = run(name, reference)
    assert seen.calls > 0
    assert len(got) == len(want) > 0
    for a, b in zip(got, want, strict=True):
        assert a.dtype == torch.float64
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12 * b.abs().max().item())
    plain = run(name, model)
    assert all((a - b).abs().max() > 1e-4 for a, b in zip(got, plain, strict=True))


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("operator", ["paper", "renormalised"])
def test_equals_one_dense_softmax_in_float32(in_process_host, name, operator):
    model, masks = tiny_transformer(name), masks_of()
    got = run(name, ours(model, masks, operator=operator))
    reference, _ = dense(model, operator, 1.0, tokens_of(masks, patch_of(model)))
    for a, b in zip(got, run(name, reference), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * b.abs().max().item())


@pytest.mark.parametrize("name", TINY)
def test_strength_0_and_steps_outside_the_range_keep_every_bit(in_process_host, name):
    model, masks = tiny_transformer(name), masks_of()
    plain = run(name, model)
    off = {"cross_strength": 0.0, "self_strength": 0.0}
    for masked in (ours(model, masks, **off), ours(model, masks, percent=(0.9, 1.0))):
        assert all(torch.equal(a, b) for a, b in zip(run(name, masked), plain, strict=True))


@pytest.mark.parametrize("name", TINY)
def test_an_override_of_another_pack_gives_the_same_bits_before_and_after_ours(in_process_host, name):
    """It is called for every block, with its options, and no call carries a mask of S x S."""
    model, masks, seen = tiny_transformer(name), masks_of(), []

    def neighbour(function, q, k, v, heads, mask=None, *args, **kwargs):
        assert kwargs["transformer_options"]["cond_or_uncond"]
        assert mask is None or mask.shape[-2] == 1
        seen.append((q.shape, k.shape))
        return function(q, k, v, heads, mask, *args, **kwargs)

    def with_neighbour(model):
        model = model.clone()
        model.model_options["transformer_options"][KEY] = neighbour
        return model

    alone = run(name, ours(model, masks, operator="renormalised"))
    before = run(name, ours(with_neighbour(model), masks, operator="renormalised"))
    calls = len(seen)
    after = run(name, with_neighbour(ours(model, masks, operator="renormalised")))
    assert calls == len(seen) - calls > 0
    for a, b, c in zip(alone, before, after, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def with_block_patches(model, seen):
    """Another pack's: one that adds to a block's image tokens (as DiffSynth's control models), where the
    network offers that, and one that takes a block's place and calls it."""

    def adds(given):
        seen.append("adds")
        return {**given, "img": given["img"] + 0.5 * given["img"].roll(1, -1)}

    def replaces(given, extra):
        seen.append("replaces")
        out = extra["original_block"](given)
        return {**out, "img": out["img"] - 0.3 * out["img"].roll(1, -1)}

    model = model.clone()
    model.set_model_patch(adds, "double_block")
    model.set_model_patch_replace(replaces, "dit", "double_block", 0)
    return model


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("qwen-image", {"adds", "replaces"}),
        ("z-image", {"adds"}),
        ("flux1", {"replaces"}),
        ("chroma", {"replaces"}),
    ],
)
def test_block_patches_of_another_pack_stay_before_and_after_ours(in_process_host, name, kinds):
    model, masks, seen = tiny_transformer(name), masks_of(), []
    reference, _ = dense(
        with_block_patches(model, []), "renormalised", 1.0, tokens_of(masks, patch_of(model))
    )
    want = run(name, reference)
    unpatched = run(name, ours(model, masks, operator="renormalised"))
    before = run(name, ours(with_block_patches(model, seen), masks, operator="renormalised"))
    calls = len(seen)
    after = run(name, with_block_patches(ours(model, masks, operator="renormalised"), seen))
    assert set(seen) == kinds
    assert len(seen) == 2 * calls > 0
    for a, b, c, d in zip(before, after, want, unpatched, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c, rtol=0, atol=1e-5 * c.abs().max().item())
        assert (a - d).abs().max() > 1e-4


def inside_of(output, masks, patch):
    """(2, h, w) labels of the network's output."""
    tokens = torch.tensor(tokens_of(masks, patch))
    rows, columns = -(-SIZE[0] // patch), -(-SIZE[1] // patch)
    labels = tokens.unflatten(1, (rows, columns))
    return labels.repeat_interleave(patch, 1).repeat_interleave(patch, 2)[:, : SIZE[0], : SIZE[1]]


@pytest.mark.parametrize("name", TINY)
def test_text_acts_inside_and_nowhere_else(in_process_host, name):
    model, masks = tiny_transformer(name), masks_of()
    masked = ours(model, masks, text=None, operator="renormalised")
    one = run(name, masked, positive=prompt_of(name, model, 5), cfg=1.0)[0]
    other = run(name, masked, positive=prompt_of(name, model, 6), cfg=1.0)[0]
    same = (one == other).all(1).flatten(1, -3) if one.ndim == 5 else (one == other).all(1)
    same = same.reshape(2, *SIZE)
    labels = inside_of(one, masks, patch_of(model))
    assert same[labels == 0].all()
    assert not same[labels > 0].any()


@pytest.mark.parametrize("name", [name for name in TINY if named(name).references != NO_REFERENCES])
def test_a_photo_acts_in_its_box_and_nowhere_else(in_process_host, name):
    """The first photo is bound to the first box: its pixels reach neither the second box nor the outside."""
    model, masks = tiny_transformer(name), masks_of()
    masked = ours(model, masks, text=None, operator="renormalised")
    positive = prompt_of(name, model, 5)
    other = [[positive[0][0], dict(positive[0][1])]]
    latents = list(positive[0][1]["reference_latents"])
    latents[1] = latents[1] + 1
    other[0][1]["reference_latents"] = latents
    one, two = (run(name, masked, positive=prompt, cfg=1.0)[0] for prompt in (positive, other))
    same = (one == two).all(1).reshape(2, *SIZE)
    labels = inside_of(one, masks, patch_of(model))
    assert same[labels != 1].all()
    assert not same[labels == 1].any()


@pytest.mark.parametrize("name", ["flux1", "krea2", "boogu"])
def test_a_photo_of_strength_0_is_not_seen(in_process_host, name):
    model, masks = tiny_transformer(name), masks_of()
    masked = ours(model, masks, photos=[(1, 0.0), (2, 1.0), (0, 1.0)], operator="renormalised")
    changed = prompt_of(name, model, 2)
    changed[0][1]["reference_latents"][1] += 1
    same = zip(run(name, masked), run(name, masked, positive=changed), strict=True)
    assert all(torch.equal(a, b) for a, b in same)


@pytest.mark.parametrize(("name", "blocks", "count"), [
    ("flux1", "double", 1), ("flux1", "single", 2), ("flux1", "first 50%", 2), ("flux1", "single 1", 1),
    ("flux1", "all", 3), ("flux1", "auto", 3), ("krea2", "first 50%", 1), ("boogu", "double", 1),
    ("omnigen2", "single 0", 1),
    ("qwen-image", "double 1", 1), ("z-image", "single", 2),
])  # fmt: skip
def test_only_the_chosen_blocks_are_masked(in_process_host, monkeypatch, name, blocks, count):
    from inlay.attention import joint

    model, masks = tiny_transformer(name), masks_of()
    masked, total = [], []
    original = joint.RegionOverride._by_rows

    def counted(self, attend, q, *args):
        masked.append(q.shape)
        return original(self, attend, q, *args)

    monkeypatch.setattr(joint.RegionOverride, "_by_rows", counted)
    run(name, ours(model, masks, self_layers=blocks), cfg=1.0)
    longest = max(shape[2 if len(shape) == 4 else 1] for shape in masked)
    total = [shape for shape in masked if shape[2 if len(shape) == 4 else 1] == longest]
    assert len(total) == count


@pytest.mark.parametrize(("options", "message"), [
    ({"self_layers": "decoder_outer"}, "names layers of a UNet"),
    ({"self_layers": "double 7"}, 'names no block of this model, which has double 0, single 0-1'),
    ({"self_strength": 0.5}, "share one attention"),
    ({"released": True}, "text encoder of SD models"),
    ({"photos": [(3, 1.0)]}, "box 3 does not exist"),
])  # fmt: skip
def test_what_a_transformer_does_not_have_is_refused_in_words(in_process_host, options, message):
    with pytest.raises(ValueError, match=message):
        ours(tiny_transformer("flux1"), masks_of(), **options)


def test_an_open_part_is_not_masked(in_process_host):
    """cross_attention 0 lets the text act everywhere; self_attention none lets the picture see itself."""
    model, masks = tiny_transformer("flux1"), masks_of()
    text_open = ours(model, masks, cross_strength=0.0, text=None)
    one, other = (run("flux1", text_open, positive=prompt_of("flux1", model, s), cfg=1.0)[0] for s in (5, 6))
    assert not (one == other).any()
    separate = ours(model, masks, self_layers="none", text=None)
    one, other = (run("flux1", separate, positive=prompt_of("flux1", model, s), cfg=1.0)[0] for s in (5, 6))
    # The text reaches the inside, and from there the outside.
    assert not torch.equal(one, other)
    whole = ours(model, masks, text=None)
    closed = run("flux1", whole, positive=prompt_of("flux1", model, 5), cfg=1.0)[0]
    assert not torch.equal(one, closed)


def test_the_window_moves_the_regions(in_process_host):
    """A view of the right half has the masks of the right half."""
    model, masks = tiny_transformer("flux1"), masks_of()
    viewed = ours(model, masks, photos=(), text=None)
    viewed.model_options["transformer_options"]["inlay_window"] = (0.0, 0.5, 1.0, 1.0)
    right = torch.nn.functional.interpolate(masks[1][:, None, :, 48:], (72, 96), mode="nearest")[:, 0]
    cropped = ours(model, [right], photos=(), text=None)
    only = ours(model, masks[1:], photos=(), text=None)
    only.model_options["transformer_options"]["inlay_window"] = (0.0, 0.5, 1.0, 1.0)
    assert torch.equal(run("flux1", only)[0], run("flux1", cropped)[0])
    assert torch.equal(run("flux1", only)[0], run("flux1", viewed)[0])


def test_only_the_conditional_pass_is_masked_if_asked(in_process_host):
    model, masks = tiny_transformer("flux1"), masks_of()
    plain, both = run("flux1", model), run("flux1", ours(model, masks))
    got = run("flux1", ours(model, masks, apply_to="conditional"))
    assert sum(torch.equal(a, b) for a, b in zip(got, plain, strict=True)) == 1
    assert sum(torch.equal(a, b) for a, b in zip(got, both, strict=True)) == 1


def test_prompts_in_one_batch_are_masked_row_by_row(in_process_host):
    """Positive and negative of one length run in one call; only one of them is masked."""
    model, masks = tiny_transformer("flux1"), masks_of()
    negative = prompt_of("flux1", model, 3)
    got = run("flux1", ours(model, masks, apply_to="conditional"), negative=negative)
    plain = run("flux1", model, negative=negative)
    both = run("flux1", ours(model, masks), negative=negative)
    assert len(got) == 1
    one, masked, unmasked = (output[0].chunk(2) for output in (got, both, plain))
    like_masked = [torch.allclose(a, b, atol=2e-5) for a, b in zip(one, masked, strict=True)]
    like_plain = [torch.allclose(a, b, atol=2e-5) for a, b in zip(one, unmasked, strict=True)]
    assert sorted(like_masked) == sorted(like_plain) == [False, True]
    assert like_masked != like_plain
