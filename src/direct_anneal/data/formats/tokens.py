"""Files of tokens alone: what their formats share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np

from direct_anneal.data.formats.layout import MAX_DOCUMENT_TOKENS, TokenLayout
from direct_anneal.data.formats.record import BadRecord, Choice, Format, Record
from direct_anneal.io.atomic import flush_to_disk, temporary_directory


class TokenWriter(Protocol):
    """Writer of one file of tokens, and what goes with it.

    Attributes:
        paths: the files, that of the tokens first.
    """

    paths: list[Path]

    def add(self, tokens: np.ndarray) -> None:
        """Add a document, shape (T,)."""
        ...

    def close(self) -> None:
        """Finish the file; nothing may be added after it."""
        ...


class Tokenised(Format):
    """Documents of tokens; a record is `{"input_ids": (T,)}`."""

    tokenised: ClassVar[bool] = True

    @abstractmethod
    def documents(self, path: Path, layout: TokenLayout) -> Iterator[np.ndarray]:
        """Yield each document's tokens, shape (T,), as views of the file.

        Raises:
            InputError: the file is damaged, or its parts do not go together.
        """

    @abstractmethod
    def writer(self, path: Path, vocab_size: int) -> TokenWriter:
        """Open path.<suffix> for documents, in the type that the format's trainer takes for the vocabulary."""

    def records(
        self, path: Path, layout: TokenLayout | None, columns: Collection[str] | None
    ) -> Iterator[tuple[int, Record]]:
        for row, tokens in enumerate(self.documents(path, layout or TokenLayout())):
            too_long = BadRecord(f"the document is longer than {MAX_DOCUMENT_TOKENS:,} tokens")
            yield row, too_long if len(tokens) > MAX_DOCUMENT_TOKENS else {"input_ids": tokens}

    def count(self, path: Path, layout: TokenLayout | None, max_bytes: int) -> float:
        """Count them all: nothing is parsed."""
        return float(sum(1 for _ in self.documents(path, layout or TokenLayout())))

    def write(self, choices: Sequence[Choice], directory: Path, vocab_size: int) -> list[Path]:
        """Write the tokens that were read, with what belongs beside them."""
        with temporary_directory(directory / self.output) as temporary:
            writer = self.writer(temporary / "selected", vocab_size)
            for choice in choices:
                for tokens in choice.tokens:
                    writer.add(tokens)
            writer.close()
            for path in writer.paths:
                flush_to_disk(path)
            return [path.replace(directory / path.name) for path in reversed(writer.paths)]
