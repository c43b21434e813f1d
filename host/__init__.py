"""Every private seam to ComfyUI, one function per seam."""
