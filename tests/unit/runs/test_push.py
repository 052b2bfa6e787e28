"""The directory and the model card that `crossdet push` uploads; a stand-in takes the upload."""

from __future__ import annotations

import re
import shutil
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import yaml
from markdown_it import MarkdownIt

from crossdet import LabelSpace, load_detector
from crossdet.commands.audit import audit as audit_command
from crossdet.commands.evaluate import evaluate as eval_command
from crossdet.commands.push import push as push_command
from crossdet.errors import RunError, UserError
from crossdet.labels.edits import edited
from crossdet.models.building import build_detector
from crossdet.models.card import Card, Generation, InputSettings, Score
from crossdet.models.retinanet.settings import RetinaNetSettings
from crossdet.models.weights import load_weights
from crossdet.runs.export import Request, export
from crossdet.runs.hugging_face import write_directory
from crossdet.runs.model_card import model_card
from crossdet.runs.push import push

from ..models.detr.made import tiny
from .test_hugging_face import SIDE, saved

DATASET = "<script>|x"
NASTY = ["<script>alert(1)</script>", "a|b", "*_c_* [d](http://e)", "line\nbreak"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("push") / "mine.safetensors", tiny("dfine", square=SIDE, prior=0.2))


class Api:
    """Of `HfApi` what is used. public: whether the repository is there, and everybody can see it."""

    def __init__(self, public: bool = False) -> None:
        self.asked, self.public, self.uploaded = [], public, {}

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        self.asked.append((repo_id, private, exist_ok))

    def repo_info(self, repo_id: str) -> SimpleNamespace:
        return SimpleNamespace(private=not self.public)

    def upload_folder(
        self, *, repo_id: str, folder_path: Path, commit_message: str, delete_patterns: list[str]
    ) -> None:
        self.uploaded = {file.name: file.read_bytes() for file in Path(folder_path).iterdir()}
        assert "README.md" not in delete_patterns


def test_a_card_shows_names_as_they_are():
    space = LabelSpace.build({DATASET: NASTY, "b": ["cat"]}, absent={"b": [NASTY[1]]})
    history = (
        Generation("train", {DATASET: NASTY}, list(space.classes), scores=(Score(NASTY[1], "b", "AP", 0.5),)),
    )
    card = Card(space, RetinaNetSettings(), InputSettings(64, 96), {}, {NASTY[1]: {"threshold": 0.25}}, history)
    record = {
        "protocol": "coco", "images": 3, "AP": 0.25, "AP50": 0.5, "per_class": {n: {"AP": 0.125} for n in NASTY},
    }  # fmt: skip
    text = model_card("me/mine", card, {"datasets": {DATASET: record}}, ["recipe <b>"], "cc-by-4.0")
    _, head, body = text.split("---\n", 2)
    assert yaml.safe_load(head) == {
        "license": "cc-by-4.0",
        "library_name": "crossdet",
        "pipeline_tag": "object-detection",
        "tags": ["object-detection", "crossdet", "retinanet"],
    }
    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(body)
    assert not re.search(r"<(script|b|em|a)\b", page)
    cells = [re.findall(r"<td>(.*?)</td>", row, re.S) for row in re.findall(r"<tr>(.*?)</tr>", page, re.S)]
    shown = {"&lt;script&gt;alert(1)&lt;/script&gt;", "a|b", "*_c_* [d](http://e)", "line break"}
    labels = {row[0]: row[1:] for row in cells if len(row) == 3}
    assert set(labels) == {*shown, "cat"}
    assert labels["cat"] == ["avoided", "labelled"]
    assert labels["a|b"] == ["labelled", "absent"]
    scores = {row[0]: row[1:] for row in cells if len(row) == 4 and row[1] == "&lt;script&gt;|x"}
    assert set(scores) == shown
    assert scores["a|b"][1:] == ["AP 12.5", "0.25"]
    assert "AP 25.0, AP50 50.0" in page
    assert "AP 50.0" in model_card("me/mine", card, {})  # without an evaluation: what the weights keep


def test_a_card_after_labels_were_changed():
    """Its scores are those of the training, and what was merged stands in it."""
    before = LabelSpace.build({"a": ["cat", "dog", "car"]})
    history = (
        Generation("train", {"a": ["cat"]}, list(before.classes), scores=(Score("cat", "a", "AP", 0.5),)),
        Generation("labels", {}, ["cat", "dog", "car"], edits=("merged cat, dog as animal",)),
    )
    space = edited(before, [], [("animal", ["cat", "dog"])])
    text = model_card("me/mine", Card(space, RetinaNetSettings(), InputSettings(64, 96), {}, {}, history), {})
    assert "- generation 1, labels: merged cat, dog as animal" in text
    assert "animal: what is found as any of cat, dog is reported as this one class." in text
    assert "| cat | a | AP 50.0 |" in text


def test_what_is_uploaded_comes_back(weights, tmp_path, monkeypatch):
    api = Api()
    record = push(weights, "hf://me/scenes", private=True, api=api)
    assert api.asked == [("me/scenes", True, True)]
    assert record["url"] == "https://huggingface.co/me/scenes"
    assert set(api.uploaded) == set(record["files"]) == {
        "README.md", "config.json", "crossdet.json", "model.safetensors", "preprocessor_config.json",
    }  # fmt: skip
    assert b"library_name: transformers" in api.uploaded["README.md"]

    def snapshot_download(identifier: str, local_dir: Path, allow_patterns: list[str]) -> None:
        assert identifier == "me/scenes"
        local_dir.mkdir(parents=True)
        for name, data in api.uploaded.items():
            if any(fnmatch(name, pattern) for pattern in allow_patterns):
                (local_dir / name).write_bytes(data)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setenv("CROSSDET_CACHE", str(tmp_path))
    detector = load_detector("hf://me/scenes", "cpu")
    assert detector.thresholds == {"cat": 0.4}
    assert detector.space == load_weights(weights)[1].space


def test_what_the_hub_has_no_longer_is_not_taken(weights, tmp_path, monkeypatch):
    """Somebody has put other weights there, without our rules; those of before speak of the old ones."""
    shelf = tmp_path / "shelf"
    write_directory(weights, shelf)

    def snapshot_download(identifier: str, local_dir: Path, allow_patterns: list[str]) -> None:
        shutil.copytree(shelf, local_dir, dirs_exist_ok=True)

    def list_repo_files(identifier: str) -> list[str]:
        return [file.name for file in shelf.iterdir()]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", list_repo_files)
    monkeypatch.setenv("CROSSDET_CACHE", str(tmp_path))
    assert load_detector("hf://me/scenes", "cpu").thresholds == {"cat": 0.4}
    (shelf / "crossdet.json").unlink()
    assert load_detector("hf://me/scenes", "cpu").thresholds == {}
    assert {file.name for file in (tmp_path / "hub/me/scenes").iterdir()} == set(list_repo_files(""))
    (shelf / "config.json").rename(tmp_path / "config.json")  # a hub that cannot be asked takes nothing away
    monkeypatch.setattr(huggingface_hub, "list_repo_files", None)
    assert load_detector("hf://me/scenes", "cpu").thresholds == {}


def test_a_run_without_transformers_network(trained, tmp_path, crossdet):
    """RetinaNet goes as crossdet's own file, with the scores of the run."""
    done = crossdet(
        "push", trained.folder, "--to", "me/cars", "--dry-run", tmp_path / "out", "--json", tmp_path / "j.json"
    )
    assert done.returncode == 0, done.stderr
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"README.md", "model.safetensors"}
    best = trained.folder / "best.safetensors"
    assert (tmp_path / "out/model.safetensors").read_bytes() == best.read_bytes()
    card = (tmp_path / "out/README.md").read_text()
    assert "| car | labelled | avoided |" in card
    assert "| cars | coco | 5 | AP " in card
    assert "library_name: crossdet" in card
    assert load_detector(tmp_path / "out", "cpu").reported == ("car", "face")


def test_no_file_of_the_run_is_written_over(trained):
    for name in ("metrics.json", "config.json"):
        with pytest.raises(UserError, match=rf"--json .*{name}: this file is read; choose another name"):
            push_command(trained.folder, "me/cars", json_file=trained.folder / name)
    for command in (eval_command, audit_command):
        with pytest.raises(UserError, match=r"--json .*metrics.json: this file is read; choose another name"):
            command(trained.folder, json_file=trained.folder / "metrics.json")


def test_what_is_refused(tmp_path, monkeypatch):
    settings = RetinaNetSettings(backbone="test_efficientnet", channels=16, head_depth=1)
    weights = saved(tmp_path / "w.safetensors", build_detector(settings, 4))
    with pytest.raises(UserError, match="no id of the hub; expected OWNER/NAME"):
        push(weights, "scenes", api=Api())
    api = Api(public=True)
    with pytest.raises(UserError, match="is there already and public"):
        push(weights, "me/scenes", private=True, api=api)
    assert not api.uploaded
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UserError, match="hf auth login"):
        push(weights, "me/scenes")
    nowhere = huggingface_hub.HfApi(endpoint="http://127.0.0.1:9", token="hf_x")  # nobody listens there
    with pytest.raises(RunError, match=r"me/scenes could not be uploaded to the hub \(.+\)") as error:
        push(weights, "me/scenes", api=nowhere)
    assert "\n" not in str(error.value)


def test_export_to_hf(weights, tmp_path):
    shutil.copy(weights, tmp_path / "w.safetensors")
    record = export(tmp_path / "w.safetensors", Request("hf"))
    assert record["file"] == str(tmp_path / "hf")
    assert (tmp_path / "hf/config.json").exists()
    with pytest.raises(UserError, match="only --output and --last"):
        export(weights, Request("hf", opset=17), tmp_path / "other")
    with pytest.raises(UserError, match="--to: expected onnx or openvino or hf, got 'h5'"):
        export(weights, Request("h5"))
