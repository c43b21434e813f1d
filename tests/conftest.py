"""Shared by every test: `inlay` is this checkout, whatever its folder is called."""

import pytest
from hypothesis import settings

settings.register_profile("inlay", deadline=None)  # how long an example takes says nothing of the code
settings.load_profile("inlay")


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
