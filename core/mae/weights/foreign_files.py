"""Files of weights as other programs write them, read as names and tensors: .pt, .pth, .ckpt, .bin, safetensors, shards.

A pickle never runs code: torch's `weights_only` reader makes tensors, plain containers and an `argparse.Namespace`. Any
other class of a third party (Lightning's hyper-parameters, a config of somebody's own) becomes an empty `Inert`, so a
training state is read although its classes are not installed. What asks for the operating system is refused by name.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from usfmae.core.checkpoint import read_tensors
from usfmae.core.errors import CheckpointError

logger = logging.getLogger(__name__)

SAFETENSORS = "model.safetensors"  # in a timm or Hugging Face folder
FILES = (SAFETENSORS, "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
# Where a training state keeps its weights. Averaged ones (EMA) are taken only where there are no others.
WRAPPERS = ("model", "state_dict", "model_state_dict", "module", "net", "network", "encoder", "backbone", "weights")
AVERAGED = ("model_ema", "state_dict_ema", "ema", "ema_state_dict", "ema_model", "averaged_model")
# Modules of Python itself that a training state names without any harm. All others of Python are refused.
HARMLESS = {
    *("argparse", "collections", "dataclasses", "datetime", "decimal", "enum", "fractions", "functools", "numbers"),
    *("pathlib", "types", "typing", "uuid", "zoneinfo"),
}
PLAIN = {type_.__name__: type_ for type_ in (bool, complex, dict, float, frozenset, int, list, set, str, tuple)}
MOST_CLASSES = 100  # that a file may name


@dataclass(frozen=True)
class StoredWeights:
    """Tensors by the names of their file, and the training arguments that lay beside them."""

    tensors: dict[str, Tensor]
    arguments: dict[str, Any] = field(default_factory=dict)


class Inert(dict[Any, Any]):
    """Stands for an object of a class that is not needed: takes whatever the file gives it and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setstate__(self, _: Any) -> None:
        pass


def _empty_dict(*_: Any) -> dict[Any, Any]:
    return {}


def _empty_list(*_: Any) -> list[Any]:
    return []


CONTAINERS = {"collections.defaultdict": _empty_dict, "collections.deque": _empty_list}  # and what a file fills instead


def read_stored(path: Path) -> StoredWeights:
    """The weights in a file, or in a folder that holds them under a usual name. Raises CheckpointError."""
    if path.is_dir():
        return read_stored(_in_folder(path))
    if not path.exists():
        raise CheckpointError(f"weights {path}", "do not exist", "give a .safetensors, .pt, .pth, .ckpt or .bin file")
    if path.name.endswith(".index.json"):
        return StoredWeights(_sharded(path))
    if path.suffix == ".safetensors":
        return StoredWeights(read_tensors(path)[0])
    return _state_dict(path, _unpickled(path))


def _in_folder(folder: Path) -> Path:
    for name in FILES:
        if (folder / name).exists():
            return folder / name
    single = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin", ".pt", ".pth"))
    if len(single) == 1:
        return single[0]
    raise CheckpointError(
        f"folder {folder}", f"holds none of {', '.join(FILES)}", "name the file of the weights, not its folder"
    )


def _sharded(index: Path) -> dict[str, Tensor]:
    """The tensors of every file that an index names. CheckpointError where one is missing or leaves the folder."""
    try:
        names = json.loads(index.read_text())["weight_map"]
        parts = sorted(set(names.values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"index {index}", f"is unreadable: {error!r}", "fetch the folder again") from None
    tensors: dict[str, Tensor] = {}
    for part in parts:
        if Path(part).name != part:
            raise CheckpointError(f"index {index}", f"names a file outside its folder: {part}", "do not use this file")
        tensors |= read_stored(index.parent / part).tensors
    absent = sorted(set(names) - set(tensors))
    if absent:
        raise CheckpointError(f"index {index}", f"names tensor {absent[0]}, which no part holds", "fetch it again")
    return tensors


def _unpickled(path: Path) -> Any:
    """What a pickle holds, read without running code. Raises CheckpointError that says which part is refused."""
    allowed: list[Any] = [argparse.Namespace]
    for _ in range(MOST_CLASSES):
        try:
            with torch.serialization.safe_globals(allowed):
                return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # the unpickler raises anything on a hostile or cut file
            refused = re.search(r"(?i)unsupported global:? (?:GLOBAL )?([\w.]+)", str(error))
            if refused is None:
                raise CheckpointError(
                    f"weights {path}", f"are no file of tensors, refused: {_plain(error)}", "ask for safetensors"
                ) from None
            allowed.append(_stand_in(path, refused[1]))
    raise CheckpointError(
        f"weights {path}", "refused: they name more classes than a checkpoint has", "ask for safetensors"
    )


def _stand_in(path: Path, name: str) -> tuple[Callable[..., Any], str]:
    """What takes the place of a class, and its full name. torch calls the parts of `builtins` by their bare names.

    Raises CheckpointError where a file asks for a part of Python that could act, such as `posix.system`.
    """
    if name in PLAIN:
        return PLAIN[name], f"builtins.{name}"
    name = name if "." in name else f"builtins.{name}"
    module = name.split(".")[0]
    if module in sys.stdlib_module_names and module not in HARMLESS:
        raise CheckpointError(
            f"weights {path}",
            f"refused: when opened they ask for {name}, which has no place in a file of weights",
            "do not open this file elsewhere either; ask for safetensors",
        )
    return CONTAINERS.get(name, Inert), name


def _plain(error: Exception) -> str:
    """What torch says, without its advice to switch the protection off."""
    advice = r"(?s)Weights only load failed.*?(?:WeightsUnpickler error:|trusted source\.\n)|Check the documentation.*"
    text = " ".join(re.sub(advice, "", str(error)).split()).strip(" .")
    return text if len(text) > 10 else f"{type(error).__name__} while they were read"


def _state_dict(path: Path, values: Any) -> StoredWeights:
    """The tensors by name, out of whatever a training program wrapped around them."""
    arguments = _arguments(values)
    while isinstance(values, Mapping) and not _is_state_dict(values):
        inner = [n for n in (*WRAPPERS, *AVERAGED) if isinstance(values.get(n), Mapping) and values[n]]
        if not inner:
            break
        if inner[0] in AVERAGED:
            logger.warning("weights %s: only averaged weights (%s) are in the file; they are taken", path, inner[0])
        values = values[inner[0]]
    if not isinstance(values, Mapping) or not _is_state_dict(values):
        raise CheckpointError(f"weights {path}", "holds no state dict", "give a state dict or {'model': state dict}")
    return StoredWeights({str(n): t for n, t in values.items() if isinstance(t, Tensor)}, arguments)


def _is_state_dict(values: Mapping[Any, Any]) -> bool:
    """Names with tensors at the top: an entry or two beside them (a counter, a version) does not matter."""
    return sum(isinstance(value, Tensor) for value in values.values()) > len(values) / 2


def _arguments(values: Any) -> dict[str, Any]:
    """The training arguments, as facebookresearch and timm keep them under `args`."""
    stored = values.get("args") if isinstance(values, Mapping) else None
    if isinstance(stored, argparse.Namespace):
        return vars(stored)
    return {str(k): v for k, v in stored.items()} if isinstance(stored, Mapping) else {}
