"""Run ComfyUI from a script: start a host, send a graph, follow its progress, fetch the images.

with Server(Path("work")) as server:
    client = Client(server.url)
    name = client.upload("photo.png")
    result = client.run(graph, on_progress=print)
    png = result["9"].images[0]
"""

from .client import (
    Client,
    Graph,
    HostGone,
    Interrupted,
    NodeFailed,
    NodeOutput,
    NodeProgressEvent,
    PromptRefused,
    PromptResult,
)
from .errors import HostError
from .server import HostDied, Server

__all__ = [
    "Client",
    "Graph",
    "HostDied",
    "HostError",
    "HostGone",
    "Interrupted",
    "NodeFailed",
    "NodeOutput",
    "NodeProgressEvent",
    "PromptRefused",
    "PromptResult",
    "Server",
]
