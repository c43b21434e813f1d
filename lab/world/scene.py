"""What can be in a picture: things, rooms, their random choice, and the words for them."""

from dataclasses import dataclass, field, replace

import numpy as np

CLASSES = ("mug", "ball", "bottle", "star", "car", "house", "cat", "mushroom")
PATTERNS = ("plain", "striped", "dotted", "checkered", "banded")
ACCESSORIES = ("none", "hat", "bow", "flag")

# sRGB in [0, 1]; spaced so that a warm or a cool lamp does not turn one into its neighbour.
COLOURS = {
    "red": (0.84, 0.13, 0.14),
    "orange": (0.97, 0.50, 0.08),
    "yellow": (0.97, 0.84, 0.16),
    "green": (0.18, 0.62, 0.22),
    "cyan": (0.20, 0.80, 0.84),
    "blue": (0.14, 0.28, 0.82),
    "purple": (0.52, 0.20, 0.68),
    "pink": (0.98, 0.56, 0.74),
    "white": (0.94, 0.94, 0.93),
    "black": (0.11, 0.11, 0.13),
}
# The second colour of a thing. Captions never name it: it is what a subject's photos alone can teach.
TRIMS = {
    "ivory": (0.96, 0.93, 0.82),
    "navy": (0.10, 0.13, 0.30),
    "gold": (0.85, 0.66, 0.22),
    "teal": (0.05, 0.48, 0.47),
}


@dataclass(frozen=True)
class Thing:
    """One object. `shape` holds three numbers in [-1, 1] that bend its class's outline; angles in radians."""

    kind: str
    colour: str
    pattern: str
    trim: str
    accessory: str
    shape: tuple[float, float, float]
    pattern_angle: float
    pattern_phase: float
    # pose: centre and height as fractions of the picture, tilt in radians, mirrored or not
    x: float = 0.5
    y: float = 0.6
    scale: float = 0.5
    tilt: float = 0.0
    mirrored: bool = False

    def posed(self, **pose) -> "Thing":
        return replace(self, **pose)


@dataclass(frozen=True)
class Room:
    """A wall, a table, and a light. Colours are sRGB in [0, 1]."""

    wall: tuple[float, float, float]
    table: tuple[float, float, float]
    horizon: float  # height of the table's far edge, as a fraction of the picture from the top
    light_angle: float  # where the light comes from, radians, 0 = straight above, positive = right
    light_colour: tuple[float, float, float]
    brightness: float
    wall_style: str  # plain | stripes | window | frame
    wall_phase: float


@dataclass(frozen=True)
class Scene:
    room: Room
    subject: Thing | None
    others: tuple[Thing, ...] = field(default=())


def _pick(rng: np.random.Generator, names):
    names = list(names)
    return names[int(rng.integers(len(names)))]


def sample_thing(rng: np.random.Generator, **fixed) -> Thing:
    """A random thing without a pose; `fixed` pins any field. A trim never hides in its main colour."""
    colour = fixed.get("colour") or _pick(rng, COLOURS)
    clash = {
        "white": "ivory",
        "yellow": "gold",
        "orange": "gold",
        "black": "navy",
        "blue": "navy",
        "green": "teal",
        "cyan": "teal",
    }
    trims = [name for name in TRIMS if clash.get(colour) != name]
    choice = {
        "kind": _pick(rng, CLASSES),
        "colour": colour,
        "pattern": _pick(rng, PATTERNS),
        "trim": _pick(rng, trims),
        "accessory": _pick(rng, ("none", "none", "hat", "bow", "flag")),
        "shape": tuple(float(v) for v in rng.uniform(-1, 1, 3)),
        "pattern_angle": float(rng.choice([0.0, np.pi / 4, np.pi / 2, -np.pi / 4])),
        "pattern_phase": float(rng.uniform(0, 1)),
    }
    return Thing(**{**choice, **fixed})


def sample_pose(rng: np.random.Generator, thing: Thing, room: Room, scale: tuple[float, float]) -> Thing:
    """Stand the thing on the table, anywhere inside the picture."""
    size = float(rng.uniform(*scale))
    half = size / 2
    low = max(room.horizon + 0.06 - half * 0.6, half + 0.16 * size)
    return thing.posed(
        x=float(rng.uniform(half * 0.95, 1 - half * 0.95)) if half < 0.5 else 0.5,
        y=float(rng.uniform(low, max(low, 0.97 - half))),
        scale=size,
        tilt=float(rng.normal(0, 0.08)),
        mirrored=bool(rng.integers(2)),
    )


def sample_room(rng: np.random.Generator) -> Room:
    def muted(low, high):
        red, green, blue = np.clip(rng.uniform(low, high) + rng.normal(0, 0.10, 3), 0.06, 0.95)
        return float(red), float(green), float(blue)

    warmth = float(rng.uniform(-1, 1))
    return Room(
        wall=muted(0.40, 0.85),
        table=muted(0.25, 0.70),
        horizon=float(rng.uniform(0.38, 0.62)),
        light_angle=float(rng.uniform(-1.0, 1.0)),
        light_colour=(1.0 + 0.10 * warmth, 1.0, 1.0 - 0.14 * warmth),
        brightness=float(rng.uniform(0.82, 1.10)),
        wall_style=_pick(rng, ("plain", "stripes", "window", "frame")),
        wall_phase=float(rng.uniform(0, 1)),
    )


def sample_scene(
    rng: np.random.Generator,
    subject: Thing | None = None,
    room: Room | None = None,
    others: int | None = None,
    scale: tuple[float, float] = (0.42, 0.80),
) -> Scene:
    """A room with one subject, and `others` things standing about (0-2 when not given)."""
    room = room or sample_room(rng)
    subject = sample_pose(rng, subject or sample_thing(rng), room, scale)
    count = int(rng.choice([0, 1, 2], p=[0.4, 0.4, 0.2])) if others is None else others
    bystanders = []
    for _ in range(count):
        other = sample_pose(rng, sample_thing(rng), room, (0.28, 0.45))
        # stand beside the subject, not in front of it
        side = 1 if subject.x < 0.5 else -1
        x = float(np.clip(subject.x + side * rng.uniform(0.30, 0.55), 0.12, 0.88))
        bystanders.append(other.posed(x=x, y=min(other.y, subject.y + subject.scale / 2 - other.scale / 2)))
    return Scene(room, subject, tuple(bystanders))


def caption(thing: Thing, token: str = "") -> str:
    """The words for a thing: 'a photo of a red striped mug wearing a hat'.

    With a `token` the words for its looks are left out, as in few-shot training: 'a photo of a sks mug'.
    """
    if token:
        return phrase([token], thing.kind)
    return phrase(
        [thing.colour] + ([thing.pattern] if thing.pattern != "plain" else []), thing.kind, thing.accessory
    )


def phrase(looks: list[str], kind: str, accessory: str = "none") -> str:
    """'a photo of a' + looks + kind + what it wears."""
    words = " ".join([*looks, kind])
    worn = {"none": "", "hat": " wearing a hat", "bow": " wearing a bow", "flag": " with a flag"}[accessory]
    return f"a photo of {'an' if words[0] in 'aeiou' else 'a'} {words}{worn}"
