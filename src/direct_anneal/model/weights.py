"""Weights that fit their architecture: every tensor has its place and every place its tensor, or the model is refused.

Two kinds of leftover tensors are no weights: what the architecture itself says to ignore (transformers' own lists), and
buffers that are computed and not learned. A tied head may be left out of the files, since it is the embedding.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from direct_anneal.errors import InputError
from direct_anneal.io.records import MAX_BYTES, read_content
from direct_anneal.model.saved import require_unpacked

WEIGHTS = ("*.safetensors", "*.bin")

# Computed from the configuration, not learned; older versions of transformers wrote them into their files.
COMPUTED = re.compile(r"(^|\.)(inv_freq|rotary_emb\.(cos|sin)_cached|masked_bias|position_ids)$")
_SHOWN = 3

_TORCH_DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_PLAIN = set(_TORCH_DTYPES.values())
_QUANTISED_NAME = re.compile(
    r"\.(qweight|qzeros|g_idx|SCB|absmax|quant_map|quant_state(\.\S+)?|nested_absmax|weight_scale(_inv)?|"
    r"weight_packed|weight_format|input_scale)$"
)

_LARGEST_SIZE = 1 << 31  # of any one size in a configuration
_MOST_MODULES = 1 << 16  # layers or experts, which are built one by one
_SIZE = re.compile(r"(^|_)(size|dim|embd|heads|layers?|experts|positions|embeddings|n_\w+|inner|ctx)$")
_COUNT = re.compile(r"(layers?|experts|n_layer|heads)$")


@dataclass(frozen=True)
class Stored:
    """A tensor in a file.

    Attributes:
        dtype: as safetensors spells it.
        shape: of it.
    """

    dtype: str
    shape: tuple[int, ...]


def require_model_directory(directory: Path, name: str) -> None:
    """See that a directory holds a whole model, and neither an adapter nor another trainer's checkpoint.

    Raises:
        InputError: it does not; says how to make one of it.
    """
    has_config = (directory / "config.json").is_file()
    if (directory / "adapter_config.json").is_file():
        base = read_json(directory / "adapter_config.json").get("base_model_name_or_path")
        raise InputError(
            field="model",
            must="be a whole model",
            got=f"but {name} holds a PEFT adapter{f' for {base}' if base else ''} (adapter_config.json)",
            do="merge it into its base with PEFT's merge_and_unload(), save that with save_pretrained, and name the "
            "directory",
        )
    if has_config:
        return
    if (directory / ".metadata").is_file():
        raise InputError(
            field="model",
            must="be a Hugging Face checkpoint",
            got=f"but {name} is one of torch.distributed.checkpoint",
            do=f"make one of it with direct-anneal convert {name} --model-config PATH --out DIR",
        )
    raise InputError(
        field="model",
        must="be a checkpoint directory with config.json and weights",
        got=f"but {name} has no config.json",
        do="name the directory that save_pretrained wrote",
    )


def require_files(directory: Path, name: str) -> None:
    """See that a checkpoint's files can be opened: regular ones, and descriptions of a sane size.

    Raises:
        InputError: one waits for a writer, or never ends.
    """
    for path in sorted(directory.iterdir()):
        try:
            found = path.stat()
        except OSError:  # a link to nothing is missed where it is needed
            continue
        is_regular, is_text = stat.S_ISREG(found.st_mode), path.suffix in (".json", ".txt", ".jinja", ".model")
        if not (is_regular or stat.S_ISDIR(found.st_mode)) or (is_text and found.st_size > MAX_BYTES):
            raise InputError(
                field="model",
                must="hold regular files alone, and descriptions of at most 256 MiB",
                got=f"but {path.name} of {name} has {found.st_size:,} bytes" if is_regular else f"but {path} is none",
                do="fetch or save the checkpoint again",
            )


def require_plain_archives(files: Iterable[Path]) -> None:
    """See that weights which torch saved are no packed archives.

    Raises:
        InputError: they are, or they are no archives that can be read.
    """
    for path in files:
        try:
            require_unpacked(path)
        except (OSError, ValueError) as error:
            raise InputError(
                subject=str(path),
                must="hold weights as torch.save writes them",
                got=f"but {error}",
                do="save them again",
            ) from error


def require_sizes(config: Any, name: str) -> None:
    """See that the sizes of a configuration can be built at all, before anything is.

    Raises:
        InputError: one is negative, or larger than any model's.
    """
    for part in {id(part): part for part in (config, config.get_text_config())}.values():
        for field, value in part.to_dict().items():
            if isinstance(value, bool) or not isinstance(value, int) or not _SIZE.search(field):
                continue
            largest = _MOST_MODULES if _COUNT.search(field) else _LARGEST_SIZE
            if not -1 <= value <= largest:  # -1 is some configurations' word for "none"
                raise InputError(
                    subject=f"{field} in the configuration of {name}",
                    must=f"be at least 0 and at most {largest:,}",
                    got=value,
                    do="mend config.json, or fetch the checkpoint again",
                )


def require_plain(config: Any, tensors: dict[str, Stored], name: str) -> None:
    """See that weights are numbers, not codes of a quantisation: gradients of rounded weights are another model's.

    Args:
        config: of the model.
        tensors: by name, what the files hold.

    Raises:
        InputError: they are quantised.
    """
    method = None
    stated = getattr(config, "quantization_config", None)
    if stated is not None:
        as_dict = stated if isinstance(stated, dict) else stated.to_dict()
        method = str(as_dict.get("quant_method") or "a method that it does not name")
    coded = sorted(tensor for tensor in tensors if _QUANTISED_NAME.search(tensor))
    coded += sorted(
        tensor for tensor, stored in tensors.items() if tensor.endswith("weight") and stored.dtype not in _PLAIN
    )
    if method is None and not coded:
        return
    reason = f"quantization_config says {method}" if method is not None else f"there is {coded[0]}"
    raise InputError(
        field="model",
        must="hold weights in float32, bfloat16 or float16",
        got=f"but {name} is quantised ({reason})",
        do="name the checkpoint that it was made from, or load it, call dequantize() and save_pretrained",
    )


def require_shapes(model: nn.Module, tensors: dict[str, Stored], name: str) -> None:
    """See that every tensor that model and files name alike has one shape in both.

    Args:
        model: of the configuration; may be on the meta device.
        tensors: what the files hold.

    Raises:
        InputError: one has another shape.
    """
    places = model.state_dict()
    wrong = [key for key, stored in tensors.items() if key in places and tuple(places[key].shape) != stored.shape]
    if wrong:
        key = min(wrong)
        raise InputError(
            field="model",
            must="hold weights of the shapes that its config.json asks for",
            got=f"but in {name} {len(wrong)} differ: {key} is {tensors[key].shape} in the files and "
            f"{tuple(places[key].shape)} in the model",
            do="put the config.json beside the weights that was saved with them",
        )


def require_fit(model: Any, report: Any, name: str) -> None:
    """See that weights and architecture fit.

    Args:
        model: as it was loaded.
        report: what transformers says of loading it: `missing_keys`, `unexpected_keys`.

    Raises:
        InputError: a weight is missing or left over, or a head that should be the embedding is another.
    """
    if missing := sorted(report["missing_keys"]):  # transformers would go on with random numbers in their place
        raise InputError(
            field="model",
            must="hold every weight of its architecture",
            got=f"but {name} lacks {len(missing)} ({_first(missing)})",
            do="save the checkpoint again with save_pretrained, or put the config.json beside it that belongs to it",
        )
    if left := sorted(key for key in report["unexpected_keys"] if not COMPUTED.search(key)):
        raise InputError(
            field="model",
            must="use every weight in its files",
            got=f"but {name} holds {len(left)} that its config.json has no place for ({_first(left)})",
            do="put the config.json beside the weights that was saved with them, or save the model that you mean again "
            "with save_pretrained",
        )
    if getattr(model.config.get_text_config(), "tie_word_embeddings", False):
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        if head is not None and embedding is not None and not _same(embedding.weight, head.weight):
            raise InputError(
                field="model",
                must="have one reading",
                got=f"but config.json of {name} says that embedding and head are one (tie_word_embeddings), and the "
                "files hold two that differ",
                do="set tie_word_embeddings to false there, or leave the head out of the files",
            )


def require_memory(model: nn.Module, name: str, dtype: torch.dtype) -> None:
    """See that a model, built without memory on the meta device, could be loaded into this machine's.

    Raises:
        InputError: it is larger than all memory.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    needed = parameters * dtype.itemsize + sum(buffer.numel() * buffer.itemsize for buffer in model.buffers())
    memory = _memory()
    if memory and needed > memory:
        raise InputError(
            field="model",
            must="fit into this machine's memory",
            got=f"but config.json of {name} describes {parameters:,} parameters, {needed / 2**30:,.0f} GiB with "
            f"buffers, and there are {memory / 2**30:,.0f} GiB",
            do="take a larger machine or dtype bfloat16, or mend the sizes in config.json",
        )


def _memory() -> int:
    """Return bytes of this machine's memory; 0 where it does not say."""
    try:
        return max(0, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):
        return 0


def stored_tensors(files: Iterable[Path]) -> dict[str, Stored]:
    """Return every tensor in files of weights by name, without its values; what cannot be read is left to loading."""
    found: dict[str, Stored] = {}
    for path in files:
        if path.suffix == ".safetensors":
            with suppress(SafetensorError, OSError, ValueError), safe_open(path, framework="pt") as stream:
                for key in stream.keys():  # noqa: SIM118 - no mapping
                    part = stream.get_slice(key)
                    found[key] = Stored(part.get_dtype(), tuple(part.get_shape()))
        else:
            with suppress(Exception):
                content = torch.load(path, map_location="meta", weights_only=True, mmap=True)
                for key, tensor in content.items():
                    if isinstance(tensor, Tensor):
                        found[key] = Stored(_TORCH_DTYPES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape))
    return found


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.shape == other.shape and bool(torch.equal(one, other)))


def _first(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def read_json(path: Path) -> dict[str, Any]:
    """Return an object of JSON; empty where there is none, which whoever needs it says.

    Raises:
        InputError: there is a file that holds something else.
    """
    try:
        content = json.loads(read_content(path))  # with infinities, which some configurations have
        if not isinstance(content, dict):
            raise ValueError(f"it is a {type(content).__name__}")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            subject=str(path), must="hold a JSON object", got=f"but {reason}", do="fetch or save the checkpoint again"
        ) from error
    return content
