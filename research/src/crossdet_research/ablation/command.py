"""`crossdet-research ablation`: the methods compared on a split, and what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crossdet.commands.terminal import JsonFile
from crossdet.evaluation.operating import CONFIDENT
from crossdet_research import options
from crossdet_research.options import MarkdownFile
from crossdet_research.study import Several, argument, option, report, say_files, study_app
from crossdet_research.tables import rich_tables

app = study_app(
    "ablation",
    "The methods compared on a dataset of `crossdet-research split`: run, table, curves, sweep, pictures.",
)
SplitDir = Annotated[Path, argument("SPLIT_DIR", "folder that `crossdet-research split` wrote")]
SplitResults = Annotated[Path, argument("RESULTS_DIR/SPLIT", "folder with the JSONs of one split")]


@app.command()
def run(
    split_dir: SplitDir,
    methods: Annotated[
        Several,
        option(
            "--methods",
            "A,B",
            "naive, aware, same_positives, full, naive_merged, aware_no_foreground, aware_distinct, expert "
            "(all of them), expert_PART; default: all of these that differ on the split. Also aware_pseudo and "
            "aware_pseudo_positives (after the experts), aware_pseudo_self, aware_pseudo_self_positives; of "
            "networks of queries aware_any_queries, aware_any_flips, aware_free_quality, aware_on_object",
        ),
    ] = None,
    seeds: options.Seeds = None,
    output: Annotated[Path, option("--output", "RESULTS_DIR", "JSONs go to RESULTS_DIR/SPLIT", "-o")] = Path(
        "results"
    ),
    runs: Annotated[
        Path | None, option("--runs", "DIR", "where the trainings go (default: SPLIT_DIR/runs)")
    ] = None,
    overrides: options.Overrides = None,
    measure_only: Annotated[
        bool, typer.Option("--measure-only", help="train nothing; measure the trainings that have finished")
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="measure finished trainings anew, also those that have a JSON")
    ] = False,
) -> None:
    """Train and measure; a queue that skips what is finished and goes on where it was stopped.

    Example: crossdet-research ablation run halves --methods naive,aware,same_positives,full --seeds 0,1,2
    """
    from crossdet_research.ablation.methods import chosen_methods
    from crossdet_research.ablation.queue import open_split_folder, run_ablation

    split = open_split_folder(split_dir, runs)
    chosen = chosen_methods(options.words(methods), split.summary, options.say)
    numbers, given, train = options.seed_numbers(seeds), overrides or [], not measure_only
    say_files(run_ablation(split, output, chosen, numbers, given, options.say_bold, train, again))


@app.command()
def table(results: SplitResults, markdown_file: MarkdownFile = None, json_file: JsonFile = None) -> None:
    """All measures of a split, mean and standard deviation over the seeds; blank where nothing was run."""
    from crossdet_research.ablation.results import read_results
    from crossdet_research.ablation.tables import as_json, grids, markdown, notes, recovered_text

    found = read_results(results)
    lines = [recovered_text(found), *notes(found)]
    report(rich_tables(grids(found)), lines, markdown_file, markdown(found), json_file, as_json(found))


@app.command()
def curves(results: SplitResults, output: options.FigureFile) -> None:
    """Draw the learning curves: a panel per part, a line per method, a band over the seeds."""
    from crossdet_research.ablation.figures import draw_learning_curves
    from crossdet_research.ablation.results import read_results

    draw_learning_curves(read_results(results), output)
    options.say(str(output))


@app.command()
def sweep(
    results: Annotated[Path, argument("RESULTS_DIR", "folder with the results of several splits")],
    plot: Annotated[Path | None, option("--plot", "FILE.png", "draw union AP over the conflict")] = None,
    markdown_file: MarkdownFile = None,
) -> None:
    """Union AP over the share of images that show an unlabelled object, for all splits of a results folder."""
    from crossdet_research.ablation.figures import draw_sweep
    from crossdet_research.ablation.results import read_all
    from crossdet_research.ablation.tables import sweep_grids, sweep_markdown

    splits, lines = read_all(results), []
    if plot is not None:
        draw_sweep(splits, plot)
        lines.append(str(plot))
    report(rich_tables(sweep_grids(splits)), lines, markdown_file, sweep_markdown(splits))


@app.command()
def pictures(
    split_dir: SplitDir,
    run_a: Annotated[Path, argument("RUN_A", "run directory")],
    run_b: Annotated[Path, argument("RUN_B", "another one")],
    output: options.FigureFile,
    image: Annotated[
        int | None,
        typer.Option(min=0, help="number of the test picture (default: one with many unlabelled objects)"),
    ] = None,
    score: Annotated[float, typer.Option(min=0, max=1, help="lowest score that is drawn")] = CONFIDENT,
) -> None:
    """Draw one test picture in every look: all objects, and what two runs find."""
    from crossdet_research.ablation.figures import draw_pictures
    from crossdet_research.ablation.queue import open_split_folder

    runs = [(run.resolve().name, run) for run in (run_a, run_b)]
    draw_pictures(open_split_folder(split_dir), runs, output, score, image)
    options.say(str(output))
