"""Shared by every test: `inlay` is this checkout, whatever its folder is called."""

import sys

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes depends on the machine. The same examples in every run: a test that fails has
# found something in the change at hand. `--hypothesis-profile=search` draws new ones, and more of them.
BASE = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.register_profile("inlay", BASE, derandomize=True)
settings.register_profile("search", BASE, derandomize=False, max_examples=1000)
settings.load_profile("inlay")
SEED = 5_012_017  # of torch's own generator; no test names it, so that no other draw is the same


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Seed torch before every test and its fixtures: what they draw without a generator is reproducible."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(SEED)


def pytest_collection_modifyitems(config, items):
    """Leave out the tests marked `repeats` unless `-m` names them; skip those marked `gpu` without one."""
    if "repeats" not in (config.getoption("markexpr") or ""):
        repeats = [item for item in items if item.get_closest_marker("repeats")]
        config.hook.pytest_deselected(items=repeats)
        items[:] = [item for item in items if item not in repeats]
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if gpu:
        import torch

        if not torch.accelerator.is_available():
            for item in gpu:
                item.add_marker(pytest.mark.skip(reason="torch sees no accelerator"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Replace half characters in what a test printed: a report with one cannot go to another process."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "replace").decode()) for name, text in report.sections]
    return report
