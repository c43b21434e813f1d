"""The documentation agrees with the code: help in both languages, quoted messages, links, names of files."""

import ast
import json
import re
from functools import cache
from pathlib import Path

import pytest
from PIL import Image

from inlay import dev

HELP = dev.PACK / "web" / "docs"
WORDS = json.loads((dev.PACK / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
NODES = sorted(WORDS)
PAGES = [
    *dev.PACK.glob("*.md"), *(dev.PACK / "docs").glob("*.md"), *HELP.rglob("*.md"),
]  # fmt: skip
PRODUCT = (
    "common", "conditioning", "attention", "encoders", "evaluation", "families", "headless", "host",
    "imaging", "nodes", "sampling", "training",
)  # fmt: skip
LINK = re.compile(r"\]\(([^)\s]+)\)")
CHINESE = re.compile(r"[\u4e00-\u9fff]")


@pytest.mark.parametrize("node", NODES)
def test_every_node_has_help_in_both_languages(node):
    """The front end takes NODE/zh.md, else NODE.md; it looks for pictures beside NODE.md."""
    english, chinese = HELP / f"{node}.md", HELP / node / "zh.md"
    picture = f"]({node}.png)"
    assert Image.open(english.with_suffix(".png")).format == "PNG"
    assert picture in english.read_text(encoding="utf-8")
    text = chinese.read_text(encoding="utf-8")
    assert picture in text
    assert len(CHINESE.findall(text)) > 40


@pytest.mark.parametrize("node", NODES)
def test_both_languages_explain_the_same_inputs(node):
    """A row of a table for an input in English has one in Chinese."""
    row = re.compile(r"^\| ([a-z_]+(?:, [a-z_]+)*) \|", re.MULTILINE)
    english, chinese = (
        {name for names in row.findall(page.read_text(encoding="utf-8")) for name in names.split(", ")}
        for page in (HELP / f"{node}.md", HELP / node / "zh.md")
    )
    assert english & set(WORDS[node].get("inputs", ())) <= chinese


@cache
def sentences() -> list[str]:
    """Every text of the product; what is filled in is an ellipsis."""
    found = []
    for folder in PRODUCT:
        for path in (dev.PACK / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
                elif isinstance(node, ast.JoinedStr):
                    found.append(
                        "".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values)
                    )
    for path in (dev.PACK / "web").glob("*.js"):  # the page's own messages
        texts = re.findall(r'"([^"\n]+)"', path.read_text(encoding="utf-8"))
        found += [re.sub(r"\{\d\}", "…", text) for text in texts]
    return found


QUOTED = re.findall(
    r"^> (.+)$", (dev.PACK / "docs" / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE
)


@pytest.mark.parametrize("message", QUOTED)
def test_messages_are_quoted_as_the_code_has_them(message):
    pattern = re.compile(".+?".join(re.escape(part) for part in message.split("…")))
    assert any(pattern.match(sentence) for sentence in sentences())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(dev.PACK)))
def test_links_lead_to_files_and_headings_that_exist(page):
    for target in LINK.findall(re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)):
        if target.startswith(("http://", "https://")):
            continue
        name, _, heading = target.partition("#")
        # the front end resolves a translated page's pictures as if it stood beside the English one
        folder = HELP if HELP in page.parents else page.parent
        file = (folder / name) if name else page
        assert file.exists(), f"{page.name} links to {target}"
        if heading:
            assert heading in headings(file), f"{page.name} links to {target}"


def headings(page: Path) -> set[str]:
    """Return a page's headings as GitHub writes them in addresses."""
    lines = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


@pytest.mark.parametrize("page", ["README.md", "docs/tutorial.md"])
def test_templates_are_named_as_their_files(page):
    text = (dev.PACK / page).read_text(encoding="utf-8")
    named = set(re.findall(r"\*(Inlay \d+ - [^*]+)\*", text))
    files = {path.stem for path in (dev.PACK / "workflows").glob("*.json")}
    assert named
    assert named <= files
    if page == "README.md":
        assert named == files


def test_the_measurements_list_every_command_that_measures():
    page = (dev.PACK / "docs" / "measurements.md").read_text(encoding="utf-8")
    listed = {row.split("`")[1].split()[1] for row in page.splitlines() if row.startswith("| `bench ")}
    assert listed == dev.scripts("bench").keys()


def test_translated_categories_are_categories_of_nodes():
    """The front end translates each part of a category by itself."""
    found = set()
    for path in (dev.PACK / "nodes").glob("*.py"):
        for category in re.findall(r'category="([^"]+)"', path.read_text(encoding="utf-8")):
            found |= set(category.split("/"))
    words = json.loads((dev.PACK / "locales" / "zh" / "main.json").read_text(encoding="utf-8"))
    assert words["nodeCategories"].keys() <= found
    assert all(CHINESE.search(text) for text in words["nodeCategories"].values())


@pytest.mark.parametrize("graph", ["insert_subject", "insert_small"])
def test_a_template_names_dreamcoms_own_settings(graph):
    """PNDM is the host's ipndm; the box rule is the paper's."""
    note = (dev.PACK / "workflows" / "api" / f"{graph}.md").read_text(encoding="utf-8")
    for words in ("**ipndm**", "50 steps", "cfg 7.5", "smaller than a quarter"):
        assert words in note


def test_citations_of_the_papers_name_the_right_sections():
    """DreamCom's hole is in section 4.1 and its augmentation in 6.1, not in 3.2."""
    wrong = re.compile(r"DreamCom,? sec(tion|\.)? ?3\.2")
    for folder in PRODUCT:
        for path in (dev.PACK / folder).rglob("*.py"):
            assert not wrong.search(path.read_text(encoding="utf-8")), path
