"""References of edit models, view by view: the scene is cut to the view, photos of subjects stay whole.

A CONDITIONING of the edit prompt names its scene. In any other CONDITIONING a reference that shows the
picture itself, at whatever size, is the scene.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..attention.transformer import REFERENCES, SCENE_REFERENCE, SUBJECT_REFERENCE
from ..conditioning.edit_prompt import AS_DRAWN, EDIT, EditEntry, EditPrompt, correlation, mark_hole
from ..families.table import Family
from ..host.encoders import constant
from ..host.vae import PictureVae
from ..imaging.views import resize_image

REFERENCE_LATENTS, METHOD = "reference_latents", "reference_latents_method"  # the host's keys
SAME_PICTURE = 0.6  # least correlation of two latents of one picture; other pictures are near 0


class ViewReferences:
    """Makes the references of a CONDITIONING anew for every view.

    Args:
        vae: of the model.
        family: of the model, or None.
        image: (B, H, W, 3), the whole pictures, to recognise the scene in.
    """

    def __init__(self, vae: PictureVae, family: Family | None, image: Tensor):
        self.vae, self.family, self.image = vae, family, image
        self.scenes: dict[int, tuple[Tensor, bool]] = {}  # by identity of the latent, which is kept alive

    def for_view(self, conds: Sequence[dict], picture: Tensor, hole: Tensor) -> list[dict]:
        """Return the conditions for a view.

        Picture (B, h, w, 3) at the size of the canvas, hole (B, h, w).
        """
        encoded: dict[str, Tensor] = {}
        return [self._condition(cond, picture, hole, encoded) for cond in conds]

    def _condition(self, cond: dict, picture: Tensor, hole: Tensor, encoded: dict[str, Tensor]) -> dict:
        entry: EditEntry | None = cond.get(EDIT)
        latents = list(cond.get(REFERENCE_LATENTS) or ())
        kinds = [self._kind(latent, entry) for latent in latents]
        if entry is not None and entry.scene is None:
            latents, kinds = [picture, *latents], [SCENE_REFERENCE, *kinds]
        if not latents:
            return cond
        if SCENE_REFERENCE in kinds:
            style = AS_DRAWN if entry is None else entry.edit.hole
            scene = mark_hole(picture, hole, style)
            if style not in encoded:
                encoded[style] = self.vae.encode(scene)
            latents = [
                encoded[style] if kind == SCENE_REFERENCE else latent
                for kind, latent in zip(kinds, latents, strict=True)
            ]
            cond = cond | {REFERENCE_LATENTS: latents}
            if entry is not None and entry.edit.rereads:
                cond = cond | _reread(entry, scene)
        if self.family is not None and self.family.reference_method and METHOD not in cond:
            cond = cond | {METHOD: self.family.reference_method}
        return self._with_kinds(cond, kinds, entry)

    def _kind(self, latent: Tensor, entry: EditEntry | None) -> str:
        """Return what a reference latent shows."""
        if entry is not None and latent is entry.scene:
            return SCENE_REFERENCE
        if entry is not None and any(latent is photo.latent for photo in entry.edit.photos):
            return SUBJECT_REFERENCE
        return SCENE_REFERENCE if self._is_scene(latent) else SUBJECT_REFERENCE

    def _is_scene(self, latent: Tensor) -> bool:
        if id(latent) not in self.scenes:
            size = [length * self.vae.grid for length in latent.shape[-2:]]
            picture = resize_image(self.image[:1, ..., :3], *size)
            same = self.vae.encode(picture)
            found = same.shape[1:] == latent.shape[1:]
            if found:
                grey = self.vae.encode(torch.full_like(picture, 0.5))  # what all pictures have in common
                found = correlation(same - grey, latent[:1].to(same) - grey) > SAME_PICTURE
            self.scenes[id(latent)] = latent, found
        return self.scenes[id(latent)][1]

    def _with_kinds(self, cond: dict, kinds: Sequence[str], entry: EditEntry | None) -> dict:
        """Return the same with what its references show, for the attention."""
        shown = reference_kinds(kinds, None if entry is None else entry.edit)
        return cond | {"model_conds": dict(cond.get("model_conds", {})) | {REFERENCES: constant(shown)}}


def reference_kinds(kinds: Sequence[str], edit: EditPrompt | None) -> tuple[tuple, ...]:
    """(kind, box, strength) of every reference, as `attention.transformer` reads it."""
    photos = iter(edit.photos if edit is not None else ())
    shown: list[tuple] = []
    for kind in kinds:
        photo = next(photos, None) if kind == SUBJECT_REFERENCE else None
        if kind == SCENE_REFERENCE:
            shown.append((kind,))
        else:
            shown.append((kind, *((photo.box, photo.strength) if photo else (0, 1.0))))
    return tuple(shown)


def _reread(entry: EditEntry, scenes: Tensor) -> dict:
    """Return the text of an entry for scenes (B, h, w, 3), one row per scene."""
    rows = [entry.edit.text(scene[None])[entry.index] for scene in scenes]
    values = {key: value for key, value in rows[0][1].items() if key != "pooled_output"}
    pooled = [row[1].get("pooled_output") for row in rows]
    if all(isinstance(part, Tensor) for part in pooled):
        values["pooled_output"] = torch.cat(pooled)
    return values | {"cross_attn": torch.cat([row[0] for row in rows])}
