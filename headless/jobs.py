"""What a command line asks for as a list of jobs: one, or every combination of the things that vary."""

import hashlib
import itertools
import json
import re
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..common.files import SUFFIXES, read_json
from .client import Client, Graph
from .errors import HostError
from .node_definitions import Definition, is_combo
from .workflow import Setting, find_input, read_value, resolve_setting, with_value

INPUT_FOLDER = "inlay_run"  # in the host's input folder; files in it are named by what they hold


@dataclass(frozen=True)
class Upload:
    """Pictures of ours that a job needs in the host's input folder."""

    files: tuple[tuple[Path, str], ...]  # (ours, its name there)
    subfolder: str

    def to(self, client: Client) -> None:
        """Upload the files to a host."""
        for path, name in self.files:
            client.upload(path, self.subfolder, name)


@dataclass(frozen=True)
class GraphJob:
    """A graph to run once, the pictures it needs, and what was asked for in the user's words."""

    graph: Graph
    labels: tuple[str, ...] = ()  # what this one varies, outermost first; also its folder
    uploads: tuple[Upload, ...] = ()
    settings: tuple[str, ...] = ()

    @cached_property
    def key(self) -> str:
        """The same for the same graph on the same pictures, whenever and wherever it is asked for."""
        return hashlib.sha256(json.dumps(self.graph, sort_keys=True).encode()).hexdigest()

    @property
    def prompt_id(self) -> str:
        """A job's name in every host's queue and history, so that a restarted batch finds it there."""
        return str(uuid.uuid5(uuid.NAMESPACE_OID, self.key))

    def set(self, setting: Setting, definitions: dict[str, Definition]) -> "GraphJob":
        """Return this job with one more setting; a picture or folder of ours goes to the host with it.

        Raises:
            HostError: when the graph has no such node or input, or the value is of another type.
        """
        setting = resolve_setting(self.graph, setting, definitions)
        key, kind, options = find_input(self.graph, setting, definitions)
        upload = find_upload(setting, kind, options)
        value = input_name(upload) if upload else read_value(setting, kind, options)
        # The results state where their pictures were, for an evaluation in any folder.
        said = replace(setting, value=str(Path(setting.value).expanduser().resolve())) if upload else setting
        return replace(
            self,
            graph=with_value(self.graph, key, setting.input, value),
            uploads=(*self.uploads, *([upload] if upload else [])),
            settings=(*self.settings, str(said)),
        )


def is_picture(path: Path) -> bool:
    """Return whether the file is a visible image of a supported format."""
    return path.is_file() and not path.name.startswith(".") and path.suffix.lower() in SUFFIXES


def find_upload(setting: Setting, kind: Any, options: dict) -> Upload | None:
    """Return the picture or folder on this machine that a setting names, for an input that takes one."""
    path = Path(setting.value).expanduser()
    if options.get("image_upload") and path.is_file():
        name = f"{files_digest([path])[:12]}_{upload_name(path)}"
        return Upload(((path, name),), INPUT_FOLDER)
    if is_combo(kind) and not options.get("image_upload") and path.is_dir():
        files = sorted(filter(is_picture, path.iterdir()))
        if not files:
            raise HostError(f"{setting}: there is no picture in that folder.")
        return Upload(
            tuple((file, upload_name(file)) for file in files), f"{INPUT_FOLDER}/{files_digest(files)[:12]}"
        )
    return None


def upload_name(path: Path) -> str:
    """Return the file's name without characters that an upload's header or some systems do not take."""
    return re.sub(r'["\\\\/:*?<>|\x00-\x1f]', "_", path.name)


def input_name(upload: Upload) -> str:
    """Return what the host's nodes call it.

    A picture by its path in the input folder, a folder by its own.
    """
    single = upload.subfolder == INPUT_FOLDER
    return f"{INPUT_FOLDER}/{upload.files[0][1]}" if single else upload.subfolder


def files_digest(files: Iterable[Path]) -> str:
    """Of names and contents."""
    whole = hashlib.sha256()
    for file in files:
        whole.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return whole.hexdigest()


@dataclass(frozen=True)
class Choice:
    """One value of a thing that varies: its name in the results, and all settings that come with it."""

    label: str
    settings: tuple[Setting, ...]


def expand_axis(setting: Setting, kind: Any, options: dict) -> list[Choice]:
    """Return the choices of `--each NODE.input=...`.

    The pictures of a folder, the folders in a folder, or a list.

    `NAME.json` beside a picture or folder NAME may hold further settings, as {"NODE.input": value}.

    Raises:
        HostError: when there is nothing to choose from.
    """
    root = Path(setting.value).expanduser()
    if setting.value.endswith(("/", "\\")) and not root.is_dir():
        raise HostError(f"--each {setting}: there is no such folder.")
    if not (root.is_dir() and is_combo(kind)):
        values = [value.strip() for value in setting.value.split(",") if value.strip()]
        choices = [Choice(slug(value), (replace(setting, value=value),)) for value in values]
    else:
        wanted = is_picture if options.get("image_upload") else Path.is_dir
        found = sorted(path for path in root.iterdir() if wanted(path) and not path.name.startswith("."))
        choices = [_at(path, setting) for path in found]
    if not choices:
        kinds = "pictures" if options.get("image_upload") else "folders of pictures"
        raise HostError(f"--each {setting}: give a folder with {kinds}, or values with commas between them.")
    twice = {choice.label for choice in choices if [c.label for c in choices].count(choice.label) > 1}
    if twice:
        raise HostError(f"--each {setting}: {min(twice)} is there twice; rename one.")
    return choices


def _at(path: Path, setting: Setting) -> Choice:
    label = path.stem if path.is_file() else path.name
    return Choice(label, (replace(setting, value=str(path)), *_beside(path)))


def _beside(path: Path) -> list[Setting]:
    file = path.with_suffix(".json") if path.is_file() else path.with_name(f"{path.name}.json")
    if not file.is_file():
        return []
    try:
        found = read_json(file)
        return [Setting.parse(f"{name}={value}") for name, value in found.items()]
    except (ValueError, AttributeError) as error:
        raise HostError(f'{file} should hold settings, as {{"NODE.input": value}}: {error}.') from error


def slug(text: str) -> str:
    """`text` as a file may be called on every system."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in text).strip("._") or "_"


def plan(
    graph: Graph, sets: Iterable[Setting], each: Iterable[Setting], definitions: dict[str, Definition]
) -> list[GraphJob]:
    """Every combination of the choices, the first varying slowest, with the common settings under them."""
    base = GraphJob(graph)
    for setting in sets:
        base = base.set(setting, definitions)
    each = [resolve_setting(graph, setting, definitions) for setting in each]
    axes = [expand_axis(setting, *find_input(graph, setting, definitions)[1:]) for setting in each]
    jobs = []
    for combination in itertools.product(*axes):
        job = replace(base, labels=tuple(choice.label for choice in combination))
        for setting in itertools.chain.from_iterable(choice.settings for choice in combination):
            job = job.set(setting, definitions)
        jobs.append(job)
    return jobs
