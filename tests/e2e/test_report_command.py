"""`crossdet report` on a finished run: the page holds everything, in a browser too, and mistakes are told."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import yaml
from browsers import open_tab
from worlds import World

from crossdet import extend, train
from crossdet.runs.relabel import relabel
from crossdet.runs.report import report


@pytest.fixture(scope="module")
def page(world, trained, tmp_path_factory):
    """The file, and the numbers beside it."""
    folder = tmp_path_factory.mktemp("report")
    train(world.config({"train.plain": True, "train.max_steps": 2}), output=folder / "other")
    numbers = report(trained.folder, folder / "page.html", folder / "other")
    return folder / "page.html", numbers


def test_the_page_holds_everything(page):
    file, content = page
    text = file.read_text()
    for title in ("Scores, every dataset by its own protocol", "Training", "Data", "Who labels what", "Classes",
                  "Precision and recall", "What is taken for what", "What a score means", "Pictures",
                  "Audit: classes in datasets", "Generations"):  # fmt: skip
        assert f"<h2>{title}" in text, title
    assert text.count("data:image/jpeg;base64,") >= 3
    assert not re.search(r"(src|href)='?https?:", text)  # nothing from elsewhere
    assert list(content) == ["trained", "other"]
    objects = {(row["class"], row["dataset"]): row for row in content["trained"]["confusions"]}
    assert set(objects) == {("car", "cars"), ("face", "faces")}
    row = objects["car", "cars"]
    assert row["objects"] == row["found"] + row["missed"] + sum(row["taken_for"].values()) == 5


def test_without_pictures_no_data_is_needed(trained, tmp_path, crossdet):
    run = tmp_path / "run <script>[red]"
    shutil.copytree(trained.folder, run)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("annotations:", "annotations: gone_"))
    done = crossdet("report", run, "--no-pictures", "--json", tmp_path / "r.json")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "r.json").read_text())[run.name]["best_epoch"] > 0
    same = tmp_path / "elsewhere" / run.name
    shutil.copytree(trained.folder, same)
    assert list(report(run, tmp_path / "two.html", same, pictures=False)) == [str(run), str(same)]
    page = (run / "report.html").read_text()
    assert "run &lt;script&gt;[red]" in page
    assert "<script>[red]" not in page
    assert "data:image" not in page
    assert "What is taken for what" not in page


def test_warnings_and_datasets_of_all_epochs_and_both_runs(trained, tmp_path):
    """A warning stands in the epoch that saw it first."""
    run, other = (shutil.copytree(trained.folder, tmp_path / name) for name in ("run", "other"))
    page = tmp_path / "page.html"
    report(run, page, pictures=False)
    assert "The guard found nothing to warn of." in page.read_text()
    for folder, change in ((run, "warnings"), (other, "datasets")):
        content = json.loads((folder / "metrics.json").read_text())
        if change == "warnings":
            texts = ("all is low", "all is <low>")
            found = [{"kind": "low_scores", "sentence": text, "numbers": {}} for text in texts]
            content["epochs"][0]["warnings"], content["epochs"][1]["warnings"] = found[:1], found[1:]
        for record in content["epochs"] if change == "datasets" else []:
            if "metrics" in record:
                record["metrics"]["datasets"] = {"[blue]": next(iter(record["metrics"]["datasets"].values()))}
        (folder / "metrics.json").write_text(json.dumps(content))
    report(run, page, other, pictures=False)
    text = page.read_text()
    assert text.count("all is &lt;low&gt;") == 1
    assert "all is low" not in text
    assert "[blue]" in text.split("<h2>Scores", 1)[1].split("<h2>", 1)[0]


def test_a_run_that_was_judged_on_nothing(world, tmp_path, crossdet):
    changes = {f"datasets.{name}.val": None for name in ("cars", "faces")} | {"train.max_steps": 1}
    train(world.config(changes), output=tmp_path / "run")
    done = crossdet("report", tmp_path / "run", "--json", tmp_path / "r.json")
    assert done.returncode == 0, done.stderr
    assert "no dataset has a `val` split, so no pictures were looked at" in done.stdout
    page = (tmp_path / "run/report.html").read_text()
    assert "No dataset was judged." in page
    assert "Validation pictures were not looked at" in page
    assert list(json.loads((tmp_path / "r.json").read_text())["run"]) == ["mean", "best_epoch"]
    done = crossdet("eval", tmp_path / "run", tmp_path / "run/config.yaml")
    assert (done.returncode, "no dataset of the config has a `val` split" in done.stderr) == (2, True)
    done = crossdet("audit", tmp_path / "run", tmp_path / "run/config.yaml")
    assert done.returncode == 2
    assert "has a `val` split; `--split train` looks at" in " ".join(done.stderr.split())
    assert crossdet("audit", tmp_path / "run", tmp_path / "run/config.yaml", "--split", "train").returncode == 0


def test_mistakes_are_told(world, trained, tmp_path, crossdet):
    def told(*arguments):
        done = crossdet("report", *arguments)
        assert done.returncode == 2
        return done.stderr

    assert "expected a .safetensors file or a run directory" in told(tmp_path)
    assert "say --data CONFIG, or --no-pictures" in told(
        trained.folder / "model.safetensors", "-o", tmp_path / "x.html"
    )
    run = tmp_path / "run"
    shutil.copytree(trained.folder, run)
    read = tmp_path / "data.json"
    read.write_text("[]")
    config = yaml.safe_load((run / "config.yaml").read_text())
    next(iter(config["datasets"].values()))["train"]["annotations"] = [str(read)]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    for file in (run / "metrics.json", read):
        assert f"--json {file}: this file is read" in told(run, "--no-pictures", "--json", file)
    assert read.read_text() == "[]"
    (run / "metrics.json").write_text("[]")
    assert "not what a run writes" in told(run)
    (run / "metrics.json").unlink()
    assert "at the end of an epoch" in told(run)
    other = relabel(trained.folder, tmp_path / "other.safetensors", [("car", "van"), ("face", "head")])
    assert other.reported == ("van", "head")
    assert "knows none of the classes of" in told(trained.folder, "--against", tmp_path / "other.safetensors")


def test_label_rules_may_name_classes_of_the_weights(world, trained, tmp_path):
    """As in `eval`: the config holds cars alone and says that there are no faces."""
    config = world.write_config(
        tmp_path / "cars.yaml", {"datasets.faces": None, "labels.absent": {"cars": ["face"]}}
    )
    numbers = report(trained.folder, tmp_path / "report.html", data=config)
    (run,) = numbers.values()
    assert [row["class"] for row in run["confusions"]] == ["car"]


def test_before_and_after_an_extension(world: World, tmp_path, crossdet):
    """Their classes differ; what both know stands side by side."""
    train(world.config({"datasets.cars": None, "train.max_steps": 2}), output=tmp_path / "faces")
    extend(tmp_path / "faces", world.config({"train.max_steps": 2, "model": None}), output=tmp_path / "both")
    for one, other in (("both", "faces"), ("faces", "both")):
        page = tmp_path / f"{one}.html"
        done = crossdet("report", tmp_path / one, "--against", tmp_path / other, "-o", page)
        assert done.returncode == 0, done.stderr
        text = page.read_text()
        table = text.partition("<h2>Classes</h2>")[2].partition("<h2>")[0]
        faces = re.findall(r"<tr data-class='face'>.*?</tr>", table)
        for name in ("both", "faces"):
            assert len([row for row in faces if f">{name}</b>" in row]) == 1
        assert re.search(rf"Expected calibration error, {one}: [^;]+; {other}: ", text)


def test_in_a_browser(page):
    """Opens without an error, every picture loads, and the filter leaves what it is asked for."""
    with open_tab(viewport={"width": 390, "height": 800}) as (tab, errors):
        tab.goto(page[0].as_uri())
        assert tab.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")  # on a phone
        assert tab.evaluate(
            "[...document.querySelectorAll('.scroll')].filter(e => e.textContent.includes('protocol'))"
            ".map(e => e.scrollWidth - e.clientWidth)"
        ) == [0]
        tab.fill("#filter", "FA")
        shown = tab.evaluate(
            "[...new Set([...document.querySelectorAll('[data-class]')].filter(e => !e.hidden)"
            ".map(e => e.dataset.class))]"
        )
        assert shown == ["face"]
        crops = tab.evaluate(
            "[...document.querySelectorAll('section[id] h3')].map(e => [e.textContent, !!e.offsetParent])"
        )
        assert dict(crops) == {"face in cars": True, "car in faces": False}
        assert errors == []
