"""What can be in a picture: things, rooms, their random choice, and the captions."""

from dataclasses import dataclass, field, replace

import numpy as np

from . import shapes

CLASSES = tuple(shapes.SHAPES)
PATTERNS = ("plain", "striped", "dotted", "checkered")
ACCESSORIES = ("none", "hat", "bow", "flag")

# sRGB in [0, 1]; spaced so that a warm or a cool lamp does not turn one into its neighbour.
COLOURS = {
    "red": (0.86, 0.10, 0.12),
    "orange": (0.98, 0.48, 0.06),
    "yellow": (0.98, 0.84, 0.12),
    "green": (0.16, 0.62, 0.20),
    "cyan": (0.16, 0.80, 0.86),
    "blue": (0.12, 0.26, 0.86),
    "purple": (0.54, 0.18, 0.72),
    "pink": (0.99, 0.55, 0.75),
    "white": (0.95, 0.95, 0.94),
    "black": (0.10, 0.10, 0.12),
}
# The second colour. Captions do not name it, so only pictures of a subject can teach it.
TRIMS = {
    "ivory": (0.97, 0.93, 0.80),
    "navy": (0.09, 0.12, 0.32),
    "gold": (0.88, 0.64, 0.16),
    "teal": (0.04, 0.48, 0.48),
}
# trims that look like the main colour
CLASH = {
    "white": "ivory", "yellow": "gold", "orange": "gold", "black": "navy", "blue": "navy", "green": "teal",
    "cyan": "teal",
}  # fmt: skip
WALL_STYLES = ("plain", "plain", "window", "picture", "stripes")
CAMERA_DISTANCE = 4.0
LOOK_AT = 0.50  # height the camera points at
HALF_VIEW = 0.29  # tangent of half the angle of view
WALL = -1.5  # depth of the wall


@dataclass(frozen=True)
class Thing:
    """One object. `shape` holds three numbers in [-1, 1]; `emblems` a name or "" per side, from the front."""

    kind: str
    colour: str
    pattern: str
    trim: str
    accessory: str
    shape: tuple[float, float, float]
    pattern_phase: float
    emblems: tuple[str, ...] = ()
    emblem_colour: str = "ivory"
    # pose: where it stands on the floor, its scale, and its turn about the vertical, radians
    x: float = 0.0
    z: float = 0.0
    scale: float = 1.0
    yaw: float = 0.0

    def posed(self, **pose) -> "Thing":
        return replace(self, **pose)

    @property
    def extent(self) -> tuple[float, float]:
        """Half the width and the height in the object's own units, with what it wears."""
        half, height = shapes.EXTENT[self.kind]
        top = shapes.TOPS[self.kind][0] + shapes.ACCESSORY_HEIGHT[self.accessory]
        return half, max(height, top)


@dataclass(frozen=True)
class Room:
    """A wall, a floor, a camera and a lamp that can be seen. Colours are sRGB in [0, 1]."""

    wall: tuple[float, float, float]
    floor: tuple[float, float, float]
    camera_height: float
    lamp: tuple[float, float, float]  # position
    lamp_colour: tuple[float, float, float]
    ambient: float  # light without direction, as a share of all light
    brightness: float
    wall_style: str  # plain | window | picture | stripes
    wall_phase: float


@dataclass(frozen=True)
class Scene:
    room: Room
    subject: Thing | None
    others: tuple[Thing, ...] = field(default=())

    @property
    def things(self) -> tuple[Thing, ...]:
        """The subject first, if there is one, then the others."""
        return ((self.subject,) if self.subject else ()) + self.others


def _pick(rng: np.random.Generator, names):
    names = list(names)
    return names[int(rng.integers(len(names)))]


def sample_emblems(rng: np.random.Generator, kind: str) -> tuple[str, ...]:
    """None, one emblem on every side, or another one on each side."""
    sides, choice = shapes.SIDES.get(kind, 6), rng.random()
    if choice < 0.40:
        return ()
    if choice < 0.75:
        return (_pick(rng, shapes.EMBLEMS),) * sides
    return tuple(str(name) for name in rng.choice(shapes.EMBLEMS, sides, replace=False))


def sample_thing(rng: np.random.Generator, **fixed) -> Thing:
    """A random thing without a pose; `fixed` sets any field. The trim never looks like the main colour."""
    colour = fixed.get("colour") or _pick(rng, COLOURS)
    kind = fixed.get("kind") or _pick(rng, CLASSES)
    trims = [name for name in TRIMS if CLASH.get(colour) != name]
    pattern = fixed.get("pattern") or _pick(rng, ("plain", "plain", "plain", *PATTERNS[1:]))
    choice = {
        "kind": kind,
        "colour": colour,
        "pattern": pattern,
        "trim": _pick(rng, trims),
        "accessory": _pick(rng, ("none", "none", "none", *ACCESSORIES[1:])),
        "shape": tuple(float(v) for v in rng.uniform(-1, 1, 3)),
        "pattern_phase": float(rng.uniform(0, 1)),
        # an emblem on a pattern cannot be recognised
        "emblems": sample_emblems(rng, kind) if pattern == "plain" else (),
        "emblem_colour": "navy" if sum(COLOURS[colour]) > 1.75 else "ivory",
    }
    return Thing(**{**choice, **fixed})


def sample_yaw(rng: np.random.Generator) -> float:
    """Mostly from the front and the sides, a quarter from anywhere."""
    return float(rng.uniform(-np.pi, np.pi) if rng.random() < 0.25 else rng.uniform(-1.3, 1.3))


def row_of(room: Room, y: float, z: float) -> float:
    """Where a point over the middle of the floor is seen: the share of the picture's height above it."""
    tilt = np.arctan2(room.camera_height - LOOK_AT, CAMERA_DISTANCE)
    angle = np.arctan2(room.camera_height - y, CAMERA_DISTANCE - z) - tilt
    return float(0.5 + 0.5 * np.tan(angle) / HALF_VIEW)


def sample_pose(rng: np.random.Generator, thing: Thing, room: Room, scale: tuple[float, float]) -> Thing:
    """Stand the thing anywhere on the floor; `scale` bounds its larger side as a share of the picture."""
    half, height = thing.extent
    z = float(rng.uniform(-0.45, 0.75))
    view = 2 * HALF_VIEW * (CAMERA_DISTANCE - z)  # width of the picture at this depth
    size = float(rng.uniform(*scale)) * view / max(height, 2 * half * 0.85)
    while row_of(room, height * size, z) < 0.02:
        size *= 0.95
    room_left = max(view / 2 - half * size * 0.9, 0.0)
    return thing.posed(x=float(rng.uniform(-room_left, room_left)), z=z, scale=size, yaw=sample_yaw(rng))


def sample_colour(
    rng: np.random.Generator, low: float, high: float, tint: float
) -> tuple[float, float, float]:
    """A colour of brightness low to high; `tint` is the largest saturation."""
    hue, saturation = rng.random(), tint * rng.random()
    value = rng.uniform(low, high)
    wave = 0.5 + 0.5 * np.cos(2 * np.pi * (hue - np.array([0, 1 / 3, 2 / 3])))
    red, green, blue = np.clip(value * (1 - saturation + saturation * 1.3 * wave), 0.04, 0.97)
    return float(red), float(green), float(blue)


def sample_room(rng: np.random.Generator) -> Room:
    """A room of any tint, its lamp at the left or at the right edge of the picture."""
    warmth = float(rng.uniform(-1, 1))
    side = 1.0 if rng.random() < 0.5 else -1.0
    depth = float(rng.uniform(-0.5, 0.3))
    edge = HALF_VIEW * (CAMERA_DISTANCE - depth)
    return Room(
        wall=sample_colour(rng, 0.50, 0.90, 0.62),
        floor=sample_colour(rng, 0.32, 0.78, 0.60),
        camera_height=float(rng.uniform(0.9, 1.7)),
        lamp=(side * edge * float(rng.uniform(0.74, 0.90)), float(rng.uniform(1.25, 1.50)), depth),
        lamp_colour=(1.0 + 0.10 * warmth, 1.0, 1.0 - 0.16 * warmth),
        ambient=float(rng.uniform(0.34, 0.50)),
        brightness=float(rng.uniform(0.92, 1.10)),
        wall_style=_pick(rng, WALL_STYLES),
        wall_phase=float(rng.uniform(0, 1)),
    )


def apart(thing: Thing, others: list[Thing], gap: float = 0.78) -> bool:
    """Whether a thing neither stands inside another one nor hides it: compared on the floor and on screen."""
    for other in others:
        reach = (thing.extent[0] * thing.scale + other.extent[0] * other.scale) * gap
        a, b = (t.x / (CAMERA_DISTANCE - t.z) * CAMERA_DISTANCE for t in (thing, other))
        if abs(a - b) < reach * 0.85 or np.hypot(thing.x - other.x, thing.z - other.z) < reach:
            return False
    return True


def sample_scene(
    rng: np.random.Generator,
    subject: Thing | None = None,
    room: Room | None = None,
    others: int | None = None,
    scale: tuple[float, float] = (0.44, 0.74),
) -> Scene:
    """A room with one subject, and `others` smaller things beside it (0 to 2 when not given)."""
    room = room or sample_room(rng)
    subject = sample_pose(rng, subject or sample_thing(rng), room, scale)
    count = int(rng.choice([0, 1, 2], p=[0.35, 0.45, 0.2])) if others is None else others
    placed = [subject]
    for _ in range(count):
        for _ in range(12):
            other = sample_pose(rng, sample_thing(rng), room, (0.34, 0.50))
            if apart(other, placed):
                placed.append(other)
                break
    return Scene(room, subject, tuple(placed[1:]))


WORN = {"none": "", "hat": " wearing a hat", "bow": " wearing a bow", "flag": " with a flag"}


def article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def phrase(looks: list[str], kind: str, accessory: str = "none") -> str:
    """'a photo of a' + looks + kind + what it wears."""
    return f"a photo of {article(' '.join([*looks, kind]))}{WORN[accessory]}"


def looks_of(thing: Thing) -> list[str]:
    return [thing.colour] + ([thing.pattern] if thing.pattern != "plain" else [])


def caption(thing: Thing, token: str = "") -> str:
    """The caption of a hole: 'a photo of a red striped mug wearing a hat'.

    With a `token` the words for its looks are left out, as in few-shot training: 'a photo of a sks mug'.
    """
    return phrase([token], thing.kind) if token else phrase(looks_of(thing), thing.kind, thing.accessory)


EMPTY = "a photo of an empty room"
