"""The working size of a family, from the names that the host gives."""

from types import SimpleNamespace
from typing import Any

import pytest

from inlay.host.families import config_name, working_side


def model(name: str, prediction: str) -> Any:
    base = SimpleNamespace(model_config=type(name, (), {})(), model_type=SimpleNamespace(name=prediction))
    return SimpleNamespace(model=base)


@pytest.mark.parametrize(
    ("name", "prediction", "side"),
    [
        ("SD15", "EPS", 512),
        ("SD20", "V_PREDICTION", 768),
        ("SD20", "EPS", 512),  # the base model, and the inpainting one
        ("SDXL", "EPS", 1024),
        ("SDXLRefiner", "EPS", 1024),
        ("Flux", "FLUX", 1024),
    ],
)
def test_every_family_has_the_size_it_was_trained_on(name, prediction, side):
    assert config_name(model(name, prediction)) == name
    assert working_side(model(name, prediction)) == side


def test_every_row_has_the_networks_that_the_tests_of_families_run_on():
    from inlay.families.table import FAMILIES
    from inlay.lab.models.full_transformers import FULL
    from inlay.lab.models.tiny_transformers import TINY

    names = {family.name for family in FAMILIES}
    assert set(FULL) == names
    assert set(TINY) == names - {"sd15", "sd2", "sdxl"}  # UNets have tests of their own
