"""Ids of the Hugging Face hub in place of weights; a folder stands for the hub."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
import pytest
from worlds import World

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.unit.models.detr.made import tiny

from crossdet import load_config, load_detector
from crossdet.models.card import read_card
from crossdet.models.detr import building
from crossdet.models.detr.settings import DFineModel
from crossdet.models.hub import fetched
from crossdet.models.retinanet.settings import RetinaNetModel
from crossdet.runs import evaluate as evaluation
from crossdet.runs import export as exporting
from crossdet.runs import train as training
from crossdet.serving import app
from crossdet.serving.app import Server


@pytest.fixture
def hub(tmp_path, monkeypatch) -> list[str]:
    """A hub with one model, which brings code along. What was asked for."""
    shelf = tmp_path / "hub/zoo-team/cars-and-faces"
    building.write(tiny("dfine", 2, square=64, prior=0.2), ("car", "face"), shelf)
    (shelf / "pytorch_model.bin").write_bytes(b"a pickle")
    (shelf / "modeling.py").write_text("raise SystemExit")
    asked = []

    def snapshot_download(identifier: str, local_dir: Path, allow_patterns: list[str]) -> str:
        asked.append(identifier)
        if not (tmp_path / "hub" / identifier).is_dir():
            raise OSError(f"404: no model {identifier}\nand more lines")
        for file in (tmp_path / "hub" / identifier).iterdir():
            if any(fnmatch(file.name, pattern) for pattern in allow_patterns):
                local_dir.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, local_dir)
        return str(local_dir)

    def list_repo_files(identifier: str) -> list[str]:
        return [file.name for file in (tmp_path / "hub" / identifier).iterdir()]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", list_repo_files)
    monkeypatch.setenv("CROSSDET_CACHE", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return asked


def test_commands_take_ids_of_the_hub(hub, world: World, tmp_path, crossdet, monkeypatch):
    config = world.write_config(
        tmp_path / "config.yaml", {"model": None, "input": None, "labels": {"merge": {"same_names": True}}}
    )
    given = "hf://zoo-team/cars-and-faces"
    served: list[Server] = []
    monkeypatch.setattr(app, "serve", lambda server, *_: served.append(server))
    for words in (
        ("check", "zoo-team/cars-and-faces"),
        ("check", config, "--extends", given),
        ("predict", given, next((world.root / "cars").glob("*.png")), "-o", "found"),
        ("eval", "zoo-team/cars-and-faces", config),
        ("labels", given, "--rename", "car=automobile"),
        ("report", given, "--data", config),
        ("serve", given),
        ("export", given, "--to", "hf"),
        ("push", given, "--to", "me/mine", "--dry-run", "pushed"),
    ):
        done = crossdet(*words)
        assert done.returncode == 0, done.stderr
    assert set(hub) == {"zoo-team/cars-and-faces"}
    assert [list(server.detectors) for server in served] == [["cars-and-faces"]]
    page = Path("report.html").read_text()
    assert "<h2>What is taken for what" in page
    assert "<h2>Scores" not in page  # no training is known
    fetched = tmp_path / "cache/hub/zoo-team/cars-and-faces"
    names = {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert {file.name for file in fetched.iterdir()} == names  # no code, and no results
    assert read_card(fetched).space.datasets == ("cars-and-faces",)
    assert {file.name for file in Path().iterdir()} == {
        "found", "eval_config", "eval_config.json", "relabelled.safetensors", "report.html",
        "hf", "pushed",
    }  # fmt: skip
    assert read_card(Path("relabelled.safetensors")).space.classes == ("automobile", "face")


def test_an_exported_file_of_the_hub_is_not_written_into_the_cache(hub, tmp_path, monkeypatch):
    written = []
    monkeypatch.setitem(exporting.KINDS, "onnx", exporting.Kind(".onnx", lambda job: written.append(job.file)))
    monkeypatch.setattr(exporting, "_parts", lambda _: [])
    exporting.export(fetched("zoo-team/cars-and-faces"), exporting.Request())
    assert written == [Path("model.onnx")]


def test_teachers_of_the_hub(hub, world: World, tmp_path, crossdet, monkeypatch):
    (tmp_path / "zoo-team").mkdir()  # beside the config
    changes = {"model": None, "input": None, "labels": {"merge": {"same_names": True}}}
    ids = ["hf://zoo-team/cars-and-faces", "zoo/cars"]
    shutil.copytree(tmp_path / "hub/zoo-team/cars-and-faces", tmp_path / "hub/zoo/cars")
    config = world.write_config(tmp_path / "config.yaml", {**changes, "pseudo": {"teachers": ids}})
    assert load_config(config).pseudo.teachers == tuple(ids)
    assert [f"pseudo.teachers: {one} knows car, face" in crossdet("check", config).stdout for one in ids] == [
        True
    ] * 2
    opened = []
    monkeypatch.setattr(
        training, "open_teachers", lambda plan, load: opened.extend(map(load, plan.sources)) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        training.train(load_config(config), tmp_path / "run")
    assert [detector.reported for detector in opened] == [("car", "face")] * 2
    assert set(hub) == {"zoo-team/cars-and-faces", "zoo/cars"}
    typos = "pseudo.teachers=[zoo-team/cars, no/one]"
    told = "".join(crossdet("check", config, "--set", typos).stdout.split())  # lines break within paths, too
    assert "no/onedoesnotexisthere,andasanidofthehubitcouldnotbefetched" in told
    assert f"{tmp_path}/zoo-team/carsdoesnotexist" in told  # its folder is there
    done = crossdet("check", config, "--set", "pseudo.teachers=hf://one")
    assert "`pseudo.teachers`: hf://one is no id of the hub; expected hf://OWNER/NAME" in done.stderr
    assert "error hf://one is no id of the hub" in crossdet("predict", "hf://one", tmp_path).stderr


def test_model_weights_of_the_hub(tmp_path):
    """In a config, as in commands; a backbone has no such weights."""
    (tmp_path / "here").mkdir()
    for given, wanted in (
        ("hf://zoo/cars", "hf://zoo/cars"),
        ("zoo/cars", "zoo/cars"),
        ("here/gone", tmp_path / "here/gone"),
    ):
        taken = DFineModel.model_validate({"weights": given}, context={"base": tmp_path}).weights
        assert taken == wanted
    with pytest.raises(ValueError, match="expected `imagenet`, `none` or a backbone's file"):
        RetinaNetModel.model_validate({"weights": "hf://zoo/cars"})


def test_thresholds_are_stored_beside_a_checkpoint_of_ones_own(hub, world: World, tmp_path, crossdet, monkeypatch):
    changes = {"model": None, "input": None, "labels": {"merge": {"same_names": True}}}
    config = world.write_config(tmp_path / "config.yaml", changes)
    done = crossdet("eval", "zoo-team/cars-and-faces", config, "--store-thresholds")
    assert done.returncode == 2
    assert done.stdout == ""  # at its start
    assert "zoo-team/cars-and-faces is not yours to change; take a copy" in done.stderr
    mine = tmp_path / "hub/zoo-team/cars-and-faces"
    before, found = read_card(mine), {"car": {"threshold": 0.4}}
    metrics = {"datasets": {}, "warnings": [], "operating": found}
    monkeypatch.setattr(evaluation, "evaluate", lambda *_, **__: metrics)
    done = crossdet("eval", mine, config, "--store-thresholds")
    assert done.returncode == 0, done.stderr
    assert f"1 thresholds stored in {mine}/crossdet.json" in done.stdout
    assert read_card(mine) == replace(before, operating=found)
    assert load_detector(mine).thresholds == {"car": 0.4}


def test_what_the_hub_does_not_have(hub, tmp_path, crossdet):
    done = crossdet("predict", "zoo-team/dogs", "photos")
    assert done.returncode == 2
    assert done.stderr == (
        "error zoo-team/dogs does not exist here, and as an id of the hub it could not be fetched from the hub "
        "(404: no model zoo-team/dogs); give a local directory with its config.json, model.safetensors and "
        "preprocessor_config.json, such as `hf download zoo-team/dogs --local-dir DIR` makes\n"
    )
    assert "hf://zoo-team/dogs could not be fetched" in crossdet("check", "hf://zoo-team/dogs").stderr
    assert "expected hf://OWNER/NAME" in crossdet("check", "hf://dogs").stderr
    assert hub == ["zoo-team/dogs"] * 2


def test_paths_stay_paths(hub, tmp_path, crossdet):
    """What is here, what would lie in a folder that is here, and what is named like a file."""
    Path("runs").mkdir()
    for words in (("check", "runs"), ("extend", "runs/frist", "more.yaml"), ("check", "configs/first.yaml")):
        assert crossdet(*words).returncode == 2
    assert hub == []
