"""AttributeSubstitutionEncode with the host's own text encoders, made small, and their real tokenizers."""

import importlib
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

SMALL = {"num_hidden_layers": 3, "intermediate_size": 64}


@pytest.fixture(scope="module")
def clips(in_process_host, tmp_path_factory):
    """Makes a CLIP of a family with three layers and random weights, once; it knows `embedding:mark`."""
    import comfy.sd
    from comfy.sd1_clip import SD1ClipModel, SD1Tokenizer
    from comfy.sdxl_clip import SDXLClipModel, SDXLTokenizer
    from comfy.text_encoders.sd2_clip import SD2ClipModel, SD2Tokenizer
    from comfy.text_encoders.sd3_clip import SD3Tokenizer, sd3_clip

    kinds = {
        "SD15": (SD1ClipModel, SD1Tokenizer),
        "SD20": (SD2ClipModel, SD2Tokenizer),
        "SDXL": (SDXLClipModel, SDXLTokenizer),
        "SD3 without T5": (sd3_clip(t5=False), SD3Tokenizer),
    }
    folder = tmp_path_factory.mktemp("embeddings")
    vectors = {"clip_l": torch.randn(2, 768), "clip_g": torch.randn(2, 1280)}
    save_file(vectors, folder / "mark.safetensors")
    made = {}

    def make(kind):
        if kind not in made:
            model, tokenizer = kinds[kind]
            target = SimpleNamespace(clip=model, tokenizer=tokenizer, params={})
            options = {f"clip_{name}_model_config": SMALL for name in "lgh"}
            made[kind] = comfy.sd.CLIP(target, str(folder), model_options=options, disable_dynamic=True)
            generator = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for parameter in made[kind].cond_stage_model.parameters():
                    parameter.normal_(0, 0.05, generator=generator)
        return made[kind]

    return make


@pytest.fixture(params=["SD15", "SD20", "SDXL"])
def clip(clips, request):
    with torch.inference_mode():
        yield clips(request.param)


@pytest.fixture
def sd15(clips):
    with torch.inference_mode():
        yield clips("SD15")


def encode(clip, *arguments, **inputs):
    """The node, run as the host runs it."""
    nodes = importlib.import_module("inlay.nodes")
    node = nodes.AttributeSubstitutionEncode.PREPARE_CLASS_CLONE(None)
    return node.execute(clip, *arguments, **inputs)


def stock(clip, prompt):
    return importlib.import_module("nodes").CLIPTextEncode().encode(clip, prompt)[0]


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    return a == b


def assert_same_conditioning(a, b):
    assert len(a) == len(b)
    for (text, values), (other, other_values) in zip(a, b, strict=True):
        assert torch.equal(text, other)
        assert values.keys() == other_values.keys()
        assert all(same(values[key], other_values[key]) for key in values)


def cosines(a, b):
    return torch.nn.functional.cosine_similarity(a[:, None].double(), b[None].double(), dim=-1).abs()


PROMPT = "a glass sks teapot, (shiny:1.3) and unbelievably ornamental"


@pytest.mark.parametrize(("remove", "strength"), [("", 1.0), ("  , \n", 1.0), ("brass, shiny", 0.0)])
def test_with_nothing_to_remove_it_is_the_stock_node_bit_for_bit(clip, remove, strength):
    conditioning, report = encode(clip, PROMPT, remove, strength).result
    assert_same_conditioning(conditioning, stock(clip, PROMPT))
    assert report == "Nothing was removed."


@pytest.mark.parametrize("remove", ["()", "embedding:missing"])
def test_words_that_the_text_encoder_does_not_know_are_named(sd15, remove):
    conditioning, report = encode(sd15, PROMPT, remove).result
    assert_same_conditioning(conditioning, stock(sd15, PROMPT))
    assert report == f"Nothing was removed: '{remove}' holds no word that the text encoder knows."


def test_every_word_row_loses_every_removed_row_and_no_other_row_changes(clip):
    conditioning, _ = encode(clip, PROMPT, "brass, polished metal").result
    plain, removed = stock(clip, PROMPT)[0], stock(clip, "brass polished metal")[0]
    tokens = next(iter(clip.tokenize(PROMPT, return_word_ids=True).values()))[0]
    words = [i for i, token in enumerate(tokens) if token[2]]
    gone = [
        i
        for i, token in enumerate(
            next(iter(clip.tokenize("brass polished metal", return_word_ids=True).values()))[0]
        )
        if token[2]
    ]
    text = conditioning[0][0]
    others = [i for i in range(text.shape[1]) if i not in words]
    assert len(words) > len(PROMPT.split())  # some words have several tokens
    assert torch.equal(text[:, others], plain[0][:, others])
    assert cosines(text[0, words], removed[0][0, gone]).max() <= 1e-5
    assert cosines(conditioning[0][1]["pooled_output"], removed[1]["pooled_output"]).max() <= 1e-5

    rows, off = plain[0][0, words].double(), removed[0][0, gone].double()
    reference = rows - rows @ off.T @ torch.linalg.solve(off @ off.T, off)
    assert (text[0, words] - reference).abs().max() < 1e-5 * reference.abs().max()


def test_an_encoder_that_is_not_loaded_says_nothing_of_rows(clips):
    """SD 3's tokenizer speaks for T5 too; where T5 is not loaded its words are in no row."""
    with torch.inference_mode():
        clip = clips("SD3 without T5")
        conditioning, _ = encode(clip, PROMPT, "brass").result
        plain = stock(clip, PROMPT)[0][0]
        tokens = clip.tokenize(PROMPT, return_word_ids=True)["l"][0]
    changed = (conditioning[0][0] != plain).any(-1)[0].nonzero().flatten().tolist()
    assert changed == [i for i, token in enumerate(tokens) if token[2]]


def test_sequential_is_eq_9_row_after_row(sd15):
    conditioning, _ = encode(sd15, "a sks teapot", "brass metal", projection="sequential").result
    rows, off = stock(sd15, "a sks teapot")[0][0][0].double(), stock(sd15, "brass metal")[0][0][0].double()
    for e in off[1:3]:
        rows = rows - torch.outer(rows @ e / e.norm(), e / e.norm())
    words = [
        i for i, token in enumerate(sd15.tokenize("a sks teapot", return_word_ids=True)["l"][0]) if token[2]
    ]
    assert (conditioning[0][0][0, words] - rows[words]).abs().max() < 1e-5


def test_weights_and_embeddings_stay_in_the_prompt(clip):
    prompt = "a (glass:1.4) embedding:mark teapot"
    plain = stock(clip, prompt)[0][0]
    conditioning, report = encode(clip, prompt, "brass", strength=1e-6).result
    assert (conditioning[0][0] - plain).abs().max() < 1e-4
    assert not torch.allclose(plain, stock(clip, "a glass teapot")[0][0], atol=1e-3)
    if clip.tokenize(prompt).keys() != {"h"}:  # the file holds no vectors of SD 2's width
        assert "embedding" in report


def test_a_prompt_of_several_chunks_is_changed_in_all_of_them(sd15):
    prompt = "a glass teapot on a table, " * 20
    conditioning, _ = encode(sd15, prompt, "brass").result
    plain = stock(sd15, prompt)[0][0]
    changed = (conditioning[0][0] != plain).any(-1)[0]
    assert changed.shape[0] > 77
    assert changed[1:76].all()
    assert changed[78:90].all()
    assert not changed[[0, 77]].any()


def test_a_subject_gives_the_words_that_the_prompt_contradicts(sd15):
    from inlay.training.finetune.subject import Subject

    subject = Subject(
        "sks", "teapot", "a photo of sks teapot", "inlay/a.safetensors", "dreammix", "SD15", 1, 0, 4,
        attributes={"material": ["brass"], "colour": ["gold"]},
    )  # fmt: skip
    looked_up, report = encode(sd15, "a glass sks teapot", subject=subject).result
    typed, _ = encode(sd15, "a glass sks teapot", "brass").result
    assert_same_conditioning(looked_up, typed)
    assert "Removed brass (" in report
    plain, _ = encode(sd15, "a sks teapot", subject=subject).result
    assert_same_conditioning(plain, stock(sd15, "a sks teapot"))


def test_the_report_names_rows_words_and_shares(sd15):
    output = encode(sd15, "a glass teapot", "brass")
    conditioning, report = output.result
    plain = stock(sd15, "a glass teapot")[0][0]
    share = ((plain - conditioning[0][0])[0, 2].norm() / plain[0, 2].norm()).item()
    assert "Removed brass (1 rows, joint, strength 1)." in report
    assert f"row 2 'glass': {share:.0%}, most like 'brass'" in report
    assert "pooled: " in report
    assert output.ui.as_dict() == {"text": (report,)}


def test_schedules_and_hooks_stay(sd15):
    import comfy.hooks
    from comfy_extras.nodes_hooks import SetClipHooks

    frames = comfy.hooks.HookKeyframeGroup()
    frames.add(comfy.hooks.HookKeyframe(strength=0.0, start_percent=0.0))
    frames.add(comfy.hooks.HookKeyframe(strength=2.0, start_percent=0.5))
    key = "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
    delta = {key: torch.randn_like(sd15.cond_stage_model.state_dict()[key])}
    hooks = comfy.hooks.create_hook_model_as_lora(None, delta, 1.0, 1.0)
    hooks.set_keyframes_on_hooks(frames)
    (hooked,) = SetClipHooks().apply_hooks(sd15, True, True, hooks)
    plain = stock(hooked, "a glass teapot")
    assert len(plain) == 2
    assert not torch.equal(plain[0][0], plain[1][0])
    conditioning, _ = encode(hooked, "a glass teapot", "brass").result
    removed = stock(hooked, "brass")
    for (text, values), (_, plain_values), (gone, _) in zip(conditioning, plain, removed, strict=True):
        assert cosines(text[0, 1:4], gone[0, 1:2]).max() <= 1e-5
        for name in ("clip_start_percent", "clip_end_percent", "hooks"):
            assert values[name] == plain_values[name]


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"remove": "brass " * 80}, "remove: the words are longer than the 77 tokens"),
        ({"remove": "brass", "strength": 1.5}, "strength: 1.5"),
        ({"remove": "brass", "strength": float("nan")}, "strength: nan"),
    ],
)
def test_what_cannot_be_removed_is_named(sd15, inputs, says):
    with pytest.raises(ValueError, match=says):
        encode(sd15, "a glass teapot", **inputs)
