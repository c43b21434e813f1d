"""A workflow from a file and the user's settings on it: names, nearest names, values, both forms."""

import json

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from inlay.headless import HostError
from inlay.headless.jobs import plan, upload_name
from inlay.headless.results import relative_setting
from inlay.headless.workflow import Setting, as_graph, find_node, read_workflow

DEFINITIONS = {
    "LoadImage": {
        "display_name": "Load Image",
        "input": {"required": {"image": ["COMBO", {"options": ["a.png"], "image_upload": True}]}},
        "input_order": {"required": ["image"]},
    },
    "LoadFolder": {
        "display_name": "Load Folder",
        "input": {"required": {"folder": [["old"], {}]}},
        "input_order": {"required": ["folder"]},
    },
    "Train": {
        "display_name": "Train",
        "input": {
            "required": {
                "images": ["IMAGE", {}],
                "steps": ["INT", {"default": 4}],
                "rate": ["FLOAT", {"default": 0.5}],
                "word": ["STRING", {}],
                "seed": ["INT", {"default": 7}],
                "recipe": [["fast", "slow"], {}],
            },
            "optional": {"masks": ["MASK", {}], "full": ["BOOLEAN", {"default": False}]},
        },
        "input_order": {
            "required": ["images", "steps", "rate", "word", "seed", "recipe"],
            "optional": ["masks", "full"],
        },
    },
}
GRAPH = {
    "1": {"class_type": "LoadImage", "_meta": {"title": "Room"}, "inputs": {"image": "a.png"}},
    "2": {"class_type": "LoadFolder", "inputs": {"folder": "old"}},
    "3": {"class_type": "Train", "_meta": {"title": "Learn"}, "inputs": {"images": ["1", 0], "word": "x"}},
    "4": {"class_type": "Train", "_meta": {"title": "Learn more"}, "inputs": {"images": ["2", 0]}},
}


def settings(*texts: str) -> list[Setting]:
    return [Setting.parse(text) for text in texts]


def planned(*sets: str, each: tuple[str, ...] = ()):
    return plan(GRAPH, settings(*sets), settings(*each), DEFINITIONS)


@pytest.fixture
def subjects(tmp_path):
    """Two subjects of two pictures, one with settings of its own."""
    for name, shade in (("cat", 10), ("mug", 200)):
        (tmp_path / "subjects" / name).mkdir(parents=True)
        for number in range(2):
            Image.new("L", (4, 4), shade + number).save(tmp_path / "subjects" / name / f"{number}.png")
    (tmp_path / "subjects" / "mug.json").write_text('{"Learn.word": "mug", "Learn.steps": 9}', "utf-8")
    return tmp_path / "subjects"


def test_a_setting_reaches_its_node_by_title_type_or_id_and_has_the_inputs_type():
    sets = ["Learn.steps=12", "3.rate=1e-4", "Learn more.full=TRUE", "Learn.word=a=b.c", "2.folder=y"]
    (job,) = planned(*sets)
    learn = job.graph["3"]["inputs"]
    assert (learn["steps"], learn["rate"], learn["word"]) == (12, 1e-4, "a=b.c")
    assert type(learn["steps"]) is int
    assert job.graph["4"]["inputs"]["full"] is True
    assert job.graph["2"]["inputs"]["folder"] == "y"
    assert job.settings == tuple(sets)
    assert "steps" not in GRAPH["3"]["inputs"]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("Lern.steps=1", "no node Lern: did you mean Learn"),
        ("Learn.stepps=1", "no input stepps: did you mean steps"),
        ("Train.steps=1", "Train names 2 nodes; use an id: 3, 4"),
        ("Learn.steps=many", "steps takes a whole number"),
        ("Learn.rate=x", "rate takes a number"),
        ("Learn.full=maybe", "full takes true or false"),
        ("Learn.images=a.png", r"fed by another node \(IMAGE\)"),
    ],
)
def test_a_wrong_setting_says_what_would_be_right(setting, said):
    with pytest.raises(HostError, match=said):
        planned(setting)


@pytest.mark.parametrize("text", ["steps=1", "Learn.steps", ".steps=1", "Learn.=1"])
def test_a_setting_of_another_form_is_refused(text):
    with pytest.raises(HostError, match=r"write NODE\.input=value"):
        Setting.parse(text)


def test_a_node_type_the_host_lacks_names_the_nearest():
    graph = {"1": {"class_type": "TrainLora", "inputs": {}}}
    with pytest.raises(HostError, match=r"no node TrainLora \(node 1\): did you mean Train"):
        as_graph(graph, DEFINITIONS)


def test_a_title_that_is_also_an_id_means_the_id():
    other = {"class_type": "Train", "_meta": {"title": "3"}, "inputs": {}}
    assert find_node(GRAPH | {"5": other}, "3") == "3"


def test_every_combination_is_a_job_and_brings_its_own_settings_and_pictures(subjects, tmp_path):
    rooms = tmp_path / "rooms"
    rooms.mkdir()
    for name in ("hall", "kitchen", "attic"):
        Image.new("L", (4, 4), len(name)).save(rooms / f"{name}.png")
    jobs = planned("Learn.steps=3", each=(f"LoadFolder.folder={subjects}", f"Room.image={rooms}"))
    assert [job.labels for job in jobs] == [
        (subject, room) for subject in ("cat", "mug") for room in ("attic", "hall", "kitchen")
    ]
    assert len({job.key for job in jobs}) == 6
    cat, mug = jobs[0], jobs[3]
    assert [(job.graph["3"]["inputs"]["steps"], job.graph["3"]["inputs"]["word"]) for job in (cat, mug)] == [
        (3, "x"),
        (9, "mug"),
    ]
    folder = cat.graph["2"]["inputs"]["folder"]
    assert cat.uploads[0].subfolder == folder
    assert [name for _, name in cat.uploads[0].files] == ["0.png", "1.png"]
    assert cat.graph["1"]["inputs"]["image"] == f"{cat.uploads[1].subfolder}/{cat.uploads[1].files[0][1]}"


def test_a_job_has_the_same_key_wherever_its_pictures_lie_and_another_when_they_change(subjects, tmp_path):
    before = planned(each=(f"LoadFolder.folder={subjects}",))
    moved = subjects.rename(tmp_path / "elsewhere")
    after = planned(each=(f"LoadFolder.folder={moved}",))
    assert [job.key for job in before] == [job.key for job in after]
    Image.new("L", (4, 4)).save(moved / "cat" / "0.png")
    changed = planned(each=(f"LoadFolder.folder={moved}",))
    assert [a.key == b.key for a, b in zip(after, changed, strict=True)] == [False, True]


def test_values_with_commas_vary_too():
    jobs = planned(each=("Learn.seed=1, 2,30",))
    assert [job.graph["3"]["inputs"]["seed"] for job in jobs] == [1, 2, 30]
    assert [job.labels for job in jobs] == [("1",), ("2",), ("30",)]


@pytest.mark.parametrize(("each", "said"), [("Learn.seed=1,1", "1 is there twice"), ("Learn.seed=,", "give")])
def test_choices_that_cannot_be_told_apart_or_are_none_are_refused(each, said):
    with pytest.raises(HostError, match=said):
        planned(each=(each,))


def test_two_pictures_of_one_name_are_refused(tmp_path):
    for suffix in ("png", "bmp"):
        Image.new("L", (4, 4)).save(tmp_path / f"room.{suffix}")
    with pytest.raises(HostError, match="room is there twice"):
        planned(each=(f"Room.image={tmp_path}",))


def test_a_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(HostError, match="no picture in that folder"):
        planned(f"LoadFolder.folder={tmp_path}")


def test_a_workflow_is_read_from_json_and_from_a_picture_that_holds_one(tmp_path):
    (tmp_path / "graph.json").write_text(json.dumps(GRAPH), encoding="utf-8")
    facts = PngInfo()
    facts.add_text("prompt", json.dumps(GRAPH))
    Image.new("L", (4, 4)).save(tmp_path / "made.png", pnginfo=facts)
    (tmp_path / "sent.json").write_text(json.dumps({"prompt": GRAPH}), encoding="utf-8")
    for name in ("graph.json", "made.png", "sent.json"):
        assert read_workflow(tmp_path / name) == GRAPH


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "There is no workflow"),
        ("{", "no workflow"),
        ("[1]", "an object"),
        ('{"a": 1}', "class_type"),
        ('{"prompt": "a cat"}', "its prompt should be an object"),
    ],
)
def test_what_is_no_workflow_is_said(tmp_path, content, said):
    path = tmp_path / "w.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(HostError, match=said):
        read_workflow(path)


BOX = {"x": ["INT", {}], "y": ["INT", {}], "width": ["INT", {}], "height": ["INT", {}]}
BENCH = DEFINITIONS | {
    "Box": {"display_name": "Box", "input": {"required": BOX}, "input_order": {"required": list(BOX)}},
}
TAKERS = {"references": "LoadFolder.folder", "background": "Room.image", "box": "Box",
          "class": "Learn.word", "prompt": "Learn more.word"}  # fmt: skip


def test_a_benchmarks_cases_become_jobs_under_their_names(tmp_path):
    from inlay.evaluation.benchmark_datasets import Case
    from inlay.headless.benchmark import plan_cases
    from inlay.imaging.boxes import Box

    room, photo, shape = (tmp_path / name for name in ("room.jpg", "0.jpg", "0.png"))
    for path in (room, photo):
        Image.new("RGB", (40, 30), len(path.name)).save(path)
    white = Image.new("L", (40, 30))
    white.paste(255, (3, 4, 13, 24))
    white.save(shape)
    graph = GRAPH | {"7": {"class_type": "Box", "inputs": {}}}
    graph["3"] = GRAPH["3"] | {"inputs": GRAPH["3"]["inputs"] | {"token": "sks"}}
    cases = [
        Case("Mug/fg1/0", ((photo, shape),), "mug", "a {subject}", room, Box(1, 2, 11, 22)),
        Case("Mug/fg1/1", ((photo, shape),), "mug", "a {subject}", room, shape),
        Case("Mug/fg1/2", ((photo, shape),), "mug"),
    ]
    first, second = plan_cases(graph, settings("Learn.steps=5"), cases, BENCH, TAKERS)
    assert first.labels == ("Mug", "fg1", "0")
    inputs = {key: node["inputs"] for key, node in first.graph.items()}
    assert inputs["7"] == {"x": 2, "y": 1, "width": 20, "height": 10}
    assert (inputs["3"]["steps"], inputs["3"]["word"], inputs["4"]["word"]) == (5, "mug", "a sks mug")
    assert second.graph["7"]["inputs"] == {"x": 3, "y": 4, "width": 10, "height": 20}
    folder, background = first.uploads
    assert folder.subfolder == inputs["2"]["folder"]
    assert [name for _, name in folder.files] == ["0.jpg", "0_mask.png"]
    assert inputs["1"]["image"] == f"{background.subfolder}/{background.files[0][1]}"
    with pytest.raises(HostError, match="marks the subject's place in no picture"):
        plan_cases(graph, [], cases[2:], BENCH, TAKERS)


def test_a_case_goes_where_the_user_says():
    from inlay.headless.benchmark import read_input_bindings

    assert read_input_bindings(["prompt=Words.text"])["prompt"] == "Words.text"
    with pytest.raises(HostError, match="FIELD one of references, background"):
        read_input_bindings(["mask=1.image"])


def node(key: int, kind: str, inputs=(), values=(), mode: int = 0, outputs=("IMAGE",), **more) -> dict:
    sockets = [{"name": name, "type": type_, "link": link} for name, type_, link in inputs]
    shown = [{"name": name, "type": name, "links": []} for name in outputs]
    return {"id": key, "type": kind, "mode": mode, "inputs": sockets, "outputs": shown,
            "widgets_values": list(values), **more}  # fmt: skip


def ui(*nodes: dict, links=()) -> dict:
    return {"nodes": list(nodes), "links": [list(link) for link in links]}


LOAD = node(1, "LoadImage", values=["a.png", "image"])
VALUES = [9, 0.25, "w", 3, "randomize", "slow", True]


def test_a_node_whose_inputs_change_with_a_choice_is_refused_in_ui_form():
    """Its saved values are those of one choice; read as the node's own they would move to other inputs."""
    resize = {"display_name": "Resize", "input": {"required": {
        "resize_type": ["COMFY_DYNAMICCOMBO_V3", {"options": []}], "method": ["COMBO", {"options": ["area"]}],
    }}, "input_order": {"required": ["resize_type", "method"]}}  # fmt: skip
    with pytest.raises(HostError, match=r"Resize has inputs that change with a choice; .* Export \(API\)"):
        as_graph(ui(node(3, "Resize", values=["width", 512, "area"])), DEFINITIONS | {"Resize": resize})


def test_the_ui_form_gives_the_graph_with_the_front_ends_own_values_left_out():
    learn = node(3, "Train", [("images", "IMAGE", 1)], VALUES, title="Learn")
    note = node(9, "MarkdownNote", values=["read me"])
    graph = as_graph(ui(LOAD, learn, note, links=[(1, 1, 0, 3, 0, "IMAGE")]), DEFINITIONS)
    assert graph == {
        "1": {"class_type": "LoadImage", "_meta": {"title": "Load Image"}, "inputs": {"image": "a.png"}},
        "3": {
            "class_type": "Train",
            "_meta": {"title": "Learn"},
            "inputs": {"images": ["1", 0], "steps": 9, "rate": 0.25, "word": "w", "seed": 3, "recipe": "slow",
                       "full": True},
        },
    }  # fmt: skip


def test_bypassed_nodes_and_reroutes_are_followed_and_muted_ones_left_out():
    passed = node(5, "Anything", [("m", "MASK", None), ("i", "IMAGE", 1)], mode=4, outputs=("IMAGE", "MASK"))
    reroute = node(6, "Reroute", [("", "*", 2)])
    muted = node(7, "LoadImage", mode=2, outputs=("IMAGE", "MASK"))
    learn = node(3, "Train", [("images", "IMAGE", 3), ("masks", "MASK", 4)], VALUES)
    links = [(1, 1, 0, 5, 1, "IMAGE"), (2, 5, 0, 6, 0, "IMAGE"), (3, 6, 0, 3, 0, "*"), (4, 7, 1, 3, 1, "M")]
    graph = as_graph(ui(LOAD, passed, reroute, muted, learn, links=links), DEFINITIONS)
    assert set(graph) == {"1", "3"}
    assert graph["3"]["inputs"]["images"] == ["1", 0]
    assert "masks" not in graph["3"]["inputs"]


def test_a_primitive_gives_its_value_and_a_wired_widget_its_link():
    primitive = node(8, "PrimitiveNode", values=[42, "fixed"], outputs=("INT",))
    learn = node(3, "Train", [("steps", "INT", 1), ("word", "STRING", 2)], VALUES)
    links = [(1, 8, 0, 3, 0, "INT"), {"id": 2, "origin_id": 1, "origin_slot": 1}]
    graph = as_graph({"nodes": [LOAD, primitive, learn], "links": links}, DEFINITIONS)
    assert graph["3"]["inputs"]["steps"] == 42
    assert graph["3"]["inputs"]["word"] == ["1", 1]
    assert graph["3"]["inputs"]["seed"] == 3


def test_widgets_added_since_the_file_was_saved_have_their_defaults():
    graph = as_graph(ui(node(3, "Train", values=[9])), DEFINITIONS)
    inputs = graph["3"]["inputs"]
    assert inputs == {"steps": 9, "rate": 0.5, "word": "", "seed": 7, "recipe": "fast", "full": False}


def test_the_nodes_of_a_subgraph_take_its_place():
    """Under "SUBGRAPH:NODE", with the links through its ends and the values of its promoted widgets."""
    inner = {
        "id": "f00",
        "name": "Insert subject",
        "nodes": [
            node(3, "Train", [("images", "IMAGE", 7)], VALUES),
            node(4, "Train", [("images", "IMAGE", 8)], VALUES),
        ],
        "links": [
            {"id": 7, "origin_id": -10, "origin_slot": 0, "target_id": 3, "target_slot": 0, "type": "IMAGE"},
            {"id": 8, "origin_id": -10, "origin_slot": 0, "target_id": 4, "target_slot": 0, "type": "IMAGE"},
            {"id": 9, "origin_id": 3, "origin_slot": 0, "target_id": -20, "target_slot": 0, "type": "MODEL"},
        ],
    }  # fmt: skip
    around = node(6, "f00", [("images", "IMAGE", 1)], [21])
    around |= {"properties": {"proxyWidgets": [["3", "steps"]]}, "outputs": [{"type": "MODEL", "links": [2]}]}
    after = node(9, "Train", [("images", "IMAGE", 2)], VALUES)
    document = ui(LOAD, around, after, links=[(1, 1, 0, 6, 0, "IMAGE"), (2, 6, 0, 9, 0, "MODEL")])
    document["definitions"] = {"subgraphs": [inner]}
    graph = as_graph(document, DEFINITIONS)
    assert set(graph) == {"1", "6:3", "6:4", "9"}
    assert graph["6:3"]["inputs"]["images"] == ["1", 0]
    assert graph["6:3"]["inputs"]["steps"] == 21
    assert graph["6:4"]["inputs"]["images"] == ["1", 0]
    assert graph["9"]["inputs"]["images"] == ["6:3", 0]


def test_nodes_that_only_the_page_knows_are_left_out():
    """Labels and bypassers of other packs have no part in the graph; one that others read has."""
    learn = node(3, "Train", [("images", "IMAGE", 1)], VALUES)
    label = node(8, "Label (rgthree)", values=["a title"])
    bypasser = node(9, "Fast Groups Bypasser", values=[])
    graph = as_graph(ui(LOAD, learn, label, bypasser, links=[(1, 1, 0, 3, 0, "IMAGE")]), DEFINITIONS)
    assert set(graph) == {"1", "3"}


def test_an_inputs_own_name_may_have_a_dot():
    resize = {"display_name": "Resize", "input": {"required": {"size.width": ["INT", {"default": 4}]}},
              "input_order": {"required": ["size.width"]}}  # fmt: skip
    graph = {"5": {"class_type": "Resize", "_meta": {"title": "My.Resize"}, "inputs": {"size.width": 1}}}
    for name in ("5", "Resize", "My.Resize"):
        (job,) = plan(graph, settings(f"{name}.size.width=3"), [], DEFINITIONS | {"Resize": resize})
        assert job.graph["5"]["inputs"] == {"size.width": 3}


def test_names_that_an_upload_does_not_take_are_changed(tmp_path):
    assert upload_name(tmp_path / 'a "b".png') == "a _b_.png"
    assert upload_name(tmp_path / "tea cup.png") == "tea cup.png"


def test_results_tell_no_absolute_path(tmp_path):
    picture = tmp_path / "in" / "a.png"
    picture.parent.mkdir()
    picture.touch()
    assert relative_setting(f"Room.image={picture}", tmp_path / "out" / "a") == "Room.image=../../in/a.png"
    assert relative_setting("Train.steps=5", tmp_path) == "Train.steps=5"
