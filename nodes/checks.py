"""Checks that every node makes of what is wired into it."""

MENDS = {
    "clip": "wire the text encoder of a checkpoint that has one, or Load CLIP",
    "vae": "wire the VAE of a checkpoint that has one, or Load VAE",
    "encoder": "wire Load Image Encoder or Load CLIP Vision; this adapter's file holds no encoder",
    "clip_vision": "wire Load Image Encoder or Load CLIP Vision",
}


def check_wired(**inputs) -> None:
    """Raises ValueError, naming the first input without a value: loaders give None for what a file lacks."""
    for name, value in inputs.items():
        if value is None:
            raise ValueError(f"{name}: there is none; {MENDS.get(name, f'wire a {name} that was loaded')}.")
