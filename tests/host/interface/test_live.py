"""The live view's side of the host: events for every page, and the whole state for one that opens late."""

import asyncio
import json
import re
import shutil
import uuid
from concurrent.futures import ThreadPoolExecutor

import aiohttp
import pytest

from inlay import dev
from inlay.headless import Client, Interrupted
from inlay.tools.demo_options import ASSETS
from inlay.tools.tiny import tiny_graph

FINETUNE = "5"


@pytest.fixture
def training(server, tiny_checkpoint):
    """The first template's graph up to the training, for that many steps and with a class of its own."""
    shutil.copytree(ASSETS, server.work / "input", dirs_exist_ok=True)

    def graph(steps: int, class_name: str) -> dict:
        whole = tiny_graph("insert_subject")
        nodes = {key: whole[key] for key in ("1", "2", FINETUNE)}
        wanted = {"steps": steps, "class_name": class_name, "preview_every": 2}
        nodes[FINETUNE] = nodes[FINETUNE] | {"inputs": nodes[FINETUNE]["inputs"] | wanted}
        return nodes | {"90": {"class_type": "PreviewImage", "inputs": {"images": [FINETUNE, 4]}}}

    return graph


def watch(server, run) -> list[dict]:
    """Our events that a page sees which did not queue the graph, from before `run` until it ends."""

    async def follow() -> list[dict]:
        seen = []
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{server.url}/ws?clientId={uuid.uuid4()}", max_msg_size=0) as socket,
        ):
            with ThreadPoolExecutor() as pool:
                running = asyncio.wrap_future(pool.submit(run))
                while not (seen and seen[-1]["state"] != "running"):
                    message = await socket.receive(timeout=900)
                    if message.type == aiohttp.WSMsgType.TEXT:
                        event = json.loads(message.data)
                        seen += [event["data"]] if event["type"] == "inlay.training" else []
                await running
        return seen

    return asyncio.run(follow())


def state_of(client: Client) -> dict:
    runs = client.session.get(f"{client.url}/inlay/training", timeout=60).json()
    return {run["node"]: run for run in runs if not run["workflow"]}[FINETUNE]


def test_a_page_that_did_not_queue_the_training_sees_it_grow_and_end(client, server, training):
    events = watch(server, lambda: Client(server.url).run(training(6, "lantern")))
    assert {event["node"] for event in events} == {FINETUNE}
    assert [point[0] for event in events for point in event["points"]] == [1, 2, 3, 4, 5, 6]
    pictures = [sample for event in events for sample in event["samples"]]
    assert [step for step, _ in pictures][-1] == 6
    assert all(picture.startswith("data:image/jpeg;base64,") for _, picture in pictures)
    assert [event["state"] for event in events][-1] == "finished"
    late = state_of(client)
    assert (late["state"], late["step"], len(late["points"])) == ("finished", 6, 6)
    assert late["samples"] == pictures


def test_the_stages_before_the_first_step_are_shown_and_a_stored_result_says_what_it_is(
    client, server, training
):
    events = watch(server, lambda: Client(server.url).run(training(4, "bucket")))
    stages = list(dict.fromkeys(event["stage"] for event in events))
    expected = ["looking for a stored result", "encoding 4 photos", "loading the model", "measuring memory"]
    assert stages[:4] == expected
    assert re.fullmatch(r"first step, with about \d+\.\d GB of memory", stages[4])
    assert stages[5:] == [""]
    left = [event["left"] for event in events if event["step"] == 4]
    assert left
    assert all(seconds is not None and seconds >= 0 for seconds in left)
    again = training(4, "bucket")
    again[FINETUNE]["inputs"]["preview_every"] = 3  # runs the node again, and changes no weight
    events = watch(server, lambda: Client(server.url).run(again))
    assert events[-1]["state"] == "loaded"
    loaded = state_of(client)
    assert loaded["stage"].startswith("bucket-dreamcom-")
    assert len(loaded["points"]) == 4
    assert len(loaded["samples"]) == 1


def test_a_training_that_is_interrupted_says_so(client, server, training):
    def run():
        own = Client(server.url)

        def stop(progress):
            if progress.node == FINETUNE and progress.value > 1:
                own.interrupt()

        with pytest.raises(Interrupted):
            own.run(training(5000, "kettle"), stop)  # longer than any interruption takes

    assert watch(server, run)[-1]["state"] == "stopped"
    assert state_of(client)["state"] == "stopped"


def test_the_front_end_code_is_served(client, server):
    served = client.session.get(f"{server.url}/extensions", timeout=60).json()
    web, ours = dev.PACK / "web", f"/extensions/{server.pack_folder().name}/"
    scripts = {ours + path.relative_to(web).as_posix(): path.read_bytes() for path in web.rglob("*.js")}
    assert {path for path in served if path.startswith(ours)} == scripts.keys()
    for path, content in scripts.items():
        assert client.session.get(server.url + path, timeout=60).content == content


def test_a_training_is_tagged_with_the_workflow_that_a_page_queued(client, server, training):
    graph, extra = training(4, "bottle"), {"extra_pnginfo": {"workflow": {"id": "a-workflow"}}}

    def queue():
        body = {"prompt": graph, "extra_data": extra}
        assert client.session.post(f"{client.url}/prompt", json=body, timeout=60).ok

    assert {event["workflow"] for event in watch(server, queue)} == {"a-workflow"}
    runs = client.session.get(f"{client.url}/inlay/training", timeout=60).json()
    assert "a-workflow" in [run["workflow"] for run in runs if run["node"] == FINETUNE]
