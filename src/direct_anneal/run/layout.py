"""Names of the files below a run's directory, and of its corpora.

    direct-anneal.json   the marker: whose directory this is, of which configuration, how documents became tokens
    options.json         all options, as `--config` takes them
    corpus/ROLE/         tokens and index of pool and validation set
    features/ROLE/       their gradients; features/ROLE-ngrams/ their n-grams; features/coverage.json
    curvature/           spectra that took the model
    path/                weights at the ends of descent paths
    jobs/, fetched/      runs of parts, and copies of files behind URLs, while they are needed
    selection.parquet    the evidence; beside it selected.*, replay.*, frontier.parquet, report.html
    manifest.json        written last: it vouches for the results, with their digests

The formats are in docs/files.md.
"""

from __future__ import annotations

from direct_anneal.config.features import FeaturesConfig
from direct_anneal.data.formats import FORMATS

MANIFEST, EVIDENCE, FRONTIER, REPORT = "manifest.json", "selection.parquet", "frontier.parquet", "report.html"
COVERAGE = "coverage.json"
LOSSES = "pool-path"  # in features/: columns, beside the stores of gradients or in their place
WALKS = "path"
JOBS = "jobs"  # of a run in parts
FOLDERS = ("corpus", "features", "curvature", WALKS)
TOKENISATION = "tokenisation"
LISTS = "lists"  # digests of files of ids, in the marker and in the manifest's configuration
ROLES = ("pool", "validation")
RETAIN = "retain"  # the role of text that must not get worse, where there is such

# A manifest may name anything; only these are ever read or removed on its word.
OUTPUT_DATASETS = (SELECTED, REPLAY) = ("selected", "replay")
_ENDINGS = {format.output.removeprefix(SELECTED) for format in FORMATS.values()} - {""}
_ENDINGS |= {".idx", ".ds.index", ".ds.metadata"}  # beside tokens
OUTPUT_FILES = frozenset(f"{stem}{ending}" for stem in OUTPUT_DATASETS for ending in _ENDINGS)


def roles_of(config: FeaturesConfig) -> tuple[str, ...]:
    """Return the roles that a run of this configuration has corpora and features of."""
    return (*ROLES, RETAIN) if config.retain else ROLES
