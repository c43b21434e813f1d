"""Talks to a running ComfyUI: sends a graph in API form, follows it, and brings back what it made."""

import asyncio
import json
import struct
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import requests

from .errors import HostError, nearest
from .node_definitions import Definition, combo_choices, inputs_of

HEARTBEAT = 120  # seconds; a host that does not answer within half of them is gone
Graph = dict[str, dict[str, Any]]


class PromptRefused(HostError):
    """The host found the graph invalid before running any of it."""


class NodeFailed(HostError):
    """A node raised; `node` is its id and `message` what it said."""

    def __init__(self, node: str, title: str, message: str):
        super().__init__(f"{title} (node {node}): {message}")
        self.node, self.message = node, message


class Interrupted(HostError):
    """The run was interrupted, by us or by somebody else."""


class HostGone(HostError):
    """The connection broke while the graph ran."""


@dataclass(frozen=True)
class NodeProgressEvent:
    """How far a node is: `value` of `maximum`; `state` is "running", "finished" or "cached".

    `text` is what the node itself says about it, such as its loss.
    """

    node: str
    value: float
    maximum: float
    state: str
    text: str = ""


@dataclass
class NodeOutput:
    """What one output node shows: `files` (name, bytes), `text`, and `raw` as the host tells it."""

    files: list[tuple[str, bytes]] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    raw: dict[str, Any] = field(default_factory=dict)

    @property
    def images(self) -> list[bytes]:
        """The files' bytes; most output nodes show nothing but pictures."""
        return [content for _, content in self.files]


PromptResult = dict[str, NodeOutput]


class Client:
    """A connection to the host at `url`; every call blocks.

    Raises (all of them): HostError, with one sentence that can be shown to the user.
    """

    def __init__(self, url: str):
        self.url = (url if "://" in url else f"http://{url}").rstrip("/")
        self.id = uuid.uuid4().hex
        self.session = requests.Session()
        self.session.trust_env = False  # no proxy stands between us and the loopback

    def run(
        self,
        graph: Graph,
        on_progress: Callable[[NodeProgressEvent], None] | None = None,
        prompt_id: str | None = None,
    ) -> PromptResult:
        """Runs `graph` (API form) to its end and returns the output of each output node, by node id.

        `on_progress` is called whenever a node moves on. Ctrl-C interrupts the host's job too, and waits a
        little until that has stopped: a training saves its state first. `prompt_id` is a UUID by which `find`
        knows the run later; by default a new one.
        """
        prompt_id = prompt_id or str(uuid.uuid4())
        try:
            _complete(self._follow(graph, prompt_id, on_progress or (lambda progress: None)))
        except KeyboardInterrupt:
            self.interrupt(prompt_id)
            self._wait(prompt_id, seconds=20)
            raise
        return self.outputs(prompt_id)

    def submit(self, graph: Graph, prompt_id: str | None = None) -> str:
        """Puts `graph` into the host's queue and returns its prompt id."""
        prompt_id = prompt_id or str(uuid.uuid4())
        body = {"prompt": graph, "client_id": self.id, "prompt_id": prompt_id}
        response = self._request("POST", "/prompt", json=body)
        answer = response.json()
        # The host runs what is left of a graph with a bad branch; half an answer is no answer.
        if response.status_code != 200 or answer.get("node_errors"):
            self.interrupt(prompt_id)
            raise PromptRefused(explain_refusal(answer, graph, self._definitions_of(answer)))
        return prompt_id

    def interrupt(self, prompt_id: str | None = None) -> None:
        """Stops the run `prompt_id` within a step, or takes it out of the queue; without an id, what runs."""
        if prompt_id:
            self._request("POST", "/queue", json={"delete": [prompt_id]})
        self._request("POST", "/interrupt", json={"prompt_id": prompt_id} if prompt_id else {})

    def upload(self, path: Path | str, subfolder: str = "", name: str | None = None) -> str:
        """Copies a picture into the host's input folder and returns the name that LoadImage knows it by."""
        path = Path(path)
        with path.open("rb") as file:
            response = self._request(
                "POST", "/upload/image", files={"image": (name or path.name, file)},
                data={"subfolder": subfolder, "overwrite": "true"},
            )  # fmt: skip
        if not response.ok:
            raise HostError(f"The host did not take the picture {path} (HTTP {response.status_code}).")
        saved = response.json()
        return f"{saved['subfolder']}/{saved['name']}" if saved["subfolder"] else saved["name"]

    def outputs(self, prompt_id: str) -> PromptResult:
        """The outputs of a finished run, with the bytes of every picture."""
        history = self._request("GET", f"/history/{prompt_id}").json()
        if prompt_id not in history:
            raise HostError("The host has forgotten this run; its history holds only the latest ones.")
        return {node: self._output(raw) for node, raw in history[prompt_id]["outputs"].items()}

    def has_finished(self, prompt_id: str) -> bool:
        """Whether the run is in the host's history as a success."""
        found = self._history(prompt_id).get(prompt_id)
        return bool(found) and found["status"]["status_str"] == "success"

    def _history(self, prompt_id: str) -> dict[str, Any]:
        return self._request("GET", f"/history/{prompt_id}").json()

    def queued(self) -> set[str]:
        """The prompt ids of what the host runs and of what waits there."""
        queue = self._request("GET", "/queue").json()
        return {item[1] for items in queue.values() for item in items}

    def find(self, prompt_id: str) -> PromptResult | None:
        """The result of a run that was begun before, waiting for its end; None where there is none."""
        while prompt_id in self.queued():
            time.sleep(0.5)
        return self.outputs(prompt_id) if self.has_finished(prompt_id) else None

    def object_info(self) -> dict[str, dict[str, Any]]:
        """The host's description of every node type it has, by name."""
        response = self._request("GET", "/object_info")
        if not response.ok:
            raise HostGone(f"What answers at {self.url} is no ComfyUI.")
        return response.json()

    def system(self) -> dict[str, Any]:
        """What the host says about itself and its devices (`/system_stats`)."""
        return self._request("GET", "/system_stats").json()

    def _wait(self, prompt_id: str, seconds: float) -> None:
        """Returns when the host is done with the run, or after `seconds`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if prompt_id not in self.queued():
                return
            time.sleep(0.1)

    def _definitions_of(self, answer: dict[str, Any]) -> dict[str, Any]:
        """The descriptions of the nodes that the host complains of."""
        found = {}
        for kind in {errors.get("class_type") for errors in answer.get("node_errors", {}).values()}:
            found |= self._request("GET", f"/object_info/{kind}").json()
        return found

    def _output(self, raw: dict[str, Any]) -> NodeOutput:
        shown = [item for items in raw.values() if isinstance(items, list) for item in items]
        files = [item for item in shown if isinstance(item, dict) and "filename" in item]
        text = raw.get("text", [])
        return NodeOutput(
            files=[(file["filename"], self._fetch(file)) for file in files],
            text=[text] if isinstance(text, str) else [str(line) for line in text],
            raw=raw,
        )

    def _fetch(self, file: dict[str, Any]) -> bytes:
        response = self._request("GET", "/view", params=file)
        if not response.ok:
            raise HostError(f"The host no longer has the file {file['filename']}.")
        return response.content

    def _request(self, method: str, path: str, **arguments: Any) -> requests.Response:
        try:
            return self.session.request(method, self.url + path, timeout=60, **arguments)
        except requests.RequestException as error:
            raise HostGone(f"The host at {self.url} does not answer.") from error

    def _knows(self, prompt_id: str) -> bool:
        """Whether the host will run it or has; its history is written before its queue is said to change."""
        return prompt_id in self.queued() or prompt_id in self._history(prompt_id)

    async def _follow(
        self, graph: Graph, prompt_id: str, report: Callable[[NodeProgressEvent], None]
    ) -> None:
        """Submits the graph and reads the websocket until the host is done with it."""
        failure: HostError | None = None
        seen: dict[str, NodeProgressEvent] = {}
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.ws_connect(
                    f"{self.url}/ws?clientId={self.id}", max_msg_size=0, heartbeat=HEARTBEAT
                ) as socket,
            ):
                await asyncio.to_thread(self.submit, graph, prompt_id)
                async for message in socket:
                    if message.type == aiohttp.WSMsgType.ERROR:  # the host is silent for too long
                        break
                    kind, data = read_message(message)
                    if data.get("prompt_id", prompt_id) != prompt_id:
                        continue
                    for progress in progress_of(kind, data, seen):
                        if seen.get(progress.node) != progress:
                            seen[progress.node] = progress
                            report(progress)
                    if kind == "status" and not await asyncio.to_thread(self._knows, prompt_id):
                        raise Interrupted("The run was taken out of the host's queue.")
                    failure = failure or failure_of(kind, data, graph)
                    if kind == "executing" and data.get("node") is None:  # now the history is written
                        if failure:
                            raise failure
                        return
        except aiohttp.ClientError as error:
            raise HostGone(f"The host at {self.url} does not answer.") from error
        raise HostGone(f"The host at {self.url} went away while the graph was running.")


def _complete(work: Coroutine[Any, Any, None]) -> None:
    """asyncio.run, also where a loop runs already, as in a notebook: then in a thread of its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
        return
    thread = ThreadPoolExecutor(1)
    try:
        thread.submit(asyncio.run, work).result()
    finally:
        thread.shutdown(wait=False)  # Ctrl-C interrupts the host's job, which ends the work


def read_message(message: aiohttp.WSMessage) -> tuple[str, dict[str, Any]]:
    """A message of the host's websocket as (type, data); pictures are passed over."""
    if message.type == aiohttp.WSMsgType.TEXT:
        event = json.loads(message.data)
        return event["type"], event["data"]
    kind, size = struct.unpack(">II", message.data[:8])
    if kind == 3:  # the host's BinaryEventTypes.TEXT: length of the node's id, the id, the text
        node, text = message.data[8 : 8 + size], message.data[8 + size :]
        return "text", {"node": node.decode(), "text": text.decode()}
    return "picture", {}


def progress_of(
    kind: str, data: dict[str, Any], seen: dict[str, NodeProgressEvent]
) -> Iterator[NodeProgressEvent]:
    """The progress that a message of the host's websocket tells, if any; `seen` is each node's latest."""
    if kind == "execution_cached":
        for node in data["nodes"]:
            yield NodeProgressEvent(node, 1, 1, "cached")
    elif kind == "text" and data["node"] in seen:
        yield replace(seen[data["node"]], text=data["text"])
    elif kind == "progress_state":
        for state in data["nodes"].values():
            node = state["display_node_id"]
            text = seen[node].text if node in seen else ""
            yield NodeProgressEvent(node, state["value"], state["max"], state["state"], text)


def failure_of(kind: str, data: dict[str, Any], graph: Graph) -> HostError | None:
    """The error that a message of the host's websocket tells, if any."""
    if kind == "execution_interrupted":
        return Interrupted("The run was interrupted.")
    if kind == "execution_error":
        node = str(data["node_id"])
        message = data["exception_message"].strip() or data["exception_type"]
        return NodeFailed(node, title_of(node, graph, data["node_type"]), message)
    return None


def title_of(node: str, graph: Graph, otherwise: str = "") -> str:
    """What the user calls a node: its title, else its type."""
    entry = graph.get(node, {})
    return entry.get("_meta", {}).get("title") or entry.get("class_type") or otherwise or "The graph"


def explain_refusal(
    answer: dict[str, Any], graph: Graph, definitions: dict[str, Definition] | None = None
) -> str:
    """The host's validation errors as one readable sentence; `definitions` tell what a list does hold."""
    complaints = []
    for node, found in answer.get("node_errors", {}).items():
        title = title_of(node, graph, found.get("class_type", ""))
        for error in found["errors"]:
            details = error["details"]
            if error["type"] == "custom_validation_failed":  # details: "input - what the node itself says"
                said = details.split(" - ", 1)[-1]
            elif error["type"] == "value_not_in_list":
                said = _not_in_list(error["extra_info"], (definitions or {}).get(found["class_type"]))
            else:
                said = f"{error['message']} ({details})" if details else error["message"]
            complaints.append(f"{title} (node {node}): {said}")
    if not complaints:
        error = answer["error"]
        missing = error.get("extra_info", {}).get("class_type")
        complaints.append(f"It has no node of the type {missing}." if missing else error["message"])
    unique = list(dict.fromkeys(complaints))
    return "The host refused the graph. " + "; ".join(unique)


def _not_in_list(error: dict[str, Any], definition: Definition | None) -> str:
    name, value = error["input_name"], error["received_value"]
    found = inputs_of(definition).get(name) if definition else None  # none: an input of a choice's own
    known = combo_choices(*found) if found else []
    return f"there is no {name} '{value}' on this host; {nearest(str(value), map(str, known))}"
