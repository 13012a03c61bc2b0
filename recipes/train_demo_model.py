"""Train the small Llama that `direct-anneal demo` starts from, on this Python's standard library.

    python recipes/train_demo_model.py --out DIR [--steps N] [--seed S]

One straight line: documents → tokenizer → packed tokens → stable phase (warm-up, then a constant rate: the checkpoint
stands where annealing would begin) → model directory. Killed, it goes on from its last checkpoint when called again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import random
import shutil
import sysconfig
import time
from pathlib import Path

import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from direct_anneal.demo.documents import TARGET, generated_documents, is_for_training
from direct_anneal.demo.generated import GENERATORS
from direct_anneal.demo.installation import library_documents

VOCABULARY, CONTEXT, BATCH = 2048, 256, 8
RATE, WARM_UP, BETAS, WEIGHT_DECAY, CLIP = 3e-3, 100, (0.9, 0.95), 0.1, 1.0
NUM_GENERATED, NUM_HELD_OUT = 400, 200  # documents of each domain
CHECKPOINT_EVERY = 200  # steps
SEPARATOR = "<|endoftext|>"


def documents(seed: int) -> tuple[list[str], dict[str, list[str]]]:
    """The training half in random order, and some documents of the other half for each domain of the target."""
    library = library_documents(Path(sysconfig.get_path("stdlib")))
    texts = [text for found in library.values() for text in found if is_for_training(text)]
    for domain in GENERATORS:
        texts += generated_documents(domain, NUM_GENERATED, seed=seed, for_training=True)
    random.Random(seed).shuffle(texts)
    others = {domain: [text for text in library[domain] if not is_for_training(text)] for domain in TARGET}
    return texts, {domain: random.Random(seed).sample(found, NUM_HELD_OUT) for domain, found in others.items()}


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE: no text is unknown to it, noise included."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[SEPARATOR],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    # In training every document follows a separator, so one stands before every document that is scored.
    separator = bpe.token_to_id(SEPARATOR)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{SEPARATOR} $A", special_tokens=[(SEPARATOR, separator)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=SEPARATOR, eos_token=SEPARATOR, pad_token=SEPARATOR, model_max_length=CONTEXT
    )


def new_model() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
    )


def windows_of_step(windows: torch.Tensor, step: int, seed: int) -> torch.Tensor:
    """The batch of a step, a function of the seed and the step alone: a resumed run sees what an unbroken one would."""
    steps_per_epoch = len(windows) // BATCH
    epoch, place = divmod(step, steps_per_epoch)
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(1_000 * seed + epoch))
    return windows[order[place * BATCH : (place + 1) * BATCH]]


def train(model: LlamaForCausalLM, windows: torch.Tensor, steps: int, seed: int, checkpoint: Path) -> float:
    """Train on windows, shape (number of windows, T), and return the smoothed loss of the last step."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, betas=BETAS, weight_decay=WEIGHT_DECAY)
    first_step, smooth = 0, float("nan")
    digest = hashlib.sha256(windows.numpy().tobytes()).hexdigest()
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if state["data"] != digest:
            raise SystemExit(f"{checkpoint} was trained on other tokens (seed or Python differ): give another --out")
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        first_step, smooth = state["step"], state["smooth"]
        print(f"going on from step {first_step}", flush=True)

    started = time.monotonic()
    for step in range(first_step, steps):
        optimiser.param_groups[0]["lr"] = RATE * min(1.0, (step + 1) / WARM_UP)
        batch = windows_of_step(windows, step, seed)  # (BATCH, T)
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimiser.step()
        optimiser.zero_grad()
        smooth = loss.item() if step == 0 else 0.95 * smooth + 0.05 * loss.item()
        done = step + 1
        if done % 50 == 0:
            speed = (done - first_step) * batch.numel() / (time.monotonic() - started)
            print(f"step {done}/{steps}  loss {smooth:.3f}  {speed:.0f} tokens/s", flush=True)
        if done % CHECKPOINT_EVERY == 0 or done == steps:
            state = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
            state |= {"step": done, "smooth": smooth, "data": digest}
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
    return smooth


@torch.no_grad()
def mean_loss(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> float:
    """Nats per token over documents, each cut to the context."""
    total, num_tokens = 0.0, 0
    for text in texts:
        ids = tokenizer(text, truncation=True, return_tensors="pt")["input_ids"]
        total += model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        num_tokens += ids.shape[1] - 1
    return total / num_tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)

    texts, held_out = documents(arguments.seed)
    tokenizer = train_tokenizer(texts)
    packed = [token for encoding in tokenizer.backend_tokenizer.encode_batch(texts) for token in encoding.ids]
    windows = torch.tensor(packed[: len(packed) // CONTEXT * CONTEXT]).view(-1, CONTEXT)
    model = new_model()
    print(f"{len(texts)} documents, {windows.numel()} tokens, {model.num_parameters()} parameters", flush=True)
    loss = train(model, windows, arguments.steps, arguments.seed, arguments.out / "checkpoint.pt")

    model.eval()
    record = {
        "steps": arguments.steps,
        "seed": arguments.seed,
        "tokens": arguments.steps * BATCH * CONTEXT,
        "distinct_tokens": windows.numel(),
        "parameters": model.num_parameters(),
        "schedule": {"warm_up_steps": WARM_UP, "then": "constant", "learning_rate": RATE, "batch_windows": BATCH},
        "optimiser": {"name": "AdamW", "betas": BETAS, "weight_decay": WEIGHT_DECAY, "clip": CLIP},
        "training_loss": round(loss, 4),
        "held_out_loss": {name: round(mean_loss(model, tokenizer, found), 4) for name, found in held_out.items()},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
    }
    print(json.dumps(record, indent=2))
    destination = arguments.out / "model"
    shutil.rmtree(destination, ignore_errors=True)
    model.half().save_pretrained(destination)
    tokenizer.save_pretrained(destination)
    (destination / "training.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
