"""InlaySaveRegularData: regular images, masks and prompts as DreamMix's folders keep them."""

import re
import zlib
from pathlib import Path

import folder_paths
from comfy_api.latest import io


class InlaySaveRegularData(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="InlaySaveRegularData",
            display_name="Save Regular Data (Inlay)",
            category="Inlay",
            description="Keeps regular pictures in ComfyUI's output folder, as DreamMix's code lays them out:"
            " regular_<category>/<prompt>/<name>-image.png and -mask.png.",
            search_aliases=["regularization images", "DreamMix", "save dataset", "class images"],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="The pictures, from Regular Images."),
                io.Mask.Input("masks", tooltip="One mask per picture, 1 on the thing."),
                io.String.Input(
                    "prompts", force_input=True, tooltip="One for all of the pictures, or one for each."
                ),
                io.String.Input("category", tooltip="The folder will be called regular_<category>."),
            ],
            outputs=[io.String.Output(display_name="folder", tooltip="Where they are now.")],
        )

    @classmethod
    def execute(cls, images, masks, prompts, category) -> io.NodeOutput:
        from ..training.data import collect_references  # loaded when needed
        from ..training.regular_files import check_prompt, write_regular

        category = category[0].strip()
        if not re.fullmatch(r"[\w -]+", category):
            raise ValueError(
                "category: use letters, digits, spaces, hyphens and underscores, such as teapot."
            )
        references = collect_references(images, masks)
        if len(prompts) not in (1, len(references)):
            raise ValueError(
                f"prompts: there are {len(prompts)} for {len(references)} pictures; give one for all or each."
            )
        for prompt in prompts:
            check_prompt(prompt)
        folder = Path(folder_paths.get_output_directory(), f"regular_{category}")
        for number, (image, mask) in enumerate(references):
            # Named by content: saving again changes nothing, and new pictures push none aside.
            name = zlib.crc32(image.cpu().contiguous().numpy().tobytes())
            write_regular(folder, prompts[number % len(prompts)], str(name), image, mask)
        return io.NodeOutput(str(folder))
