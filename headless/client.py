"""Talk to a running ComfyUI: send a graph in API form, follow its progress, fetch its outputs."""

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

HEARTBEAT = 120  # seconds between pings; the answer must come within half of that
Graph = dict[str, dict[str, Any]]


class PromptRefused(HostError):
    """The host found the graph invalid and ran no part of it."""


class NodeFailed(HostError):
    """A node raised an error; `node` is its id, `message` the error's text."""

    def __init__(self, node: str, title: str, message: str):
        super().__init__(f"{title} (node {node}): {message}")
        self.node, self.message = node, message


class Interrupted(HostError):
    """The run was interrupted or removed from the queue, by this process or another."""


class HostGone(HostError):
    """The host does not answer, or the connection broke while the graph ran."""


@dataclass(frozen=True)
class NodeProgressEvent:
    """The progress of a node: `value` of `maximum`; `state` is "running", "finished" or "cached".

    `text` is the node's own progress text, such as its loss.
    """

    node: str
    value: float
    maximum: float
    state: str
    text: str = ""


@dataclass
class NodeOutput:
    """The output of one output node: `files` (name, bytes), `text`, and the host's own record as `raw`."""

    files: list[tuple[str, bytes]] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    raw: dict[str, Any] = field(default_factory=dict)

    @property
    def images(self) -> list[bytes]:
        """The bytes of the files; most output nodes have images only."""
        return [content for _, content in self.files]


PromptResult = dict[str, NodeOutput]


class Client:
    """A connection to the host at `url`; every call blocks until it is done.

    Raises (every call): HostError, whose message is one sentence for the user.
    """

    def __init__(self, url: str):
        self.url = (url if "://" in url else f"http://{url}").rstrip("/")
        self.id = uuid.uuid4().hex
        self.session = requests.Session()
        self.session.trust_env = False  # a loopback address needs no proxy

    def run(
        self,
        graph: Graph,
        on_progress: Callable[[NodeProgressEvent], None] | None = None,
        prompt_id: str | None = None,
    ) -> PromptResult:
        """Run a graph to its end.

        Ctrl-C also interrupts the host's job and waits up to 20 s for it: a training first saves its state.

        Args:
            graph: in API form.
            on_progress: called whenever the progress of a node changes.
            prompt_id: a UUID by which `find` finds the run later; a new one by default.

        Returns:
            The output of each output node, by node id.
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
        """Put a graph into the host's queue and return its prompt id.

        Raises:
            PromptRefused: if the host finds any part of it invalid.
        """
        prompt_id = prompt_id or str(uuid.uuid4())
        body = {"prompt": graph, "client_id": self.id, "prompt_id": prompt_id}
        response = self._request("POST", "/prompt", json=body)
        answer = response.json()
        # The host would run a graph without its invalid branch; a partial result is not wanted.
        if response.status_code != 200 or answer.get("node_errors"):
            self.interrupt(prompt_id)
            raise PromptRefused(explain_refusal(answer, graph, self._definitions_of(answer)))
        return prompt_id

    def interrupt(self, prompt_id: str | None = None) -> None:
        """Stop a run after its current step, or remove it from the queue.

        Args:
            prompt_id: the run; None for the one that the host is running.
        """
        if prompt_id:
            self._request("POST", "/queue", json={"delete": [prompt_id]})
        self._request("POST", "/interrupt", json={"prompt_id": prompt_id} if prompt_id else {})

    def upload(self, path: Path | str, subfolder: str = "", name: str | None = None) -> str:
        """Copy an image into the host's input folder and return its name for LoadImage."""
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
        """Return the outputs of a finished run, with the bytes of every file."""
        history = self._request("GET", f"/history/{prompt_id}").json()
        if prompt_id not in history:
            raise HostError("The host's history no longer has this run; it holds only the latest ones.")
        return {node: self._output(raw) for node, raw in history[prompt_id]["outputs"].items()}

    def has_finished(self, prompt_id: str) -> bool:
        """Return whether the run is in the host's history and succeeded."""
        entry = self._history(prompt_id).get(prompt_id)
        return bool(entry) and entry["status"]["status_str"] == "success"

    def _history(self, prompt_id: str) -> dict[str, Any]:
        return self._request("GET", f"/history/{prompt_id}").json()

    def queued(self) -> set[str]:
        """Return the prompt ids of the running and the waiting jobs of the host."""
        queue = self._request("GET", "/queue").json()
        return {item[1] for items in queue.values() for item in items}

    def find(self, prompt_id: str) -> PromptResult | None:
        """Wait for the end of a run that was submitted earlier; return its result, None if there is none."""
        while prompt_id in self.queued():
            time.sleep(0.5)
        return self.outputs(prompt_id) if self.has_finished(prompt_id) else None

    def object_info(self) -> dict[str, dict[str, Any]]:
        """Return the host's node definitions by node type."""
        response = self._request("GET", "/object_info")
        if not response.ok:
            raise HostGone(f"The server at {self.url} is no ComfyUI.")
        return response.json()

    def system(self) -> dict[str, Any]:
        """Return the host's version and devices (`/system_stats`)."""
        return self._request("GET", "/system_stats").json()

    def _wait(self, prompt_id: str, seconds: float) -> None:
        """Wait until the run has left the host's queue, at most `seconds`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if prompt_id not in self.queued():
                return
            time.sleep(0.1)

    def _definitions_of(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Return the definitions of the node types named in a validation error."""
        definitions = {}
        for kind in {errors.get("class_type") for errors in answer.get("node_errors", {}).values()}:
            definitions |= self._request("GET", f"/object_info/{kind}").json()
        return definitions

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

    def _is_known(self, prompt_id: str) -> bool:
        """Return whether the run is in the host's queue or history.

        The host writes the history before it announces the change of the queue.
        """
        return prompt_id in self.queued() or prompt_id in self._history(prompt_id)

    async def _follow(
        self, graph: Graph, prompt_id: str, report: Callable[[NodeProgressEvent], None]
    ) -> None:
        """Submit the graph and read the websocket until the run has ended."""
        failure: HostError | None = None
        latest: dict[str, NodeProgressEvent] = {}
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.ws_connect(
                    f"{self.url}/ws?clientId={self.id}", max_msg_size=0, heartbeat=HEARTBEAT
                ) as socket,
            ):
                await asyncio.to_thread(self.submit, graph, prompt_id)
                async for message in socket:
                    if message.type == aiohttp.WSMsgType.ERROR:  # no heartbeat from the host
                        break
                    kind, data = read_message(message)
                    if data.get("prompt_id", prompt_id) != prompt_id:
                        continue
                    for progress in progress_of(kind, data, latest):
                        if latest.get(progress.node) != progress:
                            latest[progress.node] = progress
                            report(progress)
                    if kind == "status" and not await asyncio.to_thread(self._is_known, prompt_id):
                        raise Interrupted("The run was taken out of the host's queue.")
                    failure = failure or failure_of(kind, data, graph)
                    if kind == "executing" and data.get("node") is None:  # sent after the history is written
                        if failure:
                            raise failure
                        return
        except aiohttp.ClientError as error:
            raise HostGone(f"The host at {self.url} does not answer.") from error
        raise HostGone(f"The host at {self.url} went away while the graph was running.")


def _complete(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine to its end, in a thread of its own if a loop is already running, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
        return
    thread = ThreadPoolExecutor(1)
    try:
        thread.submit(asyncio.run, work).result()
    finally:
        thread.shutdown(wait=False)  # on Ctrl-C, `run` interrupts the host's job, which ends the thread


def read_message(message: aiohttp.WSMessage) -> tuple[str, dict[str, Any]]:
    """Return a websocket message of the host as (type, data); the content of images is not returned."""
    if message.type == aiohttp.WSMsgType.TEXT:
        event = json.loads(message.data)
        return event["type"], event["data"]
    kind, size = struct.unpack(">II", message.data[:8])
    if kind == 3:  # the host's BinaryEventTypes.TEXT: length of the node's id, the id, the text
        node, text = message.data[8 : 8 + size], message.data[8 + size :]
        return "text", {"node": node.decode(), "text": text.decode()}
    return "picture", {}


def progress_of(
    kind: str, data: dict[str, Any], latest: dict[str, NodeProgressEvent]
) -> Iterator[NodeProgressEvent]:
    """Yield the progress events in a websocket message; `latest` has the latest event of each node."""
    if kind == "execution_cached":
        for node in data["nodes"]:
            yield NodeProgressEvent(node, 1, 1, "cached")
    elif kind == "text" and data["node"] in latest:
        yield replace(latest[data["node"]], text=data["text"])
    elif kind == "progress_state":
        for state in data["nodes"].values():
            node = state["display_node_id"]
            text = latest[node].text if node in latest else ""
            yield NodeProgressEvent(node, state["value"], state["max"], state["state"], text)


def failure_of(kind: str, data: dict[str, Any], graph: Graph) -> HostError | None:
    """Return the error that a websocket message reports, None if it reports none."""
    if kind == "execution_interrupted":
        return Interrupted("The run was interrupted.")
    if kind == "execution_error":
        node = str(data["node_id"])
        message = data["exception_message"].strip() or data["exception_type"]
        return NodeFailed(node, title_of(node, graph, data["node_type"]), message)
    return None


def title_of(node: str, graph: Graph, default: str = "") -> str:
    """Return a node's title, or its type if it has no title."""
    entry = graph.get(node, {})
    return entry.get("_meta", {}).get("title") or entry.get("class_type") or default or "The graph"


def explain_refusal(
    answer: dict[str, Any], graph: Graph, definitions: dict[str, Definition] | None = None
) -> str:
    """Return the host's validation errors as one sentence.

    Args:
        answer: the host's reply to /prompt.
        graph: the graph that was sent.
        definitions: of the node types with errors, for suggestions of valid values.
    """
    sentences = []
    for node, node_errors in answer.get("node_errors", {}).items():
        title = title_of(node, graph, node_errors.get("class_type", ""))
        for error in node_errors["errors"]:
            details = error["details"]
            if error["type"] == "custom_validation_failed":  # details: "input - the node's message"
                reason = details.split(" - ", 1)[-1]
            elif error["type"] == "value_not_in_list":
                reason = _not_in_list(error["extra_info"], (definitions or {}).get(node_errors["class_type"]))
            else:
                reason = f"{error['message']} ({details})" if details else error["message"]
            sentences.append(f"{title} (node {node}): {reason}")
    if not sentences:
        error = answer["error"]
        missing = error.get("extra_info", {}).get("class_type")
        sentences.append(f"It has no node of the type {missing}." if missing else error["message"])
    unique = list(dict.fromkeys(sentences))
    return "The host refused the graph. " + "; ".join(unique)


def _not_in_list(error: dict[str, Any], definition: Definition | None) -> str:
    """Return a sentence about a value that a combo does not offer, with the most similar choices."""
    name, value = error["input_name"], error["received_value"]
    combo = inputs_of(definition).get(name) if definition else None  # None: an input of a dynamic combo
    choices = combo_choices(*combo) if combo else []
    return f"there is no {name} '{value}' on this host; {nearest(str(value), map(str, choices))}"
