"""Bad and borderline inputs of every node, through the host's validation and executor.

A bad input is refused in a sentence that names an input, before anything is written. A borderline one is
refused like that, or it works. The host is the same afterwards.
"""

import copy
import json
import pickle
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from .conftest import VALUES, RunningHost

REFUSED, EITHER = "refused", "either"
SAMPLING: dict[str, Any] = {
    "image": "@image",
    "mask": "@mask",
    "vae": "@vae",
    "close_up_share": 0.5,
    "soft_edge": 2,
    "several_masks": "one image each",
    "close_up_size": 64,
    "context": 1.5,
    "least_share": 0.0,
    "grow": 2,
    "window_area": 2.0,
    "blend": "every step",
}
WORDS = {"positive": "@words", "negative": "@words"}
GOOD: dict[str, dict[str, Any]] = {
    "InlayBoxMask": {"image": "@image", "x": 8, "y": 8, "width": 24, "height": 24},
    "InlayInpaintConditioning": {
        **WORDS,
        "vae": "@vae",
        "image": "@image",
        "mask": "@mask",
        "noise_mask": True,
    },
    "InlayObjectStitchConditioning": {
        "model": "@model",
        **WORDS,
        "vae": "@vae",
        "image": "@image",
        "mask": "@mask",
        "noise_mask": True,
    },
    "InlayBackgroundBlending": {"model": "@model", "blending": "clean"},
    "InlayPasteBack": {"original": "@image", "generated": "@other", "mask": "@mask", "feather": 4},
    "InlayTrainingOptions": {"sample_image": "@image", "sample_mask": "@mask"},
    "InlayCropForPainting": {
        "image": "@image",
        "mask": "@mask",
        "context_mask": "@mask",
        "context": 1.5,
        "size": "width and height",
        "megapixels": 0.01,
        "width": 64,
        "height": 64,
        "shape": "square",
        "grow": 0,
        "fill_holes": True,
        "multiple": 8,
        "crops": "one for all",
    },
    "InlayEditPrompt": {
        "clip": "@clip",
        "vae": "@vae",
        "photos": "@other",
        "photo_masks": "@mask",
        "scene": "@image",
        "mask": "@mask",
        "prompt": "put it there",
        "hole": "grey",
        "ground": "white",
        "boxes": "",
        "negative": "",
        "preset": "none",
    },
    "InlayCropBack": {"original": "@image", "generated": "@other"},
    "InlayChangeMask": {"original": "@image", "generated": "@other", "tolerance": 0.08, "patches": "all"},
    "InlayMaskLevels": {"mask": "@mask", "level": "all four", "image": "@image"},
    "MaskedAttentionPatch": {
        "model": "@model",
        "mask": "@mask",
        "cross_attention": 1.0,
        "self_attention": "paper",
        "self_strength": 1.0,
        "operator": "paper",
        "layers": "",
        "start_percent": 0.0,
        "end_percent": 1.0,
        "apply_to": "both",
        "mask_batch": "one mask per image",
        "subject_tokens": "",
        "text": "all",
    },
    "DisentangledInpaintSampler": {
        "model": "@model",
        **WORDS,
        "seed": 1,
        "steps": 2,
        "cfg": 1.0,
        "sampler_name": "euler",
        "scheduler": "normal",
        "denoise": 1.0,
        **SAMPLING,
    },
    "DisentangledInpaintSamplerAdvanced": {
        "noise": "@noise",
        "guider": "@guider",
        "sampler": "@sampler",
        "sigmas": "@sigmas",
        **SAMPLING,
    },
    "AttributeSubstitutionEncode": {
        "clip": "@clip",
        "prompt": "a brass sks cup",
        "remove": "",
        "strength": 1.0,
        "projection": "joint",
        "subject": "@subject",
    },
    "InlayAttributeDictionary": {
        "class_name": "cup",
        "attributes": "colour: red; material: clay",
        "token": "sks",
        "count": 3,
        "seed": 0,
        "template": "a {subject}",
        "images": "@image",
        "vision_model": "none",
    },
    "InlayRegularImages": {
        "model": "@model",
        "clip": "@clip",
        "vae": "@vae",
        "prompts": "@text",
        "count": 1,
        "seed": 0,
        "steps": 1,
        "cfg": 1.0,
        "sampler_name": "euler",
        "scheduler": "normal",
        "background_prompt": "a room",
        "size": 64,
        "backgrounds": "@image",
    },
    "InlaySaveRegularData": {"images": "@image", "masks": "@mask", "prompts": "@text", "category": "cup"},
    "InlayLoadSubject": {
        "model": "@model",
        "lora_name": "fuzz_good.safetensors",
        "strength": 1.0,
        "token": "sks",
        "class_name": "cup",
        "clip": "@clip",
    },
    "InlayLoadReferences": {"folder": "unused", "images": "@image", "masks": "@mask"},
    "InlayLoadAdapter": {"file": "fuzz_adapter.safetensors", "published_as": "by the file"},
    "InlayLoadImageEncoder": {"name": "fuzz-dino"},
    "IdentityEncoderDINOv2": {
        "encoder": "@vision",
        "adapter": "@adapter",
        "images": "@image",
        "masks": "@mask",
        "strength": 1.0,
        "tokens": 0,
        "background": "as the adapter was trained",
        "size": 0,
    },
    "ImageConditionedPix2Pix": {
        "model": "@edit",
        "vae": "@vae",
        "clip_vision": "@vision",
        "embedding_optimizer": "@optimizer",
        "image": "@image",
        "object_image": "@other",
        "object_guidance": 7.0,
        "image_guidance": 1.5,
        "strength": 1.0,
        "raw_pixels": False,
    },
    "InlaySubjectScore": {
        "clip_vision": "@vision",
        "images": "@image",
        "references": "@other",
        "masks": "@mask",
        "reference_masks": "@mask",
        "region": "subject",
    },
    "SubjectFinetune": {
        "model": "@model",
        "clip": "@clip",
        "vae": "@vae",
        "images": "@image",
        "masks": "@mask",
        "class_name": "cup",
        "token": "sks",
        "recipe": "DreamMix",
        "steps": 1,
        "rank": 1,
        "learning_rate": 1e-4,
        "batch_size": 1,
        "seed": 0,
        "resolution": 64,
        "regular_images": "@other",
        "regular_masks": "@mask",
        "regular_prompt": "a cup",
        "preview_every": 0,
        "memory": "recipe",
        "precision": "fp32",
        "optimiser": "AdamW",
        "gradient_checkpointing": "off",
        "ema_decay": 0.0,
        "attributes": "",
    },
}

SPOT = torch.zeros(1, 64, 64)
SPOT[:, 20:44, 16:40] = 1
PICTURE = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(3))
BAD: dict[str, dict[str, Any]] = {
    "IMAGE": {
        "rank 2": torch.rand(64, 64),
        "channels first": torch.rand(1, 3, 64, 64),
        "five channels": torch.rand(1, 64, 64, 5),
        "no pictures": torch.rand(0, 64, 64, 3),
        "no rows": torch.rand(1, 0, 64, 3),
        "text": "a picture",
        "NaN": PICTURE * float("nan"),
    },
    "MASK": {
        "rank 1": torch.ones(64),
        "no masks": torch.ones(0, 64, 64),
        "a picture": torch.rand(1, 64, 64, 3),
        "text": "a mask",
        "NaN": SPOT * float("nan"),
        "infinite": SPOT / 0,
        "another size": torch.ones(1, 40, 64),
    },
    "MODEL": {"text": "a model"},
    "CLIP": {"text": "a clip"},
    "VAE": {"text": "a vae"},
    "CLIP_VISION": {"text": "an encoder"},
    "INLAY_ADAPTER": {"text": "an adapter"},
    "GUIDER": {"text": "a guider"},
    "NOISE": {"text": "noise"},
    "SAMPLER": {"text": "a sampler"},
    "CONDITIONING": {"text": "a prompt", "empty": [], "no pairs": [1, 2]},
    "SIGMAS": {"text": "sigmas", "rank 2": torch.ones(2, 2), "NaN": torch.tensor([float("nan"), 0.0])},
    "INLAY_SUBJECT": {"text": "a subject"},
    "INPAINT_PATCH": {"text": "a patch", "a pair": (1, 2)},
    "INLAY_CROP": {"text": "a crop", "a picture": PICTURE},
    "INLAY_TRAINING_OPTIONS": {"text": "options", "a list": [1]},
    "BACKGROUND_REMOVAL": {"text": "a model"},
}
BORDERLINE: dict[str, dict[str, Any]] = {
    "IMAGE": {
        "one channel": PICTURE[..., :1],
        "grey and alpha": PICTURE[..., :2],
        "alpha": torch.cat([PICTURE, SPOT[..., None]], -1),
        "no alpha": torch.cat([PICTURE, 0 * SPOT[..., None]], -1),
        "rank 3": PICTURE[0],
        "bytes": (PICTURE * 255).byte(),
        "half": PICTURE.half(),
        "bfloat16": PICTURE.bfloat16(),
        "double": PICTURE.double(),
        "out of range": PICTURE * 9 - 4,
        "odd": torch.rand(1, 61, 67, 3),
        "one pixel": torch.rand(1, 1, 1, 3),
        "strip": torch.rand(1, 4, 300, 3),
        "three": PICTURE.repeat(3, 1, 1, 1),
        "not contiguous": PICTURE.movedim(1, 2),
        "infinite": PICTURE / 0,
    },
    "MASK": {
        "rank 2": SPOT[0],
        "rank 4": SPOT[None],
        "one channel": SPOT[..., None],
        "booleans": SPOT.bool(),
        "bytes": (SPOT * 255).byte(),
        "exactly 0.5": SPOT * 0.5,
        "0.51": SPOT * 0.51,
        "empty": SPOT * 0,
        "full": SPOT * 0 + 1,
        "half": SPOT.half(),
        "double": SPOT.double(),
        "negative": SPOT * 2 - 1,
        "large values": SPOT * 255,
        "one pixel": torch.eye(64)[None] * (torch.arange(64) == 5),
        "strip": torch.ones(64, 64)[None] * (torch.arange(64) == 9),
        "three": SPOT.repeat(3, 1, 1),
        "two of which one is empty": torch.cat([SPOT, SPOT * 0]),
        "the host's for no alpha": torch.zeros(1, 64, 64),
    },
}
OPTIONAL_KINDS = {
    "INPAINT_PATCH", "INLAY_SUBJECT", "INLAY_CROP", "INLAY_TRAINING_OPTIONS", "BACKGROUND_REMOVAL"
}  # fmt: skip
ONLY_BAD = {
    "SubjectFinetune",
    "DisentangledInpaintSamplerAdvanced",
    "InlayRegularImages",
}  # slow ones, whose inputs are read as others read theirs
TEXTS: dict[str, dict[str, list[str]]] = {
    "MaskedAttentionPatch": {
        "subject_tokens": ["6-2", "1-2-9", "-1", "a", "1;2", ";", "1,,2", "1-", "999999", "1.5", "\u0663"],
        "layers": ["output 99", "banana", "output -1", ";;"],
        "photos": ["one", "1: x", "-1", "1; 99999999999", "0.5", ";;", "1:1:1"],
    },
    "InlayEditPrompt": {"boxes": ["one", "1: x", "-1", "0.5", "1:1:1", "1; 2"]},
    "InlayAttributeDictionary": {
        "attributes": [
            '{"colour": ["brown"',
            "[" * 20000,
            '{"a": ' * 3000,
            "{}",
            '{"colour": 5}',
            '{"colour": [5]}',
            "colour",
            ":",
            "colour:",
            '{"colour": {"a": 1}}',
            "null",
            "\ufeff{}",
            "{" * 9,
        ],
        "template": ["", "no place", "{subject} {other}", "{", "{0}", "{subject.__class__}"],
        "class_name": ["", " ", "x" * 5000],
        "token": ["", "x" * 5000],
    },
    "AttributeSubstitutionEncode": {
        "prompt": ["", "embedding:none", "(((", "a " * 5000, "(cup:1e9)"],
        "remove": [",,,", "word " * 400, "(x:0)"],
    },
    "InlaySaveRegularData": {
        "category": ["", "..", "../up", "a/b", "a\\b", "/abs", "nul\0", "x" * 300, ".", "\u8336" * 100],
    },
    "SubjectFinetune": {
        "class_name": ["", " ", "x" * 4000],
        "token": ["", " ", "x" * 201],
        "attributes": ["{", '{"a": ' * 3000, "colour", '{"colour": 5}', "colour: " + "x" * 201],
    },
    "InlayLoadSubject": {"token": ["", "x" * 201], "class_name": ["", "x" * 201]},
}
MAY_WORK = {
    ("InlayAttributeDictionary", "attributes", "{}"),
    ("InlayAttributeDictionary", "attributes", "\ufeff{}"),
}


@pytest.fixture(scope="module")
def good(host, stock) -> dict[str, dict[str, Any]]:
    """`GOOD` with the default of every widget that it does not name."""
    for node, inputs in GOOD.items():
        for name, (kind, *rest) in host.inputs_of(node).items():
            options = rest[0] if rest else {}
            choices = kind if isinstance(kind, list) else options.get("options", [None])
            default = options.get("default", choices[0] if choices else None)
            if default is not None and name not in inputs:
                inputs[name] = default
    return GOOD


class Case(NamedTuple):
    node: str
    name: str
    inputs: dict[str, Any]
    expected: str


def socket_cases(host: RunningHost) -> Iterator[Case]:
    """Every value of `BAD` and `BORDERLINE`, and none, in every input of its type."""
    for node, good in GOOD.items():
        for name, (kind, *_) in host.inputs_of(node).items():
            wired = str(good.get(name, "")).startswith("@") and kind in BAD
            if not wired and kind not in OPTIONAL_KINDS:
                continue
            if name in host.nodes[node].INPUT_TYPES()["required"]:
                yield Case(node, f"{name}: none", {**good, name: "@none"}, REFUSED)
                without = {key: value for key, value in good.items() if key != name}
                yield Case(node, f"{name}: not connected", without, REFUSED)
            for label, expected, values in (("bad", REFUSED, BAD), ("borderline", EITHER, BORDERLINE)):
                if expected is EITHER and node in ONLY_BAD:
                    continue
                for what in values.get(kind, {}):
                    lenient = expected
                    if (node, name) in LENIENT and what in ("NaN", "infinite"):
                        lenient = EITHER
                    if node == "InlayAttributeDictionary":
                        lenient = EITHER  # nothing looks at the pictures without a vision model
                    if node == "InlayLoadReferences" and what == "another size":
                        lenient = EITHER  # a mask of the whole picture tells nothing
                    if node == "MaskedAttentionPatch" and what == "another size":
                        lenient = EITHER  # it is stretched to the picture
                    yield Case(node, f"{name}: {what}", {**good, name: f"@{label} {kind} {what}"}, lenient)


# Pictures of which only a part is read, or that are only looked at for their size
LENIENT = {
    ("InlayBoxMask", "image"),
    ("InlayPasteBack", "original"),
    ("InlayPasteBack", "generated"),
    ("InlayCropBack", "original"),
    ("InlayCropBack", "generated"),
    ("InlayMaskLevels", "image"),
    ("InlayAttributeDictionary", "images"),
    ("InlaySubjectScore", "images"),
}


def widget_cases(host: RunningHost) -> Iterator[Case]:
    """Numbers beyond their limits, and no numbers; choices that do not exist; texts."""
    for node, good in GOOD.items():
        for name, value in good.items():
            kind, *rest = host.inputs_of(node)[name]
            options = rest[0] if rest else {}
            if str(value).startswith("@") or kind == "BOOLEAN":
                continue
            if kind in ("INT", "FLOAT"):
                for label, wrong in (("too low", options["min"] - 1), ("too high", options["max"] + 1)):
                    if abs(wrong) < 2**63:
                        yield Case(node, f"{name}: {label}", {**good, name: wrong}, REFUSED)
                yield Case(node, f"{name}: text", {**good, name: "many"}, REFUSED)
            elif node == "InlayLoadReferences":
                continue  # the folder is not read where images are connected
            elif kind == "COMBO" or isinstance(kind, list):
                yield Case(node, f"{name}: no choice", {**good, name: "banana"}, REFUSED)
                yield Case(node, f"{name}: a path", {**good, name: "../../etc/passwd"}, REFUSED)
            for text in TEXTS.get(node, {}).get(name, []):
                case = (node, name, text)
                expected = EITHER if case in MAY_WORK or node in ("AttributeSubstitutionEncode",) else REFUSED
                if node == "InlayAttributeDictionary" or text.startswith("\u8336"):
                    expected = EITHER
                changed = {**good, name: text}
                if name == "layers":
                    changed["self_attention"] = "custom"
                yield Case(node, f"{name}: {text[:20]!r}", changed, expected)


HEAVY = {"steps", "close_up_size", "size", "width", "height", "megapixels", "window_area", "count"}


def limit_cases(host: RunningHost) -> Iterator[Case]:
    """Every number at its limits, but sizes and steps, which would take long."""
    for node, good in GOOD.items():
        if node in ONLY_BAD:
            continue
        for name in good:
            kind, *rest = host.inputs_of(node)[name]
            heavy = name in HEAVY or name.startswith("outpaint")
            if kind in ("INT", "FLOAT") and not heavy:
                for label in ("min", "max"):
                    yield Case(node, f"{name}: {label}", {**good, name: rest[0][label]}, EITHER)


SURROGATE = "a \ud800 cup"  # half a character, which JSON can hold and UTF-8 cannot


def surrogate_cases(host: RunningHost) -> Iterator[Case]:
    """Half a character in every text."""
    for node, good in GOOD.items():
        for name in good:
            if host.inputs_of(node)[name][0] == "STRING":
                yield Case(node, f"{name}: half a character", {**good, name: SURROGATE}, EITHER)


def file_cases(folders) -> Iterator[Case]:
    """Damaged and foreign files for every loader."""
    for node, name, kind, ends in (
        ("InlayLoadAdapter", "file", "inlay", (".safetensors", ".pth")),
        ("InlayLoadImageEncoder", "name", "clip_vision", (".safetensors", ".pth")),
        ("InlayLoadPix2Pix", "file", "diffusion_models", (".safetensors", ".pth")),
        ("InlayLoadFooocusInpaint", "head", "inpaint", (".pth",)),
        ("InlayLoadFooocusInpaint", "patch", "inpaint", (".patch",)),
        ("InlayLoadSubject", "lora_name", "loras", (".safetensors",)),
    ):
        folder = folders.models / kind
        folder.mkdir(exist_ok=True)
        for file in write_files(folder, ends):
            inputs = dict(GOOD.get(node, {}))
            if node == "InlayLoadFooocusInpaint":
                inputs = {"head": "fuzz head.pth", "patch": "fuzz patch.patch"}
            yield Case(node, f"{name}: {file}", {**inputs, name: file}, REFUSED)


def write_files(folder, ends) -> list[str]:
    """Files that hold no weights, or others than any loader wants."""
    weights = {"conv_in.weight": torch.zeros(3, 8, 3, 3), "a.lora_down.weight": torch.zeros(2, 2)}
    bad = {"some.weight": torch.full((4, 4), float("nan")), "number": torch.arange(3)}
    optimizer = {
        "projection_layer.weight": torch.zeros(2),
        "attention_pooling.in_proj_weight": torch.zeros(1),
        "mlp_fc1.weight": torch.zeros(1),
    }
    stitch = {
        "cond_stage_model.mapper.resblocks.0.attn.c_qkv.weight": torch.zeros(1),
        "proj_out.weight": torch.zeros(1),
        "learnable_vector": torch.zeros(1),
    }
    dino = {"embeddings.cls_token": torch.zeros(1, 1, 8), "layernorm.weight": torch.zeros(8)}
    states = {"foreign": weights, "nan": bad, "optimizer": optimizer, "stitch": stitch, "dino": dino}
    names = []
    for end in ends:
        raw = {"empty": b"", "text": b"not weights", "header": b"\xff" * 64}
        if end == ".safetensors":
            save_file(weights, folder / "whole")
            raw["truncated"] = (folder / "whole").read_bytes()[:-40]
            (folder / "whole").unlink()
            for label, state in states.items():
                save_file(state, folder / f"fuzz {label}{end}")
                names.append(f"fuzz {label}{end}")
        else:
            raw["pickle"] = pickle.dumps(Image.new("L", (2, 2)))
            torch.save(weights, folder / "whole")
            raw["truncated"] = (folder / "whole").read_bytes()[:300]
            (folder / "whole").unlink()
            objects = {
                "list": [1, 2],
                "object": {"a": Image.new("L", (2, 2))},
                "number": 5,
                "texts": {"a": "b"},
            }
            for label, value in (objects | states).items():
                torch.save(value, folder / f"fuzz {label}{end}")
                names.append(f"fuzz {label}{end}")
        for label, data in raw.items():
            (folder / f"fuzz {label}{end}").write_bytes(data)
            names.append(f"fuzz {label}{end}")
    return names


def lora(shape, value=0.1, path="input_blocks_1_1_transformer_blocks_0_attn1_to_q"):
    """A LoRA on one layer, of (out, in) features."""
    name = f"lora_unet_{path}"
    return {
        f"{name}.lora_up.weight": torch.full((shape[0], 2), value),
        f"{name}.lora_down.weight": torch.full((2, shape[1]), value),
    }


def lora_cases(folders) -> Iterator[Case]:
    """LoRAs whose shapes or numbers do not fit, and JSON files beside good ones."""
    folder, good = folders.models / "loras", GOOD["InlayLoadSubject"]
    save_file(lora((320, 320)), folder / "fuzz_good.safetensors")
    for label, state in {
        "narrow": lora((320, 64)),
        "wide": lora((640, 640)),
        "not finite": lora((320, 320), float("nan")),
        "ranks": {
            **lora((320, 320)),
            "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.lora_up.weight": torch.ones(320, 5),
        },
    }.items():
        save_file(state, folder / f"fuzz lora {label}.safetensors")
        changed = {**good, "lora_name": f"fuzz lora {label}.safetensors"}
        yield Case("InlayLoadSubject", f"lora_name: {label}", changed, REFUSED)
    for label, settings in (
        ("alpha of letters", {"unet.lora_alpha": "x"}),
        ("a list of alphas", {"unet.lora_alpha": 4, "unet.alpha_pattern": [1]}),
        ("alpha of no number", {"unet.lora_alpha": 4, "unet.alpha_pattern": {"to_q": None}}),
    ):
        state = {
            f"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_{part}.weight": weight
            for part, weight in (("A", torch.ones(2, 320)), ("B", torch.ones(320, 2)))
        }
        file = f"fuzz lora {label}.safetensors"
        save_file(state, folder / file, {"lora_adapter_metadata": json.dumps(settings)})
        yield Case("InlayLoadSubject", f"lora_name: {label}", {**good, "lora_name": file}, REFUSED)
    own = json.loads(VALUES["subject"].to_json())
    for label, text, expected in (
        ("broken", "{", EITHER),
        ("a list", "[]", EITHER),
        ("deep", '{"a":' * 5000, EITHER),
        ("foreign", '{"class_name": "cup", "trigger": "sks"}', EITHER),
        ("newer", json.dumps(own | {"version": 99}), REFUSED),
        ("a number as token", json.dumps(own | {"token": 5}), REFUSED),
        ("a word as losses", json.dumps(own | {"losses": "no"}), REFUSED),
        ("attributes of numbers", json.dumps(own | {"attributes": {"colour": 5}}), REFUSED),
        ("another family", json.dumps(own | {"family": "SDXL"}), REFUSED),
        ("utf-16", json.dumps(own).encode("utf-16").decode("latin-1"), EITHER),
    ):
        save_file(lora((320, 320)), folder / f"fuzz json {label}.safetensors")
        (folder / f"fuzz json {label}.json").write_bytes(text.encode("latin-1"))
        yield Case(
            "InlayLoadSubject",
            f"lora_name: JSON {label}",
            {**good, "lora_name": f"fuzz json {label}.safetensors"},
            expected,
        )


def folder_cases(folders) -> Iterator[Case]:
    """Folders of photos and of regular data."""
    root = folders.input
    made = {name: root / f"fuzz {name}" for name in ("empty", "texts", "broken", "orphan", "sizes", "deep")}
    for path in made.values():
        path.mkdir(exist_ok=True)
    (made["texts"] / "a.txt").write_text("no picture", encoding="utf-8")
    (made["broken"] / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    Image.new("L", (8, 8)).save(made["orphan"] / "a_mask.png")
    Image.new("RGB", (8, 8)).save(made["sizes"] / "a.png")
    Image.new("L", (9, 8)).save(made["sizes"] / "a_mask.png")
    Image.new("I;16", (8, 8)).save(made["deep"] / "a.png")
    for name, path in made.items():
        expected = EITHER if name == "deep" else REFUSED
        yield Case("InlayLoadReferences", f"folder: {name}", {"folder": path.name}, expected)
    for name in ("..", "/", "../models", "nowhere", "", "nul\0", "x" * 400):
        yield Case("InlayLoadReferences", f"folder: {name[:10]!r}", {"folder": name}, REFUSED)
        yield Case("InlayLoadRegularData", f"folder: {name[:10]!r}", {"folder": name}, REFUSED)
    for name in ("empty", "no mask", "broken"):
        folder = root / f"regular_fuzz {name}" / "a_cup"
        folder.mkdir(parents=True, exist_ok=True)
        if name != "empty":
            (folder / "1-image.png").write_bytes(b"no picture")
        if name == "broken":
            (folder / "1-mask.png").write_bytes(b"no picture")
        yield Case("InlayLoadRegularData", f"folder: {name}", {"folder": f"regular_fuzz {name}"}, REFUSED)


def list_cases(host: RunningHost) -> Iterator[Case]:
    """An empty list in every wired input of the nodes that take lists."""
    for node, good in GOOD.items():
        if getattr(host.nodes[node], "INPUT_IS_LIST", False):
            for name, value in good.items():
                if str(value).startswith("@"):
                    yield Case(node, f"{name}: an empty list", {**good, name: "@no entries"}, REFUSED)


def batch_cases() -> Iterator[Case]:
    """Batches that do not fit together."""
    VALUES["two pictures"], VALUES["three masks"] = PICTURE.repeat(2, 1, 1, 1), SPOT.repeat(3, 1, 1)
    VALUES["large picture"] = torch.rand(1, 200, 90, 3)
    for node in (
        "InlayInpaintConditioning",
        "InlayObjectStitchConditioning",
        "DisentangledInpaintSampler",
        "DisentangledInpaintSamplerAdvanced",
    ):
        yield Case(
            node, "mask: three", {**GOOD[node], "image": "@two pictures", "mask": "@three masks"}, REFUSED
        )
        yield Case(node, "mask: of another picture", {**GOOD[node], "image": "@large picture"}, REFUSED)
    for node, images, masks in (
        ("SubjectFinetune", "images", "masks"),
        ("SubjectFinetune", "regular_images", "regular_masks"),
        ("InlaySubjectScore", "references", "reference_masks"),
        ("InlaySubjectScore", "images", "masks"),
        ("IdentityEncoderDINOv2", "images", "masks"),
        ("InlaySaveRegularData", "images", "masks"),
    ):
        changed = {**GOOD[node], images: "@two pictures", masks: "@three masks"}
        if images == "regular_images":
            changed["recipe"] = "DreamMix"
        yield Case(node, f"{masks}: three", changed, REFUSED)
    for name in ("original", "generated"):
        yield Case(
            "InlayPasteBack",
            f"{name}: of another size",
            {**GOOD["InlayPasteBack"], name: "@large picture"},
            REFUSED,
        )
    yield Case(
        "InlayCropBack",
        "generated: of another size",
        {**GOOD["InlayCropBack"], "generated": "@large picture"},
        REFUSED,
    )
    for x, y in ((64, 0), (0, 64), (16384, 16384)):
        yield Case("InlayBoxMask", f"x, y: {x}, {y}", {**GOOD["InlayBoxMask"], "x": x, "y": y}, REFUSED)
    beside = {"x": 900, "y": 0, "width": 5, "height": 5}
    for boxes in ([], {}, [[]], [None], "box", 5, [{"x": 1}], [beside], [{**beside, "x": float("nan")}]):
        yield Case("InlayBoxMask", f"bboxes: {boxes}", {**GOOD["InlayBoxMask"], "bboxes": boxes}, REFUSED)
    reversed_range = {**GOOD["MaskedAttentionPatch"], "start_percent": 0.8, "end_percent": 0.2}
    yield Case("MaskedAttentionPatch", "start_percent: after the end", reversed_range, REFUSED)
    for node, name in (("DisentangledInpaintSampler", "model"), ("SubjectFinetune", "model")):
        yield Case(node, f"{name}: of another kind", {**GOOD[node], name: "@edit"}, REFUSED)
    for name in ("model", "edit"):
        good = GOOD["ImageConditionedPix2Pix"]
        expected = REFUSED if name == "model" else EITHER
        yield Case("ImageConditionedPix2Pix", f"model: {name}", {**good, "model": f"@{name}"}, expected)
    yield from family_cases()
    wrong = {**GOOD["IdentityEncoderDINOv2"], "size": 100}
    yield Case("IdentityEncoderDINOv2", "size: no multiple", wrong, REFUSED)


def family_cases() -> Iterator[Case]:
    """Parts of other families: prompts of another width, a VAE of 16 channels."""
    wide = [[torch.randn(1, 77, 2048), {"pooled_output": torch.randn(1, 1280)}]]
    vae, guider = copy.copy(VALUES["vae"]), copy.copy(VALUES["guider"])
    vae.latent_channels, guider.original_conds = 16, dict(guider.original_conds)
    guider.set_conds(wide, wide)
    clip = copy.copy(VALUES["clip"])
    clip.encode_from_tokens = lambda *_, **__: (wide[0][0], wide[0][1]["pooled_output"])
    VALUES.update({"wide words": wide, "wide vae": vae, "wide guider": guider, "wide clip": clip})
    for node, name in (
        ("DisentangledInpaintSampler", "positive"),
        ("DisentangledInpaintSampler", "negative"),
        ("DisentangledInpaintSampler", "vae"),
        ("DisentangledInpaintSamplerAdvanced", "guider"),
        ("DisentangledInpaintSamplerAdvanced", "vae"),
        ("InlayObjectStitchConditioning", "vae"),
        ("ImageConditionedPix2Pix", "vae"),
        ("InlayRegularImages", "vae"),
        ("InlayRegularImages", "clip"),
        ("SubjectFinetune", "vae"),
        ("SubjectFinetune", "clip"),
    ):
        kind = "words" if name in ("positive", "negative") else name
        yield Case(node, f"{name}: of another family", {**GOOD[node], name: f"@wide {kind}"}, REFUSED)


@pytest.fixture(scope="module")
def cases(host, stock, good) -> list[Case]:
    VALUES["none"] = None
    for label, values in (("bad", BAD), ("borderline", BORDERLINE)):
        for kind, examples in values.items():
            VALUES.update({f"{label} {kind} {what}": value for what, value in examples.items()})
    found = [
        *socket_cases(host),
        *widget_cases(host),
        *limit_cases(host),
        *surrogate_cases(host),
        *file_cases(stock.folders),
        *lora_cases(stock.folders),
        *folder_cases(stock.folders),
        *batch_cases(),
        *list_cases(host),
    ]
    save_file({"head": torch.zeros(320, 5, 3, 3)}, stock.folders.models / "inpaint" / "fuzz head.safetensors")
    torch.save({"head": torch.zeros(320, 5, 3, 3)}, stock.folders.models / "inpaint" / "fuzz head.pth")
    torch.save(
        {"a": (torch.zeros(2, dtype=torch.uint8), torch.zeros(1), torch.zeros(1))},
        stock.folders.models / "inpaint" / "fuzz patch.patch",
    )
    return found


def test_there_are_cases_for_every_node_and_input(host, cases):
    assert len(cases) >= 300
    ours = {name for name in host.nodes if name in GOOD or name.startswith("Inlay")}
    assert {case.node for case in cases} == ours


def test_bad_inputs_are_refused_in_a_sentence_and_good_ones_work_afterwards(host, cases):
    for node in GOOD:
        answer = host.run(node, GOOD[node])
        assert answer.outcome == "finished", f"{node}: {answer.text}"
    before = host.written()
    wrong, begun = [], time.monotonic()
    for case in cases:
        answer = host.run(case.node, case.inputs)
        faults = answer.faults(set(host.inputs_of(case.node)))
        if case.expected == REFUSED and answer.outcome == "finished":
            faults.append("was accepted")
        if case.expected == REFUSED and host.written() != before:
            faults.append("wrote a file")
        before = host.written()
        if faults:
            wrong.append(f"{case.node} {case.name} {', '.join(faults)}: {answer.text[:200]}")
    seconds = time.monotonic() - begun
    assert not wrong, f"{len(wrong)} of {len(cases)} ({seconds:.0f} s):\n" + "\n".join(wrong)
    for node, inputs in GOOD.items():
        assert host.run(node, inputs).outcome == "finished", node
