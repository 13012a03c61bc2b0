"""Special tokens that stand in texts: never the real ones unasked, always counted."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from data.corpus_samples import prepared, write_records
from direct_anneal.data import Fields
from direct_anneal.data.special_tokens import TextTokenizer
from direct_anneal.errors import InputError

EOS, BOS = "<|endoftext|>", "<s>"


@pytest.fixture(scope="module")
def tokenizer():
    """Bytes as tokens, with a beginning-of-text token before each text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=BOS, eos_token=EOS)
    begin = wrapped.bos_token_id
    inner.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, begin)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=BOS, eos_token=EOS)


TEXTS = [f"a page{EOS}another {EOS}", "struck <s>out</s>", "nothing of the kind", "<|endof text|>"]


def corpus_of(tmp_path, tokenizer, mode, name="c", records=None):
    path = write_records(tmp_path, f"docs-{name}", "jsonl", records or [{"text": text} for text in TEXTS])
    return prepared(tmp_path / name, path, tokenizer=tokenizer, vocab_size=300, fields=Fields(special_tokens=mode))


def test_as_text_by_default_and_counted(tmp_path, tokenizer):
    corpus = corpus_of(tmp_path, tokenizer, Fields().special_tokens)
    specials = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    for i, text in enumerate(TEXTS):
        first, *rest = corpus.tokens(i).tolist()
        assert first == tokenizer.bos_token_id
        assert specials.isdisjoint(rest)
        assert tokenizer.decode(rest) == text
    assert corpus.issues.counts == {"special-tokens": 2}
    assert [place.detail for place in corpus.issues.places("special-tokens")] == [
        f"special tokens in the text, read as text: 2 {EOS}",
        "special tokens in the text, read as text: 1 <s>",
    ]


def test_kept_or_dropped_on_request(tmp_path, tokenizer):
    kept = corpus_of(tmp_path, tokenizer, "keep", "kept")
    assert (kept.tokens(0) == tokenizer.eos_token_id).sum() == 2
    assert kept.issues.counts == {"special-tokens": 2}
    dropped = corpus_of(tmp_path, tokenizer, "drop", "dropped")
    assert dropped.index["row"].to_pylist() == [2, 3]
    assert dropped.issues.counts == {"special-dropped": 2}
    assert "2 special-dropped" in dropped.issues.left_out()


def test_in_prompts_too(tmp_path, tokenizer):
    path = write_records(tmp_path, "docs", "jsonl", [{"q": f"what {EOS}", "text": " is this"}])
    fields = Fields(prompt="q")
    corpus = prepared(tmp_path / "c", path, tokenizer=tokenizer, vocab_size=300, fields=fields)
    assert corpus.issues.counts == {"special-tokens": 1}
    assert tokenizer.eos_token_id not in corpus.tokens(0)


def test_another_mode_is_another_cache(tmp_path, tokenizer):
    first = corpus_of(tmp_path, tokenizer, "text")
    again = corpus_of(tmp_path, tokenizer, "keep")
    assert first.fingerprint != again.fingerprint


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.sampled_from("ab <|>s/\n½endoftx"), max_size=40))
def test_harmless_texts_have_the_same_tokens_either_way(tokenizer, text):
    read = {mode: TextTokenizer(tokenizer, mode) for mode in ("text", "keep")}
    if not read["keep"].within(text):
        assert read["text"]([text]) == read["keep"]([text]) == tokenizer([text])["input_ids"]


def test_a_tokenizer_that_cannot_is_refused_once_it_must(tmp_path, tokenizer):
    class Stubborn:
        added_tokens_decoder = tokenizer.added_tokens_decoder

        def __call__(self, texts):
            return tokenizer(texts)

    harmless = [{"text": "nothing of the kind"}]
    assert corpus_of(tmp_path, Stubborn(), "text", "a", harmless).num_samples == 1
    with pytest.raises(InputError, match="special_tokens must be another than text for this tokenizer"):
        corpus_of(tmp_path, Stubborn(), "text", "b")
    assert corpus_of(tmp_path, Stubborn(), "drop", "d").num_samples == 2
