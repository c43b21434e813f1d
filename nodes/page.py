"""What nodes send to the page beside their outputs: routes and small pictures."""

import base64
import io
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web
from PIL import Image
from server import PromptServer

PAGE_THUMBNAIL = 128  # pixels of the longer side of a picture in a message


def add_get_route(path: str, answer: Callable[[Mapping[str, str]], Awaitable[Any]]) -> None:
    """Serve JSON at a path; `answer` takes the query. Does nothing without the host's server, as in tests."""
    if not hasattr(PromptServer, "instance"):
        return

    @PromptServer.instance.routes.get(path)
    async def handler(request: web.Request) -> web.Response:
        return web.json_response(await answer(request.query))


def data_url(image: Image.Image, side: int = PAGE_THUMBNAIL) -> str:
    """A small JPEG, at most `side` pixels, as a page can show it."""
    small, file = image.convert("RGB"), io.BytesIO()
    small.thumbnail((side, side))
    small.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
