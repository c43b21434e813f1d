"""Every private part of ComfyUI that the pack uses, one function or name per seam.

Nothing here imports the pack. Each seam has a contract test in `tests/host/contract`.
"""
