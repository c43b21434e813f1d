"""Encode images of an object as context for a diffusion model: encoders, adapters, published weights."""
