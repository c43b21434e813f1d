"""Inlay from the command line.

    python -m inlay COMMAND --help
    python path/to/this/folder COMMAND --help

In ComfyUI's Python. The first form from the folder above this one (`ComfyUI/custom_nodes`) where this one is
called inlay, the second from anywhere and under any name.
"""

import argparse
import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

NAME = "inlay"
PACK_FOLDER = Path(__file__).resolve().parent

# command -> (module with add_arguments(parser) and main(options) -> exit code, what it does)
COMMANDS = {
    "run": ("headless.run_cli", "run a workflow, or every combination of references and backgrounds"),
    "finetune": ("headless.finetune_cli", "teach a model a subject, on one accelerator or many"),
    "train": ("headless.train_cli", "train what inserts an object from one picture, at scale"),
    "evaluate": ("headless.evaluate_cli", "score folders of results, also against published benchmarks"),
}


def be_a_package() -> None:
    """Make this folder the package `inlay`, and keep it off the import path.

    On the path its nodes/ would come before the host's `nodes`.
    """
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != PACK_FOLDER]
    if NAME not in sys.modules:
        spec = spec_from_file_location(
            NAME, PACK_FOLDER / "__init__.py", submodule_search_locations=[str(PACK_FOLDER)]
        )
        assert spec
        assert spec.loader
        sys.modules[NAME] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[NAME])


def main(arguments: list[str]) -> int:
    """Run the command that the arguments name; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m inlay", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (module, what) in COMMANDS.items():
        command = commands.add_parser(name, help=what)
        if name in arguments[:1]:  # the others' imports can wait
            chosen = import_module(f".{module}", NAME)
            chosen.add_arguments(command)
            command.set_defaults(main=chosen.main)
    options = parser.parse_args(arguments)
    return options.main(options)


if __name__ in ("__main__", "__mp_main__"):  # the second in a process that multiprocessing spawned
    be_a_package()

if __name__ == "__main__":
    __spec__ = None  # with one, spawned processes would not run this file, and would find no `inlay`
    import_module(".headless.errors", NAME).end_process(main(sys.argv[1:]))
