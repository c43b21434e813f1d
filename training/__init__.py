"""References to a stored subject: latents, objective, adapter, loop."""
