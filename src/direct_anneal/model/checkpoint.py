"""Checkpoints in: the model, its tokenizer, and what identifies them."""

from __future__ import annotations

import hashlib
import pickle
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from direct_anneal.config.names import DtypeName as DtypeName
from direct_anneal.errors import InputError, option
from direct_anneal.model.probes import require_language_model
from direct_anneal.model.special_tokens import SpecialTokens
from direct_anneal.model.weights import (
    WEIGHTS,
    read_json,
    require_files,
    require_fit,
    require_memory,
    require_model_directory,
    require_plain,
    require_plain_archives,
    require_shapes,
    require_sizes,
    stored_tensors,
)

DEFAULT_WINDOW = 2048

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
_DOWNLOADED = ("*.json", *WEIGHTS, "*.model", "*.txt", _CODE)


class Checkpoint:
    """A Hugging Face checkpoint directory, or a hub name, which is fetched into the local cache first.

    Opening reads the configuration alone; weights and tokenizer are loaded when they are asked for.

    Args:
        name: directory or hub name.
        revision: of a hub name: branch, tag or commit; the main branch where left out.
        subfolder: where configuration, weights and tokenizer lie below that.
        trust_remote_code: run the checkpoint's own Python code. Off, a checkpoint that needs it is refused.

    Raises:
        InputError: there is no such checkpoint, or its configuration cannot be read.
    """

    def __init__(
        self,
        name: str,
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        from transformers import AutoConfig  # takes a second: only for whom a checkpoint is opened

        self.name = name
        self.trust_remote_code = trust_remote_code
        self.directory = _locate(name, revision, subfolder)
        require_files(self.directory, name)
        self.config: Any = self._read("configuration", AutoConfig, self.directory)

    @classmethod
    def of(cls, config: Any) -> Checkpoint:
        """Return the checkpoint that a configuration names by `model`, `revision` and `subfolder`."""
        return cls(
            config.model,
            revision=config.revision,
            subfolder=config.subfolder,
            trust_remote_code=config.trust_remote_code,
        )

    @classmethod
    def choosing(cls, config: Any) -> Checkpoint:
        """Return the checkpoint that chooses: the one that a configuration names by `chooser`, else its model.

        Raises:
            InputError: there is no such checkpoint, or its configuration cannot be read.
        """
        if config.chooser is None:
            return cls.of(config)
        try:
            return cls(config.chooser, trust_remote_code=config.trust_remote_code)
        except InputError as error:
            if error.field != "model":
                raise
            raise InputError(field="chooser", must=error.must, got=error.got, do=error.do) from error

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

    @cached_property
    def special_tokens(self) -> SpecialTokens:
        """Special tokens before, after and between documents: one rule for reading, packing, exporting and evaluating.

        Raises:
            InputError: the tokenizer cannot be read.
        """
        stated = [(name, read_json(self.directory / name)) for name in ("generation_config.json", "config.json")]
        tokenizer = self.load_tokenizer() if self.has_tokenizer else None
        default = getattr(self.config.get_text_config(), "eos_token_id", None)
        return SpecialTokens.of(self.vocab_size, tokenizer, stated, default)

    @property
    def separator(self) -> int | None:
        """The token that ends a document, where one is named; `special_tokens` has the rule."""
        return self.special_tokens.separator

    def window(self, max_length: int | None) -> int:
        """Return T, tokens of a window: what was asked for, else the context, at most 2,048.

        Raises:
            InputError: it is less than two tokens, or more than the context.
        """
        context = self.context_length
        if max_length is None:
            return min(context or DEFAULT_WINDOW, DEFAULT_WINDOW)
        if max_length < 2:
            raise InputError(field="max_length", must="be at least 2", got=max_length, do="the first predicts nothing")
        if context is not None and max_length > context:
            raise InputError(
                field="max_length",
                must=f"fit the model's context of {context} tokens",
                got=max_length,
                do="pass a smaller one",
            )
        return max_length

    def load_model(self, device: str, dtype: DtypeName, *, window: int | None = None) -> nn.Module:
        """Return the model with its weights, in evaluation mode.

        Args:
            window: T, tokens of the longest sequence that it will be given; `window(None)` where left out.

        Raises:
            InputError: weights are missing, damaged, or not those of the architecture that config.json names; or the
                model is no causal language model, or depends on its batch (`require_language_model`).
        """
        from transformers import AutoModelForCausalLM

        require_sizes(self.config, self.name)
        require_plain_archives(self._files(("*.bin",)))
        stored = stored_tensors(self._files(WEIGHTS))
        require_plain(self.config, stored, self.name)
        kind = getattr(torch, dtype)
        described = self.described(dtype)  # what is larger than memory must not be begun
        require_shapes(described, stored, self.name)
        require_memory(described, self.name, kind)
        model, report = self._read(
            "weights", AutoModelForCausalLM, self.directory, dtype=kind, output_loading_info=True
        )
        require_fit(model, report, self.name)
        loaded: nn.Module = model.to(device).eval()
        longest = self.window(None) if window is None else window
        require_language_model(loaded, vocab_size=self.vocab_size, window=longest, name=self.name)
        return loaded

    def described(self, dtype: DtypeName = "float32") -> nn.Module:
        """Return the model without its weights: names and sizes alone.

        Raises:
            InputError: its configuration is none of a causal language model.
        """
        with torch.device("meta"):
            described: nn.Module = self._read("configuration", _Described, self.config, dtype=getattr(torch, dtype))
        return described

    @property
    def has_tokenizer(self) -> bool:
        """True if there is a tokenizer beside the weights."""
        return bool(self._files(_TOKENIZER))

    def load_tokenizer(self) -> Any:
        """Return the tokenizer beside the weights.

        Raises:
            InputError: there is none.
        """
        if not self.has_tokenizer:
            raise InputError(
                field="model",
                must="have a tokenizer, since there is text",
                got=f"but {self.name} has none (no tokenizer.json or tokenizer.model)",
                do="save it there with tokenizer.save_pretrained, or give documents as input_ids",
            )
        from transformers import AutoTokenizer

        return self._read("tokenizer", AutoTokenizer, self.directory)

    def weights_fingerprint(self) -> str:
        """Return sha256 over config.json, weights and code: equal for equal files anywhere. Reads them all."""
        return _digest([self.directory / "config.json", *self._files((*WEIGHTS, _CODE))])

    def tokenizer_fingerprint(self) -> str:
        """Return sha256 over the tokenizer's files and code; of nothing where there is none."""
        return _digest(self._files((*_TOKENIZER, _CODE)))

    def _files(self, patterns: tuple[str, ...]) -> list[Path]:
        return sorted({path for pattern in patterns for path in self.directory.glob(pattern)})

    def _read(self, what: str, reader: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return reader.from_pretrained(*args, trust_remote_code=self.trust_remote_code, **kwargs)
        except pickle.UnpicklingError as error:
            raise InputError(
                field="model",
                must="hold weights alone",
                got=f"but the weights of {self.name} are a pickle with code in it, which is never run",
                do="save them as safetensors",
            ) from error
        except Exception as error:  # whatever transformers raises over files that are not what their names say
            reason = " ".join(str(error).split()) or type(error).__name__
            if "trust_remote_code" in reason:
                raise InputError(
                    field="model",
                    must="need no code of its own",
                    got=f"but {self.name} brings Python code, which is not run unasked",
                    do=f"read that code, then pass {option('trust_remote_code')}",
                ) from error
            raise InputError(
                field="model",
                must="be a checkpoint that transformers can open",
                got=f"but the {what} of {self.name} cannot be read: {reason[:300]}",
            ) from error


class _Described:
    """A model of a configuration, without its weights."""

    @staticmethod
    def from_pretrained(config: Any, **options: Any) -> nn.Module:
        """Build it; named as transformers' own readers are, so that its errors are told alike."""
        from transformers import AutoModelForCausalLM

        model: nn.Module = AutoModelForCausalLM.from_config(config, **options)
        return model


def _locate(name: str, revision: str | None, subfolder: str | None) -> Path:
    below = Path(subfolder or ".")
    if below.is_absolute() or ".." in below.parts:
        raise InputError(field="subfolder", must="be a path below the checkpoint's", got=subfolder)
    directory = Path(name).expanduser()
    if directory.is_dir():
        if revision is not None:
            raise InputError(
                field="revision",
                must="go with a hub name",
                got=f"{revision}, but {name} is a directory",
                do="leave it out, or name the repository",
            )
        require_model_directory(directory / below, str(Path(name) / below) if subfolder else name)
        return directory / below
    if directory.exists():
        raise InputError(
            field="model",
            must="be a checkpoint directory",
            got=f"but {name} is a file",
            do="name the directory it is in",
        )
    if name.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") > 1:
        raise InputError(
            field="model", must="be a checkpoint directory or a hub name", got=f"but {name} does not exist"
        )
    from huggingface_hub import snapshot_download

    patterns = [(below / pattern).as_posix() for pattern in _DOWNLOADED]
    try:
        fetched = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise InputError(
            field="model",
            must="be a checkpoint directory or a hub name",
            got=f"but {name}{f' at revision {revision}' if revision else ''} is no directory here and could not be "
            f"fetched ({type(error).__name__})",
            do="check the path, the revision, or the network",
        ) from error
    require_model_directory(fetched / below, f"{name}/{subfolder}" if subfolder else name)
    return fetched / below


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
