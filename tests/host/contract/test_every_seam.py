"""Every function and class in host/ has a contract test: `test_<module>_<name>` in this folder."""

import ast
import re
from pathlib import Path

from inlay import dev

# Read from class names and attributes of networks; tests/host/families runs them over every family.
TESTED_OVER_ALL_FAMILIES = "families"


def names(path: Path) -> set[str]:
    """Return the names of a file's top-level functions and classes, in small letters.

    Records that a function returns are tried with that function.
    """
    found = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef) and "NamedTuple" not in map(ast.unparse, node.bases):
            found.add(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", node.name).lower())
    return found


def test_every_seam_has_a_contract_test():
    tested = set().union(*map(names, Path(__file__).parent.glob("test_*_seams.py")))
    seams = {
        f"test_{path.stem}_{name}"
        for path in (dev.PACK / "host").glob("*.py")
        if path.stem != TESTED_OVER_ALL_FAMILIES
        for name in names(path)
        if not name.startswith("_")
    }
    assert seams - tested == set()
