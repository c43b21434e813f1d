"""Where models lie: names that loaders offer, and the files behind a name that came from a workflow."""

import json
from pathlib import Path

import comfy.utils
import folder_paths
from torch import Tensor

INLAY_FOLDER = "inlay"  # models/inlay: adapters, and folders as transformers writes them
WEIGHT_SUFFIXES = ("*.safetensors", "pytorch_model*.bin")


def model_files(kind: str = INLAY_FOLDER) -> list[str]:
    """The files of a kind of model, as the host lists them."""
    _register()
    return folder_paths.get_filename_list(kind)


def model_file(name: str, kind: str, input_name: str) -> str:
    """The path behind a listed name. Raises ValueError when there is none."""
    _register()
    path = folder_paths.get_full_path(kind, name)
    if path is None:
        raise ValueError(f"{input_name}: there is no '{name}' in models/{kind}; put it there.")
    return path


def model_folders() -> dict[str, Path]:
    """The folders of models/inlay that hold a config.json, by name."""
    _register()
    bases = [Path(base) for base in folder_paths.get_folder_paths(INLAY_FOLDER)]
    found = [config.parent for base in bases if base.is_dir() for config in base.glob("*/config.json")]
    return {folder.name: folder for folder in sorted(found)}


def read_folder(folder: Path) -> tuple[dict[str, Tensor], dict]:
    """The weights of a transformers folder, all its shards, and its config.json.

    Raises ValueError when it holds none.
    """
    files = next((found for pattern in WEIGHT_SUFFIXES if (found := sorted(folder.glob(pattern)))), [])
    if not files:
        raise ValueError(f"name: the folder '{folder.name}' holds no weights; put model.safetensors there.")
    state: dict[str, Tensor] = {}
    for file in files:
        state |= read_file(str(file))[0]
    return state, json.loads((folder / "config.json").read_text(encoding="utf-8"))


def read_file(path: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weights of a file and its metadata; pickles are read as tensors only."""
    state, metadata = comfy.utils.load_torch_file(path, safe_load=True, return_metadata=True)
    return state, metadata or {}  # pyright: ignore[reportReturnType]


def _register() -> None:
    """Tell the host of models/inlay, once; extra_model_paths.yaml may have done so already."""
    if INLAY_FOLDER not in folder_paths.folder_names_and_paths:
        paths = [str(Path(folder_paths.models_dir) / INLAY_FOLDER)]
        folder_paths.folder_names_and_paths[INLAY_FOLDER] = (paths, folder_paths.supported_pt_extensions)
