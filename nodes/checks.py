"""Checks that every node makes of what is wired into it."""

import functools
from collections.abc import Callable
from typing import TypeVar

import torch

MENDS = {
    "clip": "wire the text encoder of a checkpoint that has one, or Load CLIP",
    "vae": "wire the VAE of a checkpoint that has one, or Load VAE",
    "encoder": "wire Load Image Encoder or Load CLIP Vision; this adapter's file holds no encoder",
    "clip_vision": "wire Load Image Encoder or Load CLIP Vision",
}


REQUIRED_ATTRIBUTES = {  # what each input is asked for; wildcard outputs of other packs connect to anything
    "model": "model_options",
    "clip": "tokenize",
    "vae": "spacial_compression_encode",
    "encoder": "encode_image",
    "clip_vision": "encode_image",
    "adapter": "patcher",
    "embedding_optimizer": "patcher",
    "guider": "model_patcher",
    "noise": "generate_noise",
    "sampler": "sample",
    "subject": "attributes",
    "previous": "lora",
    "background_removal": "encode_image",
}
Execute = TypeVar("Execute", bound=Callable)
CONDITIONINGS = {"positive", "negative"}


def check_wired(**inputs) -> None:
    """Raise ValueError, naming the first input without a value or with one of another kind.

    Loaders give None for what a file lacks.
    """
    for name, value in inputs.items():
        mend = MENDS.get(name, f"wire a {name} that was loaded")
        if value is None:
            raise ValueError(f"{name}: there is none; {mend}.")
        if name in REQUIRED_ATTRIBUTES and not hasattr(value, REQUIRED_ATTRIBUTES[name]):
            raise ValueError(f"{name}: it is a {type(value).__name__}; {mend}.")
        if name in CONDITIONINGS and not (isinstance(value, list) and value and all(map(_is_prompt, value))):
            raise ValueError(f"{name}: it holds no prompt; wire CLIP Text Encode.")


COUNTED = {"masks", "regular_masks", "reference_masks"}  # compared in number with their pictures


def check_list_inputs(execute: Execute) -> Execute:
    """Make `execute` of a node with list inputs raise ValueError for an empty list and a broken text.

    Nodes that filter lists may leave nothing; a list holds at least one value otherwise.
    """

    @functools.wraps(execute)
    def checked(cls, *args, **inputs):
        for name, values in inputs.items():
            if isinstance(values, list) and not values and name not in COUNTED:
                raise ValueError(f"{name}: the list that is wired in is empty; wire one with an entry.")
        check_texts(**inputs)
        return execute(cls, *args, **inputs)

    return checked  # pyright: ignore[reportReturnType]


def check_texts(**inputs) -> None:
    """Raise ValueError, naming the input, for a text or a list with one that holds half of a character.

    JSON can hold one half of a surrogate pair; no text encoder and no file takes it.
    """
    for name, values in inputs.items():
        for text in values if isinstance(values, list | tuple) else [values]:
            if isinstance(text, str) and not text.isascii():
                try:
                    text.encode()
                except UnicodeEncodeError:
                    raise ValueError(f"{name}: it holds half of a character; type the text again.") from None


def _is_prompt(entry: object) -> bool:
    """Return a part of a CONDITIONING: embeddings and their settings."""
    return isinstance(entry, list | tuple) and len(entry) == 2 and isinstance(entry[1], dict)


def check_inpaint_patch(patch) -> None:
    """Raise ValueError for what is not Fooocus' patch."""
    if patch is None:
        return
    pair = isinstance(patch, tuple | list) and len(patch) == 2
    if not (pair and isinstance(patch[0], torch.nn.Module) and isinstance(patch[1], dict)):
        raise ValueError("inpaint_patch: this is no inpaint patch; wire Load Fooocus Inpaint.")
