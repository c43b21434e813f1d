"""Scenes to pictures: objects by sphere tracing, one visible lamp, soft shadows and contact shadows.

Light is computed in linear colour and stored as sRGB. The room is drawn at the picture's resolution, the
objects at twice that. Sphere tracing: Hart 1996; soft shadows: Quilez, "Soft shadows in raymarched SDFs".
"""

from dataclasses import dataclass, field

import numpy as np

from . import shapes
from .scene import CAMERA_DISTANCE, COLOURS, HALF_VIEW, LOOK_AT, TRIMS, WALL, Room, Scene, Thing

SIZE = 128  # pixels a side unless another size is given: 16 x 16 latents
OVERSAMPLE = 2
MATERIALS = {
    "dark": (0.07, 0.07, 0.09),
    "pale": (0.80, 0.91, 0.98),
    "felt": (0.34, 0.19, 0.10),
    "ribbon": (0.92, 0.08, 0.42),
}
F = np.float32


@dataclass(frozen=True)
class Picture:
    """`image` (H, W, 3) uint8; `masks` one (H, W) in [0, 1] for each of `scene.things`: what is seen of it.

    `shadows` has the share of light that each thing takes away, (H, W) in [0, 1].
    """

    image: np.ndarray
    masks: tuple[np.ndarray, ...]
    shadows: tuple[np.ndarray, ...] = field(default=())

    @property
    def mask(self) -> np.ndarray:
        """What is seen of the first thing, (H, W) in [0, 1]."""
        return self.masks[0] if self.masks else np.zeros(self.image.shape[:2], F)

    @property
    def box(self) -> tuple[int, int, int, int] | None:
        """Bounds of the first thing: (top, left, bottom, right), ends exclusive; None if it is not seen."""
        return bounds(self.mask > 0.5)

    def reach(self, index: int = 0, faint: float = 0.16) -> tuple[int, int, int, int] | None:
        """Bounds of a thing with the part of its shadow that is darker than `faint`."""
        return bounds((self.masks[index] > 0.03) | (self.shadows[index] > faint))


def bounds(inside: np.ndarray) -> tuple[int, int, int, int] | None:
    """(top, left, bottom, right) of what is True, ends exclusive; None if nothing is."""
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    if len(rows) == 0:
        return None
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def linear(colour) -> np.ndarray:
    return np.asarray(colour, F) ** F(2.2)


class Camera:
    """A pinhole at (0, height, CAMERA_DISTANCE) that looks at (0, LOOK_AT, 0)."""

    def __init__(self, height: float, size: int):
        self.position = np.array([0, height, CAMERA_DISTANCE], F)
        forward = np.array([0, LOOK_AT - height, -CAMERA_DISTANCE])
        self.forward = (forward / np.linalg.norm(forward)).astype(F)
        self.up = np.array([0, -self.forward[2], self.forward[1]], F)
        self.size = size

    def rays(self, rows: np.ndarray, columns: np.ndarray, size: int):
        """Unit directions, three (n, m) arrays, through the centres of pixels of a picture of `size`."""
        u = ((columns + 0.5) / size * 2 - 1)[None, :] * HALF_VIEW
        v = (1 - (rows + 0.5) / size * 2)[:, None] * HALF_VIEW
        x = np.broadcast_to(u, (len(rows), len(columns))).astype(F)
        y = (self.forward[1] + self.up[1] * v + 0 * u).astype(F)
        z = (self.forward[2] + self.up[2] * v + 0 * u).astype(F)
        norm = 1 / np.sqrt(x * x + y * y + z * z)
        return x * norm, y * norm, z * norm

    def project(self, point) -> tuple[float, float, float]:
        """Column and row as fractions of the picture, and the depth along the view."""
        offset = np.asarray(point, F) - self.position
        depth = float(offset @ self.forward)
        u, v = float(offset[0]) / depth / HALF_VIEW, float(offset @ self.up) / depth / HALF_VIEW
        return (u + 1) / 2, (1 - v) / 2, depth


class Solid:
    """A thing ready to be traced: points and directions of the room into its own frame."""

    def __init__(self, thing: Thing):
        self.thing = thing
        self.cos, self.sin = F(np.cos(thing.yaw)), F(np.sin(thing.yaw))
        half, height = thing.extent
        self.middle = F(height / 2)
        self.radius = F(np.hypot(half, height / 2) + 0.02)

    def inward(self, point, direction: bool = False):
        x, y, z = point
        if not direction:
            s = F(1 / self.thing.scale)
            x, y, z = (x - F(self.thing.x)) * s, y * s, (z - F(self.thing.z)) * s
        return x * self.cos - z * self.sin, y, x * self.sin + z * self.cos

    def parts(self, p) -> list[shapes.Part]:
        thing = self.thing
        return shapes.SHAPES[thing.kind](p, *thing.shape) + shapes.accessory(thing.accessory, p, thing.kind)

    def distance(self, p) -> np.ndarray:
        parts = self.parts(p)
        nearest = parts[0][1]
        for _, other in parts[1:]:
            nearest = np.minimum(nearest, other)
        return nearest

    def chord(self, origin, direction):
        """Where rays (own frame) enter and leave the bounding sphere; entry > exit where they miss."""
        ox, oy, oz = origin[0], origin[1] - self.middle, origin[2]
        b = ox * direction[0] + oy * direction[1] + oz * direction[2]
        c = ox * ox + oy * oy + oz * oz - self.radius * self.radius
        root = b * b - c
        half = np.sqrt(np.maximum(root, 0))
        enter, leave = np.maximum(-b - half, 0), -b + half
        return np.where(root > 0, enter, 1), np.where(root > 0, leave, -1)

    def trace(self, origin, direction, steps: int = 40, near: float = 0.0015):
        """Distance along rays (own frame; origin of three scalars) to the surface, inf where they miss."""
        enter, leave = self.chord(origin, direction)
        t = np.full(enter.shape, np.inf, F)
        rest = np.flatnonzero(enter < leave)
        dx, dy, dz = (d[rest] for d in direction)
        now, end = enter[rest].astype(F), leave[rest].astype(F)
        for step in range(steps):
            d = self.distance((origin[0] + dx * now, origin[1] + dy * now, origin[2] + dz * now))
            hit = d < near
            now = now + d * F(0.97)
            if step % 3 == 2 or step == steps - 1:
                t[rest[hit]] = now[hit]
                keep = ~hit & (now < end)
                rest, now, end = rest[keep], now[keep], end[keep]
                dx, dy, dz = dx[keep], dy[keep], dz[keep]
                if len(rest) == 0:
                    break
        return t

    def normal(self, p, reach: float = 0.004):
        """Unit normals by differences on a tetrahedron (four distances)."""
        total = [F(0), F(0), F(0)]
        for sx, sy, sz in ((1, -1, -1), (-1, -1, 1), (-1, 1, -1), (1, 1, 1)):
            d = self.distance((p[0] + F(sx * reach), p[1] + F(sy * reach), p[2] + F(sz * reach)))
            total = [a + F(s) * d for a, s in zip(total, (sx, sy, sz), strict=True)]
        norm = 1 / np.maximum(shapes.length(*total), F(1e-9))
        return tuple(a * norm for a in total)

    def shade(self, p, lamp, steps: int, softness: float, start: float = 0.0):
        """Share of the lamp's light (own frame) that reaches points: 1 lit, 0 dark, soft at the rim."""
        to = [F(e) - a for a, e in zip(p, lamp, strict=True)]
        far = shapes.length(*to)
        direction = tuple(a / far for a in to)
        enter, leave = self.chord(p, direction)
        leave = np.minimum(leave, far)
        enter = np.maximum(enter, F(start))
        light = np.ones(far.shape, F)
        rest = np.flatnonzero(enter < leave)
        if len(rest) == 0:
            return light
        ox, oy, oz = (np.broadcast_to(a, far.shape)[rest] for a in p)
        dx, dy, dz = (d[rest] for d in direction)
        begin, span = enter[rest], (leave - enter)[rest]
        least = np.ones(len(rest), F)
        for step in range(steps):
            t = begin + span * F((step + 0.5) / steps)
            d = self.distance((ox + dx * t, oy + dy * t, oz + dz * t))
            least = np.minimum(least, d / (F(softness) * t + F(0.01)))
        light[rest] = np.clip(0.5 + 0.5 * least, 0, 1)
        return light * light * (3 - 2 * light)

    def albedo(self, p, normal) -> tuple[np.ndarray, np.ndarray]:
        """Linear colours (n, 3) and glossiness (n,) of points of the surface."""
        thing = self.thing
        parts = self.parts(p)
        nearest = np.argmin(np.stack([d for _, d in parts]), 0)
        table = {**MATERIALS, "main": COLOURS[thing.colour], "trim": TRIMS[thing.trim]}
        colours = linear([table[name] for name, _ in parts])[nearest]
        is_main = np.array([name == "main" for name, _ in parts])[nearest]
        drawn = is_main & self.pattern(p, normal)
        colours[drawn] = linear(TRIMS[thing.trim])
        if thing.emblems:
            marked = is_main & self.emblem(p, normal)
            colours[marked] = linear(TRIMS[thing.emblem_colour])
        gloss = np.where(np.array([name in ("felt", "dark") for name, _ in parts])[nearest], F(0.05), F(0.30))
        return colours, gloss

    def pattern(self, p, normal) -> np.ndarray:
        """Where the trim colour is drawn on the main part."""
        thing, phase = self.thing, F(self.thing.pattern_phase)
        if thing.pattern == "plain":
            return np.zeros(p[0].shape, bool)
        if thing.pattern == "striped":
            return (p[1] / F(0.36) + phase) % 1 < 0.45
        # sectors around the vertical and rows: cells of about equal sides at radius 0.4
        height = F(0.32)
        around = np.arctan2(p[0], p[2]) * F(4 / np.pi) + phase
        row = np.floor(p[1] / height + F(0.15))
        if thing.pattern == "checkered":
            return (np.floor(around) + row) % 2 < 0.5
        u = (around + 0.5 * (row % 2)) % 1 - 0.5
        v = (p[1] / height + F(0.15)) % 1 - 0.5
        radius = np.maximum(np.hypot(p[0], p[2]), F(0.12))
        return np.hypot(u * radius * F(np.pi / 4 / 0.32), v) < 0.32

    def emblem(self, p, normal) -> np.ndarray:
        """Where an emblem is: each lies in a plane through one side."""
        thing = self.thing
        marked = np.zeros(p[0].shape, bool)
        size = F(0.16 if thing.kind in ("car", "rocket", "house") else 0.20)
        for side, name in enumerate(thing.emblems):
            if not name or side == shapes.BARE.get(thing.kind):
                continue
            angle = 2 * np.pi * side / len(thing.emblems)
            x, z = F(np.sin(angle)), F(np.cos(angle))
            facing = normal[0] * x + normal[2] * z
            a, b = p[0] * z - p[2] * x, p[1] - F(shapes.EMBLEM_HEIGHT[thing.kind])
            inside = shapes.emblem(name, a / size, b / size) < 0
            marked |= inside & (facing > 0.25) & (p[0] * x + p[2] * z > 0)
        return marked


def render(scene: Scene, size: int = SIZE) -> Picture:
    """Draw a scene into a square of `size` pixels."""
    room, camera = scene.room, Camera(scene.room.camera_height, size)
    solids = [Solid(thing) for thing in scene.things]
    image, shadows = _room(room, camera, solids, size)
    alphas = [np.zeros((size, size), F) for _ in solids]
    order = sorted(range(len(solids)), key=lambda i: solids[i].thing.z)
    for i in order:
        drawn = _draw(solids[i], room, camera, size)
        if drawn is None:
            continue
        (rows, columns), colour, alpha = drawn
        image[rows, columns] = image[rows, columns] * (1 - alpha[..., None]) + colour
        for nearer in alphas:
            nearer[rows, columns] *= 1 - alpha
        alphas[i][rows, columns] = alpha
    stored = tone(image) ** F(1 / 2.2)
    return Picture((stored * 255 + 0.5).astype(np.uint8), tuple(alphas), tuple(shadows))


def tone(image, knee: float = 0.72):
    """Linear light to [0, 1): unchanged up to `knee`, highlights compressed above."""
    over = np.maximum(image - F(knee), 0)
    return np.clip(np.minimum(image, F(knee)), 0, 1) + F(1 - knee) * (1 - np.exp(-over / F(1 - knee)))


def _glow(distance, reach: float):
    """Brightness around the lamp, 1 at its rim, 0 beyond `reach`."""
    x = np.clip(1 - distance / reach, 0, 1)
    return x * x * x


def _soft(distance, pixel):
    """Coverage of a shape from its signed distance."""
    return np.clip(0.5 - distance / pixel, 0, 1)


def _room(room: Room, camera: Camera, solids: list[Solid], size: int):
    """Wall, floor, lamp and the things' shadows: linear (H, W, 3), and each thing's shadow (H, W)."""
    axis = np.arange(size, dtype=F)
    x, y, z = camera.rays(axis, axis, size)
    _, h, d = (float(v) for v in camera.position)
    to_wall = (F(WALL) - F(d)) / z
    wall_y = h + y * to_wall
    on_wall = wall_y > 0
    t = np.where(on_wall, to_wall, F(-h) / np.minimum(y, F(-1e-4)))
    px, py, pz = x * t, h + y * t, d + z * t
    pixel = F(2 * HALF_VIEW / size) * (d - F(WALL))
    wall = np.broadcast_to(linear(room.wall), (size, size, 3)).copy()
    _decorate(wall, room, px, py, pixel)
    floor = np.broadcast_to(linear(room.floor), (size, size, 3))
    edge = _soft(-wall_y, pixel)[..., None]
    albedo = wall * edge + floor * (1 - edge)
    # light
    lx, ly, lz = (F(v) for v in room.lamp)
    tx, ty, tz = lx - px, ly - py, lz - pz
    squared = tx * tx + ty * ty + tz * tz
    distance = np.sqrt(squared)
    facing = np.where(on_wall, tz, ty) / distance
    strength = np.clip(facing, 0, 1) * _falloff(squared)
    open_sky = np.ones((size, size), F)
    lamplight = np.ones((size, size), F)
    shadows = []
    for solid in solids:
        shadow, closed = _cast(solid, room, px, py, pz)
        lamplight *= 1 - shadow
        open_sky *= 1 - closed
        shadows.append(1 - (1 - 0.55 * shadow) * (1 - closed))
    corner = 1 - 0.22 * np.exp(-np.abs(np.where(on_wall, py, pz - F(WALL))) / 0.16)
    light = linear(room.lamp_colour) * (strength * lamplight * (1 - room.ambient) * 2.1)[..., None]
    light = light + (room.ambient * open_sky * corner)[..., None]
    image = albedo * light * F(room.brightness)
    _lamp(image, room, camera, size)
    return image, shadows


def _falloff(squared):
    """Brightness of the lamp over squared distance: 1 at distance 1.4, without a hot spot."""
    return F(2.0) / (squared + F(1.1)) + F(0.36)


def _cast(solid: Solid, room: Room, px, py, pz):
    """A thing's shadow of the lamp, and its contact shadow (light from everywhere), each (H, W) in [0, 1]."""
    shape = px.shape
    local = solid.inward((px.ravel(), py.ravel(), pz.ravel()))
    lamp = solid.inward(tuple(F(v) for v in room.lamp))
    light = solid.shade(local, lamp, 20, 0.16)
    closed = np.zeros(light.shape, F)
    x, y, z = local
    near = np.flatnonzero((np.hypot(x, z) < solid.thing.extent[0] + 0.5) & (y < 0.4))
    if len(near):
        d = solid.distance((x[near], y[near] + F(0.03), z[near]))
        closed[near] = 0.62 * np.clip(1 - np.maximum(d, 0) / 0.30, 0, 1) ** 1.6
    # the steps along the rays leave rings, which the blur removes
    return _blur((1 - light).reshape(shape)), closed.reshape(shape)


def _blur(x: np.ndarray) -> np.ndarray:
    """The binomial filter of five taps along both axes."""
    for axis in (0, 1):
        wide = np.concatenate([x.take([0, 0], axis), x, x.take([-1, -1], axis)], axis)
        n = x.shape[axis]
        taps = [wide.take(range(i, i + n), axis) for i in range(5)]
        x = (taps[0] + 4 * taps[1] + 6 * taps[2] + 4 * taps[3] + taps[4]) / F(16)
    return x


def _decorate(wall, room: Room, x, y, pixel):
    """A window, a picture or broad stripes on the wall, and a skirting board; changes `wall`."""
    side = -1.0 if room.lamp[0] > 0 else 1.0  # away from the lamp
    if room.wall_style == "stripes":
        wall *= (1 - 0.22 * _soft(np.abs((x / 0.62 + room.wall_phase) % 1 - 0.5) - 0.25, pixel / 0.62))[
            ..., None
        ]
    elif room.wall_style in ("window", "picture"):
        cx, cy = side * (0.15 + 0.75 * room.wall_phase), 1.45
        half, tall = (0.44, 0.50) if room.wall_style == "window" else (0.40, 0.34)
        outer = np.maximum(np.abs(x - cx) - half, np.abs(y - cy) - tall)
        inner = outer + 0.07
        frame = (0.95, 0.94, 0.90) if room.wall_style == "window" else (0.36, 0.22, 0.12)
        view = (0.62, 0.83, 0.98) if room.wall_style == "window" else room.floor[::-1]
        if room.wall_style == "window":
            bars = np.minimum(np.abs(x - cx), np.abs(y - cy)) - 0.03
            inner = np.maximum(inner, -bars)
        for d, colour in ((outer, frame), (inner, view)):
            cover = _soft(d, pixel)[..., None]
            wall[...] = wall * (1 - cover) + linear(colour) * cover
    board = _soft(y - 0.13, pixel)[..., None]
    wall[...] = wall * (1 - board) + (0.45 * wall.mean((0, 1)) + 0.50) * board


def _lamp(image, room: Room, camera: Camera, size: int):
    """The lamp itself: a hanging globe with its cord and its glow; changes `image`."""
    column, row, depth = camera.project(room.lamp)
    radius = 0.115 / depth / HALF_VIEW / 2
    y, x = (np.mgrid[0:size, 0:size].astype(F) + F(0.5)) / size
    d = np.hypot(x - column, y - row) - radius
    pixel = F(1 / size)
    colour = linear(np.clip(np.array(room.lamp_colour) * 0.98, 0, 1))
    image += (0.55 * _glow(np.maximum(d, 0), 0.26))[..., None] * colour * F(1 - room.ambient)
    cord = np.maximum(np.abs(x - column) - 0.006, y - row)
    cap = np.maximum(np.abs(x - column) - 0.030, np.abs(y - row + radius) - 0.016)
    for distance, shown in ((np.minimum(cord, cap), linear((0.12, 0.11, 0.12))), (d, F(1.05) * colour)):
        cover = _soft(distance, pixel)[..., None]
        image[...] = image * (1 - cover) + shown * cover


def _draw(solid: Solid, room: Room, camera: Camera, size: int):
    """A thing's window in the picture, its premultiplied linear colour (h, w, 3) and coverage (h, w)."""
    thing = solid.thing
    centre = (thing.x, float(solid.middle) * thing.scale, thing.z)
    column, row, depth = camera.project(centre)
    half = float(solid.radius) * thing.scale / (depth - float(solid.radius) * thing.scale) / HALF_VIEW / 2
    top, bottom = (int(np.clip(np.floor((row + s * half) * size) + (s > 0), 0, size)) for s in (-1, 1))
    left, right = (int(np.clip(np.floor((column + s * half) * size) + (s > 0), 0, size)) for s in (-1, 1))
    if bottom <= top or right <= left:
        return None
    fine = OVERSAMPLE
    rows = np.arange(top * fine, bottom * fine, dtype=F)
    columns = np.arange(left * fine, right * fine, dtype=F)
    rays = tuple(a.ravel() for a in camera.rays(rows, columns, size * fine))
    origin = solid.inward(tuple(camera.position))
    direction = solid.inward(rays, direction=True)
    t = solid.trace(origin, direction)
    hit = np.flatnonzero(np.isfinite(t))
    shape = (bottom - top, fine, right - left, fine)
    colour = np.zeros((len(t), 3), F)
    colour[hit] = _light(solid, room, origin, tuple(a[hit] for a in direction), t[hit])
    seen = np.zeros(len(t), F)
    seen[hit] = 1
    window = slice(top, bottom), slice(left, right)
    return window, colour.reshape(*shape, 3).mean((1, 3)), seen.reshape(shape).mean((1, 3))


def _light(solid: Solid, room: Room, origin, direction, t):
    """Linear colour (n, 3) of the points that rays meet: ambient, lamp (Lambert, Blinn-Phong), floor."""
    p = tuple(o + a * t for o, a in zip(origin, direction, strict=True))
    normal = solid.normal(p)
    albedo, gloss = solid.albedo(p, normal)
    lamp = solid.inward(tuple(F(v) for v in room.lamp))
    to = [F(e) - a for a, e in zip(p, lamp, strict=True)]
    squared = to[0] ** 2 + to[1] ** 2 + to[2] ** 2
    norm = 1 / np.sqrt(squared)
    to = [a * norm for a in to]
    facing = normal[0] * to[0] + normal[1] * to[1] + normal[2] * to[2]
    start = tuple(a + n * F(0.02) for a, n in zip(p, normal, strict=True))
    lit = np.zeros(len(t), F)
    front = np.flatnonzero(facing > -0.05)
    lit[front] = solid.shade(tuple(a[front] for a in start), lamp, 7, 0.20, 0.03)
    strength = lit * np.clip((facing + 0.08) / 1.08, 0, 1) * _falloff(squared * F(solid.thing.scale**2))
    reach = F(0.14)
    hollow = solid.distance(tuple(a + n * reach for a, n in zip(p, normal, strict=True)))
    occlusion = np.clip(F(0.30) + F(0.70) * hollow / reach, 0, 1)
    ground = np.clip(F(0.62) + p[1] * F(1.1), 0, 1)
    sky = (F(0.70) + F(0.30) * normal[1]) * occlusion * ground
    bounce = linear(room.floor) * (np.clip(-normal[1], 0, 1) * 0.35 * occlusion)[:, None]
    half = [a - v for a, v in zip(to, direction, strict=True)]
    norm = 1 / np.sqrt(half[0] ** 2 + half[1] ** 2 + half[2] ** 2)
    shine = np.clip((normal[0] * half[0] + normal[1] * half[1] + normal[2] * half[2]) * norm, 0, 1) ** 48
    tint = linear(room.lamp_colour)
    light = tint * (strength * (1 - room.ambient) * F(2.0))[:, None] + (sky * room.ambient)[:, None] * F(1.05)
    light = light + bounce
    return (albedo * light + (shine * gloss * lit)[:, None] * tint) * F(room.brightness)
