"""`crossdet ablation`: the methods compared on a split, and what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from crossdet.errors import UserError
from crossdet.evaluation.confidence import CONFIDENT

app = typer.Typer(
    name="ablation",
    help="The methods compared on a dataset that `crossdet split` wrote: run, table, curves, sweep, pictures.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
out = Console()
wide = Console(width=max(200, out.width))
"""For tables: a narrow terminal breaks their lines, which is better than to cut names."""

SplitDir = Annotated[Path, typer.Argument(metavar="SPLIT_DIR", help="folder that `crossdet split` wrote")]
SplitResults = Annotated[
    Path, typer.Argument(metavar="RESULTS_DIR/SPLIT", help="folder with the JSONs of one split")
]
MarkdownFile = Annotated[
    Path | None, typer.Option("--markdown", metavar="FILE", help="also write as Markdown")
]
JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="also write the numbers as JSON")
]


@app.command()
def run(
    split_dir: SplitDir,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--methods",
            metavar="A,B",
            help="naive, aware, same_positives, full, naive_merged, aware_no_foreground, aware_distinct, expert "
            "(all of them), expert_PART; default: all of these that differ on the split. Also aware_pseudo (after "
            "the experts), aware_pseudo_self",
        ),
    ] = None,
    seeds: Annotated[list[str] | None, typer.Option("--seeds", metavar="N,M", help="default: 0,1,2")] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="RESULTS_DIR", help="JSONs go to RESULTS_DIR/SPLIT")
    ] = Path("results"),
    runs: Annotated[
        Path | None,
        typer.Option("--runs", metavar="DIR", help="where the trainings go (default: SPLIT_DIR/runs)"),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="override a config value of all trainings"),
    ] = None,
    measure_only: Annotated[
        bool, typer.Option("--measure-only", help="train nothing; measure the trainings that have finished")
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="measure finished trainings anew, also those that have a JSON")
    ] = False,
) -> None:
    """Train and measure; a queue that skips what is finished and goes on where it was stopped.

    Example: crossdet ablation run halves --methods naive,aware,same_positives,full --seeds 0,1,2
    """
    from crossdet.experiments.ablation import chosen_methods, open_split_folder, run_ablation

    split = open_split_folder(split_dir, runs)
    chosen = chosen_methods(_words(methods), split.summary, _say)

    def say(text: str) -> None:
        out.print(escape(text), highlight=False, soft_wrap=True, style="bold")

    files = run_ablation(
        split, output, chosen, _numbers(seeds), overrides or [], say, train=not measure_only, again=again
    )
    for file in files:
        _say(str(file))


@app.command()
def table(results: SplitResults, markdown_file: MarkdownFile = None, json_file: JsonFile = None) -> None:
    """All measures of a split, mean and standard deviation over the seeds; blank where nothing was run."""
    from crossdet.experiments.ablation_results import read_results
    from crossdet.experiments.ablation_tables import as_json, markdown, notes, recovered_text, rich_tables
    from crossdet.jsonfiles import write_atomically, write_json

    found = read_results(results)
    for shown in rich_tables(found):
        wide.print(shown, highlight=False)
        out.print()
    for line in [recovered_text(found), *notes(found)]:
        _say(line)
    if markdown_file is not None:
        write_atomically(markdown_file, markdown(found).encode())
    if json_file is not None:
        write_json(json_file, as_json(found))


@app.command()
def curves(
    results: SplitResults,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.png", help="where to draw")],
) -> None:
    """Draw the learning curves: a panel per part, a line per method, a band over the seeds."""
    from crossdet.experiments.ablation_figures import draw_learning_curves
    from crossdet.experiments.ablation_results import read_results

    draw_learning_curves(read_results(results), output)
    _say(str(output))


@app.command()
def sweep(
    results: Annotated[
        Path, typer.Argument(metavar="RESULTS_DIR", help="folder with the results of several splits")
    ],
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.png", help="draw union AP over the conflict")
    ] = None,
    markdown_file: MarkdownFile = None,
) -> None:
    """Union AP over the share of images that show an unlabelled object, for all splits of a results folder."""
    from crossdet.experiments.ablation_figures import draw_sweep
    from crossdet.experiments.ablation_results import read_all
    from crossdet.experiments.ablation_tables import sweep_markdown, sweep_table
    from crossdet.jsonfiles import write_atomically

    splits = read_all(results)
    wide.print(sweep_table(splits), highlight=False)
    if plot is not None:
        draw_sweep(splits, plot)
        _say(str(plot))
    if markdown_file is not None:
        write_atomically(markdown_file, sweep_markdown(splits).encode())


@app.command()
def pictures(
    split_dir: SplitDir,
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", help="run directory")],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B", help="another one")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.png", help="where to draw")],
    image: Annotated[
        int | None,
        typer.Option(min=0, help="number of the test picture (default: one with many unlabelled objects)"),
    ] = None,
    score: Annotated[float, typer.Option(min=0, max=1, help="lowest score that is drawn")] = CONFIDENT,
) -> None:
    """Draw one test picture in every look: all objects, and what two runs find."""
    from crossdet.experiments.ablation import open_split_folder
    from crossdet.experiments.ablation_figures import draw_pictures

    runs = [(run.resolve().name, run) for run in (run_a, run_b)]
    draw_pictures(open_split_folder(split_dir), runs, output, score, image)
    _say(str(output))


def _words(given: list[str] | None) -> list[str]:
    """The option may be repeated, and each may hold several words: `A,B` or `A B`."""
    return list(dict.fromkeys(word for text in given or [] for word in text.replace(",", " ").split()))


def _numbers(given: list[str] | None) -> list[int]:
    words = _words(given) or ["0", "1", "2"]
    wrong = [word for word in words if not word.isdecimal()]
    if wrong:
        raise UserError(f"--seeds {', '.join(wrong)}: expected whole numbers from 0 on, such as 0,1,2")
    return [int(word) for word in words]


def _say(text: str) -> None:
    out.print(escape(text), highlight=False, soft_wrap=True)
