"""What a user sees: templates open and run, help is there, a training shows how it goes."""

import json

import pytest

from inlay import dev
from inlay.headless import Client
from inlay.tools import browser
from inlay.tools.subgraphs import SUBGRAPHS
from inlay.tools.template_layout import template
from inlay.tools.template_plans import PLANS
from inlay.tools.templates import WORKFLOWS, note_of
from inlay.tools.tiny import read_graph, served_graph, tiny_note

TITLES = {plan.graph: plan.title for plan in PLANS}
TEMPLATES = {plan.graph: json.loads((WORKFLOWS / f"{plan.title}.json").read_text("utf-8")) for plan in PLANS}
SHORT = {"SubjectFinetune": 2, "DisentangledInpaintSampler": 2, "KSampler": 2}  # steps
RUN = ["insert_subject", "insert_small", "edit_attribute"]
FINETUNE = "app.graph._nodes.find(node => node.type === 'SubjectFinetune')"

# Moves to the node that trains: far away the front end draws no DOM widgets.
LOOK = f"""({{ low }}) => {{
  const node = {FINETUNE}
  app.canvas.ds.scale = 0.7
  app.canvas.ds.offset = [-node.pos[0] + 500, -node.pos[1] + (low ? 1100 - node.size[1] : 300)]
  app.canvas.setDirty(true, true)
}}"""
TITLE = f"""() => {{
  const node = {FINETUNE}
  const [x, y] = app.canvas.ds.convertOffsetToCanvas([node.pos[0] + 80, node.pos[1] - 15])
  const {{ left, top }} = app.canvasEl.getBoundingClientRect()
  return [x + left, y + top]
}}"""
# How many pixels of the chart are of the curve's colour.
CURVE = """() => {
  const canvas = document.querySelector('.inlay-training canvas')
  const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height)
  let count = 0
  for (let i = 0; i < data.length; i += 4) if (data[i] > 180 && data[i + 2] < 110 && data[i + 3] > 99) count++
  return count
}"""


def open_template(page, host, name: str) -> None:
    """As a user does: Templates, the pack, the card."""
    page.evaluate("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.get_by_text(host.pack_folder().name, exact=True).last.click()
    card = page.get_by_test_id(f"template-workflow-{TITLES[name]}")
    card.click()
    card.wait_for(state="detached")
    types = sorted(node["type"] for node in TEMPLATES[name]["nodes"])
    page.wait_for_function(
        "wanted => JSON.stringify(app.graph._nodes.map(node => node.type).sort()) === wanted",
        arg=json.dumps(types, separators=(",", ":")),
    )


def set_widgets(page, values: dict[str, dict]) -> None:
    """Node type -> widget -> value, on every node of that type, those in subgraphs included."""
    page.evaluate(
        """values => {
          const inner = app.graph._nodes.flatMap(node => node.subgraph?._nodes ?? [])
          for (const node of [...app.graph._nodes, ...inner])
            for (const widget of node.widgets ?? []) {
              const value = values[node.type]?.[widget.name]
              if (value !== undefined) widget.value = value
            }
        }""",
        values,
    )


def open_tiny(page, host, name: str) -> None:
    """The template's variant for the tiny models, as `dev.py serve` offers it."""
    [plan] = [plan for plan in PLANS if plan.graph == name]
    definitions = Client(host.url).object_info()
    graph = served_graph(name)
    file = template(plan, graph, definitions, tiny_note(note_of(plan)))
    page.evaluate("async file => { await app.loadGraphData(file) }", file)
    page.wait_for_function("count => app.graph._nodes.length === count", arg=len(file["nodes"]))


@pytest.mark.parametrize("name", RUN)
def test_a_template_runs_to_its_pictures(page, host, name):
    open_tiny(page, host, name)
    set_widgets(page, {kind: {"steps": steps} for kind, steps in SHORT.items()})
    page.get_by_test_id("queue-button").click()
    page.wait_for_function(
        """() => app.graph._nodes.filter(node => node.type === 'SaveImage')
                   .every(node => node.imgs?.length && node.imgs[0].naturalWidth > 0)""",
        timeout=900_000,  # a training takes minutes on a very busy machine
    )
    assert page.evaluate("() => app.graph._nodes.filter(node => node.has_errors).length") == 0


@pytest.mark.parametrize("plan", SUBGRAPHS, ids=lambda plan: plan.name)
def test_a_subgraph_is_found_by_its_name_and_brings_its_nodes(page, plan):
    page.evaluate("() => app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
    page.wait_for_function("() => app.graph._nodes.length === 0")
    found, search = page.get_by_text(plan.name, exact=True).first, page.locator("input[role=combobox]").first

    def look() -> None:
        page.keyboard.press("Escape")
        page.mouse.dblclick(700, 450)
        if browser.appears(search):
            search.fill(plan.name)

    browser.repeat_until(look, found)  # a first visit begins with the templates; subgraphs come later
    found.click()
    page.wait_for_function("() => app.graph._nodes.length === 1")
    page.mouse.click(700, 450)
    graph = page.evaluate("async () => (await app.graphToPrompt()).output")
    whole = read_graph(plan.workflow)
    assert {key.split(":")[1]: node["class_type"] for key, node in graph.items()} == {
        key: whole[key]["class_type"] for key in plan.nodes
    }
    for key, values in plan.values.items():
        [inputs] = [node["inputs"] for name, node in graph.items() if name.endswith(f":{key}")]
        assert {name: inputs[name] for name in values} == values
    shown = page.evaluate("() => app.graph._nodes[0].widgets.map(widget => widget.name)")
    assert len(shown) >= len(plan.widgets.split())


def test_the_help_of_a_node_is_shown_beside_it(page, host):
    open_template(page, host, "insert_subject")
    info = page.get_by_test_id("info-button")

    def choose() -> None:
        page.evaluate(LOOK, {"low": False})
        page.mouse.click(*page.evaluate(TITLE))

    browser.repeat_until(choose, info)  # the view is fitted to a template some time after its nodes are there
    info.click()
    page.get_by_role("heading", name="What you need").wait_for()
    assert page.get_by_text("the wired-in model with the LoRA").count() > 0
    page.wait_for_function(
        """() => [...document.querySelectorAll('img')].some(
             image => image.src.endsWith('/docs/SubjectFinetune.png') && image.naturalWidth > 0)"""
    )


def test_every_help_page_is_served_for_its_node(page, host):
    pages = {path.stem: path.read_text("utf-8") for path in (dev.PACK / "web" / "docs").glob("*.md")}
    served = page.evaluate(
        """async ([pack, names]) => Promise.all(names.map(async name =>
             (await fetch(`/extensions/${pack}/docs/${name}.md`)).text()))""",
        [host.pack_folder().name, sorted(pages)],
    )
    assert dict(zip(sorted(pages), served, strict=True)) == pages


def test_a_training_is_seen_in_two_tabs_survives_a_reload_and_stops_when_it_is_stopped(page, open_page, host):
    other = open_page()
    open_tiny(page, host, "insert_subject")
    other.evaluate("graph => app.loadGraphData(graph)", page.evaluate("() => app.graph.serialize()"))
    other.wait_for_function(f"() => {FINETUNE}")
    page.bring_to_front()
    set_widgets(page, {"SubjectFinetune": {"steps": 3000, "preview_every": 4, "class_name": "vase"}})
    page.get_by_test_id("queue-button").click()
    grown = "least => Number(document.querySelector('.inlay-training')?.dataset.step) > least"
    for tab in (page, other):
        tab.bring_to_front()
        tab.evaluate(LOOK, {"low": True})
        tab.wait_for_function(grown, arg=4)
        tab.locator(".inlay-training img").first.wait_for()

    step = page.evaluate("() => Number(document.querySelector('.inlay-training').dataset.step)")
    page.bring_to_front()
    page.reload()
    page.wait_for_function(f"() => window.app?.graph && {FINETUNE}")
    page.wait_for_function(grown, arg=step)
    page.evaluate(LOOK, {"low": True})
    page.wait_for_selector(".inlay-training canvas", state="visible")
    page.wait_for_function(f"least => ({CURVE})() > least", arg=10, timeout=900_000)  # dozens of steps
    nodes = TEMPLATES["insert_subject"]["nodes"]
    [saved] = [node["widgets_values"] for node in nodes if node["type"] == "SubjectFinetune"]
    for tab in (page, other):  # the chart is no value of the workflow
        assert tab.evaluate(f"() => {FINETUNE}.serialize().widgets_values.length") == len(saved)

    page.evaluate("() => app.extensionManager.command.execute('Comfy.Interrupt')")
    for tab in (page, other):
        tab.wait_for_function("() => document.querySelector('.inlay-training').dataset.state === 'stopped'")

    # Another workflow, whose node that trains has the same number, has had no training: none of RUN.
    other.bring_to_front()
    with other.expect_response("**/inlay/training"):
        open_template(other, host, "train_and_share")
    other.wait_for_timeout(1000)
    assert other.evaluate(f"() => String({FINETUNE}.id)") == page.evaluate(f"() => String({FINETUNE}.id)")
    view = f"{FINETUNE}.widgets.find(widget => widget.name === 'inlay_training').element"
    state = f"() => {view}.dataset.state ?? ''"
    assert (other.evaluate(state), page.evaluate(state)) == ("", "stopped")
    other.close()
