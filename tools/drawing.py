"""How a part of a graph in API form looks in the front end: columns of nodes from left to right."""

from ..headless.node_definitions import default, inputs_of, is_widget

COLUMN, GAP = 400, 40
# What a reader meets from left to right, and the node types that belong there whatever they feed.
STAGES = [
    ("Your things", ("InlayBoxMask", "InlayMaskLevels", "InvertMask", "JoinImageWithAlpha")),
    ("Learn", ("SubjectFinetune", "InlayAttributeDictionary", "InlayRegularImages", "LoraModelLoader")),
    ("Say what you want", ("CLIPTextEncode", "AttributeSubstitutionEncode", "IdentityEncoderDINOv2")),
    ("Paint", ()),
    ("Look", ("SaveImage", "PreviewImage", "PreviewAny", "SaveLoRA", "ImageStitch", "InlaySubjectScore")),
]
PAINT = 3


def widget_values(definition: dict, given: dict) -> list:
    """The values of a node's widgets, with those the front end adds: a seed's control, a picture's upload."""
    values, uploads = [], []
    for name, (kind, options) in inputs_of(definition).items():
        if not is_widget(kind, options):
            continue
        value = given.get(name, default(kind, options))
        values.append(value if not isinstance(value, list) else options.get("default"))
        if options.get("control_after_generate"):
            values.append("fixed")
        if options.get("image_upload"):  # the page adds its button behind the other widgets
            uploads.append("image")
    return values + uploads


def stages(graph: dict) -> dict[str, int]:
    """The place in STAGES of every node; never left of a node that it is fed by."""
    stage: dict[str, int] = {}

    def find(key: str) -> int:
        if key not in stage:
            own = stage_of(graph[key]["class_type"])
            stage[key] = max([own, *map(find, sources(graph[key]))])
        return stage[key]

    for key in graph:
        find(key)
    return stage


def stage_of(kind: str) -> int:
    """Where nodes of a type belong; what is in no list is painted with, or loaded."""
    for number, (_, kinds) in enumerate(STAGES):
        if kind in kinds:
            return number
    return 0 if "Load" in kind else PAINT


def depths(graph: dict) -> dict[str, int]:
    """The column of every node: the stages from left to right, in each the nodes after what feeds them."""
    stage, column = stages(graph), {}

    def depth(key: str) -> int:
        if key not in column:
            before = [depth(other) for other in sources(graph[key]) if stage[other] == stage[key]]
            column[key] = 1 + max(before, default=-1)
        return column[key]

    first = 0
    for number in range(len(STAGES)):
        members = [key for key in graph if stage[key] == number]
        width = 1 + max(map(depth, members), default=-1)
        for key in members:
            column[key] += first
        first += width
    return column


def sources(node: dict) -> list[str]:
    """The nodes that are wired into a node of a graph in API form."""
    return [value[0] for value in node["inputs"].values() if isinstance(value, list)]


def height(definition: dict, widgets: int) -> int:
    inputs = inputs_of(definition).values()
    sockets = sum(not is_widget(kind, options) for kind, options in inputs)
    text = sum(150 for kind, options in inputs if kind == "STRING" and options.get("multiline"))
    shows = definition["name"] in ("LoadImage", "SaveImage", "PreviewImage") or definition.get("output_node")
    return 40 + 24 * max(sockets, len(definition["output"])) + 28 * widgets + text + (250 if shows else 0)


def drawn_nodes(graph: dict, definitions: dict) -> dict[int, dict]:
    """The nodes in their columns, without their wires."""
    column, below, nodes = depths(graph), {}, {}
    for key in sorted(graph, key=lambda key: (column[key], int(key))):
        definition = definitions[graph[key]["class_type"]]
        place = column[key] * COLUMN, below.get(column[key], 0)
        nodes[int(key)] = drawn_node(int(key), graph[key], definition, place, len(nodes))
        below[column[key]] = place[1] + nodes[int(key)]["size"][1] + GAP + 30
    return nodes


def wires(graph: dict, nodes: dict[int, dict]) -> list[tuple[int, int, int, int]]:
    """(source, output, target, input) of every wire, as numbers."""
    found = []
    for key, node in nodes.items():
        for slot, socket in enumerate(node["inputs"]):
            value = graph[str(key)]["inputs"].get(socket["name"])
            if isinstance(value, list):
                found.append((int(value[0]), value[1], key, slot))
    return found


def drawn_node(key: int, node: dict, definition: dict, place: tuple[int, int], order: int) -> dict:
    """A node without its links."""
    values = widget_values(definition, node["inputs"])
    title = node.get("_meta", {}).get("title")
    outputs = zip(definition["output_name"], definition["output"], strict=True)
    return {
        "id": key,
        "type": node["class_type"],
        "pos": list(place),
        "size": [COLUMN - 80, height(definition, len(values))],
        "flags": {},
        "order": order,
        "mode": 0,
        "inputs": sockets(definition, node["inputs"]),
        "outputs": [{"name": name, "type": kind, "links": []} for name, kind in outputs],
        "properties": {"Node name for S&R": node["class_type"]},
        "widgets_values": values,
        **({"title": title} if title else {}),
    }


def sockets(definition: dict, given: dict) -> list[dict]:
    """A node's inputs that are or could be wired: all but the widgets that hold a value."""
    found = []
    for name, (kind, options) in inputs_of(definition).items():
        widget = is_widget(kind, options)
        if not widget or isinstance(given.get(name), list):
            socket = {"name": name, "type": "COMBO" if isinstance(kind, list) else kind, "link": None}
            found.append(socket | ({"widget": {"name": name}} if widget else {}))
    return found
