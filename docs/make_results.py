"""Writes every table and figure of docs/results.md and docs/performance.md anew from the JSONs in docs/data, and
the statements there and in README.md that depend on them.

    make results

A block between `<!-- results: NAME -->` and `<!-- end -->` belongs to this script; the words around it are written
by hand. NAME is `paper N` (a table of the paper; `paper N FOLDER`: of other results), `ablation SPLIT` (with a
figure, if there are learning curves), `sweep FOLDER` (all splits in a folder, with a figure),
`stability FOLDER` (scores and training of one split), `lifelong NAME` (a sequence, with a figure),
`orientation NAME`, `curves NAME` (figures from the JSON that `crossdet curves --data` wrote), `bench` (ratios
and targets of `make bench`), or `peers` (what `benchmarks/peers.py` wrote).

Within a line, `<!-- results: NAME -->words<!-- end -->` is a statement; NAME is `value SPLIT METHOD [KEY]` or
`difference SPLIT A B [KEY]` (paired by seed, with interval and verdict; KEY: of the union test, by default AP),
`share SEQUENCE METHOD PLACE` (new classes, of joint training) or `steps SEQUENCE METHOD` (of the last generation,
with those of the generations before it). `card NAME` is one of `CARD_TARGETS` of benchmarks/bench.py, or `card
machine`, from docs/data/bench_gpu.json (`make bench` on a GPU). Where there is no such file, `card machine` says
so, and the others are nothing.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from crossdet.evaluation.curves import overlay
from crossdet.files import write_atomically
from crossdet_research.ablation.figures import draw_learning_curves, draw_sweep
from crossdet_research.ablation.results import column, read_all, read_results
from crossdet_research.ablation.tables import markdown as ablation_markdown
from crossdet_research.ablation.tables import sweep_markdown
from crossdet_research.lifelong.figure import draw_generations
from crossdet_research.lifelong.plan import JOINT, METHODS
from crossdet_research.lifelong.results import read_results as read_sequence
from crossdet_research.lifelong.tables import markdown as lifelong_markdown
from crossdet_research.lifelong.tables import step_grid
from crossdet_research.orientation.tables import markdown as orientation_markdown
from crossdet_research.orientation.tables import read_runs as read_orientation
from crossdet_research.paired import Difference, difference
from crossdet_research.paper.tables import markdown as paper_markdown
from crossdet_research.paper.tables import paper_table
from crossdet_research.tables import spread

ROOT = Path(__file__).parents[1]
TITLES = {method.name: method.title for method in METHODS}
PAGES = ("docs/results.md", "docs/performance.md", "README.md")
BLOCK = re.compile(r"(<!-- results: (?P<name>[^>]+?) -->\n)(?:(?!<!-- results: ).)*?(<!-- end -->)", re.S)
WORDS = re.compile(r"(<!-- results: (?P<name>[^>]+?) -->)(?!\n)[^\n]*?(<!-- end -->)")


def block(name: str, data: Path, images: Path) -> str:
    """The Markdown of one block; draws its figure into `images`."""
    kind, _, rest = name.partition(" ")
    if kind not in BLOCKS:
        raise SystemExit(f"unknown block {name!r}")
    return BLOCKS[kind](rest, data, images)


def _paper(name: str, data: Path, _: Path) -> str:
    table, _, folder = name.partition(" ")
    return paper_markdown(paper_table(table, data / (folder or "paper")))


def _ablation(split: str, data: Path, images: Path) -> str:
    results = read_results(data / "ablation" / split)
    tables = ablation_markdown(results)
    if all(len(run["curve"]) < 2 for runs in results.runs.values() for run in runs.values()):
        return tables
    file = images / f"curves_{split}.png"
    draw_learning_curves(results, file)
    return f"{tables}\n![Learning curves]({_link(file)})\n"


def _stability(folder: str, data: Path, _: Path) -> str:
    return ablation_markdown(read_results(data / folder), only=("scores", "training"))


def _sweep(folder: str, data: Path, images: Path) -> str:
    splits = read_all(data / folder)
    file = images / f"{folder.replace('/', '_')}.png"
    draw_sweep(splits, file)
    return f"{sweep_markdown(splits)}\n![Union AP over the conflict]({_link(file)})\n"


def _lifelong(name: str, data: Path, images: Path) -> str:
    sequence = read_sequence(data / "lifelong" / name)
    file = images / f"lifelong_{name}.png"
    draw_generations(sequence, file)
    tables = lifelong_markdown(sequence)
    folded = f"<details>\n<summary>All tables of {name}</summary>\n\n{tables}\n</details>"
    return f"![AP50 over the generations]({_link(file)})\n\n{folded}\n"


def _orientation(name: str, data: Path, _: Path) -> str:
    return orientation_markdown(read_orientation(data / "orientation" / name))


def _curves(name: str, data: Path, images: Path) -> str:
    with tempfile.TemporaryDirectory() as folder:
        drawn = overlay([(None, data / "curves" / f"{name}.json")], Path(folder))
        files = [shutil.copyfile(one, images / f"{name}_{one.name}") for one in drawn]
    return "\n".join(f"![Precision and recall, {name}]({_link(file)})" for file in files) + "\n"


def _bench(_: str, data: Path, __: Path) -> str:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from bench import targets_table

    file = data / "bench.json"
    if not file.exists():
        raise SystemExit(f"{file} is not there; `make bench` writes bench/bench.json")
    content = json.loads(file.read_text())
    about = ", ".join(f"{key} {value}" for key, value in content["machine"].items())
    return f"{about}\n\n" + "\n".join(targets_table(content["results"])) + "\n"


def _peers(_: str, data: Path, __: Path) -> str:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from peers import tables

    return tables(json.loads((data / "peers.json").read_text())["results"])


BLOCKS: dict[str, Callable[[str, Path, Path], str]] = {
    "paper": _paper,
    "ablation": _ablation,
    "stability": _stability,
    "sweep": _sweep,
    "lifelong": _lifelong,
    "orientation": _orientation,
    "curves": _curves,
    "bench": _bench,
    "peers": _peers,
}
"""Kind of block -> its Markdown, of the words after the kind, `--data` and `--images`."""


def _card(name: str, file: Path) -> str:
    """What was measured on a card, and whether the target is met; nothing where it was not measured."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from bench import CARD_TARGETS, judged

    if name not in (known := (*CARD_TARGETS, "machine")):
        raise SystemExit(f"unknown target of a card {name!r}; there are {', '.join(known)}")
    if not file.exists():
        return "No card has run these rows yet." if name == "machine" else ""
    content = json.loads(file.read_text())
    if name == "machine":
        about = content["machine"]
        return f"Measured on {about['gpu']}, torch {about['torch']}, {about['cores']} CPU cores."
    found = judged(CARD_TARGETS[name], content["results"])
    return "" if found is None else f"{found[0]:.3g}: {found[1]}"


def words(name: str, data: Path) -> str:
    """A statement within a line."""
    kind, folder, *rest = name.split()
    if kind == "card":
        return _card(folder, data / "bench_gpu.json")
    if kind in ("value", "difference"):
        results = read_results(data / "ablation" / folder)
        methods, key = rest[: 1 + (kind == "difference")], rest[1 + (kind == "difference") :]
        measure = column(name, ("union", *(key or ["AP"])[0].split(".")))
        values = [measure.values(results.of(method)) for method in methods]
        return spread(values[0].values()) if kind == "value" else _said(difference(*values), name)
    if kind == "share":
        sequence = read_sequence(data / "lifelong" / folder)
        shares = [sequence.of_joint(rest[0], g, rest[1]) for g in range(2, sequence.last + 1)]
        return " and ".join(_share(one) for one in shares if one)
    if kind == "steps":
        found = {row[0]: row[-2:] for row in step_grid(read_sequence(data / "lifelong" / folder))[1]}
        together, share = found[TITLES[rest[0]]]
        return f"{int(together):,} steps, {share} of joint training's {int(found[TITLES[JOINT.name]][0]):,}"
    raise SystemExit(f"unknown statement {name!r}")


def _said(delta: Difference | None, name: str) -> str:
    """With "may be 0" where the test does not tell it from 0, and nothing where it is not judged."""
    if delta is None:
        raise SystemExit(f"{name}: no seed that both have")
    return delta.words + (", may be 0" if delta.verdict == "no" else "")


def _share(shares: Mapping[int, float]) -> str:
    """`104 % (99 to 109)`; without an interval where there are less than three seeds."""
    delta = difference({s: 100 * one for s, one in shares.items()}, dict.fromkeys(shares, 0.0))
    assert delta is not None
    interval = f" ({delta.low:.0f} to {delta.high:.0f})" if delta.interval else ""
    return f"{delta.mean:.0f} %{interval}"


def _link(file: Path) -> str:
    return f"images/{file.name}"


def page(text: str, data: Path, images: Path) -> str:
    """The page with all its blocks made anew. Ends the script where a block has no end."""
    starts = re.findall(r"<!-- results: .*?-->", text)
    ends = len(BLOCK.findall(text)) + len(WORDS.findall(text))
    if len(starts) != ends:
        raise SystemExit(f"{len(starts)} blocks begin, {ends} end: {', '.join(starts)}")
    text = WORDS.sub(lambda m: f"{m[1]}{words(m['name'], data)}{m[3]}", text)
    return BLOCK.sub(lambda m: f"{m[1]}{block(m['name'], data, images).strip()}\n{m[3]}", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=ROOT / "docs/data")
    parser.add_argument("--images", type=Path, default=ROOT / "docs/images")
    args = parser.parse_args()
    for name in PAGES:
        file = ROOT / name
        write_atomically(file, page(file.read_text(), args.data, args.images).encode())
        print(name)


if __name__ == "__main__":
    main()
