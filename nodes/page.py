"""What the pack gives to the page: routes, small pictures, and the example pictures of the templates."""

import base64
import io
import shutil
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import folder_paths
from aiohttp import web
from PIL import Image
from server import PromptServer

from ..common.files import atomic_write
from ..common.log import logger

PAGE_THUMBNAIL = 128  # pixels of the longer side of a picture in a message


def add_get_route(path: str, answer: Callable[[Mapping[str, str]], Awaitable[Any]]) -> None:
    """Serve JSON at a path; `answer` takes the query. Does nothing without the host's server, as in tests."""
    if not hasattr(PromptServer, "instance"):
        return

    @PromptServer.instance.routes.get(path)
    async def handler(request: web.Request) -> web.Response:
        return web.json_response(await answer(request.query))


def data_url(image: Image.Image, side: int = PAGE_THUMBNAIL) -> str:
    """Return a small JPEG, at most `side` pixels, as a page can show it."""
    small, file = image.convert("RGB"), io.BytesIO()
    small.thumbnail((side, side))
    small.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


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
                atomic_write(copy, partial(shutil.copyfile, file))  # other hosts may do the same now
    except OSError as error:
        logger.warning(f"Inlay: the example pictures were not copied to input: {error}")
