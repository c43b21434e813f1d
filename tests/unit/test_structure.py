"""The structure of the code base: who imports whom, names defined once, imports at module level.

docs/architecture.md describes the same rules in words.
"""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

from inlay import dev

# Folders of the product, from the highest to the lowest: a folder imports only from those after it.
ORDER = (
    "headless", "nodes", "training", "evaluation", "sampling", "attention", "encoders", "conditioning",
    "imaging", "host", "families", "common",
)  # fmt: skip
MAY_IMPORT_COMFY = {"nodes", "host", "lab", "tools", "tests"}
COMFY = {"comfy", "comfy_extras", "latent_preview", "node_helpers", "execution", "server"}
# Entry points that every command line has.
REPEATED_NAMES = {"main", "add_arguments"}
# Folders whose functions import the pack's own modules: the host starts, and --help prints, without them.
LATE_FOLDERS = {"nodes", "headless"}
# Slow to import: each has one function, in common/libraries.py.
HEAVY_LIBRARIES = {
    "accelerate", "diffusers", "peft", "skimage", "torchmetrics", "torchvision", "transformers",
}  # fmt: skip
# Optional, or needed by one function alone.
OPTIONAL_LIBRARIES = {"bitsandbytes", "datasets", "dreamsim", "pillow_heif", "prodigyopt", "psutil"}
LATE_LIBRARIES = OPTIONAL_LIBRARIES | {
    "PIL", "torch",
    "comfy_extras", "server",  # modules of the host that are imported after the pack
}  # fmt: skip
LONGEST_FUNCTION = 60  # lines; schemas and their parts are exempt: they are tables


def roots_of(node: ast.AST) -> set[str]:
    """Return the packages that an import statement names; none for our own modules."""
    if isinstance(node, ast.Import):
        return {alias.name.partition(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom) and not node.level and node.module:
        return {node.module.partition(".")[0]}
    return set()


def modules() -> dict[str, tuple[Path, ast.Module]]:
    """Return the product's modules: dotted name -> (path, syntax tree)."""
    found = {}
    for folder in ORDER:
        for path in sorted((dev.PACK / folder).rglob("*.py")):
            name = ".".join(path.relative_to(dev.PACK).with_suffix("").parts)
            found[name] = path, ast.parse(path.read_text(encoding="utf-8"))
    return found


MODULES = modules()


def imported(name: str, tree: ast.AST) -> list[tuple[str, int]]:
    """Return (dotted module of the pack, line) of every relative import below `tree`."""
    parts = name.split(".")
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = parts[: len(parts) - node.level] + (node.module.split(".") if node.module else [])
            for alias in node.names:
                longer = ".".join([*base, alias.name])
                found.append((longer if longer in MODULES else ".".join(base), node.lineno))
    return found


def top_level_imports(tree: ast.Module) -> ast.Module:
    return ast.Module([n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))], [])


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_downwards(name):
    own = ORDER.index(name.partition(".")[0])
    for target, line in imported(name, MODULES[name][1]):
        folder = target.partition(".")[0]
        if folder in ORDER:
            assert ORDER.index(folder) >= own, f"{name}, line {line}, imports {target}, which lies above it"


def test_the_two_kinds_of_training_share_the_objective_and_the_optimizers_only():
    for name, (_, tree) in MODULES.items():
        for target, line in imported(name, tree):
            for own, other in (("finetune", "adapters"), ("adapters", "finetune")):
                wrong = name.startswith(f"training.{own}.") and target.startswith(f"training.{other}")
                assert not wrong, f"{name}, line {line}, imports {target}"


def test_a_unit_test_is_called_after_a_folder_or_module():
    whole_pack = {"dev", "documentation", "pack", "sentences", "structure", "templates"}
    names = {*ORDER, "lab", "scene", "scenes", *(path.stem for path in (dev.PACK / "tools").glob("*.py"))}
    files = [path.stem.removeprefix("test_") for path in (dev.PACK / "tests" / "unit").glob("test_*.py")]
    odd = [file for file in files if file not in whole_pack | names and file.partition("_")[0] not in names]
    assert odd == []


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("nodes.")])
def test_every_public_method_of_a_node_but_its_schema_has_a_docstring(name):
    methods = [
        (kind.name, method)
        for kind in MODULES[name][1].body
        if isinstance(kind, ast.ClassDef)
        for method in kind.body
        if isinstance(method, (ast.FunctionDef, ast.AsyncFunctionDef)) and method.name != "define_schema"
    ]
    public = [(kind, method) for kind, method in methods if not method.name.startswith("_")]
    assert [f"{kind}.{method.name}" for kind, method in public if not ast.get_docstring(method)] == []


# Private names of others that have no public equivalent, and the public methods of a NamedTuple.
PRIVATE_OF_OTHERS = {
    "_asdict",
    "_exit",
    "_fields",
    "_replace",
    "_modules",
    "_disable_adapters",
    "_cdata",
    "_version",
}


@pytest.mark.parametrize("name", MODULES)
def test_private_names_stay_in_their_class_and_module(name):
    for node in ast.walk(MODULES[name][1]):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in {"self", "cls", "super()"}:
            used = [node.attr]
        elif isinstance(node, ast.ImportFrom):
            used = [alias.name for alias in node.names]
        else:
            continue
        private = {word for word in used if word.startswith("_") and not word.startswith("__")}
        assert private <= PRIVATE_OF_OTHERS, f"{name}, line {node.lineno}, uses {private} of another class"


def test_training_has_at_most_thirty_files():
    assert len(list((dev.PACK / "training").rglob("*.py"))) <= 30


def test_the_page_about_the_architecture_names_files_that_exist():
    text = (dev.PACK / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"[a-z_]+(?:/[a-z_0-9]+)+\.py", text))
    assert len(named) > 20
    assert [name for name in named if not (dev.PACK / name).is_file()] == []


def test_what_the_architecture_finds_is_defined_there():
    """In the table "Where is ...?" a name in quotes is defined in a file of its own row."""
    text = (dev.PACK / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.partition("## Where is ...?")[2].partition("\n## ")[0]
    checked = 0
    for row in table.splitlines():
        quoted = re.findall(r"`([\w./]+)`", row)
        files = [dev.PACK / name for name in quoted if name.endswith(".py")]
        defined = {
            node.name
            for file in files
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            if isinstance(node, (ast.FunctionDef, ast.ClassDef))
        }
        for name in quoted:
            if "/" not in name:
                assert set(name.split(".")) <= defined, f"{name} is not in {[file.name for file in files]}"
                checked += 1
    assert checked > 8


def test_few_modules_are_short():
    """Packages that have a docstring only do not count; the others are merged by theme."""
    short = []
    for name, (path, tree) in MODULES.items():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines < 60 and (path.name != "__init__.py" or len(tree.body) > 1):
            short.append(name)
    assert len(short) <= 15, short


@pytest.mark.parametrize("name", MODULES)
def test_imports_inside_functions_are_from_a_short_list(name):
    """Libraries that are heavy or optional; of our own modules only what a command or a node needs late."""
    for function in ast.walk(MODULES[name][1]):
        if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        for target, line in imported(name, function):
            assert name.partition(".")[0] in LATE_FOLDERS, f"{name}, line {line}, imports {target} late"
        for node in ast.walk(function):
            roots = roots_of(node)
            allowed = HEAVY_LIBRARIES if name == "common.libraries" else LATE_LIBRARIES
            assert roots <= allowed, f"{name}, line {getattr(node, 'lineno', 0)}, imports {roots}"


def test_each_heavy_or_optional_library_is_imported_by_one_function():
    places = defaultdict(set)
    for name, (_, tree) in MODULES.items():
        for function in ast.walk(tree):
            if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
                for node in ast.walk(function):
                    for root in roots_of(node) & (HEAVY_LIBRARIES | OPTIONAL_LIBRARIES):
                        places[root].add(f"{name}.{function.name}")
    assert places.keys() == HEAVY_LIBRARIES | OPTIONAL_LIBRARIES
    assert [found for found in places.values() if len(found) > 1] == []


@pytest.mark.parametrize("name", MODULES)
def test_the_one_logger_is_used(name):
    for node in ast.walk(MODULES[name][1]):
        if isinstance(node, ast.Import) and name != "common.log":
            assert "logging" not in {alias.name for alias in node.names}, f"{name}: use common.log.logger"


def test_every_imported_module_exists():
    """Also in lab/, tools/ and tests/, whose imports another branch may have left behind."""
    for folder in (*ORDER, "lab", "tools", "tests"):
        for path in sorted((dev.PACK / folder).rglob("*.py")):
            parts = path.relative_to(dev.PACK).with_suffix("").parts
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not isinstance(node, ast.ImportFrom) or not node.module:
                    continue
                if node.level:
                    target = dev.PACK.joinpath(*parts[: len(parts) - node.level], *node.module.split("."))
                elif node.module.startswith("inlay."):
                    target = dev.PACK.joinpath(*node.module.split(".")[1:])
                else:
                    continue
                exists = target.is_dir() or target.with_suffix(".py").is_file()
                assert exists, f"{path}, line {node.lineno}: there is no {node.module}"


def test_there_is_no_cycle_of_imports():
    graph = {
        name: {target for target, _ in imported(name, top_level_imports(tree)) if target in MODULES} - {name}
        for name, (_, tree) in MODULES.items()
    }
    while graph:
        leaves = {name for name, targets in graph.items() if not targets & graph.keys()}
        assert leaves, f"these modules import one another: {sorted(graph)}"
        graph = {name: targets for name, targets in graph.items() if name not in leaves}


@pytest.mark.parametrize("name", MODULES)
def test_private_parts_of_the_host_are_used_in_the_host_folder_alone(name):
    if name.partition(".")[0] in MAY_IMPORT_COMFY:
        return
    for node in ast.walk(MODULES[name][1]):
        roots = roots_of(node)
        where = f"{name}, line {getattr(node, 'lineno', 0)}"
        assert not COMFY & roots, f"{where}, imports {roots}: move it into host/"


@pytest.mark.parametrize("name", MODULES)
def test_the_inner_parts_of_a_model_are_read_in_the_host_folder_alone(name):
    """Of a MODEL the other folders use what a node may: clone, model_options, get_model_object."""
    if name.partition(".")[0] == "host":
        return
    for node in ast.walk(MODULES[name][1]):
        if not isinstance(node, ast.Attribute):
            continue
        owner = ast.unparse(node.value)
        inner = owner.endswith((".model", "inner_model"))
        inner &= owner.startswith(("model.", "guider.", "self.guider.", "pipeline."))
        assert not inner, f"{name}, line {node.lineno}, reads {ast.unparse(node)}: move it into host/"


def test_no_public_name_is_defined_in_two_modules():
    places = defaultdict(list)
    for name, (_, tree) in MODULES.items():
        for node in tree.body:
            names = []
            if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
                names = [node.name]
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]
            for each in names:
                if not each.startswith("_") and each not in REPEATED_NAMES:
                    places[each].append(name)
    twice = {each: found for each, found in places.items() if len(found) > 1}
    assert not twice


@pytest.mark.parametrize("name", MODULES)
def test_no_function_is_longer_than_a_screen(name):
    for node in ast.walk(MODULES[name][1]):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not node.name.endswith(
            ("_schema", "_inputs")
        ):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= LONGEST_FUNCTION, f"{name}.{node.name} has {length} lines"
