"""Scenes to pictures: flat parts with rounded edges, one lamp, soft shadows."""

from dataclasses import dataclass

import numpy as np

from . import outlines
from .scene import COLOURS, TRIMS, Room, Scene, Thing

MATERIALS = {
    "dark": (0.12, 0.11, 0.13),
    "pale": (0.78, 0.90, 0.97),
    "felt": (0.35, 0.22, 0.13),
    "ribbon": (0.90, 0.10, 0.42),
}
SIZE = 96  # pixels a side, where not told otherwise: 12 x 12 latents
OVERSAMPLE = 2


@dataclass(frozen=True)
class Picture:
    """`image` (H, W, 3) uint8; `mask` (H, W) float in [0, 1], 1 = subject; `box` (top, left, bottom, right)
    in pixels, ends exclusive, or None without a visible subject."""

    image: np.ndarray
    mask: np.ndarray
    box: tuple[int, int, int, int] | None


def render(scene: Scene, size: int = SIZE) -> Picture:
    """Draw a scene into a square of `size` pixels."""
    canvas = _room(scene.room, size * OVERSAMPLE)
    coverage = np.zeros(canvas.shape[:2], np.float32)
    things = [(t, False) for t in scene.others] + ([(scene.subject, True)] if scene.subject else [])
    for thing, _ in things:
        _shadow(canvas, thing, scene.room)
    for thing, is_subject in things:
        _draw(canvas, thing, scene.room, coverage, is_subject)
    image = _downsample(np.clip(canvas, 0, 1))
    mask = _downsample(coverage[..., None])[..., 0]
    return Picture((image * 255 + 0.5).astype(np.uint8), mask, _bounds(mask > 0.5))


def _downsample(x):
    h, w, c = x.shape
    return x.reshape(h // OVERSAMPLE, OVERSAMPLE, w // OVERSAMPLE, OVERSAMPLE, c).mean((1, 3))


def _bounds(inside):
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    if len(rows) == 0:
        return None
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def _room(room: Room, size: int) -> np.ndarray:
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    light = np.asarray(room.light_colour, np.float32) * room.brightness
    lamp = 1.0 - 0.35 * ((x - 0.5 - 0.4 * np.sin(room.light_angle)) ** 2 + (y - 0.25) ** 2)
    wall = np.broadcast_to(np.asarray(room.wall, np.float32), (size, size, 3)).copy()
    if room.wall_style == "stripes":
        wall *= (1 + 0.10 * np.sign(np.sin((x * 7 + room.wall_phase) * 2 * np.pi)))[..., None]
    elif room.wall_style in ("window", "frame"):
        left = 0.08 + 0.5 * room.wall_phase
        frame = outlines.box(x, y, left + 0.16, room.horizon * 0.45, 0.17, room.horizon * 0.34, 0.01)
        inner = (0.75, 0.88, 0.98) if room.wall_style == "window" else np.roll(room.table, 1)
        wall[frame < 0] = (0.93, 0.91, 0.86) if room.wall_style == "window" else (0.30, 0.20, 0.12)
        wall[frame < -0.028] = inner
    table = (
        np.asarray(room.table, np.float32)
        * (0.80 + 0.45 * np.clip((y - room.horizon) / (1 - room.horizon), 0, 1))[..., None]
    )
    picture = np.where((y < room.horizon)[..., None], wall, table)
    edge = np.abs(y - room.horizon) < 0.008
    picture[edge] *= 0.75
    return picture * lamp[..., None] * light


def _window(canvas, thing: Thing, margin: float):
    """Pixel slices around a thing and its own coordinates (u right, v up) on them."""
    size = canvas.shape[0]
    half = thing.scale / 2 * size
    cx, cy = thing.x * size, thing.y * size
    top, bottom = max(0, int(cy - margin * half)), min(size, int(cy + margin * half) + 1)
    left, right = max(0, int(cx - margin * half)), min(size, int(cx + margin * half) + 1)
    y, x = np.mgrid[top:bottom, left:right].astype(np.float32) + 0.5
    du, dv = (x - cx) / half, (cy - y) / half
    cos, sin = np.cos(thing.tilt), np.sin(thing.tilt)
    u, v = du * cos + dv * sin, dv * cos - du * sin
    return (slice(top, bottom), slice(left, right)), (-u if thing.mirrored else u), v


def _shadow(canvas, thing: Thing, room: Room):
    area, u, v = _window(canvas, thing.posed(tilt=0.0, mirrored=False), 2.2)
    reach = np.sin(room.light_angle) * 0.45
    distance = np.hypot((u + reach) / (0.95 + 0.3 * abs(reach)), (v + 0.93) / 0.22)
    canvas[area] *= (1 - 0.45 * np.clip(1.25 - distance, 0, 1) ** 0.8)[..., None]


def _pattern(thing: Thing, u, v):
    """True where the trim colour shows on the main part."""
    cos, sin = np.cos(thing.pattern_angle), np.sin(thing.pattern_angle)
    a, b = u * cos + v * sin + 0.5 * thing.pattern_phase, v * cos - u * sin + 0.3 * thing.pattern_phase
    if thing.pattern == "striped":
        return (a / 0.62) % 1.0 < 0.40
    if thing.pattern == "dotted":
        return np.hypot(a % 0.58 - 0.29, b % 0.58 - 0.29) < 0.165
    if thing.pattern == "checkered":
        return (np.floor(a / 0.42) + np.floor(b / 0.42)) % 2 < 0.5
    if thing.pattern == "banded":
        return np.abs(v + 0.12) < 0.22
    return np.zeros(u.shape, bool)


def _draw(canvas, thing: Thing, room: Room, coverage, is_subject: bool):
    area, u, v = _window(canvas, thing, 1.2 if thing.accessory in ("none", "bow") else 1.75)
    colours = {**MATERIALS, "main": COLOURS[thing.colour], "trim": TRIMS[thing.trim]}
    light = np.asarray(room.light_colour, np.float32) * room.brightness
    pixel = 2 / (thing.scale * canvas.shape[0])  # one pixel in the thing's units
    lamp = (np.sin(room.light_angle) * 0.55 * (-1 if thing.mirrored else 1), 0.65)
    drawn = _pattern(thing, u, v)
    picture, seen = canvas[area], coverage[area]
    parts = outlines.OUTLINES[thing.kind](u, v, *thing.shape) + outlines.accessory(
        thing.accessory, u, v, thing.kind
    )
    for distance, material, bulge in parts:
        near = _bounds(distance < 2 * pixel)
        if near is None:
            continue
        top, left, bottom, right = near
        part = slice(max(top - 1, 0), bottom + 1), slice(max(left - 1, 0), right + 1)
        alpha = np.clip(0.5 - distance[part] / pixel, 0, 1)
        albedo = np.asarray(colours[material], np.float32)
        if material == "main":
            albedo = np.where(drawn[part][..., None], np.asarray(TRIMS[thing.trim], np.float32), albedo)
        lit = _lit(albedo, distance[part], bulge, pixel, lamp) * light
        picture[part] += alpha[..., None] * (lit - picture[part])
        seen[part] = np.maximum(seen[part], alpha) if is_subject else seen[part] * (1 - alpha)


def _lit(albedo, distance, bulge: float, pixel: float, lamp):
    """Lambert's and Phong's terms on a flat part whose rim is rounded: over the distance from the outline its
    height is a quarter circle of radius `bulge`."""
    depth = np.clip(-distance / bulge, 0, 1)
    dv, du = np.gradient(bulge * np.sqrt(np.maximum(1 - (1 - depth) ** 2, 0)), pixel)
    towards = dv * lamp[1] - du * lamp[0]
    norm = np.sqrt(du * du + dv * dv + 1)
    diffuse = np.clip((towards + 0.62) / norm, 0, 1.2)
    shine = np.clip((towards + 1.0) / norm / 1.32, 0, 1) ** 24
    return albedo * (0.42 + 0.66 * diffuse)[..., None] + 0.22 * shine[..., None]
