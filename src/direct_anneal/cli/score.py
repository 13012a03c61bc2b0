"""`score` and `merge`: a pool of any size through a distilled scorer."""

from __future__ import annotations

from typing import Any

from direct_anneal.cli.command import Command, Writes
from direct_anneal.config.objective import DEFAULT_ON_ARRAYS
from direct_anneal.config.score import MergeConfig, ScoreConfig


def _score(options: dict[str, Any]) -> dict[str, Any]:
    from direct_anneal.distill.scoring import score

    result = score(ScoreConfig(**options))
    _tell(options["out"], result)
    return {"command": "score", "out": options["out"], **result}


def _merge(options: dict[str, Any]) -> dict[str, Any]:
    from direct_anneal.distill.scoring import is_of_scores, merge

    config = MergeConfig(**options)
    if not is_of_scores(config):
        from direct_anneal.selection import merge_features

        features = merge_features(config.run, trust_remote_code=config.trust_remote_code)
        for remark in features.warnings:
            print(f"Note: {remark}")
        print(f"{config.run}/features is complete")
        choose = f"solve {config.run} --objective {DEFAULT_ON_ARRAYS} --fraction F --out DIR"
        print(f"To choose by it: direct-anneal {choose}")
        return {"command": "merge", "out": config.run, "corpora": features.corpora, "warnings": features.warnings}
    result = merge(config)
    _tell(options["run"], result)
    return {"command": "merge", "out": options["run"], **result}


def _tell(out: str, result: dict[str, Any]) -> None:
    issues = ", ".join(f"{count:,} {kind}" for kind, count in result["issues"].items())
    print(
        f"{out}: {result['documents']:,} documents scored, {result['size']:,} {result['unit']}"
        f"{f'; left out: {issues}' if issues else ''}"
    )
    if "parts" in result:
        print(f"this job has {result['parts']:,} sources; when all jobs are done: direct-anneal merge {out}")
    if (chosen := result.get("chosen")) is not None:
        about = "about " if result["unit"] == "bytes" else ""
        print(
            f"{out}/selected: {chosen['documents']:,} documents, {about}{chosen['about_tokens']:,} tokens, in "
            f"{len(chosen['files']):,} files"
        )


SCORE = Command(
    name="score",
    help="score a pool of any size with a distilled scorer",
    description="Score every document of a pool with a scorer that distil wrote. It needs no model and a constant "
    "amount of memory. With a size, it also writes the documents with the highest scores, in the pool's own format.",
    config=ScoreConfig,
    run=_score,
    writes=Writes(
        files=("scores/", "scores.json", "histogram.parquet", "selected/", "selected.json"),
        only_with={"selected/": "is_given", "selected.json": "is_given"},
        earlier=("scores.json",),
    ),
)
MERGE = Command(
    name="merge",
    help="put jobs of score or features together",
    description="Check that the parts of all jobs are there, and put them together. Features become the same as those "
    "of one process. Scores are counted; with a size, the documents with the highest scores are written. Call it again "
    "for another size.",
    config=MergeConfig,
    run=_merge,
    writes=Writes(
        files=("histogram.parquet", "selected/", "selected.json", "features/"),
        option="run",
        earlier=None,
        only_with={"selected/": "is_given", "selected.json": "is_given"},
    ),
    takes_file=False,
)
