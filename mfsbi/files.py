"""Save tensors with a description in one file, and read them, without pickle.

A file is in the safetensors format (https://huggingface.co/docs/safetensors): raw tensors, and a description as
JSON in the header. Reading one runs no code. Files are written aside, flushed to the disk and renamed into place, so
that an interrupted save leaves the old file or none.
"""

import json
import os
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

__all__ = ["FORMAT", "plain", "read", "require_format", "write"]

FORMAT = "mfsbi 1"


def write(path: Path, tensors: dict[str, Tensor], description: dict[str, Any]) -> None:
    """Write tensors and a description that JSON can hold.

    Raises:
        OSError: if the file cannot be written
    """
    if path.is_dir():
        raise OSError(f"Cannot write {path}: a folder is there.")
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    values = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    header = {"format": FORMAT, "description": json.dumps(description, default=plain)}
    header["sha256"] = _digest(values, header["description"])
    try:
        save_file(values, aside, header)
        with aside.open("r+b") as file:  # Windows flushes only what may be written
            os.fsync(file.fileno())
        if _digest(load_file(aside), header["description"]) != header["sha256"]:
            raise OSError(f"Cannot write {path}: what was written reads back otherwise. Is the disk damaged?")
        aside.replace(path)
    except SafetensorError as error:
        raise OSError(f"Cannot write {path}: {error}.") from error
    finally:
        aside.unlink(missing_ok=True)


def plain(number: object) -> object:
    """Return a number of numpy as Python's, for `json.dumps(..., default=plain)`.

    Raises:
        TypeError: if it is something else
    """
    if isinstance(number, np.generic):
        return number.item()
    raise TypeError(f"JSON has no place for {number!r}, a {type(number).__name__}.")


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the description of a file.

    Raises:
        FileNotFoundError: if there is none
        ValueError: if it is not a file of this library, is damaged, was written by a newer version, or has no
            description
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a file of mfsbi: {error}.") from error
    require_format(path, header.get("format"), FORMAT)
    if header.get("sha256", "") not in ("", _digest(tensors, header.get("description", ""))):
        raise ValueError(f"{path} is damaged: its numbers are not those that were written. Take it from its source.")
    fault = f"{path} has no description of what it holds"
    try:
        description = json.loads(header["description"])
    except (KeyError, ValueError, RecursionError) as error:  # ValueError: no JSON, or a number of too many digits
        raise ValueError(f"{fault}: {error}. Save it again.") from error
    if isinstance(description, dict):
        return tensors, description
    raise ValueError(f"{fault}: it should be a JSON object and is a {type(description).__name__}. Save it again.")


def require_format(path: Path, found: object, known: str) -> None:
    """Raise ValueError unless a file or folder is of the format that this version knows."""
    if found != known:
        what = f"{path} should be of format {known!r}; it says {found!r}."
        raise ValueError(f"{what} If a newer mfsbi wrote it, update this one.")


def _digest(tensors: dict[str, Tensor], description: str) -> str:
    """Return a hash of all that a file holds; a file may have none in its header."""
    digest = sha256(description.encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
