"""The host lists the subgraphs, and serves them as they are on disk."""

import requests

from inlay.tools.templates import SUBGRAPH_FOLDER


def test_the_host_lists_and_serves_every_subgraph(server):
    pack = f"custom_nodes.{server.pack_folder().name}"
    listed = requests.get(f"{server.url}/global_subgraphs").json()
    ours = {entry["name"]: key for key, entry in listed.items() if entry["info"]["node_pack"] == pack}
    files = {path.stem: path.read_text(encoding="utf-8") for path in SUBGRAPH_FOLDER.glob("*.json")}
    assert files
    served = {
        name: requests.get(f"{server.url}/global_subgraphs/{key}").json()["data"]
        for name, key in ours.items()
    }
    assert served == files
