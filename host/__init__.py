"""Every private part of ComfyUI that the pack uses, one function or name per seam.

Nothing here imports the pack, except `families`, which reads the table of families. Each seam has a contract
test in `tests/host/contract`.
"""
