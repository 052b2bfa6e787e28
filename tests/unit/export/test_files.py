"""A detector written as ONNX and OpenVINO answers as before; the file alone, without torch, does so, too.

torch takes a minute to write the smallest RetinaNet for pictures of any size; the network is the tests' own, which
uses all that graphs have in common. Every architecture's graph finds what its `find` does: test_contract.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import shlex
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml
from PIL import ExifTags, Image

from crossdet import LabelSpace, UserError, load_detector, predict
from crossdet.config import load_config
from crossdet.evaluation.protocols import PROTOCOLS
from crossdet.export.about import About
from crossdet.export.detector import ExportedDetector, check_fold
from crossdet.export.files import write_onnx
from crossdet.export.graph import as_opset_17
from crossdet.export.network import ExportedNetwork
from crossdet.export.parity import difference
from crossdet.export.sessions import OpenVinoSession, package
from crossdet.files import write_json
from crossdet.inference import Detector, of_exported
from crossdet.inference import load_detector as load_with_torch
from crossdet.models.architectures import ARCHITECTURES
from crossdet.models.building import build_detector
from crossdet.models.card import Card, InputSettings, first_generation, read_card
from crossdet.models.detr.network import Detr
from crossdet.models.detr.settings import DFineSettings, RFDetrSettings
from crossdet.models.retinanet.settings import RetinaNetSettings
from crossdet.models.weights import save_weights
from crossdet.runs import export as exporting
from crossdet.runs.asked import Asked
from crossdet.runs.audit import audit_runs
from crossdet.runs.evaluate import evaluate
from crossdet.runs.export import Request, export
from crossdet.runs.export_comparison import lost
from crossdet.runs.report import report
from crossdet.serving.app import Server
from crossdet.serving.limits import ServeLimits

from ...docs.shown import blocks
from ...docs.stand_ins import coco
from ...docs.stand_ins import pictures as drawn
from ..models.tiny import TINY, TinySettings, build
from ..serving.test_app import ask, started

openvino = package("openvino", "openvino", "the tests read with")
GRAPHS: dict[str, Any] = {}
write_graph = exporting.onnx_graph
NAMES = {"a": ["x", "y"], "b": ["z"]}
WITHOUT_TORCH = """
import sys
for name in ("torch", "torchvision", "timm"):
    sys.modules[name] = None  # an import of it fails
import crossdet.serving.app
from crossdet import load_detector
from crossdet.commands.main import main
found = load_detector(sys.argv[1])(sys.argv[2], score_threshold=0.0, max_detections=5)
print(len(found), type(found.boxes).__module__, found[:2].names, len(found.to_coco(1)))
sys.argv = ["crossdet", *sys.argv[3:]]
main()
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    space = LabelSpace.build(datasets=NAMES)
    settings = RetinaNetSettings(backbone="test_efficientnet", channels=8, head_depth=1, prior=0.3)
    card = Card(
        space,
        settings,
        InputSettings(64, 96),
        {"topk": 50},
        {"x": {"threshold": 0.25}},
        (first_generation(NAMES, space),),
    )
    file = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_weights(file, build_detector(settings, 3).state_dict(), card)
    return file


@pytest.fixture(scope="module")
def pictures():
    """Of shapes that need no padding: the tests' network does not know where a picture ends."""
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((96, 144), (150, 100), (64, 96))]


@pytest.fixture(scope="module")
def detector(weights):
    """The tests' network, with the card of a RetinaNet."""
    torch.manual_seed(0)
    network = build(TinySettings(), 3, None)
    torch.nn.init.constant_(network.classes.bias, -1.0)
    read = load_with_torch(weights, "cpu")
    return Detector(network, read.space, read.settings, read.decoding, read.thresholds, file=weights)


def graph_of(network, *given):
    """The same graph for the same network and settings: torch takes seconds for each."""
    weights = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in network.state_dict().values()))
    key = f"{weights.hexdigest()} {given}"
    if key not in GRAPHS:
        GRAPHS[key] = write_graph(network, *given)
    return copy.deepcopy(GRAPHS[key])


@pytest.fixture(scope="module")
def files(detector, weights, tmp_path_factory):
    """The graph is written once: for any size, as ONNX and as OpenVINO."""
    folder = tmp_path_factory.mktemp("exported")
    asked = []

    def noted(*given):
        asked.append(given)
        return graph_of(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "load_detector", lambda *_args, **_options: detector)
        patch.setattr(exporting, "onnx_graph", noted)
        for to, name in (("onnx", "any.onnx"), ("openvino", "any.xml")):
            record = export(weights, Request(to, licence="CC0"), folder / name)
            assert record["sets"] is None  # no validation pictures
        older = as_opset_17(graph_of(*asked[0]))
        write_onnx(older, load_detector(folder / "any.onnx").about.to_metadata(), folder / "older.onnx")
    return folder


def test_openvino_computes_in_32_bits_what_wants_it(weights, detector, tmp_path, monkeypatch):
    """On processors with bfloat16 it would take that unasked: fp16 files of RetinaNet lost up to 0.7 AP, int8 files
    of D-FINE 2.5."""
    assert DFineSettings().wants_float32
    assert not RetinaNetSettings().wants_float32
    monkeypatch.setattr(exporting, "load_detector", lambda *_args, **_options: detector)
    monkeypatch.setattr(exporting, "onnx_graph", graph_of)
    export(weights, Request("openvino", precision="fp16"), tmp_path / "half.xml")
    asked = []
    real = openvino.Core.compile_model

    def compile_model(self, model, device, options):
        asked.append(options.get("INFERENCE_PRECISION_HINT"))
        return real(self, model, device, options)

    monkeypatch.setattr(openvino.Core, "compile_model", compile_model)
    OpenVinoSession(tmp_path / "half.xml")
    read = About.from_metadata
    monkeypatch.setattr(About, "from_metadata", lambda *given: replace(read(*given), precision="int8"))
    OpenVinoSession(tmp_path / "half.xml")
    monkeypatch.setattr(RetinaNetSettings, "wants_float32", True)
    OpenVinoSession(tmp_path / "half.xml")
    assert asked == ["f32", None, "f32"]


@pytest.mark.parametrize("name", ["any.onnx", "any.xml", "older.onnx"])
def test_answers_are_those_of_the_weights(name, files, detector, pictures):
    before, after = detector, load_detector(files / name)
    for limits in ((None, 0.1, 20), (["y", "z"], 0.1, 20), (None, None, None)):
        *chosen, most = limits
        ours, theirs = ([one(p, *chosen, max_detections=most) for p in pictures] for one in (before, after))
        result = difference(ours, theirs)
        assert result.matched == sum(map(len, ours)) > 30
        assert (result.alone, result.boxes < 1e-3, result.scores < 1e-4) == (0, True, True)
        for one, other in zip(ours, theirs, strict=True):
            assert sorted(one.names) == sorted(other.names)


def test_a_file_is_used_from_python_as_its_weights_are(files, detector, pictures, tmp_path):
    """Page "From Python"."""
    before, after = detector, load_detector(files / "any.onnx")

    def same(ours, theirs):
        assert all(isinstance(one.boxes, np.ndarray) for one in theirs)
        assert sum(map(len, ours)) > 10
        result = difference(ours, theirs)
        assert (result.alone, result.boxes < 1e-3, result.scores < 1e-4) == (0, True, True)

    same([before(picture, None, 0.1) for picture in pictures], after.batch(pictures, None, 0.1))
    tensors = [torch.from_numpy(picture).permute(2, 0, 1) for picture in pictures]
    same([before(tensors[0], None, 0.1)], after.batch(tensors[:1], None, 0.1))
    large = np.tile(pictures[0], (2, 2, 1))
    tiled = {"score_threshold": 0.1, "tile": 96, "overlap": 0.25, "max_detections": 30}
    ours, (theirs,) = before(large, **tiled), predict(after, large, **tiled)
    assert len(ours) > 5
    after.thresholds["x"] = 1.0
    kept, all_of_them = predict(after, large, tile=96)[0], predict(before, large, tile=96)[0]
    assert "x" not in kept.names
    assert "x" in all_of_them.names
    torch.testing.assert_close(ours.boxes, theirs.boxes, atol=1e-3, rtol=0)
    for wrong, told in (
        (
            lambda: after(pictures[0], agnostic_nms=True),
            "agnostic_nms: an exported file keeps what it was exported",
        ),
        (lambda: after(large, tile=96), r"tile: crossdet\.predict\(FILE, images, tile=\.\.\.\) looks at"),
        (lambda: after.batch("a.png"), r"expected several in a list, got str; one: detector\(image\)"),
        (lambda: before.batch("a.png"), r"expected several in a list, got str; one: detector\(image\)"),
        (lambda: after(tensors[0].float()), r"image tensor: expected \[3, H, W\] uint8 RGB on the CPU"),
        (lambda: after([pictures[0]]), r"got list; several at once: detector\.batch\(images\)"),
    ):
        with pytest.raises(UserError, match=told):
            wrong()


def test_a_picture_that_was_opened_with_pillow_is_turned_as_its_file(files, detector, pictures, tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(pictures[0]).save(tmp_path / "turned.png", exif=exif)
    for one in (detector, load_detector(files / "any.onnx")):
        with Image.open(tmp_path / "turned.png") as opened:
            by_file, by_pillow = one(tmp_path / "turned.png", None, 0.1), one(opened, None, 0.1)
        assert by_file.boxes.tolist() == by_pillow.boxes.tolist() != one(pictures[0], None, 0.1).boxes.tolist()


@pytest.mark.parametrize("name", ["any.onnx", "any.xml"])
def test_a_batch_has_the_answers_of_its_pictures(name, files, pictures):
    session = load_detector(files / name).session
    both, thresholds = np.stack([pictures[2], pictures[2][:, ::-1]]), np.full(3, 0.1, np.float32)
    together = session.run(both, thresholds)
    for row in range(2):
        alone = session.run(np.ascontiguousarray(both[row : row + 1]), thresholds)
        assert np.array_equal(alone[2][0], together[2][row])
        np.testing.assert_allclose(alone[0][0], together[0][row], atol=1e-3)
    assert (session.run(both, np.full(3, 2, np.float32))[2] == -1).all()


@pytest.mark.parametrize("name", ["any.onnx", "any.xml"])
def test_the_file_alone_predicts_without_torch(name, files, pictures, tmp_path):
    Image.fromarray(pictures[0]).save(tmp_path / "p.png")
    file, picture = str(files / name), str(tmp_path / "p.png")
    said = without_torch(file, picture, "predict", file, picture, "-o", str(tmp_path / "found"), "--score", "0.1")
    assert said.startswith("5 numpy ("), said
    entries = json.loads((tmp_path / "found/predictions.json").read_text())["images"]
    assert len(entries[0]["detections"]) > 5
    assert (tmp_path / "found/pictures/p.jpg").is_file()


def test_the_file_alone_is_scored_without_torch(files, detector, tmp_path):
    """By datasets' own protocols, as the network is; a broken picture is told and counts as empty."""
    coco(tmp_path, "val", "val.json", ["x", "y", "z"], 5, 1)
    (tmp_path / "val/1_0.jpg").write_bytes(b"broken")
    street = {"format": "coco", "val": {"images": str(tmp_path / "val"), "annotations": str(tmp_path / "val.json")}}
    street |= {"protocol": ["coco", "voc"]}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"datasets": {"street": street}, "eval": {"batch_size": 1, "topk": 50}}))
    file, picture = str(files / "any.onnx"), tmp_path / "val/1_1.jpg"
    said = without_torch(file, str(picture), "eval", file, str(config), "-o", str(tmp_path / "scored"))
    assert "1 images could not be read" in said
    after = json.loads((tmp_path / "scored/eval.json").read_text())["datasets"]["street"]
    before = evaluate(detector, config)["datasets"]["street"]
    assert before["AP"] > 0
    assert after["AP"] == pytest.approx(before["AP"], abs=1e-3)
    assert after["further"].keys() == before["further"].keys()
    assert len(after["unreadable"]) == len(before["unreadable"]) == 1
    assert (tmp_path / "scored/predictions/street").is_dir()
    for picture in (tmp_path / "val").iterdir():
        picture.write_bytes(b"broken")
    for one in (file, detector):
        with pytest.raises(UserError, match=r"datasets\.street\.val: none of its 5 pictures could be read"):
            evaluate(one, config)
    with pytest.raises(
        UserError, match=r"with agnostic_nms False, which it keeps.*`--set eval\.agnostic_nms=false`"
    ):
        evaluate(file, config, agnostic_nms=True)
    values = yaml.safe_load(config.read_text()) | {"eval": {"topk": 60, "nms_iou": 0.7}}
    config.write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=r"nms_iou 0\.5, topk 50, .*`--set eval\.nms_iou=0\.5 --set eval\.topk=50`"):
        evaluate(file, config)


def test_windows_of_a_file_without_torch_are_refused_in_one_line(files, pictures, tmp_path):
    Image.fromarray(pictures[0]).save(tmp_path / "p.png")
    file, picture = str(files / "any.onnx"), str(tmp_path / "p.png")
    for source in (picture, "gone.mp4"):
        words = ("predict", file, source, "-o", str(tmp_path / "found"), "--tile", "64")
        told = without_torch(file, picture, *words, code=2)
        assert "--tile: windows need torch, also those of an exported file" in told
        assert len(told.splitlines()) == 1
    assert not (tmp_path / "found").exists()


def without_torch(*words, code=0):
    """What `WITHOUT_TORCH` prints; of one that fails the errors."""
    command = [sys.executable, "-c", WITHOUT_TORCH, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stderr
    return done.stderr if code else done.stdout


def test_a_file_is_served_beside_its_weights(files, detector, pictures):
    picture = io.BytesIO()
    Image.fromarray(pictures[0]).save(picture, "PNG")
    after = load_detector(files / "any.onnx")
    port = started(Server({"weights": detector, "file": after}, ServeLimits()))
    one, other = (ask(port, f"/detect?detector={n}&class=y", picture.getvalue())[1] for n in ("weights", "file"))
    assert (one["width"], one["height"]) == (other["width"], other["height"]) == (144, 96)
    assert len(one["detections"]) > 5
    for mine, theirs in zip(one["detections"], other["detections"], strict=True):
        assert mine["score"] == pytest.approx(theirs["score"], abs=1e-4)
        assert mine["box"] == pytest.approx(theirs["box"], abs=1e-3)
    assert after.offered == ("x", "y", "z")
    without = copy.copy(after)
    without.about = replace(after.about, rules=replace(after.about.rules, classes=(0, 2)))
    assert without.offered == ("x", "z")  # what the page lets choose


@pytest.mark.parametrize("name", ["any.onnx", "any.xml"])
def test_a_file_says_what_it_is(name, files, weights):
    about = load_detector(files / name).about
    assert about.card.space.classes == ("x", "y", "z")
    assert about.card.thresholds == {"x": 0.25}
    assert about.licence == "CC0"
    assert about.source["file"] == "model.safetensors"
    assert about.card.generations[0].mode == "train"
    assert json.loads(about.to_metadata()["avoided"]) == {"a": ["z"], "b": ["x", "y"]}


def test_older_files_resize_as_their_networks(files):
    """They do not say whether with antialiasing; of RF-DETR it is without."""
    about = load_detector(files / "any.onnx").about
    rf_detr = RFDetrSettings.model_construct(square=64, config={})
    metadata = replace(about, card=replace(about.card, settings=rf_detr)).to_metadata()
    rules = json.loads(metadata["rules"])
    del rules["antialias"]
    metadata["rules"] = json.dumps(rules)
    assert not About.from_metadata(files / "any.onnx", metadata).rules.antialias
    assert about.rules.antialias


@pytest.mark.parametrize("suppresses", [True, False])
def test_as_a_network_it_suppresses_as_its_file(files, suppresses):
    session = load_detector(files / "any.onnx").session
    about = replace(session.about, rules=replace(session.about.rules, suppresses=suppresses))
    assert ExportedNetwork(SimpleNamespace(about=about)).suppresses is suppresses


def test_as_a_network_it_keeps_its_limits(files, pictures):
    detector = load_with_torch(files / "any.onnx")
    found = detector(pictures[0], score_threshold=0.1, tile=64)
    assert len(found) > 10
    assert isinstance(found.boxes, torch.Tensor)
    for change in ({"agnostic_nms": True}, {"max_detections": 101}):
        with pytest.raises(UserError, match=r"the file (was exported|gives)"):
            detector(pictures[0], **change)


def test_an_upright_picture_is_resized_once_to_a_lying_size(files, pictures):
    """With torch it was fitted into a frame that turned with it, and then into that of the file."""
    session = load_detector(files / "any.onnx").session
    session.about = replace(session.about, rules=replace(session.about.rules, size=(64, 96)))
    upright = pictures[1]
    assert upright.shape[0] > upright.shape[1]
    without, by_torch = (
        detector(upright, score_threshold=0.1)
        for detector in (ExportedDetector(session), of_exported(session, True, None))
    )
    assert len(without) > 5
    result = difference([by_torch], [without])
    assert (result.alone, result.boxes < 1e-3, result.scores < 1e-4) == (0, True, True)


def test_more_detections_than_the_file_gives_are_refused(files, pictures, tmp_path, crossdet):
    """They were cut to 100 without a word."""
    detector = load_detector(files / "any.onnx")
    assert len(detector(pictures[0], score_threshold=0.0, max_detections=100)) == 50  # topk
    with pytest.raises(UserError, match=r"gives 100 .* asked for are 500; export again with --max-detections 500"):
        detector(pictures[0], max_detections=500)
    Image.fromarray(pictures[0]).save(tmp_path / "p.png")
    done = crossdet(
        "predict", files / "any.onnx", tmp_path / "p.png", "-o", tmp_path / "o", "--max-detections", 200
    )
    assert done.returncode == 2
    assert "export again with --max-detections 200" in done.stderr
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("tile", [None, 64])
@pytest.mark.parametrize(
    "wrong", [{"classes": ["foo"]}, {"classes": []}, {"score_threshold": {"foo": 0.3}}, {"max_detections": 500}]
)
def test_mistakes_are_told_when_the_file_is_opened(files, wrong, tile):
    """And not with the first picture: an earlier result would be written over by then."""
    asked = Asked(files / "any.onnx", tile=tile, **wrong)
    with pytest.raises(UserError, match=r"foo|none given|asked for are 500"):
        asked.without_torch() or asked.detector()
    assert Asked(files / "any.onnx", tile=64).detector().classes == ("x", "y", "z")


def test_mistakes_are_told_before_anything_is_written(weights, files, tmp_path):
    wrong = Request("caffe", (8, 8), 11, "fp8", calibrate="x", tolerance=2.0)
    with pytest.raises(UserError) as told:
        export(weights, wrong, tmp_path / "a.onnx")
    for part in ("--to", "--size", "--opset", "--precision", "--calibrate", "--tolerance"):
        assert part in str(told.value)
    for request, message in (
        (Request(precision="int8"), "no pictures to calibrate on"),
        (Request(precision="int8", tolerance=-1.0), "--tolerance: expected points of AP"),
        (Request(classes=("nobody",)), "nobody"),
        (replace(Request(), to="openvino"), r"ends in \.xml"),
    ):
        with pytest.raises(UserError, match=message):
            export(weights, request, tmp_path / "a.onnx")
    with pytest.raises(UserError, match="exported already"):
        export(files / "any.onnx", Request())
    assert not list(tmp_path.iterdir())
    (tmp_path / "torn.onnx").write_bytes(b"\x08\x07")
    with pytest.raises(UserError, match=r"torn\.onnx"):
        load_detector(tmp_path / "torn.onnx")
    with pytest.raises(UserError, match="does not exist"):
        load_detector(tmp_path / "no.xml")
    write_json(tmp_path / "foreign.xml", {})
    (tmp_path / "foreign.bin").write_bytes(b"")
    with pytest.raises(UserError, match="cannot be read"):
        load_detector(tmp_path / "foreign.xml")


def test_the_commands_of_the_page(files, detector, tmp_path, monkeypatch, crossdet):
    """docs/export.md, on a run with the tests' network, whose layers have 24 channels."""
    monkeypatch.setitem(exporting.NARROW, "onnx", (1,))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(ARCHITECTURES, "tiny", TINY)
    monkeypatch.setattr(exporting, "onnx_graph", graph_of)
    coco(tmp_path, "val", "val.json", ["x", "y", "z"], 4, 1)
    drawn(tmp_path / "images", ["a.jpg", "b.jpg"], ["x"], 9)
    street = {"format": "coco", "val": {"images": str(tmp_path / "val"), "annotations": str(tmp_path / "val.json")}}
    run = tmp_path / "runs/first"
    run.mkdir(parents=True)
    for file in (tmp_path / "config.yaml", run / "config.yaml"):
        file.write_text(yaml.safe_dump({"datasets": {"street": street}, "eval": {"topk": 50}}))
    card = Card(detector.space, TinySettings(), detector.settings, detector.decoding)
    for name in ("best.safetensors", "model.safetensors"):
        save_weights(run / name, detector.model.state_dict(), card)
    graphs = len(GRAPHS)
    lines = [
        shlex.split(line, comments=True)[1:] for block in blocks("export.md", "sh") for line in block.splitlines()
    ]
    assert [words[0] for words in lines] == ["export", "export", "export", "predict", "eval"]
    for words in lines:
        done = crossdet(*words)
        assert done.returncode == 0, (words, done.stderr)
    assert {"best.xml", "best.bin", "best.onnx", "best_int8.onnx"} <= {file.name for file in run.iterdir()}
    assert len(GRAPHS) == graphs
    found = json.loads((tmp_path / "predictions/predictions.json").read_text())
    assert (found["weights"], len(found["images"])) == ("runs/first/best.onnx", 2)


def test_the_page_runs_a_file_without_crossdet(files, pictures, tmp_path, monkeypatch, capsys):
    """Its code finds what `load_detector` finds, in a picture that is larger than the input."""
    (tmp_path / "runs/first").mkdir(parents=True)
    (tmp_path / "runs/first/best.onnx").write_bytes((files / "any.onnx").read_bytes())
    Image.fromarray(pictures[0]).save(tmp_path / "street.jpg")
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("export.md", "python")
    assert "crossdet" not in code
    exec(code.replace("0.3,", "0.1,"), {})
    printed = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    found = load_detector("runs/first/best.onnx")("street.jpg", score_threshold=0.1)
    rows = zip(found.names, found.scores, found.boxes, strict=True)
    assert len(found) > 3
    for (name, score, box), (wanted, sure, place) in zip(printed, rows, strict=True):
        assert (name, float(score)) == (wanted, pytest.approx(sure, abs=0.006))
        assert json.loads(box) == pytest.approx(place.tolist(), abs=0.2)


@pytest.fixture
def run(detector, tmp_path, monkeypatch):
    """A run directory with the tests' network and five validation pictures."""
    monkeypatch.setitem(ARCHITECTURES, "tiny", TINY)
    monkeypatch.setattr(exporting, "onnx_graph", graph_of)
    coco(tmp_path, "val", "val.json", ["x", "y", "z"], 5, 1)
    street = {"format": "coco", "val": {"images": str(tmp_path / "val"), "annotations": str(tmp_path / "val.json")}}
    folder = tmp_path / "runs/first"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"datasets": {"street": street}, "eval": {"topk": 50}}))
    card = Card(detector.space, TinySettings(), detector.settings, detector.decoding)
    for name in ("best.safetensors", "model.safetensors"):
        save_weights(folder / name, detector.model.state_dict(), card)
    return folder


def test_what_takes_long_is_told(run, capsys):
    told: list[str] = []
    export(run, Request("onnx"), run / "told.onnx", pictures=3, tell=told.append)
    assert told == [
        f"recording the network for {run / 'told.onnx'}",
        "comparing it with the detector: AP on 3 validation pictures (`--pictures` for fewer)",
    ]


def test_openvino_in_8_bits(run, capsys):
    whole, short = (export(run, Request("openvino", precision=p), run / f"{p}.xml") for p in ("fp32", "int8"))
    assert capsys.readouterr().out == ""  # standard output may be for JSON alone
    assert short["bytes"] < whole["bytes"]
    assert short["sets"]["matched"] > 30
    in_8_bits = [
        any(one.get_type_name() == "FakeQuantize" for one in openvino.Core().read_model(run / name).get_ops())
        for name in ("fp32.xml", "int8.xml")
    ]
    assert in_8_bits == [False, True]
    row = short["ap"]["street"]
    assert row["before"]["AP"] > 0
    assert row["after"]["AP"] == pytest.approx(row["before"]["AP"], abs=0.02)


@pytest.mark.parametrize(
    ("losses", "layers", "kept"),
    [
        ([0.4], (9, 5, 2), 32),
        ([1.0], (9, 5, 2), 32),
        ([None], (9, 5, 2), 32),
        ([1.05, 0.3], (9, 5, 2), 64),
        ([4.0, 2.0, 3.0], (9, 5, 2), 64),
        ([4.0, 5.0, 0.9], (9, 5, 2), 128),
        ([4.0, 3.0], (9, 9, 2), 128),  # the second rung would be the same file
        ([4.0, 3.0], (9, 5, 0), 64),  # nothing would be left in 8 bits
    ],
)
def test_int8_keeps_more_layers_until_little_enough_is_lost(run, monkeypatch, crossdet, losses, layers, kept):
    """What a file lost, and how many layers it has in 8 bits, is given here; which file stays is looked at."""
    answers, counts, written = iter(losses), dict(zip((32, 64, 128), layers, strict=True)), []
    measured = exporting.Comparison.of
    known: dict[int, float | None] = {}

    def of(self, file):
        known[int(file.parent.name)] = next(answers)
        return measured(self, file) | {"rung": int(file.parent.name)}

    monkeypatch.setattr(exporting.Comparison, "of", of)
    monkeypatch.setattr(exporting, "lost", lambda found: known[found["rung"]])
    write = exporting.KINDS["onnx"].write

    def noted(job):
        write(replace(job, narrow=1))
        model = onnx.load(job.file)
        model.metadata_props.add(key="rung", value=str(job.narrow))
        onnx.save(model, job.file)
        written.append(job.narrow)
        return counts[job.narrow]

    monkeypatch.setitem(exporting.KINDS, "onnx", exporting.Kind(".onnx", noted))
    json_file = run / "record.json"
    done = crossdet("export", run, "--precision", "int8", "--json", json_file)
    assert done.returncode == 0, done.stderr
    record = json.loads(json_file.read_text())
    tried = [{"narrow": narrow, "layers": counts[narrow], "lost": value} for narrow, value in known.items()]
    own = {"narrow": kept, "layers": counts[kept], "lost": known[kept]}
    assert record["int8"] == {**own, "tolerance": 1.0, "tried": tried}
    assert len(known) == len(losses)
    assert record["rung"] == kept
    assert {one.key: one.value for one in onnx.load(run / "best_int8.onnx").metadata_props}["rung"] == str(kept)
    assert record["bytes"] == (run / "best_int8.onnx").stat().st_size
    assert not list(run.glob(".export-*"))
    assert ("points that were lost at most" in done.stdout) == (len(losses) > 1)
    worst = min((value for value in losses if value is not None), default=0.0)
    assert ("more than --tolerance 1 is lost" in done.stdout + done.stderr) == (worst > 1.0)


def test_a_network_without_a_layer_for_8_bits_is_refused(run, tmp_path):
    """The first and the last layers, and two of 24 channels."""
    with pytest.raises(UserError, match=r"no layer for 8 bits: .* up to 32 channels keep 32; export it with fp16"):
        export(run, Request(precision="int8"), tmp_path / "short.onnx")
    assert not list(tmp_path.glob("*.onnx"))


def test_pictures_to_calibrate_on_are_of_the_whole_folder_and_readable(tmp_path, pictures, capsys):
    for number in range(200):
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(tmp_path / f"{number:03}.png")
    (tmp_path / "000.png").write_bytes(b"broken")
    found = exporting._some_pictures(sorted(tmp_path.iterdir()))
    assert len(found) == exporting.CALIBRATION_PICTURES - 1
    assert found[-1].max() == 199
    assert "warning: --calibrate: " in capsys.readouterr().out
    with pytest.raises(UserError, match=r"^--calibrate: no image found for .*nofolder$"):  # not after the recording
        export(tmp_path / "gone", Request(precision="int8", calibrate=str(tmp_path / "nofolder")))
    with pytest.raises(UserError, match="none of 1 pictures can be read"):
        exporting._some_pictures([tmp_path / "000.png"])


def test_what_int8_lost_is_the_worst_of_all_protocols():
    row = {"lost": 0.004, "further": {"voc": {"lost": 0.02}, "coco": {"lost": None}}}
    assert lost({"ap": {"a": row, "b": {"lost": -0.1, "further": {}}}}) == 2.0
    assert lost({"ap": {"b": {"lost": -0.1, "further": {}}}}) == -10.0
    assert lost({"ap": {"b": {"lost": 0.515 - 0.505, "further": {}}}}) == 1.0
    assert lost({"ap": {"b": {"lost": None, "further": {}}}}) is None


@pytest.mark.parametrize(("kind", "suffix"), [("onnx", "onnx"), ("openvino", "xml")])
def test_16_bits(run, kind, suffix):
    whole, short = (export(run, Request(kind, precision=p), run / f"{p}.{suffix}") for p in ("fp32", "fp16"))
    assert short["bytes"] < whole["bytes"]
    assert short["sets"]["matched"] > 30
    row = short["ap"]["street"]
    assert row["before"]["AP"] > 0
    assert row["after"]["AP"] == pytest.approx(row["before"]["AP"], abs=0.005)


def test_some_classes_and_raw_outputs(run, detector, pictures):
    record = export(run, Request(classes=("y", "z")), run / "some.onnx")
    assert record["sets"]["matched"] > 10
    some = load_detector(run / "some.onnx")
    assert set(some(pictures[0], score_threshold=0.0).names) == {"y", "z"}
    with pytest.raises(UserError, match=r"without the class\(es\) x"):
        some(pictures[0], classes=["x"])
    assert export(run, Request(raw=True), run / "raw.onnx")["not_compared"] == "raw outputs"
    with pytest.raises(UserError, match="raw outputs"):
        load_detector(run / "raw.onnx")
    images = pictures[2][None]
    given = onnxruntime.InferenceSession(run / "raw.onnx").run(None, {"images": images})
    with torch.inference_mode():
        own = detector.model.export_module()(torch.from_numpy(images).permute(0, 3, 1, 2))
    for one, other in zip(given, own, strict=True):
        np.testing.assert_allclose(one, other.numpy(), rtol=1e-4, atol=1e-3)


def test_pictures_that_leave_a_part_of_the_size_free(run):
    """64 x 72 pixels lie in a canvas of 64 x 96, and the strip beside them is no place for objects."""
    rng, folder = np.random.default_rng(2), run.parents[1]
    labels = json.loads((folder / "val.json").read_text())
    for entry in labels["images"]:
        entry |= {"height": 64, "width": 72}
        Image.fromarray(rng.integers(0, 256, (64, 72, 3), np.uint8)).save(folder / "val" / entry["file_name"])
    write_json(folder / "val.json", labels)
    for kind, file in (("onnx", "s.onnx"), ("openvino", "s.xml")):
        sets = export(run, Request(kind, (64, 96)), run / file)["sets"]
        assert sets["matched"] > 30
        assert (sets["alone"], sets["boxes"] < 1e-3, sets["scores"] < 1e-4) == (0, True, True), sets
    short = export(run, Request("openvino", (64, 96), precision="int8"), run / "short.xml")
    assert short["sets"]["matched"] > 30
    found = load_detector(run / "s.onnx")(rng.integers(0, 256, (64, 72, 3), np.uint8), score_threshold=0.0)
    assert len(found) > 30
    assert (found.boxes <= [72, 64, 72, 64]).all()
    assert found.boxes[:, 2].max() > 71
    assert {one.name for one in onnx.load(run / "s.onnx").graph.input} == {"images", "thresholds", "sizes"}
    told = {one.key: one.value for one in onnx.load(run / "s.onnx").metadata_props}["input"]
    assert {"sizes", "fill"} <= json.loads(told).keys()


def test_other_limits_than_the_protocols(run, tmp_path):
    """Both sides of the comparison keep to what the file can: number of detections, NMS, candidates."""
    other = tmp_path / "other.yaml"
    values = yaml.safe_load((run / "config.yaml").read_text())
    other.write_text(yaml.safe_dump(values | {"eval": {"nms_iou": 0.9, "topk": 7}}))
    first, second = (export(run, Request(max_detections=40), run / "some.onnx", data) for data in (None, other))
    assert repr(first["ap"]) == repr(second["ap"])
    assert first["sets"]["matched"] > 30
    rules = load_detector(run / "some.onnx").about.rules
    assert (rules.max_detections, rules.reported, rules.suppresses) == (40, 40, True)
    picture = next((tmp_path / "val").iterdir())
    assert len(load_with_torch(run / "some.onnx")(picture, score_threshold=0.0)) == 40
    with pytest.raises(UserError, match=r"gives 40 detections .* asked for are 100; .*--max-detections 100"):
        evaluate(run / "some.onnx", run / "config.yaml")


def test_a_report_of_a_file_has_as_many_detections_as_it_gives(run, tmp_path, command):
    """It wanted 1000 of a picture, which no file gave that was exported unasked."""
    export(run, Request(max_detections=40), run / "some.onnx")
    write_json(run / "metrics.json", {"epochs": [], "best_epoch": None})
    report(run / "some.onnx", tmp_path / "page.html", run, data=run / "config.yaml")
    page = (tmp_path / "page.html").read_text()
    note = "some.onnx is an exported file that gives the best 40 detections of a picture"
    assert page.count("an exported file that gives") == page.count(note) == 1
    report(run, tmp_path / "page.html", run / "some.onnx")
    assert note in (tmp_path / "page.html").read_text()
    config = load_config(run / "config.yaml")
    assert command("audit", run / "some.onnx", run / "config.yaml", "-o", tmp_path / "audit")[0] == 0
    assert note in (tmp_path / "audit/audit.html").read_text()
    audit_runs([run], config, tmp_path / "audit")
    assert "exported file" not in (tmp_path / "audit/audit.html").read_text()


def test_all_protocols_of_a_dataset_are_compared(run, crossdet, tmp_path):
    values = yaml.safe_load((run / "config.yaml").read_text())
    values["datasets"]["street"]["protocol"] = ["coco", "voc"]
    (run / "config.yaml").write_text(yaml.safe_dump(values))
    done = crossdet("export", run, "--json", tmp_path / "export.json")
    assert done.returncode == 0, done.stderr
    row = json.loads((tmp_path / "export.json").read_text())["ap"]["street"]
    assert (row["protocol"], list(row["further"])) == ("coco", ["voc"])
    voc = row["further"]["voc"]
    scored = evaluate(run, run / "config.yaml")["datasets"]["street"]["further"]["voc"]
    assert voc["before"] == dict(PROTOCOLS["voc"].columns(scored))
    assert next(iter(voc["before"].values())) > 0
    assert voc["after"] == pytest.approx(voc["before"], abs=1e-3)
    for name in (*row["before"], *voc["before"]):
        assert f"street {name} (" in done.stdout


def test_more_detections_for_a_protocol_than_the_detector_reports(run, detector):
    values = yaml.safe_load((run / "config.yaml").read_text())
    values["datasets"]["street"]["max_detections"] = 300
    (run / "config.yaml").write_text(yaml.safe_dump(values))
    data, _ = exporting._data(run, None, detector)
    rules = exporting._job(detector, read_card(run), Request(), data, None).about.rules
    assert (rules.max_detections, rules.reported) == (300, 100)


@pytest.mark.parametrize("lost", ["pictures", "annotations"])
def test_data_that_are_gone_are_told_and_the_file_is_written(run, tmp_path, lost):
    for file in (tmp_path / "val").iterdir() if lost == "pictures" else [tmp_path / "val.json"]:
        file.unlink()
    record = export(run, Request(), run / "gone.onnx")
    assert (record["ap"], record["latency_ms"]) == (None, None)
    said = "no validation pictures can be read" if lost == "pictures" else "validation data cannot be used"
    assert said in record["not_compared"]
    assert load_detector(run / "gone.onnx").classes == ("x", "y", "z")
    with pytest.raises(UserError, match="no pictures to calibrate on"):
        export(run, Request(precision="int8"), run / "short.onnx")
    with pytest.raises(UserError, match=r"val"):
        export(run, Request(), run / "asked.onnx", run / "config.yaml")


def test_members_that_suppress_each_other_cannot_be_told_apart(files):
    about = load_detector(files / "any.onnx").about
    check_fold(about, False, files / "any.onnx")
    with pytest.raises(UserError, match=r"^--no-fold: .*any\.onnx keeps the best one"):
        check_fold(replace(about, rules=replace(about.rules, by_fold=True)), False, files / "any.onnx")
    detector = load_detector(files / "any.onnx")
    detector.about = replace(about, rules=replace(about.rules, by_fold=True))
    with pytest.raises(UserError, match=r"^--no-fold: .*any\.onnx keeps the best one"):
        evaluate(detector, files / "config.yaml", fold=False)


def test_a_graph_of_one_size_has_to_be_given_it(detector, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "load_detector", lambda *_args, **_options: detector)
    monkeypatch.setattr(type(detector.model), "graph_of_one_size", property(lambda _: True))
    with pytest.raises(UserError, match=r"^--size: .* holds for one size of pictures; .* --size 64 96$"):
        export(weights, Request("onnx"), tmp_path / "any.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("square", [None, 64])
def test_networks_with_places_of_queries_are_of_one_size_unless_they_stretch(square):
    settings = SimpleNamespace(square=square)
    assert Detr.graph_of_one_size.fget(SimpleNamespace(settings=settings)) == (square is None)
