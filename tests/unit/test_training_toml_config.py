"""A finetuning in TOML: the documented file, paths, every number of a recipe, and what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest

from inlay import dev
from inlay.training.finetune.recipes import DREAMCOM, DREAMMIX
from inlay.training.finetune.toml_config import read_recipe, read_toml
from inlay.training.optimizers import ADAFACTOR_RATE

NEEDED = 'checkpoint = "sd.safetensors"\nreferences = "photos"\nclass_name = "cat"\n'


def config(tmp_path, text):
    path = tmp_path / "cat.toml"
    path.write_text(text, encoding="utf-8")
    return read_toml(path)


def test_the_documented_file_is_dreammix_itself(monkeypatch):
    documented = read_toml(dev.PACK / "workflows" / "finetune.toml")
    assert documented.recipe == DREAMMIX
    assert documented.attributes == {}  # nothing of the example's teapot stays with another subject
    assert documented.references == dev.PACK / "workflows" / "photos"


def test_three_keys_are_enough(tmp_path):
    found = config(tmp_path, NEEDED)
    assert found.recipe == DREAMCOM
    assert (found.checkpoint, found.token, found.seed, found.out) == ("sd.safetensors", "sks", 0, None)


def test_the_documented_defaults_are_the_defaults(tmp_path):
    documented, plain = read_toml(dev.PACK / "workflows" / "finetune.toml"), config(tmp_path, NEEDED)
    for name in ("token", "seed", "memory", "save_every", "preview_every", "previous", "regular", "out"):
        assert getattr(documented, name) == getattr(plain, name)


def test_paths_are_relative_to_the_file_and_a_file_there_comes_before_a_models_name(tmp_path):
    (tmp_path / "sd.safetensors").touch()
    found = config(tmp_path, f'{NEEDED}regular = "regular_cat"\nout = "/elsewhere"\n')
    assert found.checkpoint == str(tmp_path / "sd.safetensors")
    assert found.regular == tmp_path / "regular_cat"
    assert found.out == Path("/elsewhere")


def test_optimisers_have_their_own_rate_where_none_is_named():
    assert read_recipe({"optimiser": {"kind": "Prodigy"}}).optimiser.learning_rate == 1
    assert read_recipe({"optimiser": {"kind": "Adafactor"}}).optimiser.learning_rate == ADAFACTOR_RATE
    named = read_recipe({"optimiser": {"kind": "Adafactor", "learning_rate": 0.5}})
    assert named.optimiser.learning_rate == 0.5


def test_any_number_of_a_recipe_can_be_changed():
    found = read_recipe({
        "base": "DreamMix", "steps": 7, "beta": 1, "hole": "box",
        "adapter": {"rank": 8, "alpha": 2, "dora": True},
        "optimiser": {"betas": [0.8, 0.99]}, "augmentation": {"keep": 0.5},
    })  # fmt: skip
    assert found == replace(
        DREAMMIX, steps=7, beta=1.0, hole="box",
        adapter=replace(DREAMMIX.adapter, rank=8, alpha=2.0, dora=True),
        optimiser=replace(DREAMMIX.optimiser, betas=(0.8, 0.99)),
        augmentation=replace(DREAMMIX.augmentation, keep=0.5),
    )  # fmt: skip
    assert isinstance(found.beta, float)
    assert read_recipe("DreamMix") == DREAMMIX


def test_the_full_unets_recipe_takes_the_layers_of_a_lora():
    found = read_recipe({
        "base": "DreamCom (full UNet)", "adapter": {"kind": "lora", "targets": ["to_k", "to_v"]},
    })  # fmt: skip
    assert found.adapter == replace(DREAMCOM.adapter, targets=("to_k", "to_v"))
    with pytest.raises(ValueError, match=r"adapter\.targets: 3 is not text"):
        read_recipe({"base": "DreamCom (full UNet)", "adapter": {"targets": [3]}})


def test_an_optimiser_that_the_file_names_is_known_to_be_meant(tmp_path):
    assert not config(tmp_path, f"{NEEDED}[recipe.optimiser]\nlearning_rate = 1e-3").optimiser_named
    assert config(tmp_path, f"{NEEDED}[recipe.optimiser]\nkind = 'AdamW'").optimiser_named


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("checkpoint = ", r"cat\.toml: it is no TOML"),
        ('references = "photos"', r"cat\.toml: checkpoint is missing"),
        (f"{NEEDED}tokn = 'x'", "tokn: there is no such key; choose .*\"token\""),
        (f"{NEEDED}seed = 'x'", "seed: 'x' is not a whole number"),
        (f"{NEEDED}memory = '3 GB'", 'memory: there is no preset "3 GB"; choose "recipe"'),
        (f"{NEEDED}recipe = 3", "recipe: 3 is neither a recipe's name nor a table"),
        (f"{NEEDED}[recipe]\nbase = ['a']", "recipe: there is no \"\\['a'\\]\"; choose"),
        (f"{NEEDED}recipe = 'DreamOn'", 'recipe: there is no "DreamOn"; choose "DreamCom"'),
        (f"{NEEDED}[recipe]\nsteps = 1.5", "recipe.steps: 1.5 is not a whole number"),
        (f"{NEEDED}[recipe]\nhole = 'round'", "recipe.hole: there is no 'round'; choose \"box\", \"bezier\""),
        (f"{NEEDED}[recipe]\nsteps = 0", "recipe.steps: it must be at least 1; leave it out for"),
        (f"{NEEDED}[recipe]\nbatch_size = -2", "recipe.batch_size: it must be at least 1"),
        (f"{NEEDED}[recipe]\ncopies = 0", "recipe.copies: it must be at least 1"),
        (f"{NEEDED}[recipe]\nresolution = -64", "recipe.resolution: it must be 0"),
        (f"{NEEDED}[recipe]\nprompt = 'a {{tokn}} {{class_name}}'", "recipe.prompt: 'a {tokn} .* braces"),
        (f"{NEEDED}[recipe]\nprompt = 'a {{token'", "recipe.prompt: .* in braces"),
        (f"{NEEDED}[recipe.adapter]\nrank = 0", "recipe.adapter.rank: it must be at least 1"),
        (f"{NEEDED}[recipe.adapter]\ntargets = []", "recipe.adapter.targets: there are none"),
        (f"{NEEDED}[recipe.adapter]\ntargets = [3]", "recipe.adapter.targets: 3 is not text"),
        (f"{NEEDED}optimiser_named = true", "optimiser_named: there is no such key"),
        (f"{NEEDED}[recipe.adapter]\nranks = 4", "recipe.adapter.ranks: there is no such key"),
        (f"{NEEDED}[recipe.adapter]\ndora = 1", "recipe.adapter.dora: 1 is not true or false"),
        (f"{NEEDED}[recipe]\nadapter = 4", "recipe.adapter: 4 is not a table"),
        (f"{NEEDED}[recipe]\nbeta = true", "recipe.beta: True is not a number"),
        (f"{NEEDED}[recipe]\nbeta = -1.0", "recipe.beta: it must be 0 or a number above it"),
        (f"{NEEDED}[recipe]\nweight_inside = nan", "recipe.weight_inside: it must be 0"),
        (f"{NEEDED}[recipe]\nregular_chance = 3", "recipe.regular_chance: it must be a probability"),
        (f"{NEEDED}[recipe]\ncaption_dropout = 5.0", "recipe.caption_dropout: it must be a probability"),
        (f"{NEEDED}[recipe]\nmin_snr = -5.0", "recipe.min_snr: it must be 0 or a number above it"),
        (f"{NEEDED}[recipe]\npreservation = -1.0", "recipe.preservation: it must be 0 or a number above"),
        (f"{NEEDED}[recipe]\nshift = -3.0", "recipe.shift: it must be 0 or a number above it"),
        (f"{NEEDED}[recipe]\nguidance = nan", "recipe.guidance: it must be 0 or a number above it"),
        (f"{NEEDED}[recipe.optimiser]\nwarmup = -1", "recipe.optimiser.warmup: it must be 0 or a number"),
        (f"{NEEDED}[recipe.optimiser]\nbetas = [0.9, 2.0]", "recipe.optimiser.betas: both must be at least"),
        (f"{NEEDED}[recipe.adapter]\nalpha = 0.0", "recipe.adapter.alpha: it must be a number above 0"),
        (f"{NEEDED}[recipe.adapter]\npattern = '('", "recipe.adapter.pattern: it is no regular expression"),
        (f"{NEEDED}[recipe]\nema_decay = 1.0", "recipe.ema_decay: it must be at least 0 and below 1"),
        (f"{NEEDED}[recipe.optimiser]\nlearning_rate = nan", "recipe.optimiser.learning_rate: it must be"),
        (f"{NEEDED}[recipe.optimiser]\nlearning_rate = -1e-4", "recipe.optimiser.learning_rate: it must"),
        (f"{NEEDED}[recipe]\noptimiser = 1979-05-27", "recipe.optimiser: .* is not a table"),
        (f"{NEEDED}attributes = {{colour = 1979-05-27}}", "attributes: the words of \"colour\""),
        (f"{NEEDED}out = '{'x' * 5000}'", "out: it cannot be the path of a file"),
        (f'{NEEDED}regular = "a\\u0000b"', "regular: it cannot be the path of a file"),
        (f"{NEEDED}seed = -1", "seed: it must be from 0 to"),
        (f"{NEEDED}save_every = -1", "save_every: it must be 0 or more"),
        (f"{NEEDED}[attributes]\ncolour = 3", 'attributes: the words of "colour" are no list of words'),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence_that_names_the_key(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, text)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no\.toml: it cannot be read"):
        read_toml(tmp_path / "no.toml")
