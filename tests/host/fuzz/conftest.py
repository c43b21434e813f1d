"""The host's own validation and executor, with a node that hands on any value: other packs hand on worse."""

import asyncio
import importlib
import re
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

VALUES: dict[str, Any] = {}  # what `FuzzValue` hands on
NO_ENTRIES = "@no entries"  # stands for an empty list
TAKEN: dict[int, Any] = {}  # what `FuzzSink` was given, by the output's number


class FuzzValue:
    """Hands on a value of `VALUES`, of any type."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("*",), "give", "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"key": ("STRING", {})}}

    def give(self, key):
        return (VALUES[key],)


class FuzzList:
    """Hands on an empty list, as nodes that filter lists do."""

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_IS_LIST = ("*",), "give", "tests", (True,)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def give(self):
        return ([],)


class FuzzSink:
    """Takes any value, so that the graph has an output."""

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "take", "tests", True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": ("*", {}), "number": ("INT", {})}}

    @classmethod
    def IS_CHANGED(cls, **inputs):
        return float("nan")  # takes it again where the host has kept the outputs of an earlier run

    def take(self, value, number):
        TAKEN.setdefault(number, []).append(value)  # once for each entry of a list output
        return ()


@dataclass
class Answer:
    """What the host answered: "refused" before running, "failed" in the node, or "finished"."""

    outcome: str
    text: str = ""
    kind: str = ""  # the class of the exception
    inputs: set[str] = field(default_factory=set)  # that the host named itself

    def faults(self, names: set[str]) -> list[str]:
        """What a user would mind about an error of a node with inputs of these names."""
        if self.outcome == "finished":
            return []
        named = self.inputs & names or any(re.search(rf"\b{re.escape(name)}\b", self.text) for name in names)
        found = [] if named else ["names no input"]
        if self.outcome == "failed" and self.kind != "ValueError":
            found.append(f"is a {self.kind}")
        if self.outcome == "failed" and LIBRARY_TEXT.search(self.text):
            found.append("is a library's text")
        return found


LIBRARY_TEXT = re.compile(
    r"NoneType|object has no|size mismatch|Error\(s\) in|state_dict|weights_only|codec can't|\bExpected\b"
    r"|dtype|\btensors? |Tensor\(|out of range for|list index|subscriptable|to unpack|shape '\[|unexpected k"
    r"|invalid literal|broadcast|Errno|Traceback|mat1|stack expects|reshape|operand|torch\.|PIL\.|\bkey error"
    r"|argument must be|convert string|division by zero|cannot identify|recursion|HeaderToo|Incomplete"
    r"|unhashable|ScalarType"
)


class RunningHost:
    """Validates and executes graphs of one node, as the host's server does with what a page sends."""

    def __init__(self, folders):
        import execution
        from server import PromptServer

        self.nodes = importlib.import_module("nodes").NODE_CLASS_MAPPINGS
        self.loop = asyncio.new_event_loop()
        self.server = PromptServer(self.loop)
        limits = {"lru": 0, "ram": 0.0, "ram_inactive": 0.0}
        cache: Any = execution.CacheType.CLASSIC  # the host annotates it as a bool
        self.executor = execution.PromptExecutor(self.server, cache_type=cache, cache_args=limits)
        self.validate, self.folders = execution.validate_prompt, folders
        self.nodes |= {"FuzzValue": FuzzValue, "FuzzList": FuzzList, "FuzzSink": FuzzSink}
        from inlay.nodes import InlayExtension

        for node in asyncio.run(InlayExtension().get_node_list()):
            self.nodes[node.GET_SCHEMA().node_id] = node

    def close(self) -> None:
        from server import PromptServer

        self.loop.close()
        del PromptServer.instance

    def inputs_of(self, name: str) -> dict[str, Any]:
        """The node's inputs: name -> (type, options)."""
        kinds = self.nodes[name].INPUT_TYPES()
        return {**kinds.get("required", {}), **kinds.get("optional", {})}

    def run(self, name: str, inputs: dict[str, Any]) -> Answer:
        """A graph with the node alone; inputs that start with "@" are values of `VALUES`."""
        graph: dict[str, Any] = {"node": {"class_type": name, "inputs": {}}}
        for key, value in inputs.items():
            if isinstance(value, str) and value.startswith("@"):
                graph[value] = {"class_type": "FuzzValue", "inputs": {"key": value[1:]}}
                if value == NO_ENTRIES:
                    graph[value] = {"class_type": "FuzzList", "inputs": {}}
                value = [value, 0]
            graph["node"]["inputs"][key] = value
        TAKEN.clear()
        for number, _ in enumerate(self.nodes[name].RETURN_TYPES):
            graph[f"sink{number}"] = {
                "class_type": "FuzzSink", "inputs": {"value": ["node", number], "number": number}
            }  # fmt: skip
        prompt_id = str(uuid.uuid4())
        valid, error, outputs, node_errors = asyncio.run(self.validate(prompt_id, graph, None))
        if not valid or node_errors:
            parts = [part for errors in node_errors.values() for part in errors["errors"]] or [error]
            named = {part.get("extra_info", {}).get("input_name") for part in parts}
            text = " ".join(f"{part['message']} {part['details']}" for part in parts)
            return Answer("refused", text, "", {name for name in named if name})
        asyncio.run(self.executor.execute_async(graph, prompt_id, {}, outputs))
        for event, data in self.executor.status_messages:
            if event == "execution_error":
                kind = data["exception_type"].rpartition(".")[2]
                return Answer("failed", data["exception_message"].strip(), kind)
        return Answer("finished")

    def written(self) -> set[tuple[Path, int]]:
        """Everything in the output folder and the folders of models, with its time."""
        roots = (self.folders.output, self.folders.models / "loras", self.folders.models / "inlay")
        return {(path, path.stat().st_mtime_ns) for root in roots for path in root.rglob("*")}


@pytest.fixture(scope="module")
def host(in_process_host):
    """A `RunningHost` with the pack's nodes."""
    running = RunningHost(in_process_host)
    yield running
    running.close()


@pytest.fixture(scope="module")
def stock(in_process_host, random_tiny, host_work):
    """Good values for the inputs, in `VALUES`, and the names of good files."""
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

    from inlay.encoders.content_adapter import AdapterConfig, EncoderSpec
    from inlay.encoders.embedding_optimizer import OptimizerConfig
    from inlay.tests.host.identity import conftest as identity
    from inlay.training.finetune.subject import Subject

    with torch.inference_mode(False):
        identity.dino().save_pretrained(in_process_host.models / "inlay" / "fuzz-dino")
        reads = EncoderSpec(width=32, size=70, registers=4)
        identity.write_adapter(
            in_process_host.models / "inlay" / "fuzz_adapter.safetensors",
            AdapterConfig(reads, 32, depth=1, context=768),
        )
        spec = EncoderSpec(width=32, size=70, background="original", uncond="zeros")
        identity.write_adapter(
            in_process_host.models / "inlay" / "fuzz_optimizer.safetensors", OptimizerConfig(spec)
        )
    with torch.inference_mode():
        model, clip, vae = random_tiny(9)
        edit = random_tiny(8)[0]
        vision = identity.execute("InlayLoadImageEncoder", "fuzz-dino")[0]
        adapter = identity.execute("InlayLoadAdapter", "fuzz_adapter.safetensors")[0]
        optimizer = identity.execute("InlayLoadAdapter", "fuzz_optimizer.safetensors")[0]
        text = torch.randn(1, 77, 768, generator=torch.Generator().manual_seed(0))
        image = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(1))
        other = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(2))
        mask = torch.zeros(1, 64, 64)
        mask[:, 20:44, 16:40] = 1
        guider = comfy.samplers.CFGGuider(model)
        words = [[text, {"pooled_output": None}]]
        guider.set_conds(words, words)
        guider.set_cfg(1.0)
        VALUES.update(
            model=model, clip=clip, vae=vae, edit=edit, vision=vision, adapter=adapter, optimizer=optimizer,
            words=words, image=image, other=other, mask=mask, guider=guider, noise=Noise_RandomNoise(1),
            sampler=comfy.samplers.sampler_object("euler"), sigmas=torch.tensor([5.0, 1.0, 0.0]),
            subject=Subject("sks", "cup", "a sks cup", "inlay/none.safetensors", "DreamCom", "sd15", 1, 1, 4,
                            {"colour": ["red"]}),
            text="a red cup",
        )  # fmt: skip
    return SimpleNamespace(folders=in_process_host)
