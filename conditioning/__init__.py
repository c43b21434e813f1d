"""What the UNet is told besides noise: inpainting conditions."""
