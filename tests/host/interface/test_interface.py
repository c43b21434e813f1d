"""The nodes as the host knows them: what saved workflows rely on stays, and all of it is explained."""

import json

import pytest

from inlay import dev
from inlay.headless import Client
from inlay.headless.node_definitions import breaks, inputs_of, interface_of
from inlay.tools.interface import FILE, LOCALES, as_text, completed, english, our_definitions


@pytest.fixture(scope="module")
def definitions(server) -> dict:
    """Our nodes' entries in the host's /object_info."""
    return our_definitions(Client(server.url), server)


def test_saved_workflows_still_open(client, server, definitions):
    replaced = set(client.session.get(f"{server.url}/node_replacements", timeout=60).json())
    kept = json.loads(FILE.read_text(encoding="utf-8"))
    now = interface_of(definitions)
    assert breaks(kept, now, replaced) == []
    assert as_text(now) == FILE.read_text(encoding="utf-8"), "python dev.py tool interface writes it down"


def test_graphs_of_the_released_version_are_complete(definitions):
    """The host refuses a graph in API form without a required input, so inputs since 0.1.0 are optional."""
    released = json.loads((FILE.parent / "interface_0_1_0.json").read_text(encoding="utf-8"))
    assert breaks(released, interface_of(definitions), set()) == []
    for key, before in released.items():
        known = {name for name, *_ in before["widgets"] + before["sockets"]}
        assert set(definitions[key]["input"].get("required", {})) <= known, key


def test_every_node_can_be_found_and_says_what_it_does(definitions):
    silent = []
    for key, node in definitions.items():
        silent += [f"{key}: {what}" for what in ("search_aliases", "description") if not node[what]]
        silent += [] if node["category"].startswith("Inlay/") else [f"{key}: category {node['category']}"]
        told = zip(node["output_name"], node["output_tooltips"], strict=True)
        silent += [f"{key}: the output {name}" for name, tooltip in told if not tooltip]
        silent += [f"{key}: {name}" for name, (_, told) in inputs_of(node).items() if not told.get("tooltip")]
    assert silent == []


def test_every_node_has_a_help_page_that_names_each_of_its_inputs(definitions):
    pages = {page.stem: page.read_text(encoding="utf-8") for page in (dev.PACK / "web/docs").glob("*.md")}
    assert pages.keys() == definitions.keys()
    assert [key for key, page in pages.items() if not page.startswith("# ")] == []
    silent = [f"{key}: {name}" for key, node in definitions.items() for name in inputs_of(node)
              if name not in pages[key]]  # fmt: skip
    assert silent == []


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_name_and_tooltip_is_translated_and_none_is_left_over(definitions, language):
    words = json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))
    model, missing = english(definitions), []
    assert completed(words, model, missing) == words, "python dev.py tool interface drops what is gone"
    assert missing == []
    assert language != "en" or words == model, "python dev.py tool interface writes it"


def test_the_host_gives_our_words_to_the_front_end(client, server):
    words = client.session.get(f"{server.url}/i18n", timeout=60).json()
    assert words["zh"]["nodeDefs"]["SubjectFinetune"]["inputs"]["steps"]["name"] == "\u6b65\u6570"
