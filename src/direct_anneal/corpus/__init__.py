"""The user's documents: read once into tokens and an index, copied out verbatim at the end.

sources = expand(["pool/**/*.jsonl.zst"], role="pool")
check_writable(sources)
corpus = prepare(sources, role="pool", ...)       # tokens on disk, an index in memory, incidents counted
corpus.tokens(7)                                  # (T,) int64
write_selected(corpus, selected, out_dir)         # selected: (N,) bool
"""

from direct_anneal.corpus.assembly import Corpus
from direct_anneal.corpus.fields import Fields, Names, listed, value_of
from direct_anneal.corpus.incidents import MAX_PLACES, Incident
from direct_anneal.corpus.preparation import prepare, reopen
from direct_anneal.corpus.reading import Source, expand
from direct_anneal.corpus.sampling import Part, sample
from direct_anneal.corpus.tables import write_dataset_state
from direct_anneal.corpus.texts import chosen_records, texts, texts_at
from direct_anneal.corpus.tokenised import TokenLayout
from direct_anneal.corpus.writing import check_writable, write_selected

__all__ = [
    "MAX_PLACES",
    "Corpus",
    "Fields",
    "Incident",
    "Names",
    "Part",
    "Source",
    "TokenLayout",
    "check_writable",
    "chosen_records",
    "expand",
    "listed",
    "prepare",
    "reopen",
    "sample",
    "texts",
    "texts_at",
    "value_of",
    "write_dataset_state",
    "write_selected",
]
