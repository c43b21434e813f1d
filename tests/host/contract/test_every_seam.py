"""Every function in host/ has a contract test: `test_<module>_<function>` in this folder."""

import ast
from pathlib import Path

from inlay import dev

# Read from class names and attributes of networks; tests/host/families runs them over every family.
TESTED_OVER_ALL_FAMILIES = "families"


def functions(path: Path) -> set[str]:
    """Return the names of a file's top-level functions."""
    return {
        node.name for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, ast.FunctionDef)
    }


def test_every_seam_has_a_contract_test():
    tested = set().union(*map(functions, Path(__file__).parent.glob("test_*_seams.py")))
    seams = {
        f"test_{path.stem}_{name}"
        for path in (dev.PACK / "host").glob("*.py")
        if path.stem != TESTED_OVER_ALL_FAMILIES
        for name in functions(path)
        if not name.startswith("_")
    }
    assert seams - tested == set()
