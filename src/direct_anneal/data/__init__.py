"""The user's documents: read once into tokens and an index, copied out verbatim at the end.

sources = expand(["pool/**/*.jsonl.zst"], role="pool")
check_writable(sources)
corpus = prepare(sources, role="pool", ...)       # tokens on disk, an index in memory, issues counted
corpus.tokens(7)                                  # (T,) int64
write_selected(corpus, selected, out_dir)         # selected: (N,) bool
"""

from direct_anneal.data.corpus import Corpus
from direct_anneal.data.field_checks import check_fields
from direct_anneal.data.fields import Fields, Names, listed, value_of
from direct_anneal.data.formats import HEADERLESS, TokenLayout
from direct_anneal.data.formats.tables import write_dataset_state
from direct_anneal.data.issues import MAX_PLACES, Issue
from direct_anneal.data.preparation import ISSUES_FILE, Elsewhere, is_divisible, prepare, readers_of, reopen
from direct_anneal.data.sampling import Part, sample
from direct_anneal.data.shared_caches import SharedCaches
from direct_anneal.data.sources import Source, describe_skipped, expand
from direct_anneal.data.texts import chosen_records, texts, texts_at
from direct_anneal.data.token_cache import damaged_caches
from direct_anneal.data.write import check_writable, write_rows, write_selected

__all__ = [
    "HEADERLESS",
    "ISSUES_FILE",
    "MAX_PLACES",
    "Corpus",
    "Elsewhere",
    "Fields",
    "Issue",
    "Names",
    "Part",
    "SharedCaches",
    "Source",
    "TokenLayout",
    "check_fields",
    "check_writable",
    "chosen_records",
    "damaged_caches",
    "describe_skipped",
    "expand",
    "is_divisible",
    "listed",
    "prepare",
    "readers_of",
    "reopen",
    "sample",
    "texts",
    "texts_at",
    "value_of",
    "write_dataset_state",
    "write_rows",
    "write_selected",
]
