"""Train a small Llama to the end of its stable phase: warm-up, then a constant rate, optimizer state kept.

    python recipes/bakeoff/stable_phase.py --data DATA [--size 1m|5m|30m|100m] [--cache DIR] [--device cuda]

One straight line: documents → tokenizer → a model with random weights → `anneal` at a constant rate. The checkpoint
lies in CACHE/stable-SIZE, and what was trained on beside it. Killed, it goes on when called again. On one core of a
2020s server the 1m model takes about an hour, the 5m model about three (estimated); the two larger ones are for a GPU,
where they train in bfloat16.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from splits import documents, domains, write_jsonl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from direct_anneal.progress import for_stream
from direct_anneal.train import anneal

CONTEXT, WARM_UP = 256, 100
DOMAIN_CHARACTERS = 3_000_000  # of each domain at most, so that none is most of the mixture
TOKENIZER_CHARACTERS = 400_000
SEPARATOR = "<|endoftext|>"


@dataclass(frozen=True)
class Size:
    """A model, how it is trained, and how many passages its pools have: both larger where a GPU trains."""

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    rate: float
    steps: int = 10000
    batch: int = 8  # windows
    pool: int = 4000  # passages


SIZES = {
    "1m": Size(2048, 128, 4, 4, 3e-3),
    "5m": Size(4096, 256, 6, 4, 2e-3),
    "30m": Size(8192, 512, 8, 8, 1.5e-3, steps=3000, batch=32, pool=12000),
    "100m": Size(8192, 768, 12, 12, 1e-3, steps=3000, batch=32, pool=12000),
}
PRECISION = {"cpu": "float32", "cuda": "bfloat16"}
CHECKPOINT_STEPS = {"cpu": 100, "cuda": 1000}  # minutes apart on either
DEFAULT_CACHE = Path("~/.cache/direct-anneal").expanduser()


def write_documents(data: Path, path: Path) -> Path:
    """The stable split, every domain up to its cap."""
    records = []
    for domain in domains(data):
        left = DOMAIN_CHARACTERS
        for record in documents(data, domain, "stable"):
            if (left := left - len(record["text"])) < 0:
                break
            records.append(record)
    return write_jsonl(path, records)


def train_tokenizer(data: Path, vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE: no text is unknown to it, noise included."""
    texts = []
    for domain in domains(data):
        left = TOKENIZER_CHARACTERS
        for record in documents(data, domain, "stable"):
            texts.append(record["text"])
            if (left := left - len(record["text"])) < 0:
                break
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{SEPARATOR} $A", special_tokens=[(SEPARATOR, bpe.token_to_id(SEPARATOR))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=SEPARATOR, eos_token=SEPARATOR, pad_token=SEPARATOR, model_max_length=CONTEXT
    )


def write_new_model(directory: Path, data: Path, size: Size, seed: int) -> Path:
    """Random weights and the tokenizer, as a checkpoint."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size.vocabulary,
            hidden_size=size.hidden,
            intermediate_size=size.hidden * 11 // 4,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
    )
    train_tokenizer(data, size.vocabulary).save_pretrained(directory)
    model.save_pretrained(directory)
    return directory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="directory with corpus/*.jsonl.zst")
    parser.add_argument("--size", choices=SIZES, default="1m")
    parser.add_argument("--steps", type=int, help="other than the size's own, for a rehearsal")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the same bytes on any machine of one kind
    logging.disable_progress_bar()
    size = SIZES[arguments.size]
    steps = arguments.steps or size.steps

    text = arguments.cache / "stable.jsonl"
    if not text.exists():
        write_documents(arguments.data, text)
    start = arguments.cache / f"start-{arguments.size}"
    if not (start / "model.safetensors").exists():
        write_new_model(start, arguments.data, size, arguments.seed)
    record = anneal(
        progress=for_stream(sys.stderr),
        model=start,
        data=text,
        out=arguments.cache / f"stable-{arguments.size}",
        schedule="constant",
        warm_up_steps=min(WARM_UP, steps // 10),
        learning_rate=size.rate,
        num_tokens=steps * size.batch * CONTEXT,
        batch_size=size.batch,
        checkpoint_steps=CHECKPOINT_STEPS[arguments.device],
        device=arguments.device,
        dtype=PRECISION[arguments.device],
        keep_optimizer_state=True,
        seed=arguments.seed,
    )
    print(f"{record['num_parameters']:,} parameters, {record['epoch_tokens']:,} tokens an epoch")
    for step, loss, _ in record["losses"][:: max(1, len(record["losses"]) // 20)]:
        print(f"step {step}  loss {loss:.3f}")


if __name__ == "__main__":
    main()
