"""The README's config, commands and Python run as they stand, on generated stand-ins, with a tiny network."""

import re
import shlex
import shutil
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import huggingface_hub
import numpy as np
import pytest
import yaml

import crossdet
from crossdet import load_config, train
from crossdet.commands import main as cli
from crossdet.config import Config
from crossdet.config.sources import open_sources
from crossdet.data.video import VideoWriter
from crossdet.evaluation.curves import NamedCurve, write_run_curves
from crossdet.evaluation.files.wider_face_lists import write_wider_face_lists
from crossdet.evaluation.precision_recall import Curve
from crossdet_research import main as research

from ..unit.serving.test_app import ask
from ..unit.serving.test_app import started as run_server
from .stand_ins import TINY, TINY_EXTENSION, coco, pictures, wider_face, wider_pedestrian

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
USING = (ROOT / "docs/using.md").read_text()
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/README.md",
    "docs/using.md",
    "docs/python.md",
    "docs/extending_crossdet.md",
    "docs/design.md",
    "docs/two_yolo_folders.md",
    "docs/glossary.md",
    "docs/limits.md",
    "docs/export.md",
)
MAINS = {"crossdet": cli.main, "crossdet-research": research.main}
BACKBONE = ["model.backbone=mobilenetv3_small_050", "model.weights=none"]


def blocks(language, page=README):
    return re.findall(rf"```{language}\n(.*?)```", page, re.S)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The folder that the README's config describes, and the config itself."""
    root = tmp_path_factory.mktemp("readme")
    for split, seed in (("train", 1), ("val", 2)):
        wider_face(root, f"WIDER_{split}/images", f"wider_face_split/wider_face_{split}_bbx_gt.txt", 4, seed)
        wider_pedestrian(
            root,
            f"pedestrian/{split}",
            f"{split}_annotations.txt",
            f"pedestrian_ignore_part_{split}.txt",
            4,
            seed + 2,
        )
        coco(root, f"{split}2017", f"annotations/instances_{split}2017.json", ["person", "car"], 4, seed + 4)
    (text,) = blocks("yaml")
    (root / "config.yaml").write_text(text)
    coco(root, "signs", "signs.json", ["sign"], 4, 8)
    signs = {"format": "coco", "train": {"images": "signs", "annotations": "signs.json"}}
    (root / "more.yaml").write_text(yaml.safe_dump({"datasets": {"signs": signs}}))
    pictures(root, ["street.jpg"], ["x"], 9)
    pictures(root / "images", ["a.jpg", "b.jpg"], ["x"], 9)
    with VideoWriter(root / "clip.mp4", Fraction(10)) as video:
        for number in range(6):
            video.add(number / 10, np.full((48, 64, 3), 40 * number, np.uint8))
    score_files(root)
    return root


def score_files(root):
    """What the `score` and `curves` commands of the README read: one image, one right detection each."""
    write_wider_face_lists(
        root / "eval_tools/ground_truth",
        ["0--Parade/a"],
        np.array([[5.0, 5, 20, 20]]),
        np.array([0]),
        dict.fromkeys(("easy", "medium", "hard"), np.array([True])),
    )
    object_ = "<object><name>car</name><bndbox>{}</bndbox></object>".format(
        "".join(f"<{k}>{v}</{k}>" for k, v in (("xmin", 1), ("ymin", 1), ("xmax", 9), ("ymax", 9)))
    )
    files = {
        "predictions/0--Parade/a.txt": "a\n1\n5 5 20 20 0.9\n",
        "VOCdevkit/VOC2007/Annotations/1.xml": f"<annotation>{object_}</annotation>",
        "VOCdevkit/VOC2007/ImageSets/Main/test.txt": "1\n",
        "results/car.txt": "1 0.9 1 1 9 9\n",
        "results.json": "[]",
        "submission.txt": "",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    write_run_curves(
        root / "other",
        "theirs",
        [NamedCurve("ground_truth", "wider_face", "easy", Curve(np.ones(2), np.ones(2), 0.5))],
    )


def run(monkeypatch, words):
    """Exit code of a command."""
    monkeypatch.setattr(sys, "argv", words)
    try:
        MAINS[words[0]]()
    except SystemExit as stop:
        return stop.code or 0
    return 0


def commands(page):
    lines = [line.split("#")[0].strip() for block in blocks("sh", page) for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("crossdet")]


def test_the_pages_show_every_step():
    assert [words[1] for words in commands(README)] == ["check", "train", "eval", "audit", "predict", "extend"]
    assert [words[1] for words in commands(USING)] == [
        "new", *["check"] * 3, "anchors", *["train"] * 3, "eval", "audit", "report", *["predict"] * 6,
        *["serve"] * 2, "push", "push", "predict", *["score"] * 4, "curves",
        "extend", "extend", "check", "paper", "paper",
    ]  # fmt: skip


def test_the_readme_is_short():
    """What it is, for whom, and a result come first; the rest is behind links."""
    assert len(README.split()) <= 900
    assert "Mean AP50" in README[:2600]


class Hub:
    """Of `HfApi` and of `huggingface_hub.snapshot_download` what is used; a folder is the hub."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create_repo(self, repo_id: str, **_) -> None:
        (self.folder / repo_id).mkdir(parents=True)

    def repo_info(self, repo_id: str) -> SimpleNamespace:
        return SimpleNamespace(private=True)

    def upload_folder(self, repo_id: str, folder_path: Path, **_) -> None:
        shutil.copytree(folder_path, self.folder / repo_id, dirs_exist_ok=True)

    def download(self, repo_id: str, local_dir: Path, **_) -> str:
        return str(shutil.copytree(self.folder / repo_id, local_dir, dirs_exist_ok=True))


@pytest.fixture
def stand_ins(world, monkeypatch, tmp_path) -> list[list[str]]:
    """For the hub, for a camera (the clip) and for a server that runs until Ctrl-C: the detectors that it had."""
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr("crossdet.runs.push._signed_in", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.download)
    monkeypatch.setenv("CROSSDET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("crossdet.data.video._place", lambda source: ("file:clip.mp4", None))
    served = []

    def serve(server, host, port, started):
        assert (host, port) == ("127.0.0.1", 8080)
        (_, address) = shlex.split(next(line for line in USING.splitlines() if line.startswith("curl")))[2:]
        assert address.startswith(f"http://{host}:{port}/detect?")
        query, street = address.partition(f"{port}")[2], (world / "street.jpg").read_bytes()
        at = run_server(server)
        served.append([one["name"] for one in ask(at, "/about")[1]["detectors"]])
        status, found, _ = ask(at, query, street)
        assert (status, found.get("width")) == (200, 80), found
        started(port)

    monkeypatch.setattr("crossdet.serving.app.serve", serve)
    return served


def test_commands(world, monkeypatch, capsys, stand_ins):
    monkeypatch.chdir(world)
    for words in [*commands(USING), *commands(README)]:
        if words[1] in ("train", "extend") and "--resume" not in words:  # both pages write the same runs
            shutil.rmtree(words[words.index("--output") + 1], ignore_errors=True)
        # the first run has finished when the README's --resume comes: resuming it is refused, with a message
        expected = 2 if "--resume" in words else 0
        if "--against" in words:
            shutil.copytree("runs/first", "runs/second")  # which a later command of the page makes
        if "config.yaml" in words:
            tiny = [*TINY, *BACKBONE]
        else:
            tiny = TINY_EXTENSION if words[1] == "extend" else []
        shrink = [part for override in tiny for part in ("--set", override)]
        assert run(monkeypatch, words + shrink) == expected, words
    printed = capsys.readouterr()
    assert "nothing to resume" in printed.err
    for file in (
        "runs/first/model.safetensors",
        "runs/first/eval_config.json",
        "runs/first/eval_config/predictions/coco/results.json",
        "runs/first/audit/audit.html",
        "predictions/predictions.json",
        "faces.json",
        "figures/ground_truth_wider_face.png",
    ):
        assert (world / file).exists(), file
    assert len(list((world / "pictures").glob("*.jpg"))) == 4
    assert stand_ins == [["first"], ["first", "second"]]
    lines = [len((world / "out" / name).read_text().splitlines()) for name in ("clip.jsonl", "camera_0.jsonl")]
    assert lines == [2, 6]  # of the clip every fifth frame, by the later command
    assert (world / "out/camera_0.mp4").exists()
    assert {"README.md", "model.safetensors"} <= {file.name for file in (world / "files").iterdir()}


def test_python(world, monkeypatch, tmp_path):
    code, own_loop = blocks("python")
    monkeypatch.chdir(world)
    wanted = str(["train.epochs=1"]).replace("'", '"')
    assert wanted in code
    code = code.replace(wanted, repr([*TINY, *BACKBONE])).replace("runs/first", str(tmp_path / "run"))
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert set(names["metrics"]["datasets"]) == {"faces", "peds", "coco"}
    exec(compile(own_loop, "README.md", "exec"), names)
    # of the first image, all of people: no gradient for the faces at its background, but on its person
    assert (names["logits"].grad[0] == 0).tolist() == [[False, False], [False, True], [False, True]]
    assert len(own_loop.splitlines()) <= 12


def test_python_of_the_guide(world, monkeypatch):
    """Its detector is one of a training of two steps, its pets are two pictures of the stand-ins."""
    habits, dataset, _ = blocks("python", USING)
    monkeypatch.chdir(world)
    names: dict = {}
    if not (world / "runs/first/model.safetensors").exists():
        train(load_config("config.yaml", [*TINY, *BACKBONE]), output="runs/first")
    exec(compile(habits.replace('"street.jpg"', '"street.jpg", score_threshold=0.0'), "using.md", "exec"), names)
    found = names["found"]
    assert len(found)
    assert {row["category_id"] for row in names["rows"]} <= {1, 2}
    assert len(names["rows"]) == sum(name in ("face", "person") for name in found.names)
    assert set(names["faces"].names) <= {"face"}
    exec(compile(dataset, "using.md", "exec"), names)
    space = open_sources(names["config"]).space
    assert space.classes == ("cat", "dog")
    assert names["index"].boxes.tolist() == [[10, 20, 50, 60], [30, 5, 70, 44]]


def test_python_page(world, monkeypatch):
    """It names all that the package has; a detector in use, on the stand-ins; the rule in a loop of one's own."""
    page = (ROOT / "docs/python.md").read_text()
    assert [name for name in crossdet.__all__ if f"`{name}" not in page] == []
    in_use, own_loop = blocks("python", page)
    monkeypatch.chdir(world)
    if not (world / "runs/first/model.safetensors").exists():
        train(load_config("config.yaml", [*TINY, *BACKBONE]), output="runs/first")
    names: dict = {}
    for picture in ("a.jpg", "b.jpg", "map.png"):
        in_use = in_use.replace(f'"{picture}"', '"street.jpg"')
    exec(compile(in_use, "python.md", "exec"), names)
    assert len(names["several"]) == 2
    exec(compile(own_loop, "python.md", "exec"), names)
    weights, labels = names["weights"], names["labels"]
    assert (weights[0, labels[0] < 0] == names["trusted"][0]).all()
    assert weights[0, 7].tolist() == [0, 1, 1]
    assert names["loss"].isfinite()


def test_the_import_of_an_audit_into_fiftyone(world, monkeypatch):
    """A stand-in for FiftyOne keeps what it was given; ten lines at most."""
    *_, code = blocks("python", USING)
    assert len(code.strip().splitlines()) <= 10
    monkeypatch.chdir(world)
    given, opened = [], []
    dataset = SimpleNamespace(from_dir=lambda **options: given.append(options) or "a dataset")
    types = SimpleNamespace(COCODetectionDataset="COCO")
    stand_in = SimpleNamespace(Dataset=dataset, types=types, launch_app=opened.append)
    monkeypatch.setitem(sys.modules, "fiftyone", stand_in)
    exec(compile(code, "using.md", "exec"), {})
    assert given == [
        {
            "dataset_type": "COCO",
            "data_path": "pedestrian/val",
            "labels_path": "runs/first/audit/unlabelled_peds.json",
            "label_field": "unlabelled",
            "label_types": "detections",
        }
    ]
    assert opened == ["a dataset"]


def test_the_config_is_the_paper_recipe():
    (text,) = blocks("yaml")
    assert yaml.safe_load(text)["train"] == {"minutes": 60}


@pytest.mark.parametrize("page", ["glossary.md", "limits.md"])
def test_keys_that_words_are_explained_by_exist(page):
    text = (ROOT / "docs" / page).read_text()
    text = text.replace("`model.safetensors`", "")  # a file
    keys = [key for key in re.findall(r"`([a-z_.]+)`", text) if key.split(".")[0] in Config.model_fields]
    assert len(keys) > 2
    for key in keys:
        section, _, name = key.partition(".")
        kinds = [Config.model_fields[section].annotation, *get_args(Config.model_fields[section].annotation)]
        assert not name or any(name in getattr(kind, "model_fields", {}) for kind in kinds), key


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_exist(page):
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text()):
        if not target.startswith("http"):
            assert ((ROOT / page).parent / target).exists(), target
