"""The bundled workflows for the tiny models: the same graphs with other files, sizes and settings.

The demo, `dev.py serve` and the tests run these; what is published names real models.
"""

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

from ..headless import Graph
from .example_pictures import BOX, SMALL_LARGE_BOX

GRAPHS = Path(__file__).resolve().parent.parent / "workflows" / "api"
CHECKPOINT, PIX2PIX = "inlay_tiny.safetensors", "inlay_tiny_pix2pix.safetensors"
IDENTITY, OPTIMIZER = "inlay_tiny_identity.safetensors", "inlay_tiny_optimizer.safetensors"
EDIT, FILL = "inlay_tiny_edit.safetensors", "inlay_tiny_fill.safetensors"  # of Flux.1's class
CLIP, VAE = "inlay_tiny_clip.safetensors", "inlay_tiny_16.safetensors"
SIDE = 128  # pixels of the tiny models' pictures
BOXES = {"inlay_background.png": BOX, "inlay_large_room.png": SMALL_LARGE_BOX}
SAMPLING: dict[str, Any] = {
    "steps": 20, "cfg": 4.0, "sampler_name": "dpmpp_2m_sde", "scheduler": "sgm_uniform"
}  # fmt: skip
FLOW: dict[str, Any] = {"steps": 20, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple"}
FILL_CFG = 7.0
SETTINGS: dict[str, dict[str, Any]] = {
    "CheckpointLoaderSimple": {"ckpt_name": CHECKPOINT},
    "SubjectFinetune": {
        "steps": 100, "rank": 16, "learning_rate": 0.001, "batch_size": 4, "resolution": SIDE
    },
    "KSampler": SAMPLING,
    "DisentangledInpaintSampler": SAMPLING | {"close_up_size": SIDE, "soft_edge": 2},
    "InlayRegularImages": SAMPLING | {"size": SIDE, "count": 1},
    "InlayPasteBack": {"feather": 2},
    "SaveLoRA": {"steps": 100},
    "UNETLoader": {"unet_name": EDIT},
    "CLIPLoader": {"clip_name": CLIP, "type": "stable_diffusion"},
    "VAELoader": {"vae_name": VAE},
    "InlayCropForPainting": {"megapixels": 0.016},
}  # fmt: skip
FLOW_SETTINGS = {"KSampler": FLOW, "DisentangledInpaintSampler": FLOW}
# workflows with a finetuned subject that the tiny Fill model paints
PAINTED_BY_FILL = ("insert_subject", "insert_small", "train_and_share")
CUT_OUT = " **Cut Out the Subject** finds it in each of them."
PAPER = re.compile(r"\*\*(Models?|As in DreamCom's paper)\*\*")  # what a note has about real models
TINY_NOTE = """

**The model** is a tiny one, for trying the nodes: its pictures are small. Nothing cuts your photos out here; take PNGs with a transparent background, or put masks beside them. What needs an account, another pack or a LoRA of a large model is replaced or left out.
"""  # noqa: E501
# what differs in single workflows: (workflow, node type) -> settings
APART: dict[tuple[str, str], dict[str, Any]] = {
    ("insert_without_mask", "CheckpointLoaderSimple"): {"ckpt_name": PIX2PIX},
    ("insert_without_mask", "InlayLoadAdapter"): {"file": OPTIMIZER},
    ("insert_without_mask", "ImageConditionedPix2Pix"): {"object_guidance": 3.0},
    ("insert_without_mask", "BasicScheduler"): {"steps": 20, "scheduler": "sgm_uniform"},
    ("insert_without_mask", "KSamplerSelect"): {"sampler_name": "dpmpp_2m_sde"},
    ("insert_without_mask", "InlayPasteBack"): {"feather": 4},
    ("insert_by_shape", "InlayPasteBack"): {"feather": 1},
    ("insert_by_shape", "KSampler"): {"cfg": 3.0},
    ("insert_one_photo", "KSampler"): {"cfg": 3.0},
    ("train_and_share", "SubjectFinetune"): {"preview_every": 50},
    ("insert_fill", "UNETLoader"): {"unet_name": FILL},
}
# nodes that the tiny variants replace: type -> another type with these inputs of the node, and others
REPLACED: dict[str, tuple[str, dict[str, str], dict[str, Any]]] = {
    "DualCLIPLoader": ("CLIPLoader", {}, {}),
    "LanPaint_KSampler": (
        "KSampler",
        {name: name for name in ("model", "positive", "negative", "latent_image", "seed", "denoise")},
        {},
    ),
    # no network: the first picture of its batch, softened, stands in for what a service returns
    "GeminiImage2Node": ("ImageBlur", {"images": "image"}, {"blur_radius": 2, "sigma": 1.0}),
}


def read_graph(name: str) -> Graph:
    """The published workflow of that name, in API form."""
    return json.loads((GRAPHS / f"{name}.json").read_text(encoding="utf-8"))


def tiny_note(note: str) -> str:
    """The note of a template, true for its tiny variant."""
    lines = [line.replace(CUT_OUT, "") for line in note.rstrip().splitlines() if not PAPER.match(line)]
    return "\n".join(lines).rstrip() + TINY_NOTE


def tiny_graph(name: str, fill: bool = False) -> Graph:
    """The workflow of that name for the tiny models, in API form; with `fill` for Fill, not for the UNet."""
    graph = with_stand_ins(without_cut_out(read_graph(name)))
    if fill:
        graph = with_fill(graph)
    if any(node["class_type"] == "InlayObjectStitchConditioning" for node in graph.values()):
        graph = with_tiny_adapter(graph)
    for node in graph.values():
        kind, inputs = node["class_type"], node["inputs"]
        inputs |= SETTINGS.get(kind, {}) | APART.get((name, kind), {})
        if fill and kind == "UNETLoader":
            inputs["unet_name"] = FILL
        if uses_flow(graph):
            inputs |= FLOW_SETTINGS.get(kind, {}) | APART.get((name, kind), {})
        if kind == "SubjectFinetune" and inputs["recipe"] == "DreamMix":
            inputs["batch_size"] = 1
    if any(node["inputs"].get("unet_name") == FILL for node in graph.values()):
        for node in graph.values():
            if "cfg" in node["inputs"]:
                node["inputs"]["cfg"] = FILL_CFG
    for node in graph.values():
        if node["class_type"] == "InlayBoxMask":
            box = BOXES[graph[node["inputs"]["image"][0]]["inputs"]["image"]]
            node["inputs"] |= dict(zip(("x", "y", "width", "height"), box, strict=True))
    return graph


def served_graph(name: str) -> Graph:
    """The variant of that name that `dev.py serve` offers and the templates' pictures show."""
    return tiny_graph(name, name in PAINTED_BY_FILL)


def with_fill(graph: Graph) -> Graph:
    """A published graph with the tiny Fill model for its checkpoint.

    Without masked attention, with which that model paints the right class less often (docs/transformers.md).
    """
    graph = deepcopy(graph)
    [key] = [key for key, node in graph.items() if node["class_type"] == "CheckpointLoaderSimple"]
    loaders = {
        key: ("UNETLoader", "Load Fill", {"unet_name": FILL, "weight_dtype": "default"}),
        "102": ("CLIPLoader", "Load Its Text Encoder", {}),
        "103": ("VAELoader", "Load Its VAE", {}),
    }
    graph |= {
        name: {"class_type": kind, "_meta": {"title": title}, "inputs": inputs}
        for name, (kind, title, inputs) in loaders.items()
    }
    moved = {(key, 1): ["102", 0], (key, 2): ["103", 0]}
    for name, node in list(graph.items()):
        if node["class_type"] == "MaskedAttentionPatch":
            moved[name, 0] = graph.pop(name)["inputs"]["model"]
    for node in graph.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list):
                node["inputs"][name] = moved.get(tuple(value), value)
    return graph


def uses_flow(graph: Graph) -> bool:
    """Whether the graph's model is one of Flux.1's class."""
    return any(node["class_type"] == "UNETLoader" for node in graph.values())


def without_cut_out(graph: Graph) -> Graph:
    """The graph without background removal: the tiny world's photos are cut out already."""
    removed = {key for key, node in graph.items() if node["class_type"] == "LoadBackgroundRemovalModel"}
    kept = {key: deepcopy(node) for key, node in graph.items() if key not in removed}
    for node in kept.values():
        node["inputs"] = {
            name: value
            for name, value in node["inputs"].items()
            if not (isinstance(value, list) and value[0] in removed)
        }
    return kept


def with_stand_ins(graph: Graph) -> Graph:
    """The graph without nodes that need an account or another pack, and without LoRAs of large models."""
    for key, node in list(graph.items()):
        inputs = node["inputs"]
        if node["class_type"] in REPLACED:
            kind, kept, others = REPLACED[node["class_type"]]
            node["class_type"] = kind
            inputs = node["inputs"] = {kept[n]: value for n, value in inputs.items() if n in kept} | others
        if node["class_type"] == "ImageBlur":  # of the batch with the photos the first picture, as one answer
            graph["104"] = {
                "class_type": "ImageFromBatch",
                "_meta": {"title": "The Crop Alone"},
                "inputs": {"image": node["inputs"]["image"], "batch_index": 0, "length": 1},
            }
            node["inputs"]["image"] = ["104", 0]
        if node["class_type"] == "LoraLoaderModelOnly":
            graph.pop(key)
            for other in graph.values():
                for name, value in other["inputs"].items():
                    if isinstance(value, list) and value[0] == key:
                        other["inputs"][name] = inputs["model"]
    return graph


def with_tiny_adapter(graph: Graph) -> Graph:
    """The graph for the tiny adapter, which takes the channels in the usual order and changes the UNet."""
    [key] = [key for key, node in graph.items() if node["class_type"] == "InlayObjectStitchConditioning"]
    conditioning = graph[key]
    model = conditioning["inputs"].pop("model")
    conditioning["class_type"] = "InlayInpaintConditioning"
    graph["100"] = {
        "class_type": "LoraLoaderModelOnly",
        "_meta": {"title": "What the UNet Learned"},
        "inputs": {"model": model, "lora_name": IDENTITY, "strength_model": 1.0},
    }
    for node in graph.values():
        if node["class_type"] == "InlayLoadAdapter":
            node["inputs"] = {"file": IDENTITY}
        inputs: dict[str, Any] = node["inputs"]
        for name, value in inputs.items():
            if isinstance(value, list) and value[0] == key:
                inputs[name] = ["100", 0] if value[1] == 0 else [key, value[1] - 1]
    return graph
