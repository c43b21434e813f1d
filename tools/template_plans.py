"""How the published templates look: which nodes stand in which column, what is folded into subgraphs, models.

A template is made of the graph in workflows/api of the plan's `graph`; `dropped` nodes are not shown.
"""

from dataclasses import dataclass, field
from typing import Any

HUB = "https://huggingface.co"
# (node type, file) -> address and folder; the page offers what is missing for download.
MODELS: dict[tuple[str, str], tuple[str, str]] = {
    ("CheckpointLoaderSimple", "sd-v1-5-inpainting.safetensors"): (
        f"{HUB}/webui/stable-diffusion-inpainting/resolve/main/sd-v1-5-inpainting.safetensors",
        "checkpoints",
    ),
    ("CheckpointLoaderSimple", "model.ckpt"): (
        f"{HUB}/Fantasy-Studio/Paint-by-Example/resolve/main/model.ckpt",
        "checkpoints",
    ),
    ("InlayLoadAdapter", "model.ckpt"): (
        f"{HUB}/Fantasy-Studio/Paint-by-Example/resolve/main/model.ckpt",
        "checkpoints",
    ),
    ("LoadBackgroundRemovalModel", "birefnet.safetensors"): (
        f"{HUB}/Comfy-Org/BiRefNet/resolve/main/background_removal/birefnet.safetensors",
        "background_removal",
    ),
}
NOTE = "note"  # the place of a template's note in its columns


@dataclass(frozen=True)
class Part:
    """Nodes that are one subgraph on the outside; of several instances the first is the definition.

    `widgets`, as "node.input", are shown outside. Instances have the same types and wires in the same order.
    """

    name: str
    instances: tuple[tuple[str, ...], ...]
    widgets: tuple[str, ...]
    titles: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """One template: groups of columns of nodes, from left to right; a part stands under its first node."""

    graph: str
    title: str  # the file's name, which the template browser shows and searches
    groups: tuple[tuple[str, tuple[tuple[str, ...], ...]], ...]
    parts: tuple[Part, ...] = ()
    dropped: tuple[str, ...] = ()
    app: dict[str, Any] = field(default_factory=dict)  # the front end's `linearData`


def _group(title: str, *columns: str) -> tuple[str, tuple[tuple[str, ...], ...]]:
    return title, tuple(tuple(column.split()) for column in columns)


SEEDS = ("seed", "steps", "cfg")


def _app(*inputs: str, output: str) -> dict[str, Any]:
    """The app form: "node.input" to set, and the node whose picture is shown."""
    pairs = [name.split(".") for name in inputs]
    return {"inputs": [[node, widget] for node, widget in pairs], "outputs": [output]}


PLANS = [
    Plan(
        "insert_subject",
        "Inlay 1 - Insert my subject from a few photos",
        (
            _group("1. Models and photos", "1 101 2 note"),
            _group("2. Picture and place", "3 4"),
            _group("3. Learn the subject", "5"),
            _group("4. Paint", "7 8 6", "17"),
        ),
        (
            Part(
                "Paint Into the Box",
                (("6", "9", "11", "13", "15"),),
                tuple(f"11.{name}" for name in SEEDS),
                ("Paint Into the Box",),
            ),
        ),
        ("10", "12", "14", "16", "18"),
        _app("2.folder", "3.image", "4.inlay_box", "5.class_name", "7.text", output="17"),
    ),
    Plan(
        "insert_small",
        "Inlay 2 - Insert my subject small into a large photo",
        (
            _group("1. Models and photos", "1 101 2 note"),
            _group("2. Picture and place", "3 4"),
            _group("3. Learn the subject", "5"),
            _group("4. Paint", "6 7 8 12", "10"),
        ),
        (),
        ("9", "11"),
    ),
    Plan(
        "edit_attribute",
        "Inlay 3 - Edit colour or material of my subject",
        (
            _group("1. Models and photos", "1 101 2 note"),
            _group("2. Picture and place", "3 4"),
            _group("3. Learn the subject", "5"),
            _group("4. Paint", "6 7 9", "11"),
        ),
        (),
        ("8", "10", "12"),
        _app("2.folder", "3.image", "4.inlay_box", "5.class_name", "6.prompt", output="11"),
    ),
    Plan(
        "insert_one_photo",
        "Inlay 4 - Insert an object from one photo",
        (
            _group("1. Model and object", "1 3 4 note"),
            _group("2. Picture and place", "6 7"),
            _group("3. Paint", "5 8 9", "13"),
        ),
        (
            Part(
                "Paint Into the Box",
                (("9", "10", "11", "12"),),
                tuple(f"10.{name}" for name in SEEDS),
                ("Paint Into the Box",),
            ),
        ),
        (),
        _app("4.image", "6.image", "7.inlay_box", output="13"),
    ),
    Plan(
        "insert_by_shape",
        "Inlay 5 - Insert an object in a drawn shape",
        (
            _group("1. Model and object", "1 3 4 note"),
            _group("2. Picture and shape", "6 7"),
            _group("3. Paint", "8 5", "9 10", "14"),
        ),
        (
            Part(
                "Paint Into the Shapes",
                (("10", "11", "12", "13"),),
                tuple(f"11.{name}" for name in SEEDS),
                ("Paint Into the Shapes",),
            ),
        ),
    ),
    Plan(
        "dreammix",
        "Inlay 6 - DreamMix - edited subject in a large photo",
        (
            _group("1. Models and photos", "1 101 2 note"),
            _group("2. Picture and place", "3 4"),
            _group("3. Other things of its kind", "12 13"),
            _group("4. Learn the subject", "5"),
            _group("5. Paint", "6 7 8 9"),
        ),
        (
            Part(
                "Close-Up, Then Surroundings",
                (("8",),),
                tuple(f"8.{name}" for name in SEEDS),
                ("Close-Up, Then Surroundings",),
            ),
        ),
        ("10", "11", "14"),
    ),
    Plan(
        "train_and_share",
        "Inlay 7 - Train a subject and share it",
        (
            _group("1. Models and photos", "1 101 2 note"),
            _group("2. Picture and place", "3 4"),
            _group("3. Learn and keep", "5 6"),
            _group("4. Try what others get", "7 8 9 10", "11 12"),
        ),
        (
            Part("Paint Into the Box", (("10",),), tuple(f"10.{name}" for name in SEEDS), ("Sample",)),
        ),
    ),
    Plan(
        "compare",
        "Inlay 8 - Compare with and without",
        (
            _group("1. Models and photos", "1 101 2 note"),
            _group("2. Picture and place", "3 4"),
            _group("3. Learn the subject", "5 6"),
            _group("4. Paint three times", "7 8 9 10 11 12 13", "20 21 22"),
        ),
        (
            Part(
                "Sample and Paste Back",
                (("11", "14", "17"), ("12", "15", "18"), ("13", "16", "19")),
                ("11.seed",),
                ("Without", "Learned", "Learned and Masked"),
            ),
        ),
    ),
]
