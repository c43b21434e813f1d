"""Pictures through a VAE: one at a time where the VAE would read a batch as a film."""

import torch
from torch import Tensor


class PictureVae:
    """A VAE of the host for pictures.

    VAEs with a time axis read a batch (B, H, W, C) as the frames of one film and return a single latent; here
    every picture gets its own latent (B, C, 1, h, w).
    """

    def __init__(self, vae):
        self.vae = vae
        self.film = getattr(vae, "latent_dim", 2) == 3 and not getattr(vae, "not_video", False)

    @property
    def grid(self) -> int:
        """Pixels per side of a latent cell."""
        return self.vae.spacial_compression_encode()

    def encode(self, pictures: Tensor) -> Tensor:
        """(B, H, W, C) in [0, 1] -> (B, C, h, w) or (B, C, 1, h, w)."""
        if not self.film:
            return self.vae.encode(pictures)
        return torch.cat([self.vae.encode(picture[None]) for picture in pictures])

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) or (B, C, 1, h, w) -> (B, H, W, C)."""
        if latents.ndim < 5:
            return self.vae.decode(latents)
        pictures = torch.cat([self.vae.decode(latent[None]) for latent in latents])
        return pictures.flatten(0, 1) if pictures.ndim == 5 else pictures
