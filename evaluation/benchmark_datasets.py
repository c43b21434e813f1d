"""Benchmarks as people download them -> cases: a subject's pictures, a background with its hole, a prompt.

Nothing is downloaded. A case's name is where its result is looked for, below the folder of results.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..common.files import SUFFIXES, read_json, read_text
from ..imaging.boxes import Box
from ..imaging.references import list_references, natural_order
from . import BENCHMARKS

References = tuple[tuple[Path, Path | None], ...]  # (picture, its mask's file or None)


@dataclass(frozen=True)
class Case:
    """One picture to make and to judge. `hole` is a box in the background's pixels, or a mask (white = hole).

    `prompt` has `{subject}` where the subject's words go. Without a background the whole picture is judged.
    """

    name: str
    references: References
    class_name: str
    prompt: str = "a photo of {subject}"
    background: Path | None = None
    hole: Box | Path | None = None

    @property
    def caption(self) -> str:
        """The prompt in plain words, as CLIP-T takes it; empty where the subject is unknown."""
        if "{subject}" in self.prompt and not self.class_name:
            return ""
        return self.prompt.replace("{subject}", self.class_name)


def pictures(folder: Path) -> list[Path]:
    """Return the pictures in a folder that are no masks, in natural order.

    None where there is no such folder.
    """
    if not folder.is_dir():
        return []
    found = (p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    return sorted((p for p in found if not re.search(r"[_-](mask|bbox)$", p.stem)), key=natural_order)


def masked_pictures(folder: Path) -> References:
    """Photos (jpg) with their masks: `3.png` beside `3.jpg`, or `3_mask.png`."""
    photos = [p for p in pictures(folder) if p.suffix.lower() in (".jpg", ".jpeg")]
    return tuple((photo, _beside(photo, "", "_mask", "-mask")) for photo in photos)


def _beside(picture: Path, *endings: str) -> Path | None:
    """Return the first file NAME<ending>.png beside the picture NAME."""
    files = (picture.with_name(f"{picture.stem}{ending}.png") for ending in endings)
    return next((file for file in files if file.is_file() and file != picture), None)


def words(folder_name: str) -> str:
    """Return a folder's name as words: `Fire_hydrant` is a fire hydrant, `dog2` a dog."""
    return re.sub(r"\d+$", "", folder_name).replace("_", " ").strip().lower()


def murecom(root: Path, subjects: Path | None = None) -> Iterator[Case]:
    """Yield MureCom's cases (Lu et al. 2023).

    Layout: `<Category>/bg/N.jpg` with `bbox.txt` (category, file, x1 y1 x2 y2) or `N_bbox.png`, and the
    subjects `fg1`, `fg2`, `fg3` with masks. Names: Category/fgK/N.
    """
    for category in _folders(root):
        holes = _bbox_txt(category / "bg" / "bbox.txt")
        for subject in sorted(category.glob("fg[0-9]*")):
            references = masked_pictures(subject)
            for background in pictures(category / "bg"):
                hole = _beside(background, "_bbox") or holes.get(background.name)
                if references and hole:
                    name = f"{category.name}/{subject.name}/{background.stem}"
                    yield Case(name, references, words(category.name), background=background, hole=hole)


def _bbox_txt(file: Path) -> dict[str, Box]:
    if not file.is_file():
        return {}
    rows = [line.split() for line in read_text(file).splitlines() if line.strip()]
    return {row[-5]: _corners(row[-4:]) for row in rows}


def _corners(numbers) -> Box:
    """x1, y1, x2, y2."""
    left, top, right, bottom = map(int, map(float, numbers))
    return Box(top, left, bottom, right)


def dreambooth(root: Path, subjects: Path | None = None) -> Iterator[Case]:
    """Yield DreamBooth's cases, 30 subjects times 25 prompts (Ruiz et al. 2023).

    Layout: `<subject>/NN.jpg` and `prompts_and_classes.txt`, in the repository's `dataset` folder. Names:
    subject/prompt number.
    """
    root = root / "dataset" if (root / "dataset").is_dir() else root
    facts = root / "prompts_and_classes.txt"
    if not facts.is_file():
        raise ValueError(f"{root} holds no prompts_and_classes.txt; give DreamBooth's dataset folder.")
    text = read_text(facts)
    classes = dict(re.findall(r"^(\w+),([\w ]+?)\s*$", text, re.MULTILINE))
    things, creatures = (re.findall(r"^'(.+?)'", part, re.MULTILINE) for part in text.split("Live Subject"))
    for subject in _folders(root):
        kind = classes.get(subject.name, words(subject.name))
        for number, prompt in enumerate(creatures if kind in ("cat", "dog") else things):
            prompt = prompt.replace("{0} {1}", "{subject}")
            yield Case(f"{subject.name}/{number:02}", _references(subject), kind, prompt)


def dreameditbench(root: Path, subjects: Path | None = None) -> Iterator[Case]:
    """Yield DreamEditBench's cases; its subjects are DreamBooth's, in `subjects`.

    Layout: `data/<subset>_source/<subject>/*.jpg`, subset replacement or addition, with the hole as
    `NAME_mask.png` or `NAME_bbox.png` beside the picture. Also the layout with
    `<subject>/bg/content.json` and `<subject>/fg`. Names: subset/subject/picture.
    """
    known = subject_folders(subjects) if subjects else {}
    for source in sorted(root.glob("**/*_source")):
        for folder in _folders(source):
            if folder.name not in known:
                raise ValueError(f"DreamEditBench: no pictures of {folder.name}; give --subjects.")
            for picture in pictures(folder):
                name = f"{source.name.removesuffix('_source')}/{folder.name}/{picture.stem}"
                hole = _beside(picture, "_mask", "_bbox")
                yield Case(name, known[folder.name], words(folder.name), background=picture, hole=hole)
    for content in sorted(root.glob("*/bg/content.json")):
        subject = content.parent.parent
        for item in read_json(content):
            picture = content.parent / item["image"]
            yield Case(
                f"{subject.name}/{picture.stem}",
                masked_pictures(subject / "fg"),
                words(subject.name),
                background=picture,
                hole=_corners(item["bbox"]),
            )


def coco(root: Path, subjects: Path | None = None) -> Iterator[Case]:
    """Yield subjects in turn on COCO's pictures, in the place of their largest object.

    DreamMix's benchmark is of this kind (Yang et al. 2024). Layout: `annotations/instances_*.json` with the
    pictures in `*2017/`, small ones left out; or a folder of pictures with `NAME_mask.png` beside them.
    Names: the picture.
    """
    if subjects is None:
        raise ValueError("coco: it holds backgrounds alone; say where the subjects are with --subjects.")
    known = sorted(subject_folders(subjects).items())
    for number, (background, hole) in enumerate(_coco_holes(root)):
        name, references = known[number % len(known)]
        yield Case(background.stem, references, words(name), background=background, hole=hole)


SMALLEST_PICTURE, SMALLEST_BOX = 400, 64  # pixels of the shorter side


def _coco_holes(root: Path) -> Iterator[tuple[Path, Box | Path]]:
    annotations = sorted(root.glob("annotations/instances_*.json"))
    if not annotations:
        for picture in pictures(root):
            if hole := _beside(picture, "_mask", "-mask"):
                yield picture, hole
        return
    document = read_json(annotations[0])
    folder = root / annotations[0].stem.removeprefix("instances_")
    largest: dict[int, tuple[float, list]] = {}
    for item in document["annotations"]:
        if not item.get("iscrowd") and item["area"] > largest.get(item["image_id"], (0, []))[0]:
            largest[item["image_id"]] = item["area"], item["bbox"]
    for image in document["images"]:
        x, y, width, height = largest.get(image["id"], (0, [0, 0, 0, 0]))[1]
        large = min(image["width"], image["height"]) >= SMALLEST_PICTURE
        if large and min(width, height) >= SMALLEST_BOX:
            yield folder / image["file_name"], _corners((x, y, x + width, y + height))


def cocoee(root: Path, subjects: Path | None = None) -> Iterator[Case]:
    """Yield the cases of COCOEE, Paint-by-Example's test bench (Yang et al. 2023).

    Layout: `GT_3500/ID_GT.png`, `Mask_bbox_3500/ID_mask.png` (white = hole) and `Ref_3500/ID_ref.png`. Names:
    the ID.
    """
    for background in pictures(root / "GT_3500"):
        key = background.stem.removesuffix("_GT")
        hole, reference = root / "Mask_bbox_3500" / f"{key}_mask.png", root / "Ref_3500" / f"{key}_ref.png"
        if hole.is_file() and reference.is_file():
            yield Case(key, ((reference, None),), "object", background=background, hole=hole)


def batch_results(root: Path, subjects: Path | None = None) -> Iterator[Case]:
    """Yield the results of `python -m inlay run --each ...`.

    Layout: a folder for each result, whose `result.json` has the inputs that its picture was made from.
    Names: the folder.
    """
    for file in sorted(root.glob("**/result.json")):
        facts = read_json(file)
        if not isinstance(facts, dict) or not facts.keys() >= {"graph", "settings"}:
            raise ValueError(f"{file} is no result of inlay run; remove its folder.")
        nodes = [node["inputs"] for node in facts["graph"].values()]
        boxes = [node["inputs"] for node in facts["graph"].values() if node["class_type"] == "InlayBoxMask"]
        values = [setting.partition("=")[2] for setting in facts["settings"]]
        given = [(file.parent / value).resolve() for value in values if value]
        folders = [path for path in given if path.is_dir()]
        rooms = [path for path in given if path.is_file()]
        kind, token = next(_typed(nodes, "class_name"), ""), next(_typed(nodes, "token"), "")
        texts = [text for name in ("text", "prompt") for text in _typed(nodes, name) if kind and kind in text]
        yield Case(
            file.parent.relative_to(root).as_posix(),
            _references(folders[0]) if folders else (),
            kind,
            texts[0].replace(f"{token} {kind}", "{subject}") if texts else "{subject}",
            rooms[0] if rooms else None,
            next(filter(None, map(_typed_box, boxes)), None) if rooms else None,
        )


def _typed(nodes: Iterable[dict], name: str) -> Iterator[str]:
    """Return what was typed into an input of that name, in any node; a wired input holds a list."""
    return (node[name] for node in nodes if isinstance(node.get(name), str) and node[name])


def _typed_box(node: dict) -> Box | None:
    """Return the box of a Box Mask, unless a side of it comes by wire."""
    x, y, width, height = (node[name] for name in ("x", "y", "width", "height"))
    typed = all(isinstance(side, int) for side in (x, y, width, height))
    return Box(y, x, y + height, x + width) if typed else None


def subject_folders(root: Path) -> dict[str, References]:
    """Name -> pictures of every subject in a folder of folders, such as DreamBooth's `dataset`."""
    root = root / "dataset" if (root / "dataset").is_dir() else root
    return {folder.name: _references(folder) for folder in _folders(root)}


def _references(folder: Path) -> References:
    return tuple(list_references(folder))


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


READERS: dict[str, Callable[[Path, Path | None], Iterator[Case]]] = dict(
    zip(BENCHMARKS, (batch_results, murecom, dreambooth, dreameditbench, coco, cocoee), strict=True)
)


def read_cases(benchmark: str, root: Path, subjects: Path | None = None) -> list[Case]:
    """All cases of a benchmark. Raises ValueError when there are none, or a folder is not there."""
    for folder in filter(None, (root, subjects)):
        if not folder.is_dir():
            raise ValueError(f"There is no folder {folder}.")
    try:
        cases = list(READERS[benchmark](root, subjects))
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(
            f"{root}: a file of {benchmark} lacks a part ({error}); download or make it again."
        ) from error
    if not cases:
        layout = (READERS[benchmark].__doc__ or "").partition("Layout: ")[2].split("Names:")[0].strip()
        raise ValueError(f"{root} holds no case of {benchmark}, whose layout is: {' '.join(layout.split())}")
    return cases
