"""What a newcomer meets: templates that open ready, a box drawn by mouse, photos without masks, errors."""

import base64
import copy
import io
import json

import numpy as np
import pytest
from PIL import Image

from inlay import dev
from inlay.headless import Client
from inlay.tools import browser
from inlay.tools.template_layout import foreign_nodes, template
from inlay.tools.template_plans import PLANS
from inlay.tools.templates import WORKFLOWS
from inlay.tools.tiny import tiny_graph

from .conftest import SHOTS

GREEN = (120, 140, 90)  # of painted.png, whose hole is 40:80, 40:86
SHORT = {"SubjectFinetune": 2, "DisentangledInpaintSampler": 2, "KSampler": 2}  # steps
LEAST_ZOOM, CLICKS = 0.7, 12
MODEL_FILES = (".safetensors", ".ckpt")  # which the page offers for download

# [title, left, top, right, bottom] of every node as it is drawn; Nodes 2.0 are as high as their content.
DRAWN = """() => app.graph._nodes.map(node => {
  const shown = document.querySelector(`[data-node-id="${node.id}"]`)
  const [x, y] = node.pos
  const height = shown ? shown.offsetHeight - 30 : node.size[1]
  return [node.title, x, y - 30, x + (shown ? shown.offsetWidth : node.size[0]), y + height]
})"""
# The values of choices that are not offered.
NO_CHOICE = """() => app.graph._nodes.flatMap(node => [node, ...(node.subgraph?._nodes ?? [])])
  .flatMap(node => node.widgets ?? [])
  .filter(({ value, options }) => Array.isArray(options?.values) && !options.values.includes(value))
  .map(({ value }) => String(value))"""
COUNT_CLICKS = """() => {
  window.clicks = 0
  window.addEventListener('pointerdown', () => window.clicks++, true)
}"""
# Ends when the page has drawn five more times: widgets of the DOM follow the canvas.
FRAMES = """async () => {
  for (let count = 0; count < 5; count++) await new Promise((drawn) => requestAnimationFrame(drawn))
}"""
SHOWN = """() => app.graph._nodes.filter(node => node.type === 'SaveImage')
  .every(node => app.nodeOutputs?.[String(node.id)]?.images?.length)"""
# How the runs of the page ended, from here on.
FOLLOW = """() => {
  window.queued = []  // by this page, from now on
  if (window.ended) return
  window.ended = {}  // a run's id -> how it ended
  const { api } = window.comfyAPI.api
  const queue = api.queuePrompt.bind(api)
  api.queuePrompt = async (...given) => {
    const answer = await queue(...given)
    window.queued.push(answer.prompt_id)
    return answer
  }
  for (const kind of ['execution_success', 'execution_error', 'execution_interrupted'])
    api.addEventListener(kind, event => { window.ended[event.detail.prompt_id] = kind })
}"""
ENDED = "() => window.queued.length > 0 && window.queued.every(id => window.ended[id])"


def open_template(page, title: str) -> dict:
    """As a user does: Templates, the pack, the card; returns the file."""
    file = json.loads((WORKFLOWS / f"{title}.json").read_text(encoding="utf-8"))
    page.evaluate("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.get_by_text("inlay", exact=True).last.click()
    card = page.get_by_test_id(f"template-workflow-{title}")
    card.scroll_into_view_if_needed()
    card.click()
    page.wait_for_function("count => app.graph._nodes.length === count", arg=len(file["nodes"]))
    page.wait_for_timeout(1500)  # the view is fitted some time after the nodes are there
    page.evaluate(FRAMES)
    return file


def check_apart(page) -> None:
    """No node lies over another or below the groups."""
    boxes = page.evaluate(DRAWN)
    for number, (title, left, top, right, bottom) in enumerate(boxes):
        for other, a, b, c, d in boxes[:number]:
            apart = right <= a or c <= left or bottom <= b or d <= top
            assert apart, f"{title} and {other} overlap"
    end = page.evaluate("() => Math.max(...app.graph._groups.map(group => group.pos[1] + group.size[1]))")
    assert max(bottom for *_, bottom in boxes) <= end


def show(page, graph: dict) -> None:
    """A workflow file or a graph in API form on the canvas."""
    api = "nodes" not in graph
    page.evaluate(
        "([graph, api]) => api ? app.loadApiJson(graph, 'test') : app.loadGraphData(graph)", [graph, api]
    )
    page.wait_for_function("() => app.graph._nodes.length > 0")


def look_at(page, kind: str) -> None:
    page.evaluate(
        """kind => {
          const node = app.graph._nodes.find(node => node.type === kind)
          app.canvas.ds.scale = 1
          app.canvas.ds.offset = [-node.pos[0] + 300, -node.pos[1] + 200]
          app.canvas.setDirty(true, true)
        }""",
        kind,
    )
    page.wait_for_timeout(700)
    page.evaluate(FRAMES)


def run(page) -> None:
    page.get_by_test_id("queue-button").click()


def run_to_the_end(page) -> None:
    """Run, which has to succeed; a training takes minutes on a very busy machine."""
    page.evaluate(FOLLOW)
    run(page)
    wait_for_success(page)


def wait_for_success(page) -> None:
    """Wait until the run ends that was queued since FOLLOW."""
    page.wait_for_function(ENDED, timeout=900_000)
    assert page.evaluate("() => window.queued.map(id => window.ended[id])") == ["execution_success"]


def tiny_insert(published, picture: str, **changes) -> dict:
    """The first template for the tiny model and a tiny picture, with few steps."""
    graph = tiny_graph("insert_subject")
    for node in graph.values():
        if node["class_type"] == "LoadImage":
            node["inputs"]["image"] = picture
        if node["class_type"] in SHORT:
            node["inputs"]["steps"] = SHORT[node["class_type"]]
        if node["class_type"] == "SubjectFinetune":
            node["inputs"] |= {"preview_every": 0} | changes
    return template(PLANS[0], graph, Client(published.url).object_info(), "A note.")


def jpeg(colour, size=(160, 120)) -> str:
    """A photo in base64: something round and bright in front of a dark ground."""
    y, x = np.mgrid[: size[1], : size[0]]
    round_ = (x - size[0] / 2) ** 2 + (y - size[1] / 2) ** 2 < (size[1] / 3) ** 2
    pixels = np.where(round_[..., None], colour, (40, 60, 50)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return base64.b64encode(file.getvalue()).decode()


PHOTOS = [jpeg(colour) for colour in ((230, 90, 30), (220, 100, 40), (240, 80, 20), (230, 110, 50))]
DROP = """photos => {
  const data = new DataTransfer()
  photos.forEach((photo, number) => {
    const bytes = Uint8Array.from(atob(photo), letter => letter.charCodeAt(0))
    data.items.add(new File([bytes], `IMG_${number + 1}.jpg`, { type: 'image/jpeg' }))
  })
  const target = document.querySelector('.inlay-references')
  for (const kind of ['dragover', 'drop'])
    target.dispatchEvent(new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true }))
}"""


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.graph)
def test_a_template_of_the_published_pack_opens_ready(screen, published, plan):
    file = open_template(screen, plan.title)
    unknown = "app.graph._nodes.filter(node => !node.constructor.nodeData && !node.subgraph)"
    missing = screen.evaluate(f"() => {unknown}.map(node => node.type)")
    known = {"MarkdownNote", "Note", *foreign_nodes()}  # an account or another pack brings the foreign ones
    assert [kind for kind in missing if kind not in known] == []
    pictures = [node["widgets_values"][0] for node in file["nodes"] if node["type"].startswith("LoadImage")]
    options = screen.evaluate(
        """() => app.graph._nodes.filter(node => node.type.startsWith('LoadImage'))
             .flatMap(node => node.widgets.find(widget => widget.name === 'image').options.values)"""
    )
    assert set(pictures) <= set(options)
    wrong = [value for value in screen.evaluate(NO_CHOICE) if not value.endswith(MODEL_FILES)]
    assert wrong == []
    screen.wait_for_function("least => app.canvas.ds.scale >= least", arg=LEAST_ZOOM)
    check_apart(screen)


BOX = """() => app.graph._nodes.find(node => node.type === 'InlayBoxMask').widgets
  .filter(widget => ['x', 'y', 'width', 'height'].includes(widget.name)).map(widget => widget.value)"""


def box_is(page, expected, near: int) -> None:
    """Wait until x, y, width and height of the box are the expected ones, to `near` pixels."""
    page.wait_for_function(
        f"([expected, near]) => ({BOX})().every((value, i) => Math.abs(value - expected[i]) <= near)",
        arg=[expected, near],
    )


def drag(page, start, end) -> None:
    """With the mouse, from and to pixels of the picture on Box Mask."""
    box = page.locator(".inlay-box canvas").first.bounding_box()
    size = page.evaluate("() => document.querySelector('.inlay-box').dataset.size.split('x').map(Number)")
    scale = min(box["width"] / size[0], box["height"] / size[1])
    left = box["x"] + (box["width"] - size[0] * scale) / 2
    top = box["y"] + (box["height"] - size[1] * scale) / 2
    page.mouse.move(left + start[0] * scale, top + start[1] * scale)
    page.mouse.down()
    page.mouse.move(left + (start[0] + end[0]) / 2 * scale, top + (start[1] + end[1]) / 2 * scale, steps=3)
    page.mouse.move(left + end[0] * scale, top + end[1] * scale, steps=3)
    page.mouse.up()


def test_the_box_is_drawn_moved_and_resized_by_the_mouse_before_any_run(screen, published):
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "inlay_background.png"}},
        "2": {
            "class_type": "InlayBoxMask",
            "inputs": {"image": ["1", 0], "x": 100, "y": 100, "width": 200, "height": 200},
        },
        "3": {"class_type": "MaskPreview", "inputs": {"mask": ["2", 0]}},
    }
    show(screen, graph)
    look_at(screen, "InlayBoxMask")
    screen.wait_for_function("() => document.querySelector('.inlay-box')?.dataset.size === '512x512'")
    near = 3  # pixels of the picture: the mouse moves by whole ones of the screen
    drag(screen, (200, 200), (250, 230))
    box_is(screen, [150, 130, 200, 200], near)
    drag(screen, (350, 330), (400, 400))  # the lower right corner
    box_is(screen, [150, 130, 250, 270], near)
    drag(screen, (20, 20), (90, 110))  # a new one
    box_is(screen, [20, 20, 70, 90], near)
    drag(screen, (50, 60), (-300, 900))
    box_is(screen, [0, 512 - 90, 70, 90], near)
    x, y, width, height = screen.evaluate(BOX)
    assert (x, y + height) == (0, 512)  # it stays inside
    drawn = [x, y, width, height]
    screen.evaluate("() => app.extensionManager.command.execute('Comfy.Undo')")
    box_is(screen, [20, 20, 70, 90], near)
    screen.wait_for_timeout(1000)  # for what the page writes down of the change
    screen.evaluate("() => app.extensionManager.command.execute('Comfy.Redo')")
    box_is(screen, drawn, 0)
    saved = screen.evaluate("() => app.graph.serialize()")
    assert [len(node["widgets_values"]) for node in saved["nodes"] if node["type"] == "InlayBoxMask"] == [4]
    screen.evaluate("graph => app.loadGraphData(graph)", saved)  # as after a reload
    screen.wait_for_function("() => document.querySelector('.inlay-box')?.dataset.size === '512x512'")
    assert screen.evaluate(BOX) == drawn


def test_the_box_stays_on_its_part_of_a_picture_of_another_size(screen, published):
    show(screen, boxed(x=100, y=128, width=200, height=256))
    look_at(screen, "InlayBoxMask")
    screen.wait_for_function("() => document.querySelector('.inlay-box')?.dataset.size === '512x512'")
    assert screen.evaluate(BOX) == [100, 128, 200, 256]  # a loaded workflow keeps its numbers
    screen.evaluate(
        """() => {
          const widget = app.graph.getNodeById(1).widgets.find(widget => widget.name === 'image')
          widget.value = 'inlay_large_room.png'
          widget.callback(widget.value)
        }"""
    )
    screen.wait_for_function("() => document.querySelector('.inlay-box')?.dataset.size === '1280x960'")
    box_is(screen, [250, 240, 500, 480], 0)
    saved = screen.evaluate("() => app.graph.serialize()")
    screen.evaluate("graph => app.loadGraphData(graph)", saved)  # as after a reload
    screen.wait_for_function("() => document.querySelector('.inlay-box')?.dataset.size === '1280x960'")
    screen.wait_for_timeout(1000)
    assert screen.evaluate(BOX) == [250, 240, 500, 480]


def test_a_prompt_without_the_subjects_words_has_a_warning(screen, published):
    file = tiny_insert(published, "tiny_background.png", steps=200_000)  # refused: nothing is trained
    [prompt] = [node for node in file["nodes"] if node.get("title") == "Prompt"]
    prompt["widgets_values"] = ["a photo of a mug"]
    show(screen, file)
    look_at(screen, "CLIPTextEncode")
    run(screen)
    warning = screen.locator(".inlay-message[data-kind=warn]")
    warning.first.wait_for(state="attached")
    assert warning.all_inner_texts() == ["“sks” is missing; write for example: a photo of sks mug."]
    screen.evaluate(
        """id => app.graph.getNodeById(id).widgets.find(widget => widget.name === 'text').value
             = 'a photo of SKS on a red Mug'""",
        prompt["id"],
    )
    run(screen)
    warning.first.wait_for(state="detached")


def finetune(**changes) -> dict:
    """A graph that trains, wrong in one thing."""
    graph = {key: node for key, node in tiny_graph("insert_subject").items() if key in ("1", "2", "5")}
    # The front end keeps the last value of a widget that a graph in API form does not name.
    graph["5"]["inputs"] |= {"attributes": ""} | changes
    return graph | {"9": {"class_type": "PreviewImage", "inputs": {"images": ["5", 4]}}}


def without_input(graph: dict, node: str, name: str) -> dict:
    graph = copy.deepcopy(graph)
    del graph[node]["inputs"][name]
    return graph


def boxed(**changes) -> dict:
    place = {"image": ["1", 0], "x": 10, "y": 10, "width": 50, "height": 50} | changes
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": "inlay_background.png"}},
        "4": {"class_type": "LoadImageMask", "inputs": {"image": "inlay_large_room.png", "channel": "red"}},
        "2": {"class_type": "InlayBoxMask", "inputs": place},
        "3": {"class_type": "MaskPreview", "inputs": {"mask": ["2", 0]}},
    }


def references(folder: str) -> dict:
    return {
        "1": {"class_type": "InlayLoadReferences", "inputs": {"folder": folder}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }


MISTAKES = {
    "no class": (
        finetune(class_name=""),
        "class_name: it is empty; say in a word or two what the subject is",
    ),
    "no token": (finetune(token=" "), "token: it is empty; give a rare word"),
    "no photos": (
        without_input(finetune(), "5", "images"),
        "images: nothing is connected; connect an output",
    ),
    "no model": (without_input(finetune(), "5", "model"), "model: nothing is connected; connect an output"),
    "too many steps": (finetune(steps=200_000), "steps: 200000 is too large; the most is 100000."),
    "odd attributes": (finetune(attributes="brown"), "attributes: 'brown' has no kind; write for example"),
    "no folder": (references("nowhere"), "ComfyUI's input folder has no folder 'nowhere'"),
    "no such folder": (references("../outside"), "folder: ComfyUI's input folder has no folder '../outside'"),
    "box outside": (boxed(x=5000), "x, y: the box at (5000, 10) is outside the 512x512 image"),
    "box without width": (boxed(width=0), "width: 0 is too small; the least is 1."),
    "another mask": (boxed(mask=["4", 0]), "mask: it is 1280x960 pixels but the image is 512x512"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_common_mistake_has_its_sentence_in_a_toast_and_on_the_node(screen, published, name):
    graph, sentence = MISTAKES[name]
    show(screen, graph)
    run(screen)
    shown = screen.locator(".inlay-message", has_text=sentence)
    shown.first.wait_for(state="attached")
    screen.wait_for_function(
        """sentence => [...document.querySelectorAll('*')].some(element =>
             !element.closest('.inlay-message') && !element.children.length
             && element.textContent.includes(sentence) && element.getClientRects().length)""",
        arg=sentence,
    )
    [path] = screen.evaluate(
        """() => app.graph._nodes
             .filter(node => node.widgets?.some(widget => widget.name === 'inlay_message'))
             .map(node => String(node.id))"""
    )
    assert graph[path]["class_type"].startswith(("Inlay", "SubjectFinetune"))


def test_a_sentence_is_translated_and_goes_when_the_next_run_begins(screen, published):
    screen.evaluate("async () => app.extensionManager.setting.set('Comfy.Locale', 'zh')")
    try:
        screen.wait_for_timeout(3000)  # the page reads its words anew
        show(screen, boxed(x=5000))
        run(screen)
        message = screen.locator(".inlay-message", has_text="方框")
        message.wait_for(state="attached")
        assert "512x512" in message.text_content()
        screen.evaluate(
            """() => app.graph._nodes.find(node => node.type === 'InlayBoxMask')
                 .widgets.find(widget => widget.name === 'x').value = 0"""
        )
        run_to_the_end(screen)  # or the next test would see its end
        message.wait_for(state="detached")
    finally:
        screen.evaluate("async () => app.extensionManager.setting.set('Comfy.Locale', 'en')")
        screen.wait_for_timeout(3000)


def test_four_phone_photos_and_a_box_drawn_by_the_mouse_give_a_picture(screen, published):
    show(screen, tiny_insert(published, "tiny_background.png", class_name="ball", preview_every=2))
    screen.evaluate(COUNT_CLICKS)
    look_at(screen, "InlayLoadReferences")
    screen.evaluate(DROP, PHOTOS)
    screen.wait_for_function("() => document.querySelector('.inlay-references').dataset.count === '4'")
    warning = screen.locator(".inlay-message", has_text="There is no mask for IMG_1.jpg").first
    warning.wait_for()  # before the training, which takes minutes
    look_at(screen, "InlayBoxMask")
    screen.wait_for_function("() => document.querySelector('.inlay-box')?.dataset.size === '128x128'")
    drag(screen, (8, 52), (66, 120))
    run_to_the_end(screen)
    screen.wait_for_function(SHOWN)
    assert screen.evaluate("() => window.clicks") <= CLICKS
    assert screen.evaluate("() => app.graph._nodes.filter(node => node.has_errors).length") == 0
    look_at(screen, "InlayLoadReferences")
    warning.wait_for()
    assert "the whole picture is learned" in warning.inner_text()
    training = screen.locator(".inlay-message", has_text="so the background is learned too").first
    training.wait_for(state="attached")
    check_apart(screen)  # with the messages, the curve, a sample and the pictures


def test_the_same_with_a_painted_mask_and_with_a_cut_out_model(screen, published):
    show(screen, tiny_insert(published, "painted.png", class_name="cube"))
    screen.evaluate(
        """() => {
          const graph = app.graph
          const cut = LiteGraph.createNode('StandInBackgroundRemoval')
          graph.add(cut)
          const photos = graph._nodes.find(node => node.type === 'InlayLoadReferences')
          cut.connect(0, photos, photos.inputs.findIndex(input => input.name === 'background_removal'))
        }"""
    )
    look_at(screen, "InlayLoadReferences")
    screen.evaluate(DROP, PHOTOS)
    screen.wait_for_function("() => document.querySelector('.inlay-references').dataset.count === '4'")
    before = set((published.base / "work" / "output").rglob("with_inlay*.png"))
    run_to_the_end(screen)
    [saved] = set((published.base / "work" / "output").rglob("with_inlay*.png")) - before
    result = np.asarray(Image.open(saved).convert("RGB"), dtype=int)
    change = np.abs(result - GREEN).max(-1)
    assert change[44:82, 44:76].mean() > 3  # inside of what was painted, not in the box
    assert change[:36].max() <= 1
    assert screen.locator(".inlay-message", has_text="There is no mask").count() == 0


FIELD = "[data-testid=app-mode-widget-item]"
LABELS = {"box": "Where the object goes", "references": "Your photos", "training": "Training"}


def open_app(page) -> None:
    """The open workflow as an app."""
    page.evaluate("() => app.extensionManager.command.execute('Comfy.ToggleLinear')")
    page.locator(FIELD).first.wait_for()
    page.wait_for_timeout(1500)
    tour = page.get_by_role("button", name="Skip", exact=True)  # what the newer page offers
    if tour.is_visible():
        tour.click()


@pytest.mark.parametrize("plan", [plan for plan in PLANS if plan.app], ids=lambda plan: plan.graph)
def test_an_app_names_its_fields_in_plain_words(visitor, plan):
    visitor.evaluate("() => app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
    open_template(visitor, plan.title)
    open_app(visitor)
    expected = [
        plan.labels.get(f"{node}.{name}") or LABELS[name.removeprefix("inlay_")]
        for node, name in plan.app["inputs"]
    ]
    assert visitor.get_by_test_id("builder-widget-label").all_inner_texts() == expected
    assert visitor.locator(f"{FIELD} .inlay-box canvas").is_visible()
    visitor.screenshot(path=SHOTS / f"app_{plan.graph}.png")
    visitor.evaluate("() => app.extensionManager.command.execute('Comfy.ToggleLinear')")


def test_a_template_and_its_app_are_in_the_language_of_the_page(visitor):
    words = json.loads((dev.PACK / "locales" / "zh" / "main.json").read_text(encoding="utf-8"))
    chinese = words["inlayTemplates"]
    [plan] = [plan for plan in PLANS if plan.graph == "insert_one_photo"]
    file = json.loads((WORKFLOWS / f"{plan.title}.json").read_text(encoding="utf-8"))
    file["nodes"][0]["title"] = "mine"
    title = file["groups"][0]["title"]
    titles = ["mine", *(chinese[node["title"]] for node in file["nodes"][1:])]
    visitor.evaluate("async () => app.extensionManager.setting.set('Comfy.Locale', 'zh')")
    try:
        visitor.wait_for_timeout(3000)  # the page reads its words anew
        show(visitor, file)
        visitor.wait_for_function("title => app.graph._groups[0].title === title", arg=chinese[title])
        seen = visitor.evaluate(
            """() => ({
              nodes: app.graph._nodes.map(node => node.title),
              groups: app.graph._groups.map(group => group.title),
              note: app.graph._nodes.find(node => node.type === 'MarkdownNote').widgets[0].value,
            })"""
        )
        assert sorted(seen["nodes"]) == sorted(titles)
        assert seen["groups"] == [chinese[group["title"]] for group in file["groups"]]
        [note] = [node for node in file["nodes"] if node["type"] == "MarkdownNote"]
        lines = note["widgets_values"][0].split("\n")
        assert seen["note"] == "\n".join(chinese.get(line, line) for line in lines)
        visitor.screenshot(path=SHOTS / "template_in_chinese.png")
        open_app(visitor)
        shown = visitor.get_by_test_id("builder-widget-label").all_inner_texts()
        assert shown == ["物体的照片", "你的图片", "物体的位置"]
        visitor.screenshot(path=SHOTS / "app_in_chinese.png")
        visitor.evaluate("() => app.extensionManager.command.execute('Comfy.ToggleLinear')")
    finally:
        visitor.evaluate("async () => app.extensionManager.setting.set('Comfy.Locale', 'en')")
        visitor.wait_for_timeout(3000)


def test_an_app_shows_the_stage_and_the_steps_of_its_training(visitor, published):
    visitor.evaluate("() => app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
    show(visitor, tiny_insert(published, "tiny_background.png", class_name="app"))
    open_app(visitor)
    visitor.evaluate(DROP, PHOTOS)
    visitor.wait_for_function("() => document.querySelector('.inlay-references').dataset.count === '4'")
    visitor.evaluate(FOLLOW)
    visitor.get_by_test_id("linear-run-button").get_by_role("button", name="Run").click()
    chart = visitor.locator(f"{FIELD} .inlay-training")
    visitor.wait_for_function("() => document.querySelector('.inlay-training').dataset.state === 'running'")
    visitor.wait_for_timeout(500)
    [left, top, right, bottom] = chart.evaluate(
        "root => { const { left, top, right, bottom } = root.getBoundingClientRect();"
        " return [left, top, right, bottom] }"
    )
    assert 0 <= left < right <= 1600
    assert 0 <= top < bottom <= 1000
    wait_for_success(visitor)
    assert chart.get_attribute("data-step") == "2"
    visitor.evaluate("() => app.extensionManager.command.execute('Comfy.ToggleLinear')")


SEARCHES = {
    "insert object": "Insert Object, Compose (Inlay)",
    "compose": "Insert Object, Compose (Inlay)",
    "product photo": "Train Subject (Inlay)",
    "train subject": "Train Subject (Inlay)",
    "inpaint subject": "Inpaint Subject (Inlay)",
}


def test_five_searches_find_the_right_node_first(visitor, published):
    visitor.evaluate("() => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', false)")
    found = {}
    for query in SEARCHES:
        visitor.evaluate("() => app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
        visitor.wait_for_timeout(1000)
        field = visitor.locator("input[role=combobox]").first

        def look() -> None:
            visitor.keyboard.press("Escape")
            visitor.mouse.dblclick(900, 600)

        browser.repeat_until(look, field)
        field.fill(query)
        first = visitor.locator("[role=option]").first
        browser.appears(first.get_by_text(SEARCHES[query], exact=True), 60)  # the list is filtered later
        found[query] = first.inner_text().split("\n")[0]
        visitor.keyboard.press("Escape")
    assert found == SEARCHES
