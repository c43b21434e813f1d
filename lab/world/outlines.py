"""Signed distances (negative inside) of the things' parts in their own square: u right, v up, in [-1, 1].

A thing is a list of parts, back to front: (distance, material, bulge). Material is 'main' (colour and
pattern), 'trim', 'dark' or 'pale'; bulge is how far from its edge a part is rounded.
The distance formulas are the common ones for 2-D primitives.
"""

import numpy as np


def circle(u, v, x, y, r):
    return np.hypot(u - x, v - y) - r


def ellipse(u, v, x, y, rx, ry):
    return (np.hypot((u - x) / rx, (v - y) / ry) - 1) * min(rx, ry)


def box(u, v, x, y, half_w, half_h, r=0.08):
    du, dv = np.abs(u - x) - half_w + r, np.abs(v - y) - half_h + r
    return np.hypot(np.maximum(du, 0), np.maximum(dv, 0)) + np.minimum(np.maximum(du, dv), 0) - r


def ring(u, v, x, y, r, width):
    return np.abs(np.hypot(u - x, v - y) - r) - width


def polygon(u, v, points):
    """Distance to a closed polygon; the sign flips at every edge a ray to the right crosses."""
    best = np.full(u.shape, np.inf)
    sign = np.ones(u.shape)
    for (ax, ay), (bx, by) in zip(points, points[1:] + points[:1], strict=True):
        ex, ey, wx, wy = bx - ax, by - ay, u - ax, v - ay
        t = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey), 0, 1)
        best = np.minimum(best, (wx - ex * t) ** 2 + (wy - ey * t) ** 2)
        crosses = ((ay <= v) & (by > v) & (ex * wy < ey * wx)) | ((ay > v) & (by <= v) & (ex * wy > ey * wx))
        sign = np.where(crosses, -sign, sign)
    return sign * np.sqrt(best)


def mug(u, v, a, b, c):
    w, h = 0.55 + 0.08 * a, 0.72 + 0.10 * b
    return [
        (ring(u, v, w + 0.05, 0.02 + 0.08 * c, 0.30 + 0.05 * c, 0.10), "trim", 0.12),
        (box(u, v, -0.12, -0.05, w, h, 0.14), "main", 0.45),
        (ellipse(u, v, -0.12, h - 0.16, w - 0.06, 0.13), "dark", 0.05),
    ]


def ball(u, v, a, b, c):
    r = 0.84 + 0.06 * a
    return [
        (circle(u, v, 0, -0.05, r), "main", r),
        (circle(u, v, 0.25 * b, 0.15 + 0.25 * c, 0.14), "trim", 0.05),
    ]


def bottle(u, v, a, b, c):
    w, neck = 0.42 + 0.08 * a, 0.17 + 0.04 * b
    shoulder = 0.12 + 0.12 * c
    body = np.minimum(
        box(u, v, 0, -0.42 + shoulder / 2, w, 0.56 + shoulder / 2, 0.20), box(u, v, 0, 0.35, neck, 0.55, 0.05)
    )
    return [(body, "main", 0.35), (box(u, v, 0, 0.84, neck + 0.07, 0.15, 0.05), "trim", 0.12)]


def star(u, v, a, b, c):
    inner, turn = 0.46 + 0.06 * a, 0.06 * b
    angles = np.pi / 2 + turn + np.arange(10) * np.pi / 5
    radii = np.where(np.arange(10) % 2 == 0, 0.98, inner)
    points = [(float(r * np.cos(t)), float(r * np.sin(t)) - 0.04) for r, t in zip(radii, angles, strict=True)]
    return [
        (polygon(u, v, points) - 0.03, "main", 0.40),
        (circle(u, v, 0, -0.02, 0.15 + 0.04 * c), "trim", 0.06),
    ]


def car(u, v, a, b, c):
    cabin = 0.10 * a
    return [
        (box(u, v, 0.05 + cabin, 0.22, 0.46, 0.36 + 0.05 * b, 0.20), "main", 0.30),
        (box(u, v, 0.05 + cabin, 0.27, 0.32, 0.17, 0.08), "pale", 0.05),
        (box(u, v, 0, -0.20, 0.95, 0.32 + 0.04 * c, 0.18), "main", 0.30),
        (circle(u, v, -0.50, -0.52, 0.25), "trim", 0.20),
        (circle(u, v, 0.50, -0.52, 0.25), "trim", 0.20),
        (circle(u, v, -0.50, -0.52, 0.10), "dark", 0.05),
        (circle(u, v, 0.50, -0.52, 0.10), "dark", 0.05),
    ]


def house(u, v, a, b, c):
    eave, peak = 0.12 + 0.08 * a, 0.92 + 0.06 * b
    roof = [(-0.92, eave), (0.92, eave), (0.10 * c, peak)]
    return [
        (box(u, v, 0, -0.42, 0.68, 0.56, 0.04), "main", 0.10),
        (polygon(u, v, roof) - 0.02, "trim", 0.10),
        (box(u, v, -0.26, -0.66, 0.15, 0.30, 0.04), "dark", 0.04),
        (box(u, v, 0.30, -0.38, 0.16, 0.16, 0.03), "pale", 0.04),
    ]


def cat(u, v, a, b, c):
    ear = 0.10 * a
    head = circle(u, v, 0.10, 0.32, 0.46)
    ears = np.minimum(
        polygon(u, v, [(-0.34, 0.40), (-0.02, 0.70), (-0.30, 0.98 + ear)]),
        polygon(u, v, [(0.54, 0.40), (0.22, 0.70), (0.50, 0.98 + ear)]),
    )
    tail = np.maximum(ring(u, v, -0.58, -0.40 + 0.08 * b, 0.30, 0.09), -(v + 0.62))
    eyes = np.minimum(circle(u, v, -0.08, 0.38, 0.075), circle(u, v, 0.28, 0.38, 0.075))
    return [
        (tail, "main", 0.09),
        (ellipse(u, v, 0.02, -0.48, 0.50 + 0.05 * c, 0.50), "main", 0.45),
        (np.minimum(head, ears - 0.03), "main", 0.40),
        (ellipse(u, v, 0.10, -0.42, 0.22, 0.26), "trim", 0.15),
        (eyes, "dark", 0.05),
        (ellipse(u, v, 0.10, 0.20, 0.07, 0.05), "trim", 0.05),
    ]


def mushroom(u, v, a, b, c):
    stem, droop = 0.24 + 0.06 * a, 0.08 + 0.06 * b
    dome = np.maximum(ellipse(u, v, 0, -0.02, 0.94, 0.88 + 0.06 * c), -(v - 0.02))
    cap = np.minimum(dome, box(u, v, 0, 0.02, 0.92, droop, 0.08))
    return [(box(u, v, 0, -0.48, stem, 0.50, 0.14), "trim", 0.24), (cap, "main", 0.45)]


OUTLINES = {f.__name__: f for f in (mug, ball, bottle, star, car, house, cat, mushroom)}


def accessory(name, u, v, kind):
    """Parts worn on top: a hat with a brim, a bow at the chest, a flag on a pole."""
    top = {
        "mug": 0.62,
        "ball": 0.70,
        "bottle": 0.92,
        "star": 0.62,
        "car": 0.52,
        "house": 0.62,
        "cat": 0.72,
        "mushroom": 0.78,
    }[kind]
    if name == "hat":
        crown = box(u, v, 0, top + 0.28, 0.30, 0.26, 0.06)
        return [(crown, "felt", 0.2), (ellipse(u, v, 0, top + 0.04, 0.56, 0.12), "felt", 0.1)]
    if name == "bow":
        y = -0.12 if kind != "mushroom" else 0.0
        wings = np.minimum(
            polygon(u, v, [(-0.46, y + 0.26), (0.0, y), (-0.46, y - 0.26)]),
            polygon(u, v, [(0.46, y + 0.26), (0.0, y), (0.46, y - 0.26)]),
        )
        return [(wings - 0.04, "ribbon", 0.12), (circle(u, v, 0, y, 0.13), "ribbon", 0.1)]
    if name == "flag":
        pole = box(u, v, 0.30, top + 0.22, 0.045, 0.48, 0.02)
        return [
            (pole, "dark", 0.03),
            (
                polygon(u, v, [(0.32, top + 0.70), (0.92, top + 0.48), (0.32, top + 0.26)]) - 0.02,
                "ribbon",
                0.08,
            ),
        ]
    return []
