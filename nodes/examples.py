"""The example pictures of the templates, where the host's loaders look for them."""

import logging
import shutil
from pathlib import Path

import folder_paths

EXAMPLES = Path(__file__).resolve().parent.parent / "workflows" / "examples"


def install_examples(source: Path = EXAMPLES) -> None:
    """Copy the example pictures into ComfyUI's input folder, so that templates open with their pictures.

    The page accepts files at the top of that folder only. What is there already is kept.
    """
    target = Path(folder_paths.get_input_directory())
    try:
        for file in source.rglob("*.png"):
            copy = target / file.relative_to(source)
            if not copy.exists():
                copy.parent.mkdir(parents=True, exist_ok=True)
                partial = copy.with_suffix(".partial")
                shutil.copyfile(file, partial)
                partial.replace(copy)
    except OSError as error:
        logging.getLogger("inlay").warning(f"Inlay: the example pictures were not copied to input: {error}")
