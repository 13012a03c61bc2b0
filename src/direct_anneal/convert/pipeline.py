"""Convert a distributed checkpoint to a Hugging Face directory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM

from direct_anneal.config.files import ConvertConfig
from direct_anneal.config.signature import takes
from direct_anneal.convert.dcp_metadata import Entry, read_entries, read_tensor, read_value
from direct_anneal.convert.weight_names import Naming, recognise
from direct_anneal.errors import InputError, option
from direct_anneal.gradients import trainer_groups
from direct_anneal.io.atomic import TEMPORARY_SUFFIX, flush_to_disk, remove
from direct_anneal.io.digests import sha256, sha256_of_file
from direct_anneal.io.lock import LOCK, MARK, held
from direct_anneal.io.records import RecordError, read_record, write_record
from direct_anneal.model.checkpoint import Checkpoint
from direct_anneal.model.saved import OPTIMIZER_FILE
from direct_anneal.progress import current_progress

_SHARD_BYTES = 4 * 2**30
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")
_BESIDE = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model")
_DONE = ".done.json"  # beside each shard of weights that is whole, until all is
_GENERATION = "generation_config.json"


@takes(ConvertConfig)
def convert(config: ConvertConfig) -> dict[str, Any]:
    """Write what `torch.distributed.checkpoint` saved, as torchtitan does, as a Hugging Face checkpoint.

    Names are Hugging Face's own, or torchtitan's for Llama and Qwen3, whose order of rows in q and k is turned back.
    Adam's moments, where the checkpoint has them for every weight, go into optimizer.pt, in the two parameter groups
    of transformers' Trainer. The number of processes that saved it does not matter. No pickle in it is loaded.

    Returns:
        {"naming", "num_weights", "num_parameters", "optimizer" (whether there is one)}.

    Raises:
        InputError: the checkpoint is damaged, holds something other than tensors and numbers, or is not of the model
            that the configuration describes: it lacks weights, or has more.

    Cost: memory 4 GiB of weights, and for the optimizer's state all of it.
    """
    source, out = Path(config.checkpoint), Path(config.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(field="out", must="be a new or empty directory", got=f"but {out} is not", do="choose another")
    try:
        # As it was given: "./name" is a directory, "name" may be the hub's.
        described = Checkpoint(config.model_config.removesuffix("config.json") or ".")
    except InputError as error:
        raise InputError(field="model_config", must=error.must, got=error.got, do=error.do) from error
    model = _skeleton(described)
    shapes = {name: tuple(weight.shape) for name, weight in _weights(model).items()}
    entries = read_entries(source)
    tensors = {name: entry for name, entry in entries.items() if entry.dtype is not None}
    naming = recognise(tensors, shapes, described.config)
    for name, shape in shapes.items():
        if (found := tensors[naming.found[name]].shape) != shape:
            raise InputError(
                subject="the checkpoint",
                must=f"be of {option('model_config')}'s model",
                got=f"but its {naming.found[name]} has shape {found} where {name} has {shape}",
                do="give its own config",
            )
    _check_all_placed(source, tensors, naming, model)
    shown = current_progress()
    with _working_directory(out, _made_of(source, described)) as temporary:
        with shown.stage("Converting the weights", "weights", len(shapes)) as advance:
            _write_weights(temporary, source, tensors, naming, advance)
        has_optimizer = _write_optimizer(temporary, source, entries, naming, model)
        _write_config(temporary, described, tensors[naming.found[next(iter(shapes))]].dtype)
        for path in temporary.iterdir():
            if path.is_file():
                flush_to_disk(path)
    return {
        "naming": naming.name,
        "num_weights": len(shapes),
        "num_parameters": sum(weight.numel() for weight in model.parameters()),
        "optimizer": has_optimizer,
    }


def _made_of(source: Path, described: Checkpoint) -> dict[str, Any]:
    """Return the inputs of a conversion, as plain JSON values."""
    files = sorted(path for path in source.iterdir() if path.is_file())
    states = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    return {
        "converted": states,
        "model_config": sha256(described.config.to_json_string()),
        "tokenizer": described.tokenizer_fingerprint(),
        "version": version("direct-anneal"),
    }


@contextmanager
def _working_directory(out: Path, made_of: dict[str, Any]) -> Iterator[Path]:
    """Yield a directory beside `out` that becomes `out` on a clean exit; a killed conversion goes on there.

    Raises:
        InputError: another conversion is at work, or something else lies in its place.
    """
    temporary = out.with_name(out.name + TEMPORARY_SUFFIX)
    if temporary.is_symlink() or (temporary.exists() and any(temporary.iterdir()) and not (temporary / MARK).is_file()):
        raise InputError(f"{temporary} is in the way: remove it")
    with held(temporary):
        try:
            known = read_record(temporary / MARK)
        except (OSError, RecordError):
            known = {}
        if known != made_of:
            for path in temporary.iterdir():
                if path.name != LOCK:
                    remove(path)
            write_record(temporary / MARK, made_of)
        try:
            yield temporary
        except Exception:  # what a kill or Ctrl-C leaves is gone on with; what failed is not
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        for path in [temporary / MARK, *temporary.glob(f"*{_DONE}")]:
            path.unlink()
        if out.exists():
            out.rmdir()
    temporary.rename(out)


def _skeleton(described: Checkpoint) -> nn.Module:
    """Return the model without its weights."""
    try:
        with torch.device("meta"):
            model: nn.Module = AutoModelForCausalLM.from_config(described.config)
    except ValueError as error:
        raise InputError(
            field="model_config",
            must="be the config of a causal language model that transformers knows",
            got=f"but that of {described.name} is not ({' '.join(str(error).split())[:120]})",
        ) from error
    return model


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return weights by name; of those that are tied the first, as `parameters` has them."""
    state = model.state_dict(keep_vars=True)
    copies = _tied(model)
    return {name: weight for name, weight in state.items() if name not in copies}


def _tied(model: nn.Module) -> dict[str, str]:
    """Return further names of tied weights → the first name."""
    first: dict[int, str] = {}
    names = {name: first.setdefault(id(weight), name) for name, weight in model.state_dict(keep_vars=True).items()}
    return {name: kept for name, kept in names.items() if name != kept}


def _check_all_placed(source: Path, tensors: dict[str, Entry], naming: Naming, model: nn.Module) -> None:
    """See that no weight of the checkpoint is left out of the model.

    Raises:
        InputError: the model has no place for some, or ties two that differ.
    """
    copies = _tied(model)
    # What the model's own class passes over, too, such as masks that earlier versions saved.
    buffers = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    if extra := naming.unplaced(tensors, copies, buffers):
        raise InputError(
            subject="the checkpoint",
            must=f"hold no other weights than the model of {option('model_config')}",
            got=f"but it has {len(extra)} more (first {extra[0]})",
            do="give its own config, or save the model without them",
        )
    for copy, kept in copies.items():
        for theirs in set(naming.names_of(copy)) & tensors.keys():
            one, other = (tensors[name] for name in (theirs, naming.found[kept]))
            if (one.shape, one.dtype) != (other.shape, other.dtype) or not torch.equal(
                read_tensor(source, one), read_tensor(source, other)
            ):
                raise InputError(
                    subject="the checkpoint",
                    must=f"tie {copy} to {kept}, as {option('model_config')} does",
                    got=f"but its {theirs} differs from its {naming.found[kept]}",
                    do="give its own config, with tie_word_embeddings false",
                )


def _write_weights(directory: Path, source: Path, tensors: dict[str, Entry], naming: Naming, advance: Any) -> None:
    index: dict[str, str] = {}
    total = 0
    shards = list(_shards(tensors, naming))
    for number, names in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        index |= dict.fromkeys(names, file)
        done = directory / f"{file}{_DONE}"
        if (kept := _kept(directory / file, done)) is not None:
            total += kept
            advance(len(names))
            continue
        held = {}
        for name in names:
            tensor = naming.reordered(name, read_tensor(source, tensors[naming.found[name]])).contiguous()
            held[name] = tensor
            advance(1)
        save_file(held, directory / file, metadata={"format": "pt"})
        num_bytes = sum(tensor.nbytes for tensor in held.values())
        write_record(done, {"tensor_bytes": num_bytes, "digest": sha256_of_file(directory / file)})
        total += num_bytes
    if len(shards) > 1:
        content = {"metadata": {"total_size": total}, "weight_map": index}
        (directory / "model.safetensors.index.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _kept(path: Path, done: Path) -> int | None:
    """Return bytes of the tensors in a shard that is there and whole; None where there is none."""
    try:
        record = read_record(done, {"tensor_bytes": int, "digest": str})
        return int(record["tensor_bytes"]) if sha256_of_file(path) == record["digest"] else None
    except (OSError, RecordError):
        return None


def _shards(tensors: dict[str, Entry], naming: Naming) -> Iterator[list[str]]:
    names: list[str] = []
    num_bytes = 0
    for name, theirs in naming.found.items():
        size = sum(piece.length for piece in tensors[theirs].pieces)
        if names and num_bytes + size > _SHARD_BYTES:
            yield names
            names, num_bytes = [], 0
        names.append(name)
        num_bytes += size
    yield names


def _write_optimizer(
    directory: Path, source: Path, entries: dict[str, Entry], naming: Naming, model: nn.Module
) -> bool:
    """Write optimizer.pt where there are moments for every parameter; return whether there are."""
    groups = trainer_groups(model)
    prefix = next((p for p in ("optimizer.", "") if any(name.startswith(f"{p}state.") for name in entries)), None)
    if prefix is None:
        return False
    plain = {name: theirs.removeprefix(naming.prefix) for name, theirs in naming.found.items()}
    keys = {name: f"{prefix}state.{plain[name]}" for group in groups for name in group}
    needed = [f"{key}.{moment}" for key in keys.values() for moment in _MOMENTS]
    if missing := [name for name in needed if name not in entries]:
        raise InputError(
            subject=str(source),
            must="hold Adam's state for every weight or for none",
            got=f"but lacks {len(missing)} entries of it (first {missing[0]})",
            do="save the model alone, or all of it",
        )
    state: dict[int, dict[str, torch.Tensor]] = {}
    numbered: list[dict[str, Any]] = []
    for names in groups:
        numbered.append(
            {
                **_hyperparameters(source, entries, prefix, plain[names[0]] if names else ""),
                "params": list(range(len(state), len(state) + len(names))),
            }
        )
        for name in names:
            moments = {moment: read_tensor(source, entries[f"{keys[name]}.{moment}"]) for moment in _MOMENTS}
            for moment in _MOMENTS[:2]:
                moments[moment] = naming.reordered(name, moments[moment]).contiguous()
            state[len(state)] = moments
    torch.save({"state": state, "param_groups": numbered}, directory / OPTIMIZER_FILE)
    return True


def _hyperparameters(source: Path, entries: dict[str, Entry], prefix: str, name: str) -> dict[str, Any]:
    """Return a parameter's group as the checkpoint has it: by the parameter's name, or by number."""
    found: dict[str, Any] = {}
    for key in ("lr", "betas", "eps", "weight_decay"):
        for group in (name, "0"):
            entry = entries.get(f"{prefix}param_groups.{group}.{key}")
            if entry is not None:
                value = read_value(source, entry) if entry.dtype is None else read_tensor(source, entry)
                found[key] = value.item() if isinstance(value, torch.Tensor) else value
                break
    if not {"betas", "eps"} <= found.keys():
        raise InputError(
            subject=str(source),
            must="hold Adam's betas and eps beside its moments",
            got=f"but has none for {name}",
            do="save its param_groups, too, or the model alone",
        )
    return found


def _write_config(directory: Path, described: Checkpoint, dtype: torch.dtype | None) -> None:
    described.config.dtype = dtype
    described.config.save_pretrained(directory)
    for pattern in (*_BESIDE, _GENERATION):
        for path in described.directory.glob(pattern):
            shutil.copyfile(path, directory / path.name)
