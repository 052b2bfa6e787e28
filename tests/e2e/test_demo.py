"""`crossdet demo` with a few pictures and two steps: everything it promises is written, nothing about how good."""

import json
import shlex
from pathlib import Path

import pytest
from browsers import opened
from typer.testing import CliRunner

from crossdet import load_config, load_detector
from crossdet.commands import main as cli
from crossdet.config.sources import open_sources
from crossdet.runs.audit import audit_runs
from crossdet.runs.building import build_network, network_settings
from crossdet.runs.report import report

FEW = ("demo", "--steps", "2", "--images", "12", "--test-images", "6")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "out"
    done = CliRunner().invoke(cli.app, [*FEW, "-o", str(folder), "--json", str(folder.parent / "numbers.json")])
    assert done.exit_code == 0, done.output
    assert "resume" not in done.output  # nobody asked for that
    return folder


def test_numbers_of_both_methods_for_every_class_and_look(demo):
    numbers = json.loads((demo / "demo.json").read_text())
    assert json.loads((demo.parent / "numbers.json").read_text()) == numbers
    for method in ("aware", "naive"):
        for look in ("all", "faces", "peds", "objects"):
            row = numbers["results"][method][look]
            assert set(row) == {"mean", "face", "person", "car", "dog", "sign"}
            assert row["person"]["boxes"] > 0


def test_the_two_runs_differ_only_in_trust(demo):
    aware, naive = (load_config(demo / f"{method}.yaml") for method in ("aware", "naive"))
    assert aware.train.model_copy(update={"plain": True}) == naive.train
    assert aware.model == naive.model
    for method in ("aware", "naive"):
        assert load_detector(demo / "runs" / method).classes == ("face", "person", "car", "dog", "sign")


def test_its_report_and_audit_open_in_a_browser(demo, tmp_path):
    aware, naive = (demo / "runs" / method for method in ("aware", "naive"))
    report(aware, tmp_path / "report.html", naive)
    audit_runs([aware, naive], load_config(demo / "aware.yaml"), tmp_path)
    for name in ("report.html", "audit.html"):
        text = opened(tmp_path / name, 0)
        assert "In short" in text
        assert "Union test, " in text
        assert "person" in text


def test_pictures(demo):
    assert {p.name for p in (demo / "pictures").glob("*.png")} == {
        *("faces.png", "peds.png", "objects.png", "overview.png")
    }


def test_what_is_trained_is_not_trained_again(demo):
    before = {file: file.stat().st_mtime_ns for file in demo.glob("runs/*/model.safetensors")}
    assert len(before) == 2
    again = CliRunner().invoke(cli.app, [*FEW, "-o", str(demo)])
    assert again.exit_code == 0, again.output
    assert again.output.count("done by an earlier call") == 2
    assert before == {file: file.stat().st_mtime_ns for file in before}
    other = CliRunner().invoke(cli.app, [*FEW, "--steps", "3", "-o", str(demo)])
    assert other.exit_code
    assert "differing: train.max_steps" in str(other.exception)


def test_the_folder_of_something_else_is_left_alone(tmp_path, crossdet):
    (tmp_path / "aware.yaml").write_text("mine")
    done = crossdet(*FEW, "-o", tmp_path)
    assert done.returncode == 2
    assert f"{tmp_path} already holds aware.yaml, not written by the demo" in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["aware.yaml"]


def test_make_demo_runs_the_command():
    text = (Path(__file__).parents[2] / "Makefile").read_text()
    assert "demo: $(STAMP)\n\t$(BIN)/crossdet demo\n" in text


def test_another_network(tmp_path, crossdet):
    """As docs/architectures.md has it."""
    page = (Path(__file__).parents[2] / "docs/architectures.md").read_text()
    (line,) = (line for line in page.splitlines() if line.startswith("crossdet demo "))
    words = shlex.split(line, comments=True)[2:]
    few = ("--data-only", "--images", "8", "--test-images", "4", "-o", tmp_path / "world")
    done = crossdet("demo", *words, *few)
    assert done.returncode == 0, done.stderr
    for method in ("aware", "naive"):
        config = load_config(tmp_path / f"world/{method}.yaml")
        assert (config.model.name, config.train.plain) == ("dfine", method == "naive")
    assert build_network(network_settings(config), open_sources(config).space).num_classes == 5
    done = crossdet("demo", *few[:-1], tmp_path / "none", "--set", "model")
    assert done.returncode == 2
    assert "--set model: expected `key=value`" in done.stderr
    assert not (tmp_path / "none").exists()


def test_data_only_gives_a_world_labelled_in_full_and_in_part(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["demo", "-o", "world", "--data-only", "--images", "12", "--test-images", "4"]
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 0, done.output
    assert not (tmp_path / "world/runs").exists()
    full = json.loads((tmp_path / "world/data/full/train.json").read_text())
    assert len(full["images"]) == 3 * 12
    assert {c["name"] for c in full["categories"]} == {"face", "person", "car", "dog", "sign"}
    partial = json.loads((tmp_path / "world/data/objects/annotations/instances_train.json").read_text())
    names = {c["id"]: c["name"] for c in full["categories"]}
    of_objects = {image["id"] for image in full["images"] if image["file_name"].startswith("objects/")}
    seen = [a for a in full["annotations"] if a["image_id"] in of_objects and not a["iscrowd"]]
    without_faces = sorted(a["bbox"] for a in seen if names[a["category_id"]] != "face")
    assert without_faces == sorted(a["bbox"] for a in partial["annotations"] if not a["iscrowd"])
    assert any(names[a["category_id"]] == "face" for a in seen)
    config = load_config("world/full.yaml")
    assert list(open_sources(config).train) == ["streets"]  # what `crossdet-research split` deals out
