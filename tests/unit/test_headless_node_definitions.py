"""What counts as a change that breaks saved workflows, and what does not."""

import copy

import pytest

from inlay.headless.node_definitions import breaks, interface_of

DEFINITION = {
    "input": {
        "required": {"model": ["MODEL", {}], "mode": ["COMBO", {"options": ["fast", "slow"]}]},
        "optional": {"mask": ["MASK", {}], "file": [["a.png", "sub/b.png"], {}], "steps": ["INT", {}]},
    },
    "input_order": {"required": ["model", "mode"], "optional": ["mask", "file", "steps"]},
    "output": ["MODEL", "IMAGE"],
}
OLD = interface_of({"Node": DEFINITION})


def changed(**parts) -> dict:
    return {"Node": copy.deepcopy(OLD["Node"]) | parts}


def test_an_interface_is_what_workflows_keep():
    assert OLD["Node"] == {
        "widgets": [["mode", "COMBO", ["fast", "slow"]], ["file", "COMBO", []], ["steps", "INT", []]],
        "sockets": [["model", "MODEL", "required"], ["mask", "MASK", "optional"]],
        "outputs": ["MODEL", "IMAGE"],
    }


def test_folders_and_samplers_of_one_machine_are_nobodys_promise():
    combos = {name: ["COMBO", {"options": ["mine", "other"]}] for name in ("name", "folder", "sampler_name")}
    there = {"input": {"required": combos}, "input_order": {"required": list(combos)}, "output": []}
    assert [fixed for *_, fixed in interface_of({"Node": there})["Node"]["widgets"]] == [[], [], []]


def test_what_is_added_at_the_end_breaks_nothing():
    node = OLD["Node"]
    new = changed(
        widgets=[["mode", "COMBO", ["fast", "slow", "slower"]], *node["widgets"][1:], ["seed", "INT", []]],
        sockets=[["vae", "VAE", "optional"], *node["sockets"]],
        outputs=[*node["outputs"], "MASK"],
    )
    assert breaks(OLD, new | {"Other": node}, set()) == []


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("widgets", [["seed", "INT", []], *OLD["Node"]["widgets"]], "in that order; new ones go last"),
        ("widgets", OLD["Node"]["widgets"][:2], "in that order"),
        ("widgets", [["mode", "COMBO", ["slow"]], *OLD["Node"]["widgets"][1:]], "mode no longer offers fast"),
        ("widgets", [*OLD["Node"]["widgets"][:2], ["steps", "FLOAT", []]], "steps was a INT"),
        ("sockets", OLD["Node"]["sockets"][:1], r"the input mask \(MASK\) is gone"),
        ("sockets", [["vae", "VAE", "required"], *OLD["Node"]["sockets"]], "vae is required"),
        ("outputs", ["IMAGE", "MODEL"], "its outputs were MODEL, IMAGE"),
        ("outputs", ["MODEL"], "its outputs were"),
    ],
)
def test_every_other_change_is_said(part, value, said):
    with pytest.raises(AssertionError, match=said):
        assert "; ".join(breaks(OLD, changed(**{part: value}), set())) == ""


def test_a_node_may_go_when_a_replacement_is_registered():
    assert breaks(OLD, {}, {"Node"}) == []
    assert breaks(OLD, {}, set()) == ["Node is gone; register a replacement."]
