"""The published templates: the graph they are made of, models to download, sizes, notes."""

import json
import re
from urllib.parse import urlsplit

import pytest
from PIL import Image

from inlay import dev
from inlay.tools import example_pictures, interface
from inlay.tools.example_pictures import EXAMPLES
from inlay.tools.template_layout import without
from inlay.tools.template_plans import MODELS, NOTE, PLANS
from inlay.tools.templates import WORKFLOWS, note_of
from inlay.tools.tiny import BOXES, FILL, GRAPHS, PAINTED_BY_FILL, read_graph, tiny_graph

# Nodes that no published template shows, and why.
APART = {
    "DisentangledInpaintSamplerAdvanced": "the same as without, with the sampler's parts wired",
    "InlayBackgroundBlending": "a choice beside Paste Back",
    "InlayLoadFooocusInpaint": "files to download: Fooocus' patch",
    "InlayLoadImageEncoder": "files to download: an encoder without its adapter",
    "InlayLoadPix2Pix": "files to download: a UNet in diffusers' layout",
    "InlaySubjectScore": "files to download: CLIP or DINOv2",
    "InlayTrainingOptions": "settings that the templates leave to the recipe",
    "InlayLoadSubject": "names a file that a training has to leave first",
    "InlayLoadRegularData": "names a folder that Save Regular Data has to leave first",
    "InlaySaveRegularData": "for the next training; Regular Images are wired straight in",
    "ImageConditionedPix2Pix": "nobody offers weights that are trained for objects",
    "InlayChangeMask": "as above",
    "InlayCropBack": "as above",
}
HUBS = ("huggingface.co", "civitai.com")  # addresses that the page offers to download from
SUFFIXES = (".safetensors", ".sft", ".ckpt", ".pth", ".pt")
plans = pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.graph)


def file_of(plan) -> dict:
    return json.loads((WORKFLOWS / f"{plan.title}.json").read_text(encoding="utf-8"))


def all_nodes(file: dict) -> list[dict]:
    """Those on the outside and in subgraphs."""
    inner = [node for subgraph in file["definitions"]["subgraphs"] for node in subgraph["nodes"]]
    return [*file["nodes"], *inner]


def unfolded(plan, file: dict) -> dict[str, dict]:
    """Node -> its type and wires, with the subgraphs' nodes in place of the nodes that stand for them."""
    subgraphs = {subgraph["id"]: subgraph for subgraph in file["definitions"]["subgraphs"]}
    names = {node["id"]: node for node in file["nodes"]}
    outer = {link[0]: link for link in file["links"]}
    instances = {inst[0]: inst for part in plan.parts for inst in part.instances}

    def source(node: int, output: int) -> tuple[str, int]:
        """The node that really gives what a node on the outside gives."""
        subgraph = subgraphs.get(names[node]["type"])
        if subgraph is None:
            return str(node), output
        link = next(
            found
            for found in subgraph["links"]
            if found["target_id"] == -20 and found["target_slot"] == output
        )
        place = [inner["id"] for inner in subgraph["nodes"]]
        first = next(inst for part in plan.parts for inst in part.instances if str(place[0]) in inst)
        return instances[str(node)][first.index(str(link["origin_id"]))], link["origin_slot"]

    graph = {}
    for node in file["nodes"]:
        if node["type"] == "MarkdownNote":
            continue
        given = {s["name"]: source(*outer[s["link"]][1:3]) for s in node["inputs"] if s["link"] is not None}
        subgraph = subgraphs.get(node["type"])
        if subgraph is None:
            graph[str(node["id"])] = {"type": node["type"], "wires": given}
            continue
        first = next(p.instances[0] for p in plan.parts if str(node["id"]) in {i[0] for i in p.instances})
        here = dict(zip(first, instances[str(node["id"])], strict=True))
        entries = [end["name"] for end in subgraph["inputs"]]
        links = {link["id"]: link for link in subgraph["links"]}
        for inner in subgraph["nodes"]:
            wires = {}
            for socket in inner["inputs"]:
                if socket["link"] is None:
                    continue
                link = links[socket["link"]]
                if link["origin_id"] == -10:
                    wires[socket["name"]] = given[entries[link["origin_slot"]]]
                else:
                    wires[socket["name"]] = (here[str(link["origin_id"])], link["origin_slot"])
            graph[here[str(inner["id"])]] = {"type": inner["type"], "wires": wires}
    return graph


@plans
def test_a_template_unfolded_is_its_graph(plan):
    graph = without(read_graph(plan.graph), plan.dropped)
    wanted = {
        key: {
            "type": node["class_type"],
            "wires": {n: tuple(v) for n, v in node["inputs"].items() if isinstance(v, list)},
        }
        for key, node in graph.items()
    }
    if any(len(part.instances) > 1 for part in plan.parts):  # repeated parts are wired alike
        assert len(unfolded(plan, file_of(plan))) == len(wanted)
    assert unfolded(plan, file_of(plan)) == wanted


@plans
def test_every_node_stands_once_in_the_plan(plan):
    inside = {key for part in plan.parts for instance in part.instances for key in instance[1:]}
    placed = [key for _, columns in plan.groups for column in columns for key in column]
    assert sorted([*placed, *inside]) == sorted([*without(read_graph(plan.graph), plan.dropped), NOTE])


@plans
def test_a_template_fits_a_screen_and_nothing_overlaps(plan):
    file = file_of(plan)
    lefts, rights, bottoms = zip(
        *((g["bounding"][0], g["bounding"][0] + g["bounding"][2], g["bounding"][3]) for g in file["groups"]),
        strict=True,
    )
    assert max(rights) <= 1800
    assert max(bottoms) <= 1100
    assert all(right < left for right, left in zip(rights, lefts[1:], strict=False))
    boxes = [(*node["pos"], *node["size"]) for node in file["nodes"]]
    for number, (x, y, width, height) in enumerate(boxes):
        assert sum(g["bounding"][0] <= x and x + width <= g["bounding"][0] + g["bounding"][2]
                   and y + height <= g["bounding"][3] for g in file["groups"]) == 1  # fmt: skip
        for a, b, c, d in boxes[:number]:
            assert x + width <= a or a + c <= x or y + height <= b - 30 or b + d <= y - 30


@plans
def test_a_training_has_room_for_its_curve_and_samples(plan):
    """The page shows them below its values; both renderers were measured."""
    file = file_of(plan)
    graph = read_graph(plan.graph)
    for node in file["nodes"]:
        if node["type"] != "SubjectFinetune":
            continue
        has_samples = graph[str(node["id"])]["inputs"].get("preview_every") != 0
        _, y = node["pos"]
        [column] = [group["bounding"] for group in file["groups"] if group["bounding"][0] <= node["pos"][0]
                    <= group["bounding"][0] + group["bounding"][2]]  # fmt: skip
        below = [other["pos"][1] - 30 for other in file["nodes"]
                 if other["pos"][0] == node["pos"][0] and other["pos"][1] > y]  # fmt: skip
        assert min([column[3], *below]) - y >= (1010 if has_samples else 560)


@plans
def test_every_node_names_its_pack_and_every_model_its_address(plan):
    for node in all_nodes(file_of(plan)):
        if node["type"] == "MarkdownNote" or "proxyWidgets" in node["properties"]:
            continue
        packs = {"LanPaint_KSampler": ["LanPaint"]}  # others' nodes that templates show
        assert node["properties"]["cnr_id"] in packs.get(node["type"], ["comfy-core", "inlay"])
        assert node["properties"]["ver"]
        files = [v for v in node["widgets_values"] if isinstance(v, str) and v.endswith(SUFFIXES)]
        models = node["properties"].get("models", [])
        assert [model["name"] for model in models] == files
        for model in models:
            address = urlsplit(model["url"])
            assert address.scheme == "https"
            assert address.hostname in HUBS
            assert address.path.endswith("/" + model["name"])


@plans
def test_a_template_trains_and_samples_with_the_recipes_own_settings(plan):
    for node in read_graph(plan.graph).values():
        if node["class_type"] == "SubjectFinetune":
            own = ("steps", "rank", "learning_rate", "batch_size", "resolution")
            assert [node["inputs"][name] for name in own] == [0] * 5


@plans
def test_a_note_is_short_and_without_code(plan):
    """Nodes 2.0 draws code in blue on slate."""
    [note] = [node for node in file_of(plan)["nodes"] if node["type"] == "MarkdownNote"]
    assert note["widgets_values"] == [note_of(plan)]
    assert "`" not in note_of(plan)
    assert len(note_of(plan)) < 1100


@plans
def test_a_template_has_a_card_of_its_name(plan):
    assert "#" not in plan.title
    assert Image.open(WORKFLOWS / f"{plan.title}.jpg").format == "JPEG"


def test_templates_sorted_by_name_stand_in_the_order_of_their_numbers():
    titles = [plan.title for plan in PLANS]
    assert sorted(titles) == titles


def test_three_templates_are_apps_of_nodes_on_the_outside():
    apps = [plan for plan in PLANS if plan.app]
    assert len(apps) == 3
    for plan in apps:
        nodes = {str(node["id"]): node for node in file_of(plan)["nodes"]}
        assert file_of(plan)["extra"]["linearData"] == plan.app
        assert all(key in nodes for key, *_ in plan.app["inputs"])
        assert all(nodes[key]["type"] == "SaveImage" for key in plan.app["outputs"])
        labelled = {
            f"{key}.{socket['name']}": socket["label"]
            for key, node in nodes.items()
            for socket in node.get("inputs", ())
            if "label" in socket
        }
        assert labelled == plan.labels
        own = {f"{key}.{name}" for key, name in plan.app["inputs"] if not name.startswith("inlay_")}
        assert own == set(plan.labels)  # the page names the pack's own elements


def words_of(file: dict) -> set[str]:
    """The titles of groups and nodes, the labels of an app's fields, and the lines of the note."""
    found = {group["title"] for group in file["groups"]}
    for node in all_nodes(file):
        found |= {node["title"]} if "title" in node else set()
        found |= {socket["label"] for socket in node.get("inputs", ()) if "label" in socket}
        if node["type"] == "MarkdownNote":
            found |= set(node["widgets_values"][0].splitlines()) - {""}
    return found


def test_every_word_on_a_template_is_in_chinese_too():
    """The page puts them in while it opens a template: a workflow file holds one language."""
    words = json.loads((dev.PACK / "locales" / "zh" / "main.json").read_text(encoding="utf-8"))
    chinese = words["inlayTemplates"]
    shown = set().union(*(words_of(file_of(plan)) for plan in PLANS))
    assert shown == chinese.keys()
    for english, other in chinese.items():
        assert re.search(r"[\u4e00-\u9fff]", other) or english.removeprefix("### ") == "DreamMix"
        assert english.count("**") == other.count("**")


def test_a_translated_note_names_nodes_as_they_are_titled():
    words = json.loads((dev.PACK / "locales" / "zh" / "main.json").read_text(encoding="utf-8"))
    chinese = words["inlayTemplates"]
    for english, other in chinese.items():
        for bold in re.findall(r"\*\*(.+?)\*\*", english):
            if bold in chinese:
                assert f"**{chinese[bold]}**" in other


def test_the_pictures_that_templates_name_come_with_the_pack():
    for plan in PLANS:
        for node in read_graph(plan.graph).values():
            if node["class_type"] in ("LoadImage", "LoadImageMask"):
                assert (EXAMPLES / node["inputs"]["image"]).is_file()
            if node["class_type"] == "InlayLoadReferences":
                assert len(list((EXAMPLES / node["inputs"]["folder"]).glob("*.png"))) >= 3
    assert sum(file.stat().st_size for file in EXAMPLES.rglob("*.png")) < 600_000


def test_the_upload_button_of_a_picture_comes_after_its_other_values():
    [plan] = [plan for plan in PLANS if plan.graph == "insert_by_shape"]
    [node] = [node for node in file_of(plan)["nodes"] if node["type"] == "LoadImageMask"]
    assert node["widgets_values"] == ["inlay_shape.png", "red", "image"]


def test_the_published_boxes_are_where_the_examples_have_space():
    known = {
        "inlay_background.png": example_pictures.EXAMPLE_BOX,
        "inlay_large_room.png": example_pictures.LARGE_BOX,
    }
    for path in GRAPHS.glob("*.json"):
        graph = read_graph(path.stem)
        for node in graph.values():
            if node["class_type"] == "InlayBoxMask":
                box = tuple(node["inputs"][side] for side in ("x", "y", "width", "height"))
                assert box == known[graph[node["inputs"]["image"][0]]["inputs"]["image"]]
    assert tuple(4 * side for side in example_pictures.BOX) == example_pictures.EXAMPLE_BOX


def test_the_tiny_variants_are_the_same_graphs_with_tiny_models():
    for name, (x, y, width, height) in BOXES.items():
        picture = Image.open(example_pictures.TINY / name)
        assert x + width <= picture.width
        assert y + height <= picture.height
    graphs = [tiny_graph(path.stem) for path in GRAPHS.glob("*.json")]
    filled = [tiny_graph(name, fill=True) for name in PAINTED_BY_FILL]
    assert all(graph["1"]["inputs"]["unet_name"] == FILL for graph in filled)
    for graph in (*graphs, *filled):
        names = {value for node in graph.values() for value in node["inputs"].values()
                 if isinstance(value, str) and value.endswith(SUFFIXES)}  # fmt: skip
        assert all(name.startswith("inlay_tiny") for name in names)
        for node in graph.values():
            if node["class_type"] == "InlayBoxMask":
                box = tuple(node["inputs"][side] for side in ("x", "y", "width", "height"))
                assert box == BOXES[graph[node["inputs"]["image"][0]]["inputs"]["image"]]
            wired = [value[0] for value in node["inputs"].values() if isinstance(value, list)]
            assert all(key in graph for key in wired)


def test_every_node_is_in_a_template_or_has_a_reason():
    nodes = json.loads(interface.FILE.read_text(encoding="utf-8"))
    shown = {node["class_type"] for plan in PLANS for node in read_graph(plan.graph).values()}
    assert set(nodes) - shown == set(APART)


def test_every_address_is_used():
    used = {(node["type"], value) for plan in PLANS for node in all_nodes(file_of(plan))
            for value in node["widgets_values"] if isinstance(value, str)}  # fmt: skip
    assert set(MODELS) <= used
