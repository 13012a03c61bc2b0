"""The documents that a run's configuration names."""

from __future__ import annotations

from pathlib import Path

from direct_anneal.config.features import FeaturesConfig
from direct_anneal.data import HEADERLESS, Fields, Source, TokenLayout, expand, tell_passed_over
from direct_anneal.errors import InputError
from direct_anneal.model.checkpoint import Checkpoint


def sources_of(role: str, config: FeaturesConfig, checkpoint: Checkpoint, out: Path, found: list[str]) -> list[Source]:
    """What the patterns stand for, without the run's own files where its directory lies among the documents."""
    layout = TokenLayout.of(checkpoint.vocab_size, checkpoint.separator, config.token_dtype, config.eos_id)
    passed_over: list[Path] = []
    expanded = expand(getattr(config, role), role, layout, passed_over)
    sources = [source for source in expanded if not source.path.resolve().is_relative_to(out.resolve())]
    if not sources:
        raise InputError(f"--{role} must lie outside --out, but all of it is below {out}: choose another --out")
    if len(sources) < len(expanded):
        found.append(f"{role}: {len(expanded) - len(sources)} files left out, they lie below --out")
    if said := tell_passed_over([path for path in passed_over if not path.absolute().is_relative_to(out.absolute())]):
        found.append(f"{role}: {said}")
    if any(source.format == HEADERLESS for source in sources) and layout.assumed():
        found.append(f"{role}: headerless tokens: {layout.assumed()}")
    return sources


def fields_of(config: FeaturesConfig) -> Fields:
    """Where a record's text, id, domain and prompt are."""
    return Fields(text=config.text_field, id=config.id_field, domain=config.domain_field, prompt=config.prompt_field)
