"""The parts of extending a detector: rows carried over or held, the teacher's labels, settings."""

from __future__ import annotations

import io
import math
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from crossdet import Config, LabelSpace, UserError
from crossdet.check import inspect_weights, print_report, print_weights
from crossdet.check.extension import inspect_extension
from crossdet.config.sources import open_sources
from crossdet.data.cache import load_index, save_index
from crossdet.data.index import IndexBuilder, Ragged
from crossdet.errors import ConfigError
from crossdet.evaluation.arrays import DetectionArrays
from crossdet.evaluation.forgetting import report_text
from crossdet.models.architectures import ARCHITECTURES
from crossdet.models.building import build_detector
from crossdet.models.card import Card, InputSettings
from crossdet.models.retinanet.growth import BIAS, WEIGHT, carry_over, freeze_old
from crossdet.models.weights import save_weights
from crossdet.runs.evaluate import Evaluation
from crossdet.runs.extend import _after, rate_share, remarks_on, with_settings_of
from crossdet.training.modes import ExtendSettings, Growth
from crossdet.training.pseudo_labels import classes_for_teachers, space_with_teachers, with_pseudo_labels
from crossdet.training.recipe import Start
from crossdet.training.schedule import Schedule
from crossdet.types import Flag

from ..models.detr.made import TINY_SETTINGS
from ..models.tiny import TINY, TinyLoss, TinyModel, TinySettings
from .made import SETTINGS

SHAPES = 4


# ----------------------------------------------------------------------------------------- rows of the head


def test_rows_are_carried_over_by_shape_and_class():
    torch.manual_seed(0)
    old, new = build_detector(SETTINGS, 2), build_detector(SETTINGS, 5)
    with torch.no_grad():
        for tensor in old.state_dict().values():  # also the batch-norm statistics, as after a training
            tensor.add_(torch.rand(tensor.shape) if tensor.is_floating_point() else 3)
        old.class_subnet.predict.bias.copy_(torch.arange(8.0))  # shape 0: 0, 1; shape 1: 2, 3; ...
    fresh = {name: tensor.clone() for name, tensor in new.state_dict().items()}
    carry_over(new, old.state_dict(), 2)
    state = new.state_dict()
    for name, tensor in old.state_dict().items():
        if name not in (WEIGHT, BIAS):
            assert torch.equal(state[name], tensor), name
    prior = -math.log(0.95 / 0.05)
    rows = state[BIAS].view(SHAPES, 5)
    assert rows[:, :2].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert torch.allclose(rows[:, 2:], torch.full((SHAPES, 3), prior))
    weights = state[WEIGHT].clone().view(SHAPES, 5, 16, 3, 3)
    assert torch.equal(weights[:, :2], old.state_dict()[WEIGHT].view(SHAPES, 2, 16, 3, 3))
    assert torch.equal(weights[:, 2:], fresh[WEIGHT].view(SHAPES, 5, 16, 3, 3)[:, 2:])
    new.begin_as({4: 1})
    now = new.state_dict()[WEIGHT].view(SHAPES, 5, 16, 3, 3)
    assert torch.equal(now[:, 4], weights[:, 1])
    assert torch.equal(now[:, :4], weights[:, :4])
    assert new.state_dict()[BIAS].view(SHAPES, 5)[:, 4].tolist() == [1, 3, 5, 7]
    images = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        for a, b in zip(old.eval()(images).logits, new.eval()(images).logits, strict=True):
            torch.testing.assert_close(b[..., :2], a)


def test_weights_of_another_architecture_are_refused():
    other = build_detector(SETTINGS, 2).state_dict()
    with pytest.raises(UserError, match="do not fit"):
        carry_over(build_detector(SETTINGS, 5), other, 3)
    del other["fpn.layer_blocks.0.0.weight"]
    with pytest.raises(UserError, match=r"1 entries differ \(fpn"):
        carry_over(build_detector(SETTINGS, 5), other, 2)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_frozen_rows_stand_still_under_momentum_and_weight_decay(layout):
    torch.manual_seed(0)
    model = build_detector(SETTINGS, 3)
    restore = freeze_old(model, 2)
    model.to(memory_format=layout)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(trained) == 2
    optimizer = torch.optim.SGD(trained, lr=0.5, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        features = model.features(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8))
        outputs = model.head(features)
        sum(logits.square().sum() for logits in outputs.logits).backward()
        gradients = model.class_subnet.predict.weight.grad.unflatten(0, (SHAPES, 3))
        assert not gradients[:, :2].any()
        assert gradients[:, 2].any()
        optimizer.step()
        assert not torch.equal(model.state_dict()[WEIGHT], before[WEIGHT])
        restore()
        optimizer.zero_grad()
    for name in (WEIGHT, BIAS):
        rows, old = (s[name].unflatten(0, (SHAPES, 3)) for s in (model.state_dict(), before))
        assert torch.equal(rows[:, :2], old[:, :2])
        assert not torch.equal(rows[:, 2], old[:, 2])


# ----------------------------------------------------------------------------------------- the teacher


def test_the_teacher_labels_what_the_dataset_does_not(space):
    assert classes_for_teachers(space, "new", range(2)) == [0, 1]
    assert classes_for_teachers(space, "sea", range(2)) == [1]
    assert classes_for_teachers(space, "old", range(2)) == []


def test_trust_in_the_teacher_is_a_switch(space):
    trusting = space_with_teachers(space, {"new": [0, 1]}, trust=True)
    assert trusting.trusted_array("new").tolist() == [True, True, True, True, False]
    assert trusting.ids("new", ["sign", "helmet", "car (teacher)", "face (teacher)"]).tolist() == [2, 3, 0, 1]
    careful = space_with_teachers(space, {"new": [0, 1]}, trust=False)
    assert careful.trusted_array("new").tolist() == [False, False, True, True, False]
    for by_teacher in (trusting, careful):
        assert (by_teacher.avoid_array[[0, 2]] == space.avoid_array[[0, 2]]).all()
    assert space.sources[1] == {"sign": 2, "helmet": 3}  # unchanged


def test_pseudo_labels_by_hand(space, tmp_path):
    builder = IndexBuilder("/pictures")
    for name in ("a.png", "b.png", "c.png"):
        builder.image(name, 100, 100)
        if name == "b.png":
            builder.box((0, 0, 20, 20), 0)  # sign
            builder.box((50, 50, 70, 70), 1)  # helmet
            builder.box((80, 0, 100, 20), -1, Flag.IGNORE_REGION)
    index = builder.build(["sign", "helmet"])
    index = replace(index, columns={"extra": np.array([1, 7, 7], np.int16)})
    rows = [  # image, class, score, box
        (2, 0, 0.60, (10, 10, 30, 30)),  # confident car
        (0, 1, 0.20, (10, 10, 30, 30)),  # uncertain face
        (0, 1, 0.09, (60, 60, 80, 80)),  # below the band
        (1, 0, 0.90, (0, 0, 20, 22)),  # car on a labelled sign: the sign wins
        (1, 1, 0.50, (50, 50, 70, 72)),  # face on a helmet, which may overlap: as confident as it must be
        (1, 0, 0.45, (0, 60, 20, 80)),  # uncertain car
        (1, 1, 0.80, (80, 0, 100, 20)),  # a region is no object
    ]
    found = DetectionArrays(
        boxes=np.array([r[3] for r in rows], np.float32),
        scores=np.array([r[2] for r in rows], np.float32),
        labels=np.array([r[1] for r in rows]),
        image_of_box=np.array([r[0] for r in rows]),
    )
    confident, uncertain = np.array([0.6, 0.5]), np.array([0.3, 0.1])
    labelled = with_pseudo_labels(
        index, space.ids("new", index.classes), found, [0, 1], space.classes, confident, uncertain,
        space.overlap_array,
    )  # fmt: skip
    assert labelled.classes == ("sign", "helmet", "car (teacher)", "face (teacher)")
    assert labelled.box_offsets.tolist() == [0, 1, 7, 8]
    got = [
        (int(i), int(label), int(flag), tuple(box))
        for i, label, flag, box in zip(
            labelled.image_of_box(), labelled.labels, labelled.flags, labelled.boxes.tolist(), strict=True
        )
    ]
    assert got == [
        (0, 3, Flag.AVOID | Flag.TEACHER, (10, 10, 30, 30)),
        (1, 0, 0, (0, 0, 20, 20)),
        (1, 1, 0, (50, 50, 70, 70)),
        (1, -1, Flag.IGNORE_REGION, (80, 0, 100, 20)),
        (1, 3, Flag.TEACHER, (50, 50, 70, 72)),
        (1, 2, Flag.AVOID | Flag.TEACHER, (0, 60, 20, 80)),
        (1, 3, Flag.TEACHER, (80, 0, 100, 20)),
        (2, 2, Flag.TEACHER, (10, 10, 30, 30)),
    ]
    assert labelled.columns["extra"].tolist() == [0, 1, 7, 7, 0, 0, 0, 0]  # rows as above
    assert labelled.area.tolist() == [400, 400, 400, 400, 440, 400, 400, 400]
    assert (labelled.boxes.dtype, labelled.labels.dtype, labelled.flags.dtype) == (
        index.boxes.dtype,
        index.labels.dtype,
        index.flags.dtype,
    )
    assert len(labelled.category_ids) == len(set(labelled.category_ids.tolist())) == 4
    assert labelled.negatives is None
    # of a federated dataset the teacher has verified its classes in every image
    lists = Ragged.pack([[1], [], [0]])
    federated = with_pseudo_labels(
        replace(index, negatives=lists, not_exhaustive=Ragged.pack([[], [], []])),
        space.ids("new", index.classes), found, [0, 1], space.classes, confident, uncertain, space.overlap_array,
    )  # fmt: skip
    assert federated.negatives is not None
    assert [federated.negatives[row].tolist() for row in range(3)] == [[1, 2, 3], [2, 3], [0, 2, 3]]
    without_lists = with_pseudo_labels(
        index, space.ids("new", index.classes), found, [0, 1], space.classes, confident, uncertain,
        space.overlap_array, federated=True,
    )  # fmt: skip
    assert without_lists.negatives is not None
    assert [without_lists.negatives[row].tolist() for row in range(3)] == [[2, 3]] * 3
    save_index(without_lists, tmp_path / "kept")  # as a training does between labelling and its steps
    kept = load_index(tmp_path / "kept")
    assert kept.negatives is not None
    assert kept.negatives.values.tolist() == [2, 3] * 3
    assert kept.not_exhaustive is None


# ----------------------------------------------------------------------------------------- settings

CARD = Card(
    LabelSpace.build({"old": ["car"]}),
    SETTINGS,
    InputSettings(64, 96),
    {"topk": 77, "nms_iou": 0.4, "max_detections": 9, "score_threshold": None, "batch_size": 3},
)


def config(**sections) -> Config:
    builder = IndexBuilder("/pictures")
    builder.image("a.png", 10, 10)
    builder.box((0, 0, 5, 5), 0)
    return Config.from_dict({"datasets": {"new": builder.build(["sign"])}, **sections})


def test_model_and_input_come_from_the_weights():
    filled = with_settings_of(CARD, config(eval={"topk": 5}, loss={"gamma": 1.5}))
    assert (filled.model.backbone, filled.model.channels, filled.model.prior) == ("test_efficientnet", 16, 0.05)
    assert filled.model.anchors.scales == (2.0, 3.0)
    assert filled.model.freeze_batch_norm is False
    assert (filled.input.shorter, filled.input.longer) == (64, 96)
    assert (filled.eval.topk, filled.eval.nms_iou, filled.eval.max_detections) == (5, 0.4, 9)
    assert filled.eval.batch_size == 8
    assert (filled.loss.gamma, filled.loss.alpha) == (1.5, 0.25)
    assert filled.extend is not None
    assert filled.extend.mode == "replay"


def test_repeating_the_settings_is_no_contradiction():
    said = {"backbone": "test_efficientnet", "channels": 16, "weights": "none", "freeze_batch_norm": None}
    with_settings_of(CARD, config(model={**said, "anchors": {"scales": [2, 3], "ratios": [0.6, 1]}}))


def test_settings_that_contradict_are_listed():
    with pytest.raises(UserError) as error:
        with_settings_of(
            CARD,
            config(model={"channels": 256, "anchors": {"scales": [4]}}, input={"shorter": 800, "longer": 96000}),
        )
    text = str(error.value)
    assert "`model.channels`: 256, but the weights have 16" in text
    assert "`model.anchors.scales`: [4.0], but the weights have [2.0, 3.0]" in text
    assert "`input.shorter`: 800, but the weights have 64" in text


def test_a_config_without_a_name_takes_the_architecture_of_the_weights(monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "tiny", TINY)
    card = replace(CARD, settings=TinySettings(width=16, loss=TinyLoss(box=3.0)))
    for sections in ({}, {"model": {"name": "tiny"}}):
        filled = with_settings_of(card, config(**sections))
        assert (filled.model, filled.loss) == (TinyModel(width=16), TinyLoss(box=3.0))
    with pytest.raises(
        UserError, match=r"`model.channels`, `loss.gamma`: .* of retinanet, but the weights are of tiny"
    ):
        with_settings_of(card, config(model={"channels": 16}, loss={"gamma": 1.0}))
    with pytest.raises(UserError, match=r'`model.name`: "retinanet", but the weights have "tiny"'):
        with_settings_of(card, config(model={"name": "retinanet"}))


def test_without_old_images_the_old_detector_is_held_and_labels_nothing_by_default():
    """And its labels are trusted only together with labels."""
    said = config().extend or ExtendSettings()
    assert (said.match, said.pseudo, said.trust, said.fixed_statistics) == (1.0, False, False, True)
    with pytest.raises(ConfigError, match=r"`extend.trust`: it is about the labels of `extend.pseudo`"):
        config(extend={"mode": "distill", "trust": True})
    both = config(extend={"mode": "distill", "trust": True, "pseudo": True, "match": 0}).extend
    assert both is not None
    assert (both.match, both.pseudo, both.trust) == (0, True, True)


@pytest.mark.parametrize(
    ("fixed", "sections", "told"),
    [
        (True, {}, r"stays fixed, as in these weights: .* \(`train.lr`\)$"),
        (True, {"train": {"recipe": "paper"}}, None),  # fixes it in any network
        (True, {"extend": {"fixed_statistics": False}}, "fixed_statistics: false` changes nothing: these weights"),
        (True, {"extend": {"mode": "frozen", "adapter": 8}}, None),
        (
            False,
            {"extend": {"mode": "frozen", "adapter": 8, "fixed_statistics": False}},
            "frozen trains nothing of",
        ),
        (False, {"extend": {"fixed_statistics": False}}, None),
        (False, {}, None),
    ],
)
def test_what_an_extension_does_with_batch_norm_is_told(fixed, sections, told):
    card = replace(CARD, settings=SETTINGS.model_copy(update={"freeze_batch_norm": fixed}))
    filled = with_settings_of(card, config(**sections))
    assert filled.model.freeze_batch_norm is fixed  # whatever the recipe
    sources = open_sources(filled, known=card.space)
    growth = Growth(card.space, sources.space, sources.train)
    notes = [text for kind, text in remarks_on(filled, card, growth, sources) if kind == "note"]
    notes = [text for text in notes if not text.startswith("no validation pictures")]
    assert len(notes) == (told is not None)
    assert told is None or re.search(told, notes[0])


def test_nothing_is_told_of_batch_norm_where_there_is_none():
    """RF-DETR's backbone is a vision transformer."""
    card = replace(CARD, settings=TINY_SETTINGS["rfdetr"])

    def told(**sections) -> list[str]:
        filled = with_settings_of(card, config(**sections))
        sources = open_sources(filled, known=card.space)
        remarks = remarks_on(filled, card, Growth(card.space, sources.space, sources.train), sources)
        return [text for _, text in remarks if "batch norm" in text or "fixed_statistics" in text]

    assert told() == []
    (note,) = told(extend={"fixed_statistics": False})
    assert note == "`extend.fixed_statistics: false` changes nothing: rfdetr has no batch norm"


@pytest.mark.parametrize(
    ("datasets", "sections", "share"),
    [
        ([], {}, 0.25),
        ([], {"extend": {"mode": "distill"}}, 0.25),
        ([], {"extend": {"mode": "frozen", "adapter": 8}}, 1.0),  # nothing old is trained
        ([], {"train": {"recipe": "paper"}}, 1.0),
        (["old"], {}, 1.0),
        (["old half"], {}, 0.5),
        (["another"], {}, 0.5),  # other pictures of the old class
    ],
)
def test_the_learning_rate_is_smaller_the_less_holds_old_classes(datasets, sections, share):
    builder = IndexBuilder("/pictures")
    for name in ("b.png", "c.png"):
        builder.image(name, 10, 10)
        builder.box((0, 0, 5, 5), 0)
    old = {"train": builder.build(["car"])}
    known = {"old": ("old", old), "old half": ("old", old | {"part": "1/2"}), "another": ("another", old)}
    given = dict(known[name] for name in datasets) | {"new": config().datasets["new"].train}
    merge = {"merge": {"car": ["old/car", "another/car"]}} if "another" in given else {}
    filled = with_settings_of(
        CARD, Config.from_dict({"datasets": given, "labels": merge, **sections}, None, ["old"])
    )
    sources = open_sources(filled, known=CARD.space)
    assert rate_share(filled, Growth(CARD.space, sources.space, sources.train)) == share
    schedule = Schedule.of(filled.train, 100, Start("detector", share))
    assert schedule.highest_rate == pytest.approx(share * filled.train.rate())
    assert (f"({share:g} of that with all old pictures" in schedule.lines()[0]) == (share != 1)
    said = filled.train.model_copy(update={"lr": 0.01})
    assert Schedule.of(said, 100, Start("detector", share)).highest_rate == 0.01  # what the config says counts


def test_old_classes_that_nothing_judges_are_told_before_the_training():
    known = LabelSpace.build({"old": ["car", "bus"]})
    card = replace(CARD, space=known)
    builder = IndexBuilder("/pictures")
    builder.image("b.png", 10, 10)
    builder.box((0, 0, 5, 5), 0)
    val = builder.build(["car", "bus"])  # it lists `bus`, too, and shows none

    def told(extend: dict, **datasets) -> list[str]:
        given = {"new": config().datasets["new"].train, **datasets}
        filled = with_settings_of(card, Config.from_dict({"datasets": given, "extend": extend}, None, ["old"]))
        sources = open_sources(filled, known=known)
        growth = Growth(known, sources.space, sources.train)
        remarks = remarks_on(filled, card, growth, sources)
        return [text for _, text in remarks if text.startswith("no validation pictures")]

    (text,) = told({})
    assert text.startswith("no validation pictures of car, bus: what the extension makes of them will not be known")
    (text,) = told({}, old={"val": val})
    assert text.startswith("no validation pictures of bus: ")
    assert told({"mode": "frozen"}) == [], "its old detections stay as they are"


def test_rows_that_mean_nothing_are_told_once_and_listed_nowhere(tmp_path):
    """There is nothing to lose of them, so no rate is lowered for them either."""
    known = LabelSpace.build({"old": ["car", "unused_1"]})
    card = replace(CARD, space=known)
    save_weights(tmp_path / "old.safetensors", {"none": torch.zeros(1)}, card)
    builder = IndexBuilder("/pictures")
    builder.image("b.png", 10, 10)
    builder.box((0, 0, 5, 5), 0)
    old = builder.build(["car"])
    both = {"new": config().datasets["new"].train, "again": {"train": old, "val": old}}
    given = Config.from_dict({"datasets": both, "labels": {"merge": {"same_names": True}}})
    report, filled = inspect_extension(given, tmp_path / "old.safetensors")
    console = Console(file=io.StringIO(), width=200)
    print_report(report, console)
    print_weights(inspect_weights(tmp_path / "old.safetensors"), console)
    lines = [line.strip() for line in console.file.getvalue().splitlines() if "unused_1" in line]
    assert lines == ["- rows that mean nothing: unused_1", "rows that mean nothing: unused_1"]
    sources = open_sources(filled, known=known)
    assert rate_share(filled, Growth(known, sources.space, sources.train)) == 0.5  # and not 0.25
    assert report_text([], known.reported) == "not measured, no `val` split shows them: car"


@pytest.mark.parametrize("names", [("LABEL_0", "LABEL_1"), ("LABEL_0", "car")])
def test_classes_that_nobody_named_are_warned_of(names, tmp_path):
    card = replace(CARD, space=LabelSpace.build({"old": names}))
    save_weights(tmp_path / "old.safetensors", {"none": torch.zeros(1)}, card)
    report = inspect_extension(config(), tmp_path / "old.safetensors")[0]
    told = [text for text in report.warnings if text.startswith("classes without names")]
    expected = (
        "classes without names (LABEL_0, LABEL_1): none is the class of a dataset by its name; write names under "
        "`id2label` in the checkpoint's config.json, or `crossdet labels WEIGHTS --rename LABEL_0=person`"
    )
    assert told == [expected] * ("car" not in names)
    console = Console(file=io.StringIO(), width=200)
    print_weights(inspect_weights(tmp_path / "old.safetensors"), console)
    assert console.file.getvalue().count(f"warning: {expected}") == len(told)


def test_check_tells_the_same(tmp_path):
    card = replace(CARD, settings=SETTINGS.model_copy(update={"freeze_batch_norm": True}))
    save_weights(tmp_path / "old.safetensors", {"none": torch.zeros(1)}, card)
    report = inspect_extension(config(), tmp_path / "old.safetensors")[0]
    assert any("batch norm of the backbone stays fixed" in note for note in report.notes)
    assert any("learning rate 0.00013 for 8 pictures a step (0.25 of that" in line for line in report.recipe)
    assert any(text.startswith("replay without training images of car") for text in report.warnings)


@pytest.mark.parametrize(("protocol", "again"), [("voc", []), ("coco", ["old"])])
def test_only_what_is_asked_for_is_looked_at_again(monkeypatch, tmp_path, protocol, again):
    """A dataset of old classes alone has its numbers from the training; its detections are for COCO's intervals."""
    builder = IndexBuilder("/pictures")
    builder.image("a.png", 10, 10)
    builder.box((0, 0, 5, 5), 0)
    datasets = {"old": {"val": builder.build(["car"]), "protocol": protocol}, "new": config().datasets["new"].train}
    both = Config.from_dict({"datasets": datasets})
    looked: list[str] = []

    def score_network(*arguments: Any) -> Evaluation:
        looked.extend(arguments[-1])
        return Evaluation({"datasets": {}}, {}, {})

    for name, stand_in in {
        "score_network": score_network,
        "_metrics_of_best": lambda _run: {"datasets": {}},
        "load_detector": lambda *_: None,
        "_in_layout": lambda *_: SimpleNamespace(model=None),
    }.items():
        monkeypatch.setattr(f"crossdet.runs.extend.{name}", stand_in)
    sources = open_sources(both, known=CARD.space)
    assert _after(SimpleNamespace(device="cpu"), both, sources, CARD.space, tmp_path) == ([], {})
    assert looked == again


def test_names_without_a_box_replay_nothing():
    """Other pictures under the old dataset's name, whose file lists the old class without a box."""
    builder = IndexBuilder("/pictures")
    builder.image("a.png", 10, 10)
    builder.box((0, 0, 5, 5), 1)
    space = LabelSpace.build({"old": ["car", "sign"]})
    assert Growth(CARD.space, space, {"old": builder.build(["car", "sign"])}).without_images() == ["car"]
