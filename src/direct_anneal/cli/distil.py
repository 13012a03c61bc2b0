"""`distil`: a run as a scorer that needs no model."""

from __future__ import annotations

from typing import Any

from direct_anneal.cli.console import add_telling, progress_of
from direct_anneal.cli.shared import quieten_transformers


def add_distil(commands: Any) -> None:
    """The command and its options."""
    parser = commands.add_parser(
        "distil",
        help="distil a run into a scorer that needs no model",
        description="Fit a linear model on hashed n-grams to what a run found, for pools too large for a language "
        "model. Its card says what it keeps of the run on documents that it was not fitted to.",
    )
    parser.set_defaults(command=_distil)
    parser.add_argument("run", metavar="RUN_DIR", help="what was --out of select or solve")
    parser.add_argument("--out", required=True, metavar="SCORER", help="new directory for the scorer")
    parser.add_argument(
        "--target", default="rank", metavar="COLUMN", help="of selection.parquet: rank, selected, path, ... (rank)"
    )
    parser.add_argument(
        "--unit", choices=("words", "tokens"), default="words", help="what is counted; tokens for tokenised pools"
    )
    parser.add_argument("--bits", type=int, default=20, metavar="B", help="the table has 2^B places (20)")
    parser.add_argument("--trust-remote-code", action="store_true", help="run Python code that the checkpoint brings")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier scorer in --out")
    add_telling(parser)


def _distil(options: dict[str, Any]) -> dict[str, Any]:
    from direct_anneal.distill import DistilConfig
    from direct_anneal.distill.pipeline import distil

    quieten_transformers()
    progress = progress_of(options)
    card = distil(DistilConfig(**options), progress)
    kept = card["held_out"]
    print(
        f"{options['out']}: distilled from {card['documents']:,} documents. Of those left out of a fit it keeps a rank "
        f"correlation of {kept['rank_correlation']:.2f}, and {kept['overlap']:.0%} of the run's choice "
        f"({kept['overlap_by_chance']:.0%} by chance)"
    )
    return {"command": "distil", "out": options["out"], **card}
