"""Checkpoints in: the model, its tokenizer, and what identifies them."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from direct_anneal.errors import InputError

DtypeName = Literal["float32", "bfloat16", "float16"]

DEFAULT_WINDOW = 2048

_WEIGHTS = ("*.safetensors", "*.bin")
_CODE = "*.py"  # what a checkpoint brings may change its numbers
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
)
# What transformers and the libraries below it raise over files that are not what their names say.
_UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    RuntimeError,
    ImportError,
    SafetensorError,
)
_DOWNLOADED = ("*.json", *_WEIGHTS, "*.model", "*.txt", _CODE)


class Checkpoint:
    """A Hugging Face checkpoint directory, or a hub name, which is fetched into the local cache first.

    Opening reads the configuration alone; weights and tokenizer are loaded when they are asked for.

    Args:
        name: directory or hub name.
        trust_remote_code: run the checkpoint's own Python code. Off, a checkpoint that needs it is refused.

    Raises:
        InputError: there is no such checkpoint, or its configuration cannot be read.
    """

    def __init__(self, name: str, *, trust_remote_code: bool = False) -> None:
        self.name = name
        self.trust_remote_code = trust_remote_code
        self.directory = _locate(name)
        self.config: Any = self._read("configuration", AutoConfig, self.directory)

    @property
    def context_length(self) -> int | None:
        """Tokens the model can see at once, where its configuration says."""
        for field in ("max_position_embeddings", "n_positions", "max_seq_len"):
            length = getattr(self.config, field, None)
            if isinstance(length, int) and length > 0:
                return length
        return None

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding: token ids must be below it."""
        return int(self.config.get_text_config().vocab_size)

    @property
    def separator(self) -> int | None:
        """The token that ends a document, where the configuration names one."""
        token = getattr(self.config, "eos_token_id", None)
        if isinstance(token, list):
            token = token[0] if token else None
        return token if isinstance(token, int) and 0 <= token < self.vocab_size else None

    def window(self, max_length: int | None) -> int:
        """T, tokens of a window: what was asked for, else the context, at most 2,048.

        Raises:
            InputError: it is less than two tokens, or more than the context.
        """
        context = self.context_length
        if max_length is None:
            return min(context or DEFAULT_WINDOW, DEFAULT_WINDOW)
        if max_length < 2:
            raise InputError(
                f"--max-length must be at least 2, since the first token predicts nothing, got {max_length}"
            )
        if context is not None and max_length > context:
            raise InputError(
                f"--max-length must fit the model's context of {context} tokens, got {max_length}: pass a smaller one"
            )
        return max_length

    def load_model(self, device: str, dtype: DtypeName) -> nn.Module:
        """The model with its weights, in evaluation mode.

        Raises:
            InputError: weights are missing, damaged, or not those of the architecture that config.json names.
        """
        model, report = self._read(
            "weights",
            AutoModelForCausalLM,
            self.directory,
            dtype=getattr(torch, dtype),
            output_loading_info=True,
        )
        if report["missing_keys"]:  # transformers would go on with random numbers in their place
            missing = sorted(report["missing_keys"])
            raise InputError(
                f"--model must hold every weight of its architecture, but {self.name} lacks {len(missing)} "
                f"({', '.join(missing[:3])}): save the checkpoint again with save_pretrained"
            )
        loaded: nn.Module = model.to(device).eval()
        return loaded

    @property
    def has_tokenizer(self) -> bool:
        """Whether there is a tokenizer beside the weights."""
        return bool(self._files(_TOKENIZER))

    def load_tokenizer(self) -> Any:
        """The tokenizer beside the weights.

        Raises:
            InputError: there is none.
        """
        if not self.has_tokenizer:
            raise InputError(
                f"text needs a tokenizer, but {self.name} has none (no tokenizer.json or tokenizer.model): "
                "save it there with tokenizer.save_pretrained, or give documents as input_ids"
            )
        return self._read("tokenizer", AutoTokenizer, self.directory)

    def weights_fingerprint(self) -> str:
        """sha256 over config.json, weights and code: equal for equal files, wherever they lie. Reads them all."""
        return _digest([self.directory / "config.json", *self._files((*_WEIGHTS, _CODE))])

    def tokenizer_fingerprint(self) -> str:
        """sha256 over the tokenizer's files and code; of nothing where there is none."""
        return _digest(self._files((*_TOKENIZER, _CODE)))

    def _files(self, patterns: tuple[str, ...]) -> list[Path]:
        return sorted({path for pattern in patterns for path in self.directory.glob(pattern)})

    def _read(self, what: str, reader: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return reader.from_pretrained(*args, trust_remote_code=self.trust_remote_code, **kwargs)
        except pickle.UnpicklingError as error:
            raise InputError(
                f"--model must hold weights alone, but the weights of {self.name} are a pickle with code in it, which "
                "is never run: save them as safetensors"
            ) from error
        except _UNREADABLE as error:
            reason = " ".join(str(error).split())
            if "trust_remote_code" in reason:
                raise InputError(
                    f"{self.name} brings Python code of its own, which is not run unasked: "
                    "read that code, then pass --trust-remote-code"
                ) from error
            raise InputError(
                f"--model must be a checkpoint that transformers can open, but the {what} of {self.name} cannot be "
                f"read: {reason[:300]}"
            ) from error


def _locate(name: str) -> Path:
    directory = Path(name).expanduser()
    if directory.is_dir():
        if (directory / ".metadata").is_file() and not (directory / "config.json").is_file():
            raise InputError(
                f"--model must be a Hugging Face checkpoint, but {name} is one of torch.distributed.checkpoint: make "
                f"one of it with direct-anneal convert {name} --model-config PATH --out DIR"
            )
        if not (directory / "config.json").is_file():
            raise InputError(
                f"--model must be a checkpoint directory with config.json and weights, but {name} has no config.json: "
                "name the directory that save_pretrained wrote"
            )
        return directory
    if directory.exists():
        raise InputError(f"--model must be a checkpoint directory, but {name} is a file: name the directory it is in")
    if name.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") > 1:
        raise InputError(f"--model must be a checkpoint directory or a hub name, but {name} does not exist")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(_DOWNLOADED)))
    except (OSError, ValueError) as error:
        raise InputError(
            f"--model must be a checkpoint directory or a hub name, but {name} is no directory here and could not be "
            f"fetched ({type(error).__name__}): check the path, or the network"
        ) from error


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
