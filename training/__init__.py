"""Trainings: a subject from a few photos (finetune), adapters for one photo (adapters)."""


class Diverged(ValueError):
    """The loss or its gradients are not finite."""
