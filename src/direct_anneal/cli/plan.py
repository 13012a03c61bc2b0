"""`plan`: what a selection will take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from direct_anneal.cli.command import Command, quieten_transformers
from direct_anneal.cli.console import size_text
from direct_anneal.config.select import SelectConfig

if TYPE_CHECKING:
    from direct_anneal.selection import Plan


def _plan(options: dict[str, Any]) -> dict[str, Any]:
    from direct_anneal.selection import plan

    quieten_transformers()
    found = plan(**options)
    print(_shown(found))
    return {"command": "plan", **vars(found)}


def _shown(plan: Plan) -> str:
    lines = [
        f"{role:<12}{plan.documents[role]:,} documents, {plan.tokens[role]:,} tokens, in {plan.windows[role]:,} "
        "windows of the model"
        for role in plan.documents
    ]
    lines.append(f"{'time':<12}about {_duration(sum(plan.seconds.values()))} on this machine")
    device = f", and {size_text(plan.device_memory)} on the GPU" if plan.device_memory else ""
    lines.append(f"{'memory':<12}up to {size_text(plan.memory)}{device}")
    parts = ", ".join(f"{name} {size_text(size)}" for name, size in plan.disk.items())
    lines.append(f"{'disk':<12}{size_text(sum(plan.disk.values()))} below --out: {parts}")
    lines.append(f"{'compute':<12}{plan.flops:.3g} floating-point operations")
    lines.append("where the time goes:")
    lines += [f"{'':<12}{_duration(seconds):>10}  {stage}" for stage, seconds in plan.seconds.items()]
    lines += [f"{'note':<12}{remark}" for remark in plan.remarks]
    lines.append(f"{'next':<12}the same command with select instead of plan; it can be stopped and goes on later")
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


PLAN = Command(
    name="plan",
    help="estimate time, disk and memory of a selection",
    description="Estimate what select with these options will take on this machine, from some documents and some "
    "batches. Nothing is written to the output directory.",
    config=SelectConfig,
    run=_plan,
)
