"""Load the pack in a host and print the imported modules."""

import asyncio
import sys
from typing import Any

sys.path.insert(0, sys.argv[1])
from comfy.cli_args import args

args.cpu = True
import nodes

host: Any = nodes  # of ComfyUI, which the type checker takes for ours


async def load():
    await host.init_builtin_extra_nodes()
    before = set(sys.modules)
    assert await host.load_custom_node(sys.argv[2]), "the pack does not load"
    return sorted(set(sys.modules) - before)


print(*asyncio.run(load()), sep="\n")
