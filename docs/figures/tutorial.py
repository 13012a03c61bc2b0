"""The pictures of the tutorial and the README, made by running the tutorial: python docs/figures/tutorial.py

Writes tutorial_domains.svg beside this file, and with a Chromium tutorial_report.png.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from direct_anneal.report import figures
from direct_anneal.report.drawing import colour, draw, plainly

HERE = Path(__file__).parent
STYLE = (Path(figures.__file__).parent / "templates" / "style.css").read_text(encoding="utf-8")
COLOURS = dict(reversed(re.findall(r"--([\w-]+): (#\w+)", STYLE)))  # the first of each name is that of light pages


def domains(counts: dict[str, dict[str, int]]) -> str:
    """Documents of each domain in the pool and in the choice."""
    names = sorted(counts, key=lambda name: (counts[name]["selected"], name))

    def plot(figure: Figure, narrow: bool) -> None:  # noqa: ARG001
        axes = figure.add_subplot()
        for offset, role, name in ((0.2, "pool", "pool"), (-0.2, "selected", "selected")):
            values = [counts[domain][role] for domain in names]
            places = [place + offset for place in range(len(names))]
            axes.barh(places, values, height=0.36, color=colour(name))
            for place, value in zip(places, values, strict=True):
                plainly(
                    axes.text(
                        value + 0.2, place, f"{value} {'in the pool' if role == 'pool' else 'chosen'}", va="center"
                    )
                )
        axes.set_yticks(range(len(names)), names)
        plainly(*axes.get_yticklabels())
        axes.set_xlim(0, 1.15 * max(entry["pool"] for entry in counts.values()))
        axes.set_xlabel("documents")

    return standalone(draw("tutorial-domains", plot, wide=300, narrow=300, alt="Documents by domain."))


def standalone(drawing: str) -> str:
    """The wide drawing as a file of its own, in the colours of a light page."""
    (wide,) = re.findall(r'<svg class="wide".*?</svg>', drawing, flags=re.DOTALL)
    for name, value in COLOURS.items():
        wide = wide.replace(f"var(--{name})", value)
    head = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
    return wide.replace("<svg ", head + 'font-family="sans-serif" ', 1) + "\n"


def run_until_chosen(page: str) -> None:
    """Run the blocks of the tutorial down to its `select`, in the working directory."""
    session: dict[str, Any] = {}
    for language, content in re.findall(r"^```(\w+)\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL):
        if language == "python":
            exec(content, session)
        elif "direct-anneal select" in content or "MODEL=" in content:
            script = content.replace("direct-anneal", f"{shlex.quote(sys.executable)} -m direct_anneal")
            if "MODEL=" in content:
                model = script.splitlines()[0]
                continue
            path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
            subprocess.run(["sh", "-c", f"{model}\n{script}"], check=True, env=os.environ | {"PATH": path})
            return


def main() -> None:
    """Write the pictures."""
    page = (HERE.parent / "tutorial.md").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        run_until_chosen(page)
        manifest = json.loads(Path("run/manifest.json").read_text(encoding="utf-8"))
        counts = {name: entry for name, entry in manifest["composition"]["domains"].items() if entry["pool"]}
        (HERE / "tutorial_domains.svg").write_text(domains(counts), encoding="utf-8")
        program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        if program is not None:
            report = Path("run/report.html")
            shown = report.read_text(encoding="utf-8").replace(manifest["config"]["model"], "the package's model")
            report.write_text(shown, encoding="utf-8")  # whose place differs between machines
            picture = f"--screenshot={HERE / 'tutorial_report.png'}"
            flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1160,900"]
            subprocess.run([program, *flags, picture, report.resolve().as_uri()], check=True)


if __name__ == "__main__":
    main()
