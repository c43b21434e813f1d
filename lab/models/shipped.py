"""The models of the tiny world as the host loads them, from the small files in lab/weights.

    python -m inlay.lab.models.shipped MODELS     MODELS is a folder like ComfyUI's models
"""

import argparse
from pathlib import Path

from . import assemble
from .files import WEIGHTS


def install(models: Path, weights: Path = WEIGHTS) -> list[Path]:
    """Write what is missing or older than the shipped files; return the paths of all."""
    parts = list(weights.glob("*.safetensors"))
    newest = max(part.stat().st_mtime for part in parts)
    paths = assemble.places(models, {part.stem for part in parts})
    if not all(path.exists() and path.stat().st_mtime >= newest for path in paths):
        assemble.assemble(assemble.shipped_parts(weights), models)
    return paths


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", type=Path)
    for path in install(parser.parse_args().models):
        print(path)


if __name__ == "__main__":
    main()
