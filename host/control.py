"""Seams to the host's ControlNets: the pictures that they read, and copies that read others."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    from comfy.controlnet import ControlBase, ControlNet, T2IAdapter


class Hints(NamedTuple):
    """What a ControlNet reads beside the latent."""

    picture: Tensor | None  # (B, C, H, W), as the user wired it
    extras: list[Tensor]  # further channels, (B, C, H, W), such as the mask of an inpainting ControlNet
    algorithm: str  # by which the host resizes the picture


def hints_of(control: ControlBase) -> Hints:
    """Return what a ControlNet reads."""
    return Hints(control.cond_hint_original, list(control.extra_concat_orig), control.upscale_algorithm)


def previous_of(control: ControlBase) -> ControlBase | None:
    """Return the ControlNet that a ControlNet is chained to."""
    return control.previous_controlnet


def with_hints(
    control: ControlNet | T2IAdapter,
    picture: Tensor | None,
    extras: list[Tensor],
    previous: ControlBase | None,
) -> ControlBase:
    """Return a copy of a ControlNet that reads another picture and is chained to another one."""
    copied = control.copy()
    copied.cond_hint_original, copied.extra_concat_orig = picture, extras
    copied.set_previous_controlnet(previous)
    return copied
