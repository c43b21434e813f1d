"""Make every table and picture of the tiny world that the pages show, and say where a page is out of date.

    python dev.py lab reproduce_figures [LAB ...] [--write] [--exact] [--kept] [--out DIR]

A figure stands on a page (README.md, docs/, web/docs/, lab/weights/) between two comments, the first of which
names the command that makes it and the file that this leaves in DIR/LAB; of a table perhaps some columns:

    <!-- lab quality --prompts 200 : quality.md | class | colour -->
    <!-- end -->

Every command is run once; the labs themselves go on where they were interrupted. A number agrees when it lies
within the larger standard error of the printed one; without an error whole numbers must be the same, others
within a quarter; a picture when at most 1 pixel in 100 has another colour. --exact allows none of that: it is
for the machine that made the figures. --write puts what was made onto the pages instead of failing. --kept
takes the files in DIR as they are and runs nothing. DIR is out/ without --out.
"""

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ... import dev

PAGES = ("README.md", "docs/*.md", "web/docs/*.md", "lab/weights/*.md")
FIGURE = re.compile(r"(<!-- lab (?P<what>.+?) -->\n)(?P<text>.*?)(<!-- end -->)", re.DOTALL)
NUMBER = re.compile(r"(-?\d+(?:\.\d+)?(?:e-?\d+)?)(?: \+- (\d+(?:\.\d+)?|nan))?")
SHARE = 0.25  # by which numbers may differ whose error is not printed: these are sure of a digit at most
PIXELS, SHADE = 0.01, 24  # the share of a picture that may differ by more than SHADE of 255
PICTURES = (".png", ".jpg")


@dataclass(frozen=True)
class Figure:
    """One table or picture on a page: `text` is what stands there now, with its comments `head` and `end`."""

    page: Path
    command: tuple[str, ...]  # the lab and its options
    file: str
    columns: tuple[str, ...]
    out: Path
    head: str
    text: str
    end: str

    @classmethod
    def read(cls, page: Path, found: re.Match, out: Path) -> "Figure":
        command, _, rest = found["what"].partition(" : ")
        lab, *options = shlex.split(command)
        file, *columns = (part.strip() for part in (rest or f"{lab}.md").split("|"))
        return cls(page, (lab, *options), file, tuple(columns), out / lab, *found.group(1, "text", 4))

    @property
    def made(self) -> Path:
        return self.out / self.file

    @property
    def is_picture(self) -> bool:
        return self.made.suffix in PICTURES

    @property
    def picture(self) -> Path:
        """The picture that the page shows.

        Raises:
            ValueError: when it shows none.
        """
        shown = re.search(r"\]\((.+?)\)", self.text)
        if not shown:
            raise ValueError(f"{self.page.name}: no picture stands after the comment for {self.file}.")
        return self.page.parent / shown[1]

    def new_text(self) -> str:
        """What should stand on the page."""
        if self.is_picture:
            return self.text
        text = self.made.read_text(encoding="utf-8")
        return "\n" + (only_columns(text, self.columns) if self.columns else text) + "\n"

    def complaints(self, exact: bool = False) -> list[str]:
        """How the page differs from what was made."""
        if self.is_picture:
            return compare_pictures(self.picture, self.made, exact)
        return compare_texts(self.text, self.new_text(), exact)


def only_columns(text: str, columns: Sequence[str]) -> str:
    """The table in a lab's Markdown with its row names, these columns and n; its title and notes left out.

    Raises:
        ValueError: for a column that it does not have.
    """
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    head = [name.strip() for name in rows[0]]
    for name in columns:
        if name not in head:
            raise ValueError(f"The table has no column {name}; it has {', '.join(filter(None, head))}.")
    chosen = [0, *(head.index(name) for name in dict.fromkeys((*columns, "n")))]
    return "".join("|" + "|".join(row[place] for place in chosen) + "|\n" for row in rows)


def compare_texts(printed: str, made: str, exact: bool = False) -> list[str]:
    """The numbers that differ by more than they may; other words must be the same."""
    if printed.split() == made.split():
        return []
    if exact or NUMBER.sub("#", printed).split() != NUMBER.sub("#", made).split():
        return ["another text"]
    pairs = zip(NUMBER.finditer(printed), NUMBER.finditer(made), strict=True)
    return [f"{old[0]} is now {new[0]}" for old, new in pairs if not agree(old, new)]


def agree(old: re.Match, new: re.Match) -> bool:
    """Whether two numbers say the same, as far as they are sure of anything."""
    if old[0] == new[0]:
        return True
    a, b = float(old[1]), float(new[1])
    unit = 10.0 ** -len(old[1].partition(".")[2])
    errors = [float(error) for error in (old[2], new[2]) if error not in (None, "nan")]
    if errors:
        return abs(a - b) <= max(errors) + unit
    return "." in old[1] + new[1] and abs(a - b) <= max(SHARE * max(abs(a), abs(b)), unit)


def compare_pictures(printed: Path, made: Path, exact: bool = False) -> list[str]:
    """How much of the picture is another, if that is more than it may."""
    if not printed.exists():
        return [f"there is no {printed.name}"]
    old, new = (np.asarray(Image.open(path).convert("RGB"), dtype=int) for path in (printed, made))
    if old.shape != new.shape:
        return [f"{old.shape[1]} x {old.shape[0]} pixels are now {new.shape[1]} x {new.shape[0]}"]
    apart = (np.abs(old - new).max(-1) > (0 if exact else SHADE)).mean()
    return [f"{apart:.1%} of the picture is another"] if apart > (0 if exact else PIXELS) else []


def figures(root: Path, out: Path) -> list[Figure]:
    """Every figure on the pages under `root`, in their order; `out` holds a folder of each lab."""
    pages = [page for pattern in PAGES for page in sorted(root.glob(pattern))]
    texts = {page: page.read_text("utf-8") for page in pages}
    return [Figure.read(page, found, out) for page in pages for found in FIGURE.finditer(texts[page])]


def update(shown: Sequence[Figure]) -> None:
    """Puts what was made onto the pages, and the pictures to where the pages show them."""
    for figure in shown:
        if figure.is_picture:
            shutil.copyfile(figure.made, figure.picture)
        old, new = (figure.head + text + figure.end for text in (figure.text, figure.new_text()))
        page = figure.page.read_text("utf-8").replace(old, new)
        figure.page.write_text(page, encoding="utf-8")


def run(command: Sequence[str], out: Path, timeout: float | None = None) -> None:
    """Runs a lab; raises CalledProcessError when it fails, TimeoutExpired after `timeout` seconds."""
    print(f"\n-- lab {shlex.join(command)}", flush=True)
    lab, *options = command
    options += ["--out", str(out / lab)]
    script = {**dev.scripts("tool"), **dev.scripts("lab")}[lab]  # the demo's picture is made by a tool
    program = [sys.executable, *dev.module("inlay." + script.replace("/", "."), *options)]
    with subprocess.Popen(program) as lab_process:
        try:
            lab_process.wait(timeout)
        finally:
            lab_process.terminate()  # with a signal that it can handle
    if lab_process.returncode:
        raise subprocess.CalledProcessError(lab_process.returncode, program)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("labs", nargs="*", metavar="LAB", help="these alone (default: all on the pages)")
    parser.add_argument("--write", action="store_true", help="put what was made onto the pages")
    parser.add_argument("--exact", action="store_true", help="allow no difference at all")
    parser.add_argument("--kept", action="store_true", help="run nothing, take what is there")
    parser.add_argument("--out", type=Path, default=dev.PACK / "out", metavar="DIR", help="for what is made")
    chosen = parser.parse_args()
    found = figures(dev.PACK, chosen.out)
    shown = [figure for figure in found if not chosen.labs or figure.command[0] in chosen.labs]
    if not shown:
        parser.error(f"no page shows a figure of {', '.join(chosen.labs) or 'any lab'}")
    if not chosen.kept:
        for command in dict.fromkeys(figure.command for figure in shown):
            run(command, chosen.out)
    stale = 0
    for figure in shown:
        complaints = figure.complaints(chosen.exact)
        where = f"{figure.page.relative_to(dev.PACK)}: lab {figure.command[0]}: {figure.file}"
        print(f"{where}: {'; '.join(complaints) or 'agrees'}")
        stale += bool(complaints)
    if chosen.write:
        update(shown)
        return 0
    return int(bool(stale))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"\n{error}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"\nA lab ended with {error.returncode}; what it finished is kept, call again to go on.")
