"""Signed distances of the ten classes in their own frame: x right, y up (0 = floor), z towards the viewer.

A class is a function of points `p`, a tuple of three float32 arrays, and three shape numbers in [-1, 1]; it
returns its parts as (material, signed distance, negative inside). Material 'main' carries the colour and the
pattern, 'trim' the second colour; the rest are fixed. Objects are 1 to 1.4 units high and face +z. The
formulas of the primitives are those of Quilez, "Distance functions" (iquilezles.org/articles/distfunctions).
"""

from collections.abc import Callable

import numpy as np

Points = tuple[np.ndarray, np.ndarray, np.ndarray]
Part = tuple[str, np.ndarray]


def moved(p: Points, x=0.0, y=0.0, z=0.0) -> Points:
    """The points relative to (x, y, z)."""
    return p[0] - np.float32(x), p[1] - np.float32(y), p[2] - np.float32(z)


def length(*axes):
    """Euclidean length of the vectors with the given coordinates."""
    total = axes[0] * axes[0]
    for axis in axes[1:]:
        total = total + axis * axis
    return np.sqrt(total)


def sphere(p: Points, r):
    return length(*p) - np.float32(r)


def ellipsoid(p: Points, rx, ry, rz):
    """A bound of the distance to an ellipsoid, exact on its surface to first order."""
    a = length(p[0] * np.float32(1 / rx), p[1] * np.float32(1 / ry), p[2] * np.float32(1 / rz))
    b = length(p[0] * np.float32(1 / rx**2), p[1] * np.float32(1 / ry**2), p[2] * np.float32(1 / rz**2))
    return a * (a - 1) / np.maximum(b, np.float32(1e-6))


def rounded(dx, dy, r):
    """Distance in a plane from |x| - half width and |y| - half height, corners rounded by r."""
    r = np.float32(r)
    dx, dy = dx + r, dy + r
    return length(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0) - r


def box(p: Points, hx, hy, hz, r=0.04):
    r = np.float32(r)
    d = [np.abs(a) - np.float32(h) + r for a, h in zip(p, (hx, hy, hz), strict=True)]
    outside = length(*(np.maximum(a, 0) for a in d))
    return outside + np.minimum(np.maximum(np.maximum(d[0], d[1]), d[2]), 0) - r


def cylinder(p: Points, r, half, edge=0.03):
    """Upright, around y."""
    return rounded(length(p[0], p[2]) - np.float32(r), np.abs(p[1]) - np.float32(half), edge)


def wheel(p: Points, r, half, edge=0.03):
    """A cylinder around z."""
    return rounded(length(p[0], p[1]) - np.float32(r), np.abs(p[2]) - np.float32(half), edge)


def torus(p: Points, r, thick):
    """A ring around z."""
    return length(length(p[0], p[1]) - np.float32(r), p[2]) - np.float32(thick)


def capsule(p: Points, a, b, ra, rb):
    """A rod from a to b whose radius changes linearly from ra to rb (a bound)."""
    ax, ay, az = (np.float32(v) for v in a)
    bx, by, bz = (np.float32(e - s) for s, e in zip(a, b, strict=True))
    px, py, pz = p[0] - ax, p[1] - ay, p[2] - az
    t = np.clip((px * bx + py * by + pz * bz) / (bx * bx + by * by + bz * bz), 0, 1)
    return (length(px - bx * t, py - by * t, pz - bz * t) - (np.float32(ra) + np.float32(rb - ra) * t)) * 0.95


def cone(p: Points, r, height, edge=0.02):
    """Upright, its base of radius r at y = 0, its tip at `height`."""
    radius = length(p[0], p[2])
    norm = float(np.hypot(height, r))
    side = (radius * np.float32(height / norm) + (p[1] - np.float32(height)) * np.float32(r / norm)) + edge
    return np.maximum(side, -p[1]) - np.float32(edge)


def smooth(a, b, k=0.08):
    """Smooth union of two distances."""
    h = np.maximum(np.float32(k) - np.abs(a - b), 0)
    return np.minimum(a, b) - h * h * np.float32(0.25 / k)


def ball(p: Points, a, b, c) -> list[Part]:
    q = moved(p, y=0.5)
    seam = np.abs(q[1] - 0.12 * c * q[0]) - np.float32(0.045 + 0.015 * b)
    return [("main", sphere(q, 0.5)), ("trim", np.maximum(sphere(q, 0.512), seam))]


def mug(p: Points, a, b, c) -> list[Part]:
    r, h = 0.40 + 0.05 * a, 0.46 + 0.06 * b
    q = moved(p, y=h)
    wall = np.maximum(cylinder(q, r, h, 0.05), -cylinder(moved(q, y=0.12), r - 0.075, h, 0.04))
    handle = torus(moved(q, x=r + 0.02), 0.25 + 0.03 * c, 0.07)
    handle = np.maximum(handle, np.float32(r - 0.05) - length(q[0], q[2]))
    rim = length(length(q[0], q[2]) - np.float32(r - 0.037), q[1] - np.float32(h - 0.02)) - np.float32(0.05)
    return [("main", wall), ("trim", handle), ("trim", rim)]


def teapot(p: Points, a, b, c) -> list[Part]:
    r = 0.46 + 0.03 * a
    body = ellipsoid(moved(p, y=0.42), r, 0.42, r)
    lid = ellipsoid(moved(p, y=0.76), 0.27, 0.12, 0.27)
    knob = sphere(moved(p, y=0.93), 0.085 + 0.02 * b)
    spout = capsule(p, (r - 0.14, 0.30, 0), (r + 0.30, 0.70 + 0.06 * c, 0), 0.15, 0.065)
    handle = torus(moved(p, x=-r - 0.03, y=0.46), 0.24, 0.065)
    handle = np.maximum(handle, -ellipsoid(moved(p, y=0.42), r - 0.03, 0.40, r - 0.03))
    return [("main", smooth(body, spout, 0.12)), ("trim", lid), ("trim", knob), ("trim", handle)]


def bottle(p: Points, a, b, c) -> list[Part]:
    r, neck = 0.30 + 0.04 * a, 0.115 + 0.02 * b
    body = cylinder(moved(p, y=0.42), r, 0.42, 0.12)
    top = capsule(p, (0, 0.74, 0), (0, 1.16, 0), r * 0.62, neck * 0.9)
    cap = cylinder(moved(p, y=1.24 + 0.02 * c), neck + 0.055, 0.10, 0.03)
    foot = cylinder(moved(p, y=0.07), r + 0.014, 0.055, 0.02)
    return [("main", smooth(body, top, 0.16)), ("trim", cap), ("trim", foot)]


def car(p: Points, a, b, c) -> list[Part]:
    hood = 0.06 * a
    body = box(moved(p, y=0.34), 0.70, 0.17, 0.34, 0.10)
    cabin = box(moved(p, x=-0.06 + hood, y=0.58 + 0.02 * b), 0.38, 0.21 + 0.02 * b, 0.29, 0.10)
    glass = np.maximum(
        box(moved(p, x=-0.06 + hood, y=0.60), 0.392, 0.115, 0.302, 0.06), np.float32(0.50) - p[1]
    )
    post = np.abs(p[0] + np.float32(0.06 - hood)) - np.float32(0.03)
    glass = np.maximum(glass, np.where(np.abs(p[2]) > 0.27, -post, -1))
    ax, q = np.abs(p[0]), np.abs(p[2])
    tyre = wheel((ax - np.float32(0.42), p[1] - np.float32(0.19), q - np.float32(0.32)), 0.19, 0.075, 0.04)
    hub = wheel((ax - np.float32(0.42), p[1] - np.float32(0.19), q - np.float32(0.33)), 0.10, 0.08, 0.02)
    lights = sphere((p[0] - np.float32(0.68), p[1] - np.float32(0.38), q - np.float32(0.21)), 0.075)
    bumper = box((ax - np.float32(0.68), p[1] - np.float32(0.24), p[2]), 0.05, 0.05, 0.33, 0.03)
    return [
        ("main", np.minimum(body, cabin)), ("pale", glass), ("dark", tyre), ("trim", hub), ("pale", lights),
        ("trim", bumper),
    ]  # fmt: skip


def house(p: Points, a, b, c) -> list[Part]:
    w, d, h = 0.44 + 0.03 * a, 0.38, 0.30 + 0.03 * b
    walls = box(moved(p, y=h), w, h, d, 0.02)
    # the gable roof: a prism along x with overhang
    slope, top = 0.75 + 0.1 * c, 2 * h - 0.03
    norm = np.float32(1 / np.hypot(1, slope))
    ridge = top + (d + 0.09) * slope
    roof = (np.abs(p[2]) * np.float32(slope) + p[1] - np.float32(ridge)) * norm
    roof = np.maximum(np.maximum(roof, np.float32(top) - p[1]), np.abs(p[0]) - np.float32(w + 0.08))
    chimney = box(moved(p, x=0.22, y=ridge - 0.06, z=-0.1), 0.075, 0.20, 0.075, 0.015)
    door = box(moved(p, x=-0.17, y=0.19, z=d), 0.10, 0.19, 0.02, 0.01)
    front = box(moved(p, x=0.18, y=0.33, z=d), 0.105, 0.105, 0.02, 0.01)
    return [
        ("main", walls), ("trim", roof), ("dark", door), ("pale", front), ("main", chimney)
    ]  # fmt: skip


def cat(p: Points, a, b, c) -> list[Part]:
    body = ellipsoid(moved(p, y=0.36, z=-0.04), 0.31 + 0.03 * a, 0.38, 0.33)
    q = moved(p, y=0.84, z=0.08)
    head = ellipsoid(q, 0.30, 0.26, 0.27)
    mirrored = (np.abs(q[0]), q[1], q[2])
    ear = cone(moved(mirrored, x=0.185, y=0.15), 0.12, 0.25 + 0.04 * b, 0.02)
    paw = ellipsoid(
        (np.abs(p[0]) - np.float32(0.15), p[1] - np.float32(0.08), p[2] - np.float32(0.27)), 0.10, 0.085, 0.13
    )
    tail = capsule(p, (0.24, 0.10, -0.24), (0.52, 0.46 + 0.1 * c, -0.26), 0.08, 0.07)
    fur = smooth(smooth(body, np.minimum(head, ear), 0.10), tail, 0.08)
    eyes = sphere(moved(mirrored, x=0.115, y=0.035, z=0.235), 0.058)
    muzzle = ellipsoid(moved(q, y=-0.085, z=0.235), 0.10, 0.07, 0.06)
    nose = sphere(moved(q, y=-0.045, z=0.292), 0.032)
    belly = ellipsoid(moved(p, y=0.36, z=0.20), 0.17, 0.25, 0.11)
    return [
        ("main", fur), ("dark", eyes), ("trim", muzzle), ("dark", nose), ("trim", belly), ("trim", paw)
    ]  # fmt: skip


def duck(p: Points, a, b, c) -> list[Part]:
    body = ellipsoid(moved(p, y=0.32, z=-0.05), 0.38 + 0.03 * a, 0.32, 0.50)
    tail = capsule(p, (0, 0.42, -0.42), (0, 0.64 + 0.05 * b, -0.62), 0.15, 0.04)
    q = moved(p, y=0.83, z=0.22)
    head = sphere(q, 0.28)
    beak = ellipsoid(moved(q, y=-0.05, z=0.30), 0.15, 0.065, 0.16 + 0.02 * c)
    mirrored = (np.abs(p[0]), p[1], p[2])
    wing = ellipsoid(moved(mirrored, x=0.35, y=0.36, z=-0.12), 0.09, 0.17, 0.27)
    eyes = sphere(moved((np.abs(q[0]), q[1], q[2]), x=0.155, y=0.085, z=0.21), 0.055)
    return [
        ("main", smooth(smooth(body, tail, 0.1), head, 0.10)), ("trim", beak), ("trim", wing), ("dark", eyes)
    ]  # fmt: skip


def mushroom(p: Points, a, b, c) -> list[Part]:
    stem = capsule(p, (0, 0.10, 0), (0, 0.55, 0), 0.21 + 0.03 * a, 0.15 + 0.03 * a)
    stem = np.maximum(stem, -p[1])
    q = moved(p, y=0.52)
    cap = np.maximum(ellipsoid(q, 0.54 + 0.04 * b, 0.50 + 0.06 * c, 0.54 + 0.04 * b), -q[1] - 0.03)
    gills = cylinder(moved(p, y=0.50), 0.44, 0.03, 0.02)
    return [("trim", stem), ("main", cap), ("pale", gills)]


def rocket(p: Points, a, b, c) -> list[Part]:
    body = ellipsoid(moved(p, y=0.68), 0.27 + 0.02 * a, 0.62, 0.27 + 0.02 * a)
    body = np.maximum(body, np.float32(0.16) - p[1])
    nose = np.maximum(
        ellipsoid(moved(p, y=0.68), 0.285 + 0.02 * a, 0.635, 0.285 + 0.02 * a),
        np.float32(1.03 + 0.04 * b) - p[1],
    )
    # four fins by folding the plane
    x, z = np.maximum(np.abs(p[0]), np.abs(p[2])), np.minimum(np.abs(p[0]), np.abs(p[2]))
    fin = capsule((x, p[1], z), (0.20, 0.42, 0), (0.44 + 0.03 * c, 0.06, 0), 0.055, 0.055)
    fin = smooth(fin, capsule((x, p[1], z), (0.20, 0.20, 0), (0.42 + 0.03 * c, 0.10, 0), 0.055, 0.055), 0.1)
    nozzle = cylinder(moved(p, y=0.12), 0.15, 0.09, 0.02)
    window = sphere(moved(p, y=0.80, z=0.235), 0.115)
    frame = torus(moved(p, y=0.80, z=0.262), 0.125, 0.035)
    return [
        ("main", body), ("trim", nose), ("trim", fin), ("dark", nozzle), ("pale", window), ("trim", frame)
    ]  # fmt: skip


SHAPES: dict[str, Callable[..., list[Part]]] = {
    f.__name__: f for f in (ball, bottle, car, cat, duck, house, mug, mushroom, rocket, teapot)
}
# where an accessory sits (height, depth), and where an emblem sits (height) on how many sides
TOPS = {
    "ball": (0.99, 0.0), "bottle": (1.32, 0.0), "car": (0.78, 0.0), "cat": (1.07, 0.06), "duck": (1.09, 0.20),
    "house": (0.97, 0.0), "mug": (0.95, 0.0), "mushroom": (1.00, 0.0), "rocket": (1.27, 0.0),
    "teapot": (0.98, 0.0),
}  # fmt: skip
EMBLEM_HEIGHT = {
    "ball": 0.62, "bottle": 0.42, "car": 0.34, "cat": 0.34, "duck": 0.34, "house": 0.30, "mug": 0.44,
    "mushroom": 0.72, "rocket": 0.60, "teapot": 0.42,
}  # fmt: skip
SIDES = {"car": 4, "house": 4}  # of the others 6
BARE = {"house": 0}  # the side that has no room for an emblem
# half the width and the height that hold every variant, accessories apart
EXTENT = {
    "ball": (0.52, 1.02), "bottle": (0.37, 1.40), "car": (0.80, 0.84), "cat": (0.66, 1.28),
    "duck": (0.76, 1.14), "house": (0.66, 1.22), "mug": (0.80, 1.06), "mushroom": (0.60, 1.12),
    "rocket": (0.54, 1.32), "teapot": (0.86, 1.06),
}  # fmt: skip
ACCESSORY_HEIGHT = {"none": 0.0, "hat": 0.30, "bow": 0.22, "flag": 0.52}


def accessory(name: str, p: Points, kind: str) -> list[Part]:
    """What an object wears on top: a hat with a brim, a bow, or a flag on a pole."""
    y, z = TOPS[kind]
    q = moved(p, y=y, z=z)
    if name == "hat":
        brim = cylinder(q, 0.39, 0.035, 0.03)
        return [("felt", np.minimum(brim, cylinder(moved(q, y=0.15), 0.23, 0.15, 0.05)))]
    if name == "bow":
        wings = ellipsoid((np.abs(q[0]) - np.float32(0.19), q[1] - np.float32(0.08), q[2]), 0.18, 0.13, 0.10)
        return [("ribbon", np.minimum(wings, sphere(moved(q, y=0.06), 0.085)))]
    if name == "flag":
        pole = cylinder(moved(q, y=0.24), 0.028, 0.28, 0.01)
        edge = np.abs(q[1] - np.float32(0.37)) + np.float32(0.42) * q[0] - np.float32(0.16)
        cloth = np.maximum(np.maximum(edge * np.float32(0.9), -q[0]), np.abs(q[2]) - np.float32(0.025))
        return [("dark", pole), ("ribbon", cloth - np.float32(0.012))]
    return []


def emblem(name: str, a, b):
    """Signed distance in a plane to an emblem of about unit radius; a right, b up."""
    if name == "disc":
        return length(a, b) - 0.75
    if name == "ring":
        return np.abs(length(a, b) - 0.72) - 0.24
    if name == "cross":
        x, y = np.abs(a), np.abs(b)
        return np.minimum(np.maximum(x - 0.28, y - 0.95), np.maximum(x - 0.95, y - 0.28))
    if name == "triangle":
        return np.maximum(np.abs(a) * 0.87 + b * 0.5 - 0.5, -b - 0.6)
    if name == "diamond":
        return (np.abs(a) + np.abs(b) - 1.0) * 0.7
    if name == "moon":
        return np.maximum(length(a, b) - 0.95, 0.78 - length(a - 0.45, b - 0.2))
    if name == "heart":
        x, y = np.abs(a), b + 0.25
        lobe = length(x - 0.42, y - 0.55) - 0.48
        return np.minimum(lobe, np.maximum((x + np.abs(y - 0.15) * 0.9 - 0.98) * 0.7, y - 0.62))
    if name == "bars":
        return np.maximum(np.abs(np.abs(a) - 0.5) - 0.24, np.abs(b) - 0.85)
    raise ValueError(f"There is no emblem {name!r}.")


EMBLEMS = ("disc", "ring", "cross", "triangle", "diamond", "moon", "heart", "bars")
