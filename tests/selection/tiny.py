"""Shared by the tests of whole runs: a tiny checkpoint, documents to choose from, and processes that can be killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CONTEXT = 64
VOCAB_SIZE = 256
SKETCH_SIZE = 32
POISON = "~"  # a character that ordinary documents do not hold

WORDS = {
    "prose": "the a boy girl dog tree house ran saw found and then but was very little big happy",
    "code": "if x y return ( ) = == for in range : def f + not None 12 34",
    "table": "1 2 3 4 5 6 7 8 9 10 + - = 11 12 13 14",
}


def write_checkpoint(directory: Path, *, tokenizer: bool = True, poisoned: bool = False, seed: int = 0) -> Path:
    """Save a model with random weights, and a tokenizer of one token a byte beside it.

    Args:
        poisoned: the embedding of `POISON` is NaN, so that documents with it, and no others, have no gradient.
    """
    letters = byte_tokenizer()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=CONTEXT,
        )
    )
    if poisoned:
        with torch.no_grad():
            model.get_input_embeddings().weight[letters.convert_tokens_to_ids(POISON)] = torch.nan
    model.save_pretrained(directory)
    if tokenizer:
        letters.save_pretrained(directory)
    return directory


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens, in the alphabet that GPT-2 writes them in."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: token for token, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def merging_tokenizer(*, special: bool) -> PreTrainedTokenizerFast:
    """Letters, with "b" and "c" merged where they meet; with marks of beginning and end if `special`."""
    tokenizer = Tokenizer(models.BPE({"<s>": 0, "</s>": 1, "a": 2, "b": 3, "c": 4, "bc": 5}, [("b", "c")]))
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def documents(
    count: int, *, seed: int, prefix: str = "d", domains: Sequence[str] = tuple(WORDS)
) -> list[dict[str, Any]]:
    """Short documents, the domains in turn: 5 to 120 characters, some longer than the model's context."""
    rng = random.Random(seed)
    return [
        {
            "id": f"{prefix}{number:03d}",
            "domain": domain,
            "text": " ".join(rng.choices(WORDS[domain].split(), k=rng.randint(3, 25))),
        }
        for number, domain in ((number, domains[number % len(domains)]) for number in range(count))
    ]


def write_jsonl(path: Path, records: Sequence[Mapping[str, Any]]) -> Path:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def evidence(out: Path) -> pa.Table:
    """The run's row for every sample of the pool."""
    return pq.read_table(out / "selection.parquet")


def manifest(out: Path) -> dict[str, Any]:
    """Read the run's manifest."""
    content: dict[str, Any] = json.loads((out / "manifest.json").read_text())
    return content


def chosen_ids(out: Path) -> set[str]:
    """The ids of the selected samples."""
    table = evidence(out)
    return set(table.filter(table["selected"])["id"].to_pylist())


def files_below(directory: Path) -> dict[str, bytes]:
    """Every file with its content."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


# Said before anybody starts the server: what it has not imported then, each of its processes imports anew.
_forking = multiprocessing.get_context("forkserver")
_forking.set_forkserver_preload(
    ["direct_anneal.selection", "datasets", "pytest", "transformers.models.llama.modeling_llama"]
)


def start(target: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Run an importable function in a process of its own, which has our imports behind it already.

    A server imports the package once and forks; it has no threads, where the tests' own process may have some.
    """
    process = _forking.Process(target=target, args=arguments)
    process.start()
    return process


def command_line(arguments: Sequence[str], log: Path, file_limit: int | None = None) -> None:
    """The command as the shell would run it, for `start`: its standard error goes to `log`, its code to the exit.

    Args:
        file_limit: bytes beyond which no file can grow: the nearest thing to a full disk that needs no privileges.
    """
    from direct_anneal.__main__ import begin

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which tests in a shell's background would ignore
    with log.open("w") as stream:
        os.dup2(stream.fileno(), sys.stderr.fileno())
    if file_limit is not None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write then fails with EFBIG instead
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, resource.RLIM_INFINITY))
    begin(arguments)
