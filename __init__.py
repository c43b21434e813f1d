"""Inlay: your subject, in your picture, inside ComfyUI."""

WEB_DIRECTORY = "web"


async def comfy_entrypoint():
    """Return the host's door to the pack; nothing heavy is imported before a node runs."""
    from .nodes import InlayExtension

    return InlayExtension()
