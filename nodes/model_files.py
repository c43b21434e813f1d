"""Where models lie: names that loaders offer, and the files behind a name that came from a workflow."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from torch import Tensor

from ..common.files import read_json

INLAY_FOLDER = "inlay"  # models/inlay: adapters, and folders as transformers writes them
WEIGHT_SUFFIXES = ("*.safetensors", "pytorch_model*.bin")


def model_files(kind: str = INLAY_FOLDER) -> list[str]:
    """Return the files of a kind of model, as the host lists them."""
    _register()
    return folder_paths.get_filename_list(kind)


def model_file(name: str, kind: str, input_name: str) -> str:
    """Return the path behind a listed name. Raises ValueError when there is none."""
    _register()
    path = folder_paths.get_full_path(kind, name)
    if path is None:
        raise ValueError(f"{input_name}: there is no '{name}' in models/{kind}; put it there.")
    return path


def model_folders() -> dict[str, Path]:
    """Return the folders of models/inlay that hold a config.json, by name."""
    _register()
    bases = [Path(base) for base in folder_paths.get_folder_paths(INLAY_FOLDER)]
    found = [config.parent for base in bases if base.is_dir() for config in base.glob("*/config.json")]
    return {folder.name: folder for folder in sorted(found)}


def read_folder(folder: Path) -> tuple[dict[str, Tensor], dict]:
    """Return the weights of a transformers folder, all its shards, and its config.json.

    Raises ValueError when it holds none.
    """
    files = next((found for pattern in WEIGHT_SUFFIXES if (found := sorted(folder.glob(pattern)))), [])
    if not files:
        raise ValueError(f"name: the folder '{folder.name}' holds no weights; put model.safetensors there.")
    state: dict[str, Tensor] = {}
    for file in files:
        state |= read_file(str(file), "name")[0]
    config = read_json(folder / "config.json", "name")
    if not isinstance(config, dict):
        raise ValueError(f"name: '{folder.name}/config.json' holds no settings; download the folder again.")
    return state, config


def read_file(path: str, input_name: str = "file") -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a file and its metadata; pickles are read as tensors only.

    Raises ValueError, naming the input and the file, when it cannot be read or holds no tensors.
    """
    found, metadata = load_weights(path, input_name)
    state = {key: value for key, value in found.items() if isinstance(value, Tensor)}
    if not state:
        raise ValueError(f"{input_name}: '{Path(path).name}' holds no weights; choose another file.")
    return state, metadata


def load_weights(path: str, input_name: str) -> tuple[dict, dict[str, str]]:
    """Return the dictionary of a file of weights, and its metadata. Raises ValueError as `read_file`."""
    name = Path(path).name
    try:
        state, metadata = comfy.utils.load_torch_file(path, safe_load=True, return_metadata=True)
    except comfy.model_management.OOM_EXCEPTION:
        raise
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{input_name}: '{name}' is damaged, or holds Python objects beside its tensors, which are not"
            " opened because they can run programs; get it as .safetensors."
        ) from error
    except Exception as error:
        raise ValueError(
            f"{input_name}: '{name}' is damaged or no file of weights; download it again."
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"{input_name}: '{name}' holds no weights; choose another file.")
    return state, metadata or {}  # pyright: ignore[reportReturnType]


@contextmanager
def recognising(input_name: str, name: str, kind: str) -> Iterator[None]:
    """Names the file when its weights lack a part, or have other shapes than a `kind` has.

    Raises ValueError in place of what the libraries raise then.
    """
    try:
        yield
    except comfy.model_management.OOM_EXCEPTION:
        raise
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith(f"{input_name}: "):
            raise
        raise ValueError(
            f"{input_name}: '{name}' is no {kind}: its weights lack a part or have other shapes; choose"
            " another file, or download it again."
        ) from error


def check_finite_weights(weights: dict[str, Tensor], input_name: str, name: str) -> None:
    """Raise ValueError when a file's weights hold NaN or infinite values."""
    for tensor in weights.values():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(
                f"{input_name}: '{name}' holds NaN or infinite weights; download or train it again."
            )


def _register() -> None:
    """Add models/inlay to the host's folders, once; extra_model_paths.yaml may have done so already."""
    if INLAY_FOLDER not in folder_paths.folder_names_and_paths:
        paths = [str(Path(folder_paths.models_dir) / INLAY_FOLDER)]
        folder_paths.folder_names_and_paths[INLAY_FOLDER] = (paths, folder_paths.supported_pt_extensions)
