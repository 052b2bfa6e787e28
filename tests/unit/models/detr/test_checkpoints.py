"""Checkpoints of HF transformers as weights of ours, and back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from crossdet.check import inspect_weights
from crossdet.config.beginning import beginning
from crossdet.errors import UserError
from crossdet.inference import load_detector
from crossdet.labels.edits import grown
from crossdet.labels.space import LabelSpace
from crossdet.models.architectures import ARCHITECTURES
from crossdet.models.backbones import read_state
from crossdet.models.card import detector_hint, file_digest, name_of, of_another_name, read_card, taken
from crossdet.models.contract import Limits
from crossdet.models.detr import building, checkpoints
from crossdet.models.detr.architecture import DFINE, build, weights_problem
from crossdet.models.detr.growth import EMBEDDING
from crossdet.models.detr.settings import DetrLoss, DFineModel, DFineSettings, RTDetrModel
from crossdet.models.weights import load_weights
from crossdet.runs.building import build_network
from crossdet.runs.relabel import relabel
from crossdet.types import Detections

from .made import class_tensors, tiny

NAMES = ("cat", "dog", "tv", "traffic light")
SIDE = 64


@pytest.fixture(scope="module", params=["dfine", "rtdetr v1", "rtdetr v2", "rfdetr"])
def directory(request, tmp_path_factory) -> Path:
    """A checkpoint as HF writes it."""
    from transformers import AutoModelForObjectDetection

    network = tiny(request.param)
    config = building.hf_config(network.settings, len(NAMES))
    config.id2label, config.label2id = dict(enumerate(NAMES)), {name: row for row, name in enumerate(NAMES)}
    whole = AutoModelForObjectDetection.from_config(config)
    whole.load_state_dict({building.hf_name(k): v for k, v in network.core.state_dict().items()}, strict=False)
    place = tmp_path_factory.mktemp("hf") / "zoo"
    whole.save_pretrained(place)
    size = {"height": SIDE, "width": SIDE}
    processor = {"image_processor_type": "RTDetrImageProcessor", "size": size, "do_normalize": False}
    if request.param == "rfdetr":
        means = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
        processor = {"image_processor_type": "RfDetrImageProcessor", "size": size, "do_normalize": True, **means}
    (place / "preprocessor_config.json").write_text(json.dumps(processor))
    return place


def found_by_hf(place: Path, picture: Image.Image) -> list[tuple[float, str, list[float]]]:
    """Sorted, as the post-processing behind `pipeline` gives them; whole pixels there."""
    from transformers import AutoImageProcessor, AutoModelForObjectDetection

    processor, model = AutoImageProcessor.from_pretrained(place), AutoModelForObjectDetection.from_pretrained(place)
    with torch.no_grad():
        outputs = model.eval()(**processor(images=picture, return_tensors="pt"))
    sizes = torch.tensor([[picture.height, picture.width]])
    (result,) = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=sizes)
    names = [model.config.id2label[int(label)] for label in result["labels"]]
    rows = zip(result["scores"].tolist(), names, result["boxes"].tolist(), strict=True)
    return sorted(rows, key=lambda row: -row[0])


def random_picture(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def picture() -> Image.Image:
    return random_picture(SIDE, SIDE)


def assert_alike(ours, theirs, sides=(SIDE, SIDE), within: float = 1e-5) -> None:
    """The best of both; which of equals comes first does not matter. sides: width and height of the picture."""
    assert len(ours) > 5
    scores, names, boxes = ours.scores.tolist(), list(ours.names), ours.boxes.tolist()
    assert scores[:6] == pytest.approx([row[0] for row in theirs[:6]], abs=within)
    for score, name, box in list(zip(scores, names, boxes, strict=True))[:6]:
        clipped = [np.clip(row[2], 0.0, [*sides, *sides]) for row in theirs if row[1] == name]
        best = min(float(np.abs(np.subtract(box, other)).max()) for other in clipped)
        assert best < 1e3 * within, (score, name)


@pytest.mark.parametrize(("height", "width"), [(97, 150), (40, 33), (700, 64)])
def test_pictures_of_any_shape_are_seen_as_the_processor_gives_them(directory, height, width):
    """One step to the square. HF resizes RF-DETR's in floats, ours are rounded after the columns and after the
    rows, by half of one in 255 each time."""
    from transformers import AutoImageProcessor

    picture, detector = random_picture(height, width), load_detector(directory)
    (theirs,) = AutoImageProcessor.from_pretrained(directory)(images=picture, return_tensors="pt")["pixel_values"]
    pixels = detector.resized(torch.from_numpy(np.array(picture)).permute(2, 0, 1))
    sides = torch.tensor([pixels.shape[1:]])
    (ours,) = detector.model.pictures(pixels[None], sides)
    apart = float(((ours - theirs) * detector.model.std[0]).abs().max())
    if detector.model.settings.name == "rfdetr":
        assert apart < 1.05
    else:
        assert apart < 1e-3
        found = detector(picture, score_threshold=0.0, max_detections=80)
        assert_alike(found, found_by_hf(directory, picture), (width, height))


def test_checkpoint_is_a_detector(directory, picture):
    """Names, settings and answers, without any import."""
    card = read_card(directory)
    assert card.space.classes == NAMES
    assert card.space.datasets == ("zoo",)
    assert (card.input.shorter, card.settings.square) == (SIDE, SIDE)
    found = load_detector(directory)(picture, score_threshold=0.0, max_detections=80)
    assert_alike(found, found_by_hf(directory, picture))


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("models--zoo-team--d-fine-cats/snapshots/0a1b2c", "d-fine-cats"),
        ("models--cats/snapshots/0a1b2c", "cats"),
        ("snapshots/0a1b2c", "0a1b2c"),
        ("models--zoo--cats/0a1b2c", "0a1b2c"),
        ("my cats/checkpoint-500", "my cats"),
        ("my cats/checkpoint-best", "checkpoint-best"),
    ],
)
def test_the_dataset_is_named_like_the_checkpoint(place, name, written, tmp_path):
    """And not by a hash or by steps, which nobody says in a config."""
    shutil.copytree(written, tmp_path / place)
    (tmp_path / "link").symlink_to(tmp_path / place)
    for directory in (tmp_path / place, tmp_path / "link"):
        assert read_card(directory).space.datasets == (name,)
        assert name_of(directory) == name


def test_a_checkpoint_in_several_files(directory, picture, tmp_path):
    """The same detector, and known by the contents of all of them."""
    parts = tmp_path / "zoo"
    shutil.copytree(directory, parts)
    tensors = load_file(parts / "model.safetensors")
    (parts / "model.safetensors").unlink()
    files = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(tensors)}
    for file in set(files.values()):
        save_file({k: v for k, v in tensors.items() if files[k] == file}, parts / file, {"format": "pt"})
    (parts / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    whole, detector = load_detector(directory), load_detector(parts)
    assert detector.file == parts / "model.safetensors.index.json"
    mine, theirs = (one(picture, score_threshold=0.0) for one in (detector, whole))
    assert torch.equal(mine.scores, theirs.scores)
    assert torch.equal(mine.boxes, theirs.boxes)
    before = file_digest(parts)
    with next(iter(sorted(parts.glob("model-*")))).open("ab") as file:
        file.write(b"x")
    assert file_digest(parts) != before


def test_what_is_written_opens_in_hf_with_the_same_answers(directory, picture, tmp_path):
    detector = load_detector(directory)
    building.write(detector.model, ("cat", "dog", "television", "lamp"), tmp_path / "out")
    theirs = found_by_hf(tmp_path / "out", picture)
    assert {row[1] for row in theirs} <= {"cat", "dog", "television", "lamp"}
    mine = detector(picture, score_threshold=0.0, max_detections=80)
    renamed = {"tv": "television", "traffic light": "lamp"}
    assert_alike(
        type(mine)(mine.boxes, mine.scores, mine.labels, tuple(renamed.get(n, n) for n in mine.names)), theirs
    )


@pytest.mark.parametrize("name", ["dfine", "rfdetr"])
def test_pipeline_opens_what_is_written(name, picture, tmp_path):
    from transformers import pipeline

    network = tiny(name, square=SIDE, prior=0.2).eval()
    building.write(network, NAMES, tmp_path)
    results = pipeline("object-detection", model=str(tmp_path))(picture, threshold=0.0)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    (ours,) = network.find(pixels, torch.tensor([[SIDE, SIDE]]), limits=Limits(0.0, max_detections=300))
    assert [r["score"] for r in results][:6] == pytest.approx(ours.scores[:6].tolist(), abs=1e-4)
    assert results[0]["label"] == NAMES[int(ours.labels[0])]


def test_a_checkpoint_answers_without_nms_unless_the_config_says_so(tmp_path):
    building.write(tiny("dfine", square=64), NAMES, tmp_path)
    for given, wanted in (({}, False), ({"nms": True}, True)):
        settings = DFineSettings.of(DFineModel(weights=str(tmp_path), **given), DetrLoss())
        assert settings.suppresses is building.trained(settings, 4, tmp_path).suppresses is wanted
    for given, wanted in (({}, True), ({"nms": False}, False)):
        assert DFineSettings.of(DFineModel(square=64, **given), DetrLoss()).suppresses is wanted
    assert DFineSettings.from_json('{"size": "small"}').suppresses is False  # weights of before


@pytest.mark.parametrize("frozen", [True, False])
def test_batch_norm_of_a_timm_backbone_is_as_the_settings_say(frozen, tmp_path):
    """HF's config does not say it of timm's: what began as a checkpoint of one trained it."""
    network = tiny("dfine", backbone="test_efficientnet", freeze_batch_norm=frozen, square=SIDE)
    building.write(network, NAMES, tmp_path)
    model = DFineModel(weights=str(tmp_path), freeze_batch_norm=frozen)
    settings = DFineSettings.of(model, DetrLoss())
    for again in (building.trained(settings, len(NAMES), tmp_path), build(settings, 2, None, tmp_path)):
        again.training_mode()
        statistics = {n: t.clone() for n, t in again.state_dict().items() if "running_" in n and "backbone" in n}
        assert statistics
        again.core.backbone(torch.rand(2, 3, SIDE, SIDE), torch.ones(2, SIDE, SIDE, dtype=torch.bool))
        moved = [not torch.equal(again.state_dict()[name], tensor) for name, tensor in statistics.items()]
        assert any(moved) is not frozen


@pytest.mark.parametrize("backbone", ["test_efficientnet", "resnet18d"])
def test_a_backbone_that_hf_runs_without_its_activations_is_refused(backbone, tmp_path):
    """It had other answers than HF, without a word. ResNets have their activations beside the norms."""
    network = tiny("dfine", backbone=backbone, square=SIDE)
    building.write(network, NAMES, tmp_path)
    file = tmp_path / "config.json"
    values = json.loads(file.read_text())
    assert values["freeze_backbone_batch_norms"] is False
    settings = DFineSettings.of(DFineModel(weights=str(tmp_path)), DetrLoss())
    building.trained(settings, len(NAMES), tmp_path)
    del values["freeze_backbone_batch_norms"]
    file.write_text(json.dumps(values))
    settings = DFineSettings.of(DFineModel(weights=str(tmp_path)), DetrLoss())
    if backbone == "resnet18d":
        building.trained(settings, len(NAMES), tmp_path)
        return
    with pytest.raises(UserError, match=r"config.json: `freeze_backbone_batch_norms` .* without the activations"):
        building.trained(settings, len(NAMES), tmp_path)


def test_more_queries_than_positions(picture, tmp_path):
    """HF would choose more than there are."""
    network = tiny("dfine", square=SIDE, queries=300)
    building.write(network, NAMES, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["num_queries"] == 8 * 8 + 4 * 4 + 2 * 2
    assert_alike(load_detector(tmp_path, "cpu")(picture, score_threshold=0.0, max_detections=300),
                 found_by_hf(tmp_path, picture))  # fmt: skip


def test_hf_draws_no_progress_bars(tmp_path, capfd):
    from transformers.utils import logging

    was = logging.is_progress_bar_enabled()
    network = tiny("rfdetr")
    building.write(network, NAMES, tmp_path)
    building.trained(network.settings, len(NAMES), tmp_path)
    assert capfd.readouterr().err == ""
    assert logging.is_progress_bar_enabled() == was


def test_networks_that_keep_the_shape_of_pictures_are_not_written(tmp_path):
    with pytest.raises(UserError, match=r"model.square: null"):
        building.write(tiny("dfine"), NAMES, tmp_path)


def test_rows_are_where_the_names_say(directory):
    """In every tensor of every layer, after growing by two classes; padding stays last."""
    tensors, card = load_weights(directory)
    settings = card.settings.extended("replay", 0, 4, 6)
    torch.manual_seed(5)
    grown = build(settings, 6, None)
    fresh = {name: tensor.clone() for name, tensor in grown.state_dict().items()}
    grown.carry_over(tensors, 4)
    expected = 2 * (3 + 1) if settings.name == "rfdetr" else 2 * (1 + 3) + 1  # groups, or layers; weight and bias
    assert len(class_tensors(grown)) == expected
    for name in class_tensors(grown):
        assert torch.equal(grown.state_dict()[name][:4], tensors[name][:4])
        new = slice(4, 6)
        assert torch.equal(grown.state_dict()[name][new], fresh[name][new])
    if EMBEDDING in tensors:
        assert torch.equal(grown.state_dict()[EMBEDDING][-1], tensors[EMBEDDING][-1])
    grown.begin_as({5: 3})
    for name in class_tensors(grown):
        now = grown.state_dict()[name]
        assert torch.equal(now[5], tensors[name][3])
        assert torch.equal(now[:5], torch.cat([tensors[name][:4], fresh[name][4:5]]))
    if EMBEDDING in tensors:
        assert torch.equal(grown.state_dict()[EMBEDDING][-1], tensors[EMBEDDING][-1])


def test_weights_of_a_config_take_the_body(directory):
    """For new classes: all but the rows of the classes, and the size of the pictures."""
    name = read_card(directory).settings.name
    kind = ARCHITECTURES[name]
    version = {"version": read_card(directory).settings.version} if name == "rtdetr" else {}
    model = kind.model.model_validate({"name": name, "weights": str(directory), **version})
    settings = kind.settings.of(model, kind.loss())
    assert (settings.queries, settings.square, settings.size, settings.freeze_batch_norm) == (20, SIDE, None, True)
    again = kind.model.model_validate(model.model_dump(mode="json"))  # as the run's own config has it
    assert not list(kind.contradictions(again))
    assert kind.settings.of(again, kind.loss()) == settings
    network = kind.build(settings, 9, None, directory)
    state, theirs = network.state_dict(), load_weights(directory)[0]
    of_classes = class_tensors(network)  # which looks through all names every time
    for key, tensor in state.items():
        assert (key in of_classes) == (tensor.shape != theirs[key].shape)
        assert key in of_classes or torch.equal(tensor, theirs[key])
    assert kind.settings.from_json(settings.to_json()) == settings


def test_classes_that_the_checkpoint_knows_begin_as_its_own(directory):
    """By name or by what the name means, in every tensor of every layer; the others begin anew."""
    name = read_card(directory).settings.name
    kind = ARCHITECTURES[name]
    version = {"version": read_card(directory).settings.version} if name == "rtdetr" else {}
    settings = kind.settings.of(kind.model(weights=str(directory), **version), kind.loss())
    names = {"mine": ["television", "forklift", "dog"], "other": ["hound"]}
    space = LabelSpace.build(names, merge={"dog": ["other/hound", "mine/dog"]})
    assert space.classes == ("television", "forklift", "dog")
    torch.manual_seed(0)
    network = build_network(settings, space, directory)
    state, theirs = network.state_dict(), load_weights(directory)[0]
    torch.manual_seed(0)
    fresh = kind.build(settings, 3, None, directory).state_dict()
    for key, tensor in state.items():
        if key in class_tensors(network):
            wanted = fresh[key].clone()
            wanted[[0, 2]] = theirs[key][[NAMES.index("tv"), NAMES.index("dog")]]
            assert torch.equal(tensor, wanted)
        else:
            assert torch.equal(tensor, theirs[key])
    line = (
        "classes that begin as the checkpoint's: television (tv), dog; anew: forklift; 2 more are forgotten "
        "(`crossdet extend` keeps them)"
    )
    assert beginning(settings, space, directory) == [line]
    assert beginning(settings.model_copy(update={"size": "nano"}), space, "none") == []


# ------------------------------------------------------------------------------------------------ mistakes


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    building.write(tiny("dfine", square=SIDE), NAMES, folder)
    return folder


@pytest.fixture
def copy(written, tmp_path) -> Path:
    return shutil.copytree(written, tmp_path / "copy")


def changed(place: Path, **values) -> Path:
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, **values}))
    return place


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"id2label": {"0": "cat", "1": "dog", "2": "cat", "3": "tv"}}, '`id2label` has "cat" more than once'),
        ({"id2label": {"1": "cat", "2": "dog"}}, "`id2label` has no name for row 0"),
        ({"id2label": None}, "`id2label` is missing, .* such as .id2label.: {.0.: .person., .1.: .car.}"),
        (
            {"id2label": {"0": "cat", "one": "dog"}},
            'config.json: `id2label` has the key "one"; its keys are numbers',
        ),
        (
            {"id2label": {"0": "a", "1": "b"}},
            "config.json: `id2label` names 2 classes, but the tensors have rows for 4; name every row",
        ),
        (
            {"decoder_ffn_dim": 24},
            r"have another shape \(model.decoder.layers.0.mlp.layers.0.bias is \[16\], by the config \[24\]",
        ),
        ({"decoder_layers": 2}, "config.json describes fewer layers than there are tensors of .*decoder.layers.2"),
        ({"d_model": 32}, "config.json: HF transformers refuses the config of dfine: .*validate_architecture.* 32"),
        ({"decoder_layers": "x"}, "config.json: HF transformers refuses the config of dfine: .*decoder_layers"),
        ({"id2label": {"0": "cat", "00": "dog", "1": "tv"}}, "`id2label` has a row under two keys"),
        ({"id2label": {"0": "cat", "1": " cat"}}, '`id2label` has "cat" more than once'),
        ({"id2label": {"0": "cat", "1": ["dog"]}}, '`id2label` has the name \\["dog"\\]; names are texts'),
    ],
)
def test_bad_configs(copy, values, message):
    """Also told by `check`, which would else call it fit."""
    changed(copy, **values)
    for opening in (load_weights, inspect_weights):
        with pytest.raises(UserError, match=message):
            opening(copy)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"metadata": None}, "index.json: `metadata` is missing; write"),
        ({"weight_map": {"a": "../model.safetensors"}}, 'names "../model.safetensors"; its files lie beside it'),
    ],
)
def test_bad_lists_of_files(copy, values, message):
    index = {"metadata": {}, "weight_map": {"a": "model.safetensors"}, **values}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=message):
        load_weights(copy)


def test_rows_without_a_class_are_taken(copy):
    """COCO's ids have gaps."""
    changed(copy, id2label={"0": "N/A", "1": "cat", "2": "n/a", "3": ""})
    assert read_card(copy).space.classes == ("unused_0", "cat", "unused_2", "unused_3")
    assert load_detector(copy).classes == read_card(copy).space.classes


def test_another_architecture(copy):
    with pytest.raises(
        UserError, match=r"`model_type` is \"d_fine\", and the config asks for rt_detr_v2; use `model.name"
    ):
        ARCHITECTURES["rtdetr"].settings.of(RTDetrModel(weights=copy), DetrLoss())
    changed(copy, model_type="detr")
    with pytest.raises(UserError, match=r"use a checkpoint of d_fine or rt_detr or rt_detr_v2 or rf_detr"):
        DFineSettings.of(DFineModel(weights=copy), DetrLoss())


def test_a_network_that_nobody_knows(copy):
    """As an argument of a command, where no config asks for one."""
    with pytest.raises(
        UserError, match=r'config.json: `model_type` is "detr"; use a checkpoint of d_fine or rt_detr'
    ):
        read_card(changed(copy, model_type="detr"))


def test_queries_of_rf_detr_are_the_checkpoints(directory):
    settings = read_card(directory).settings
    kind, more = ARCHITECTURES[settings.name], {"version": settings.version} if settings.name == "rtdetr" else {}
    given = kind.model(weights=str(directory), queries=77, **more)
    if settings.name != "rfdetr":
        assert kind.settings.of(given, DetrLoss()).queries == 77
        return
    with pytest.raises(UserError, match=r"queries: 77, but the checkpoint has the embeddings of \d+; leave it out"):
        kind.settings.of(given, DetrLoss())


def test_bad_processors(copy):
    for values, message in (
        (
            {"do_normalize": True, "image_mean": [0.5]},
            "`image_mean` is .0.5.; `do_normalize` is true, so give three",
        ),
        ({"do_normalize": True, "image_mean": [0.5] * 3, "image_std": None}, "`image_std` is null"),
        ({"rescale_factor": 1.0}, "`rescale_factor` is 1.0; here it is always 0.00392157"),
        ({"resample": 3}, "`resample` is 3; here it is always 2"),
        ({"do_pad": True, "pad_size": {"height": 64, "width": 64}}, "`pad_size` is .*; pictures are not padded"),
        ({"size": 64}, "`size` is 64; expected a multiple of 32 as height and, alike, as width"),
        ({"do_rescale": False}, "`do_rescale` is false; here it is always 1"),
        ({"size": {"max_height": 64, "max_width": 64}}, "`size` is .*; expected a multiple of 32 as height and, a"),
        (
            {"size": {"height": 64, "width": 96}},
            "`size` is .*; only squares can be taken here, such as {.height.: 96, .width.: 96}",
        ),
        ({"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.2, 0, 0.2]}, "`image_std` is .0.2, 0,"),
        *(
            ({"size": size}, "`size` is .*; expected a multiple of 32 as height and, alike, as width")
            for size in (0, -64, 70, "big", [64, 64], {"height": "a", "width": "a"}, {"height": 70, "width": 70})
        ),
    ):
        (copy / "preprocessor_config.json").write_text(json.dumps(values))
        with pytest.raises(UserError, match=f"preprocessor_config.json: {message}"):
            read_card(copy)
    (copy / "preprocessor_config.json").write_text("{}")
    assert read_card(copy).settings.square == 640  # as the class of HF has it
    (copy / "preprocessor_config.json").write_text('{"size": {"shortest_edge": 96, "longest_edge": 160}}')
    card = read_card(copy)
    assert (card.settings.square, card.input.shorter, card.input.longer) == (None, 96, 160)


def test_what_a_processor_does_not_say_is_as_in_hf(directory, tmp_path):
    """RF-DETR's normalises by ImageNet, the others' do not."""
    place = tmp_path / "zoo"
    shutil.copytree(directory, place)
    (place / "preprocessor_config.json").write_text(json.dumps({"size": {"height": SIDE, "width": SIDE}}))
    settings = read_card(place).settings
    from transformers import RfDetrImageProcessor, RTDetrImageProcessor

    theirs = (RfDetrImageProcessor if settings.name == "rfdetr" else RTDetrImageProcessor)()
    mean, std = (theirs.image_mean, theirs.image_std) if theirs.do_normalize else ([0.0] * 3, [1.0] * 3)
    assert (list(settings.mean), list(settings.std)) == (list(mean), list(std))


def test_a_processor_within_that_of_all(directory, tmp_path):
    """Newer versions of HF write it so, and prefer it."""
    from transformers import AutoImageProcessor

    place = tmp_path / "zoo"
    shutil.copytree(directory, place)
    before, alone = read_card(directory), place / "preprocessor_config.json"
    both = place / "processor_config.json"
    both.write_text(json.dumps({"image_processor": json.loads(alone.read_text()), "processor_class": None}))
    alone.unlink()
    assert read_card(place) == before
    alone.write_text(json.dumps({"size": {"height": 96, "width": 96}}))
    assert read_card(place) == before
    assert AutoImageProcessor.from_pretrained(place).size["height"] == SIDE
    both.write_text('{"processor_class": null}')
    assert read_card(place).settings.square == 96
    both.write_text('{"image_processor": {"resample": 3}}')
    with pytest.raises(UserError, match=r"zoo/processor_config.json: `resample` is 3"):
        read_card(place)
    both.write_text('{"image_processor": 3}')
    with pytest.raises(UserError, match=r"processor_config.json: expected a JSON object under `image_processor`"):
        read_card(place)


def test_without_a_processor_nobody_knows_the_pictures(directory, tmp_path):
    place = tmp_path / "zoo"
    shutil.copytree(directory, place)
    (place / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"has no preprocessor_config\.json, .* such as ..size.: ..height.: \d+"):
        read_card(place)


@pytest.mark.parametrize("places", [["a"], {"a": 1}, None])
def test_a_list_of_files_that_is_none(places, copy):
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(UserError, match="`weight_map` is no map from tensors to files; fetch it"):
        read_card(copy)


@pytest.mark.parametrize("in_parts", [False, True])
def test_tensors_that_cannot_be_read(in_parts, copy):
    """Told by `check`, too; nobody is sent to `extend` with them."""
    file, whole = copy / "model.safetensors", (copy / "model.safetensors").read_bytes()
    if in_parts:
        index = {"metadata": {}, "weight_map": {"x": "model-00001-of-00001.safetensors"}}
        (copy / "model.safetensors.index.json").write_text(json.dumps(index))
        file.unlink()
        file = copy / "model-00001-of-00001.safetensors"
    for content, message in (
        (whole[:-100], "weights file .* cannot be read"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 9\n",
            f"{file} is a pointer of Git LFS in place of the weights; `git lfs pull` .* `hf download OWNER/NAME",
        ),
    ):
        file.write_bytes(content)
        for read in (read_card, load_weights):
            with pytest.raises(UserError, match=message):
                read(copy)
        assert (detector_hint(copy), of_another_name(copy, "retinanet")) == ("", None)


def test_the_folder_around_checkpoints_leads_to_the_newest(copy, tmp_path):
    """Of a Trainer by its steps, of the hub's cache by what `main` is."""
    cached, runs, empty = (tmp_path / name for name in ("models--zoo--cats", "runs", "empty"))
    for place in ("checkpoint-1000", "checkpoint-500"):
        shutil.copytree(copy, runs / place)
    for place in ("0a1b", "9f8e"):
        shutil.copytree(copy, cached / "snapshots" / place)
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text("0a1b\n")
    empty.mkdir()
    for folder, message in (
        (runs, f", such as {runs}/checkpoint-1000 (the newest of 2 there)"),
        (cached, f", such as {cached}/snapshots/0a1b (the newest of 2 there)"),
        (empty, "or a checkpoint of HF transformers"),
    ):
        for read in (read_card, load_weights, taken):
            with pytest.raises(UserError, match=r"holds no model.safetensors; expected") as told:
                read(folder)
            assert str(told.value).endswith(message)
    assert f"such as {runs}/checkpoint-1000 (the newest of 2" in (weights_problem(DFineModel(weights=runs)) or "")


def test_pointers_of_git_lfs_in_other_places(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 9\n")
    for read in (read_card, load_weights, read_state):
        with pytest.raises(UserError, match=r"model.safetensors is a pointer of Git LFS"):
            read(file)


def test_missing_and_unsafe_files(copy):
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(b"x")
    (copy / "model.pth").write_bytes(b"x")
    (copy / "training_args.bin").write_bytes(b"x")
    for read in (read_card, load_weights, taken):  # `check` finds it, too, and `predict`
        with pytest.raises(UserError, match=r"pytorch_model.bin is a pickle, which could run code") as told:
            read(copy)
        line = f'AutoModelForObjectDetection.from_pretrained("{copy}").save_pretrained("{copy}-safe")'
        assert line in str(told.value)
    (copy / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match=r"model.pth is a pickle, .*has other tensor names"):
        read_card(copy)
    (copy / "model.pth").unlink()
    with pytest.raises(UserError, match=r"holds no model.safetensors$"):
        read_card(copy)
    half = dict(list(tensors.items())[::2])
    save_file(half, copy / "part.safetensors", {"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(half, "part.safetensors") | {"more": "other.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"names 1 files that do not exist \(other.safetensors, ...\)"):
        load_weights(copy)
    index["weight_map"].pop("more")
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"are missing"):
        load_weights(copy)
    (copy / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json cannot be read"):
        read_card(copy)
    shutil.rmtree(copy)
    assert "no directory" in (weights_problem(DFineModel(weights=copy)) or "")
    with pytest.raises(UserError, match=r"is no directory; expected one with config.json"):
        DFineSettings.of(DFineModel(weights=copy), DetrLoss())


def test_a_hub_that_cannot_be_reached(monkeypatch):
    import huggingface_hub

    def unreachable(*_args, **_options):
        raise OSError("no route\nto the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(
        UserError, match=r"someone/dfine could not be fetched from the hub \(no route\); give a local"
    ):
        checkpoints.directory_of("someone/dfine")
    model = DFineModel(weights="someone/dfine")
    assert model.weights == "someone/dfine"  # and no path
    assert DFINE.weights_problem(model) is None
    assert isinstance(DFineModel(weights="./someone/dfine/x").weights, Path)


# ------------------------------------------------------------------------------------------ `crossdet labels`


def best_scores(found: Detections, renamed: Mapping[str, str] = MappingProxyType({})) -> dict[str, float]:
    rows = zip(found.names, found.scores.tolist(), strict=True)
    return {renamed.get(name, name): score for name, score in sorted(rows, key=lambda row: row[1])}


def test_renamed_and_merged_classes_are_the_same_rows(directory, picture, tmp_path):
    """Every tensor stays, and what grows from the file finds each class's rows by its new name."""
    file = tmp_path / "named.safetensors"
    relabel(directory, file, [("tv", "television")], [("pet", ["dog", "cat"])])
    (before, _), (after, card) = load_weights(directory), load_weights(file)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    assert card.space.classes == ("cat", "dog", "television", "traffic light")
    assert card.space.reported == ("pet", "television", "traffic light")
    old, new = (
        load_detector(place)(picture, score_threshold=0.0, max_detections=80) for place in (directory, file)
    )
    renamed = {"tv": "television", "cat": "pet", "dog": "pet"}
    assert best_scores(new) == pytest.approx(best_scores(old, renamed))

    space = grown(card.space, {"mine": ["lamp", "television"]}, merge={"same_names": True})
    network = build(card.settings.extended("replay", 0, 4, 5), len(space.classes), None)
    network.carry_over(after, 4)
    state = network.state_dict()
    for name in class_tensors(network):
        for row, was in enumerate(NAMES):
            now = {"tv": "television"}.get(was, was)
            assert torch.equal(state[name][space.id_of(now)], before[name][row])
