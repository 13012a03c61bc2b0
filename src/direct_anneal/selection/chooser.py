"""A small model that chooses for a larger one: what it asks of the documents, and what the run records of both."""

from __future__ import annotations

from collections.abc import Mapping

from direct_anneal.config.features import FeaturesConfig
from direct_anneal.data import Corpus
from direct_anneal.data.texts import texts_at
from direct_anneal.errors import InputError, option
from direct_anneal.run.sources import Tokenisation


def require_text(config: FeaturesConfig, corpora: Mapping[str, Corpus]) -> None:
    """See that documents are text, which two tokenizers can read, each in its way; looks at the first of each source.

    Raises:
        InputError: it is tokens, which are one tokenizer's alone.
    """
    for role, corpus in corpora.items():
        firsts = sorted({int(start) for start in corpus.bounds[:-1] if start < corpus.num_samples})
        tokens = [row for row, text in texts_at(corpus, firsts, config.text_field).items() if text is None]
        if tokens:
            raise InputError(
                field=role,
                must=f"be text where {option('chooser')} has another tokenizer than the model",
                got=f"but {corpus.index['source'][tokens[0]].as_py()} holds tokens",
                do="give their text, or a chooser with the model's tokenizer",
            )


def models_of(tokens: Tokenisation, chooser: str) -> dict[str, str]:
    """Return fingerprints of the model that will be annealed, and of the one that chose where it is another.

    Args:
        chooser: fingerprint of what chose.
    """
    return {"model": chooser} if tokens.annealed is None else {"model": tokens.annealed, "chooser": chooser}
