"""The documents that a run's configuration names, and how they became tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from direct_anneal.config.features import FeaturesConfig
from direct_anneal.data import HEADERLESS, Fields, Source, TokenLayout, describe_skipped, expand
from direct_anneal.data.sources import FETCHED
from direct_anneal.errors import InputError, option
from direct_anneal.io.digests import sha256_of_file
from direct_anneal.io.records import RecordError
from direct_anneal.model.checkpoint import Checkpoint
from direct_anneal.run.layout import LISTS


@dataclass(frozen=True, kw_only=True)
class Tokenisation:
    """The token layout of a run: all that is needed to open its corpora without the checkpoint.

    Attributes:
        tokenizer: its fingerprint.
        vocab_size: every token lies below it.
        separator: the token that ends a document in the checkpoint's own words; None where it names none.
        max_length: T, tokens of a window.
        annealed: of a model that another chose for, the fingerprint of its weights; None where it chose itself.
        annealed_tokenizer: that of its tokenizer.
    """

    tokenizer: str
    vocab_size: int
    separator: int | None
    max_length: int
    annealed: str | None = None
    annealed_tokenizer: str | None = None

    @classmethod
    def of(cls, checkpoint: Checkpoint, max_length: int | None) -> Tokenisation:
        """Return the token layout of a run with this checkpoint.

        Raises:
            InputError: the window does not fit the model.
        """
        return cls(
            tokenizer=checkpoint.tokenizer_fingerprint(),
            vocab_size=checkpoint.vocab_size,
            separator=checkpoint.separator,
            max_length=checkpoint.window(max_length),
        )

    @classmethod
    def of_run(cls, config: FeaturesConfig, checkpoint: Checkpoint) -> Tokenisation:
        """Return the token layout of a run, whose chooser may be another model. Cost: reads the chooser's weights.

        Args:
            checkpoint: which chooses.

        Raises:
            InputError: the window does not fit it, or the model cannot be read.
        """
        own = cls.of(checkpoint, config.max_length)
        if config.chooser is None:
            return own
        model = Checkpoint.of(config)
        return replace(own, annealed=model.weights_fingerprint(), annealed_tokenizer=model.tokenizer_fingerprint())

    @property
    def is_foreign(self) -> bool:
        """True if the model that will be annealed has another tokenizer."""
        return self.annealed_tokenizer not in (None, self.tokenizer)

    def layout(self, config: FeaturesConfig) -> TokenLayout:
        """Return the layout of files that hold tokens alone."""
        return TokenLayout.of(self.vocab_size, self.separator, config.token_dtype, config.eos_id)


def sources_of(
    role: str, config: FeaturesConfig, tokens: Tokenisation, out: Path, found: list[str], cache: Path | None = None
) -> list[Source]:
    """Expand the patterns, without the run's own files where its directory lies among the documents.

    Args:
        found: remarks for the user are added.
        cache: where files behind URLs are fetched to; in the run's directory where left out.
    """
    layout = tokens.layout(config)
    skipped: list[Path] = []
    expanded = expand(getattr(config, role), role, layout, skipped, cache or out / FETCHED)
    sources = [
        source for source in expanded if source.remote or not source.path.resolve().is_relative_to(out.resolve())
    ]
    if not sources:
        raise InputError(
            field=role, must=f"lie outside {option('out')}", got=f"but all of it is below {out}", do="choose another"
        )
    if len(sources) < len(expanded):
        found.append(f"{role}: {len(expanded) - len(sources)} files left out, they lie below {out}")
    if said := describe_skipped([path for path in skipped if not path.absolute().is_relative_to(out.absolute())]):
        found.append(f"{role}: {said}")
    if any(source.format == HEADERLESS for source in sources) and layout.assumed():
        found.append(f"{role}: headerless tokens: {layout.assumed()}")
    return sources


def lists_entry(config: FeaturesConfig) -> dict[str, dict[str, str]]:
    """Return what is recorded of the files of ids that a choice depends on: a digest of each; nothing without them.

    Raises:
        InputError: one cannot be read.
    """
    given = {name: getattr(config, name, None) for name in ("force_in", "force_out")}
    found = {}
    for name, path in given.items():
        if path is not None:
            try:
                found[name] = sha256_of_file(Path(path))
            except (OSError, RecordError) as error:
                raise InputError(
                    field=name, must="be a text file of ids, one a line", got=f"but {path}: {error}"
                ) from error
    return {LISTS: found} if found else {}


def fields_of(config: FeaturesConfig) -> Fields:
    """Return the fields of a record's text, id, domain and prompt."""
    return Fields(
        text=config.text_field,
        id=config.id_field,
        domain=config.domain_field,
        prompt=config.prompt_field,
        special_tokens=config.special_tokens,
    )
