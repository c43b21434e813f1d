"""Pictures of an object to a diffusion model's context: encoders, adapters, and published weights."""
