"""Load the pack in a host that has loaded its own nodes, and print the seconds by the clock and of work."""

import asyncio
import sys
import time
from typing import Any

sys.path.insert(0, sys.argv[1])
from comfy.cli_args import args

args.cpu = True
import nodes
import server  # noqa: F401 - as in a real start

host: Any = nodes  # of ComfyUI, which the type checker takes for ours


async def load():
    await host.init_builtin_extra_nodes()
    print("-- the pack", file=sys.stderr, flush=True)
    wall, busy = time.perf_counter(), time.process_time()
    assert await host.load_custom_node(sys.argv[2]), "the pack does not load"
    return time.perf_counter() - wall, time.process_time() - busy


print(*asyncio.run(load()))
