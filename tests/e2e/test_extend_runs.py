"""A finished detector learns more: every mode on the tiny world, three generations from the weights file alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor
from worlds import CAR, FACE, HEIGHT, WIDTH, changed

from crossdet import Config, RunError, UserError, extend, load_detector, train
from crossdet.check.extension import inspect_extension
from crossdet.data.cache import load_index
from crossdet.data.decoding import read_image
from crossdet.data.formats.coco import write_coco
from crossdet.data.index import Index, IndexBuilder
from crossdet.inference import Detector
from crossdet.models.card import InputSettings
from crossdet.models.contract import Limits
from crossdet.models.retinanet.growth import ADAPTERS, BIAS, WEIGHT, by_class
from crossdet.models.retinanet.settings import Adapter, RetinaNetSettings
from crossdet.models.weights import load_weights, update_card
from crossdet.runs.relabel import relabel
from crossdet.training import loop

SIGN = (40, 80, 220)
SHAPES = 4
OLD = ["car", "face"]


def draw_signs(root: Path, split: str, count: int, labels: tuple[str, ...] = ("sign",)) -> Index:
    """Pictures with a blue sign and either a car or a face; the index knows `labels`."""
    rng = np.random.default_rng(11 if split == "train" else 12)
    builder = IndexBuilder(root / "signs")
    for number in range(count):
        pixels = rng.integers(90, 130, (HEIGHT, WIDTH, 3)).astype(np.uint8)
        builder.image(f"{split}_{number}.png", HEIGHT, WIDTH, image_id=number + 1)
        other = ("car", 24, 14, CAR) if number % 2 else ("face", 16, 16, FACE)
        for side, (kind, width, height, colour) in enumerate((("sign", 14, 20, SIGN), other)):
            x = int(rng.integers(0, WIDTH // 2 - width + 1)) + side * WIDTH // 2
            y = int(rng.integers(0, HEIGHT - height + 1))
            pixels[y : y + height, x : x + width] = colour
            if kind in labels:
                builder.box((x, y, x + width, y + height), labels.index(kind))
        path = root / "signs" / f"{split}_{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return builder.build(labels)


@pytest.fixture(scope="module")
def signs(tmp_path_factory) -> dict[str, Any]:
    """A dataset section with one new class."""
    root = tmp_path_factory.mktemp("signs")
    for split, count in (("train", 12), ("val", 6)):
        write_coco(draw_signs(root, split, count), root / f"signs_{split}.json")
    return {
        "format": "coco",
        **{
            split: {"images": str(root / "signs"), "annotations": str(root / f"signs_{split}.json")}
            for split in ("train", "val")
        },
    }


def settings(world, signs, changes: dict[str, Any] | None = None, old: str = "val") -> dict[str, Any]:
    """Signs to train on; of the old datasets `old`: "val", "all", or "none" of their splits. No model section."""
    values = world.settings()
    datasets = values.pop("datasets")
    del values["model"], values["input"]
    if old == "val":
        datasets = {name: {k: v for k, v in d.items() if k != "train"} for name, d in datasets.items()}
    values["datasets"] = {"signs": signs, **({} if old == "none" else datasets)}
    steps = {"train.max_steps": 4, "train.epochs": 4, "train.weight_decay": 0.01}
    return changed(values, {**steps, **(changes or {})})


def config(world, signs, changes: dict[str, Any] | None = None, old: str = "val") -> Config:
    return Config.from_dict(settings(world, signs, changes, old))


def tensors(path: Path) -> dict[str, Tensor]:
    return load_weights(path)[0]


def pictures(world, signs) -> list[Path]:
    return [*sorted((world.root / "cars").glob("val*")), *sorted(Path(signs["val"]["images"]).glob("val*"))]


def found(detector: Detector, files: list[Path], **options: Any) -> list[Any]:
    return [detector(file, OLD, **options) for file in files]


# ------------------------------------------------------------------------------------------ frozen


@pytest.fixture(scope="module", params=[0, 8], ids=["rows", "adapter"])
def frozen(request, world, signs, trained, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("frozen") / "run"
    changes = {"extend.mode": "frozen", "train.ema": 0.5, "train.weight_decay": 0.1, "train.lr": 0.05}
    changes["extend.adapter"] = request.param
    record = extend(trained.folder, config(world, signs, changes, old="val"), output=folder)
    (folder / "record.json").write_text(json.dumps(record["forgetting"]))
    return folder


def test_frozen_changes_no_old_weight(frozen, trained):
    old, new = tensors(trained.folder), tensors(frozen)
    added = {name for name in new if name.startswith(ADAPTERS)}
    assert old.keys() == new.keys() - added
    for name in old:
        if name not in (WEIGHT, BIAS):
            assert torch.equal(old[name], new[name]), name
    for name in (WEIGHT, BIAS):
        before, after = by_class(old[name], SHAPES), by_class(new[name], SHAPES)[:, :2]
        assert torch.equal(after[:, :, : before.shape[2]] if name == WEIGHT else after, before), name
    width = old[WEIGHT].shape[1]
    assert new[WEIGHT].shape[1] == width + (8 if added else 0)
    assert not by_class(new[WEIGHT], SHAPES)[:, :2, width:].any()
    assert any("running_mean" in name for name in old)  # they are among those that stand still
    prior = -float(torch.log(torch.tensor(0.99 / 0.01)))
    assert not torch.allclose(new[BIAS].view(SHAPES, 3)[:, 2], torch.full((SHAPES,), prior))


def test_frozen_detections_are_bit_identical(frozen, trained, world, signs):
    before, after = load_detector(trained.folder, "cpu"), load_detector(frozen, "cpu")
    assert after.classes == ("car", "face", "sign")
    assert {name: after.thresholds[name] for name in OLD} == before.thresholds
    count = 0
    for options in ({}, {"score_threshold": 0.0}):
        files = pictures(world, signs)
        for a, b in zip(found(before, files, **options), found(after, files, **options), strict=True):
            assert torch.equal(a.boxes, b.boxes)
            assert torch.equal(a.scores, b.scores)
            assert torch.equal(a.labels, b.labels)
            assert a.names == b.names
            count += len(a)
    assert count > 500
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    sizes = torch.tensor([[64, 96], [64, 80]])
    with torch.inference_mode():
        first = before.model.decode(before.model(images), sizes, [0, 1], Limits(0.0))
        second = after.model.decode(after.model(images), sizes, [0, 1], Limits(0.0))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.boxes, b.boxes)
        assert torch.equal(a.scores, b.scores)
        assert torch.equal(a.labels, b.labels)


def test_frozen_forgets_exactly_nothing(frozen):
    report = json.loads((frozen / "record.json").read_text())
    rows = {(c["name"], c["dataset"]): c for c in report["classes"]}
    for key in (("car", "cars"), ("face", "faces")):
        assert rows[key]["before"] == rows[key]["after"] > 0.2
        assert rows[key]["difference"] == 0
    assert rows["sign", "signs"]["before"] is None
    assert report["regressions"] == []
    assert json.loads((frozen / "forgetting.json").read_text()) == report
    assert json.loads((frozen / "metrics.json").read_text())["forgetting"] == report
    assert (frozen / "generations.png").stat().st_size > 1000


def test_frozen_needs_a_new_class(world, signs, trained, tmp_path):
    values = settings(world, signs, {"extend.mode": "frozen"}, old="all")
    del values["datasets"]["signs"]
    with pytest.raises(UserError, match="frozen trains new classes only, and the config brings none"):
        extend(trained.folder, Config.from_dict(values), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_frozen_says_where_new_boxes_come_from(world, signs, trained, tmp_path):
    values = settings(world, signs, {"extend.mode": "frozen"}, old="all")
    report, _ = inspect_extension(Config.from_dict(values), trained.folder / "model.safetensors")
    assert any("`--set extend.adapter=32`" in text for text in report.notes)


def test_old_classes_of_a_mixed_dataset_are_judged_alone(world, trained, tmp_path):
    """Signs and cars in one dataset: the new class takes no place of the old one under the limit per image."""
    index = draw_signs(tmp_path, "val", 6, ("sign", "car"))
    train_index = draw_signs(tmp_path, "train", 8, ("sign", "car"))
    values = settings(world, {}, {"extend.mode": "frozen"}, old="none")
    values["datasets"] = {"both": {"train": train_index, "val": index, "max_detections": 2}}
    values["eval"]["score_threshold"] = 0.0
    values["labels"] = {"merge": {"car": ["both/car"]}}
    record = extend(trained.folder, Config.from_dict(values), output=tmp_path / "run")
    rows = {c["name"]: c for c in record["forgetting"]["classes"]}
    assert rows["car"]["before"] is not None
    assert rows["car"]["difference"] == 0
    assert rows["sign"]["before"] is None


# ------------------------------------------------------------------------------------------ replay


def test_replay_keeps_ids_whatever_the_order(world, signs, trained, tmp_path):
    folder = tmp_path / "run"
    record = extend(trained.folder, config(world, signs, old="all"), output=folder)
    detector = load_detector(folder, "cpu")
    assert detector.classes == ("car", "face", "sign")
    assert detector.space.datasets == ("cars", "faces", "signs")
    assert set(record["datasets"]) <= {"cars", "faces", "signs"}
    assert sum(row["images"] for row in record["datasets"].values()) > 0
    history = load_weights(folder)[1].generations
    assert [g.mode for g in history] == ["train", "replay"]
    assert list(history[1].datasets) == ["signs", "cars", "faces"]
    assert {(s.name, s.dataset) for s in history[1].scores} == {
        ("car", "cars"), ("face", "faces"), ("sign", "signs"),
    }  # fmt: skip
    assert load_weights(folder)[1].input == InputSettings(64, 96)


def test_thresholds_of_classes_without_validation_data_stay(world, signs, trained, tmp_path):
    extend(trained.folder, config(world, signs, {"train.max_steps": 1}, old="none"), output=tmp_path / "run")
    before, after = load_detector(trained.folder, "cpu"), load_detector(tmp_path / "run", "cpu")
    assert {name: after.thresholds[name] for name in OLD} == before.thresholds


def test_an_interrupted_extension_continues_exactly(world, signs, trained, tmp_path):
    from crossdet.training.log import RunLog, Step

    log_step = RunLog.step

    def ctrl_c(self: RunLog, at: Step, *arguments: object) -> None:
        log_step(self, at, *arguments)  # type: ignore[arg-type]
        if at.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    changes = {"extend.mode": "distill", "extend.pseudo": True}
    parsed = config(world, signs, changes, old="val")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLog, "step", ctrl_c)
        with pytest.raises(RunError, match="interrupted after step 2"):
            extend(trained.folder, parsed, output=tmp_path / "run")
    started = (tmp_path / "run" / "extend.json").read_bytes()
    with pytest.MonkeyPatch.context() as patch:  # what the teacher found is kept
        patch.setattr("crossdet.training.pseudo_labels.detect_folded", None)
        extend(trained.folder, parsed, output=tmp_path / "run", resume=True)
    extend(trained.folder, parsed, output=tmp_path / "reference")
    assert (tmp_path / "run" / "extend.json").read_bytes() == started
    for name in ("metrics.json", "forgetting.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "reference" / name).read_bytes()
    a, b = tensors(tmp_path / "run"), tensors(tmp_path / "reference")
    assert all(torch.equal(a[name], b[name]) for name in b)
    assert not moved_statistics(trained.folder, tmp_path / "run")
    other = config(world, signs, {**changes, "extend.fixed_statistics": False})
    with pytest.raises(UserError, match=r"another config; differing: extend\.fixed_statistics"):
        extend(trained.folder, other, output=tmp_path / "run", resume=True)
    with pytest.raises(UserError, match="nothing to resume"):
        extend(trained.folder, parsed, output=tmp_path / "run", resume=True)
    # killed between the last step and the report
    (tmp_path / "run" / "forgetting.json").unlink()
    extend(trained.folder, parsed, output=tmp_path / "run", resume=True)
    for name in ("metrics.json", "forgetting.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "reference" / name).read_bytes()


def moved_statistics(before: Path, after: Path) -> list[str]:
    """Running statistics of batch norm that are not the same bit for bit."""
    old, new = tensors(before), tensors(after)
    names = [name for name in old if "running_" in name or "num_batches" in name]
    assert any(name.endswith("running_var") for name in names)
    return [name for name in names if not torch.equal(old[name], new[name])]


@pytest.mark.parametrize("mode", ["replay", "distill"])
def test_statistics_of_batch_norm_stay_unless_asked_for(mode, world, signs, trained, tmp_path):
    """Scale and shift of the same layers are trained either way."""
    for fixed in (True, False):
        changes = {"extend.mode": mode, "train.max_steps": 2, "train.epochs": 1, "train.eval_every": 0}
        changes |= {} if fixed else {"extend.fixed_statistics": False}
        folder = tmp_path / f"fixed_{fixed}"
        extend(trained.folder, config(world, signs, changes, old="none"), output=folder)
        moved = moved_statistics(trained.folder, folder)
        assert bool(moved) is not fixed
        old, new = tensors(trained.folder), tensors(folder)
        layers = [name.removesuffix(".running_mean") for name in old if name.endswith(".running_mean")]
        for layer in layers:
            assert not torch.equal(old[f"{layer}.weight"], new[f"{layer}.weight"]), layer
            assert fixed or {f"{layer}.running_mean", f"{layer}.running_var"} <= set(moved)


def test_a_resumed_run_wants_the_same_weights(world, signs, trained, tmp_path):
    weights = tmp_path / "weights.safetensors"
    shutil.copy(trained.folder / "model.safetensors", weights)
    parsed = config(world, signs, {"train.max_steps": 1}, old="none")
    extend(weights, parsed, output=tmp_path / "run")
    update_card(weights, operating={})  # not the same file any more
    with pytest.raises(UserError, match="started from other weights"):
        extend(weights, parsed, output=tmp_path / "run", resume=True)


def test_a_run_without_a_checkpoint_is_resumed_with_its_own_settings_only(world, signs, trained, tmp_path):
    """What an extension found before its first step depends on the config: scores, labels, its mode."""
    run = tmp_path / "run"
    extend(trained.folder, config(world, signs, {"train.max_steps": 1}, old="none"), output=run)
    (run / "state.pt").unlink()
    other = config(world, signs, {"train.max_steps": 1, "extend.mode": "distill"}, old="val")
    with pytest.raises(UserError, match=r"another config; differing: datasets\.cars.*extend\.mode"):
        extend(trained.folder, other, output=run, resume=True)
    with pytest.raises(UserError, match="is an extension; resume it with `crossdet extend`"):
        train(run / "config.yaml", output=run, resume=True)


def test_labels_of_a_run_without_a_state_are_not_taken(world, signs, trained, tmp_path, monkeypatch):
    """It was stopped before its first state; since then a sign more was labelled, in the same files."""
    folder = tmp_path / "signs"
    shutil.copytree(signs["train"]["images"], folder)
    shutil.copy(signs["train"]["annotations"], folder)
    mine = {"format": "coco", "train": {"images": str(folder), "annotations": str(folder / "signs_train.json")}}
    parsed = config(world, mine, {"extend.mode": "distill", "extend.pseudo": True, "train.max_steps": 1}, old="val")
    run, train_epoch = tmp_path / "run", loop._train_epoch
    trained_on = []

    def killed(*_: object) -> None:
        raise MemoryError

    def watched(run: Any, step: Any, data: Any, *more: Any) -> Any:
        trained_on.append(sum((part.index.labels == 0).sum() for part in data.dataset.parts))
        return train_epoch(run, step, data, *more)

    monkeypatch.setattr(loop, "_train_epoch", killed)
    with pytest.raises(MemoryError):
        extend(trained.folder, parsed, output=run)
    assert (run / "teacher_labels").exists()
    assert not (run / "state.pt").exists()
    labels = json.loads((folder / "signs_train.json").read_text())
    labels["annotations"].append(labels["annotations"][0] | {"id": 1000, "bbox": [0, 0, 9, 9], "area": 81})
    (folder / "signs_train.json").write_text(json.dumps(labels))
    monkeypatch.setattr(loop, "_train_epoch", watched)
    extend(trained.folder, parsed, output=run, resume=True)
    assert trained_on == [len(labels["annotations"])]


# ------------------------------------------------------------------------------------------ distill


def test_distill_learns_old_classes_from_the_teacher(world, signs, trained, tmp_path, capsys):
    folder = tmp_path / "run"
    changes = {"extend.mode": "distill", "extend.pseudo": True, "extend.match": 0.0}
    record = extend(trained.folder, config(world, signs, changes, old="val"), output=folder)
    printed = capsys.readouterr().out
    assert "teacher on signs:" in printed
    labels = load_index(folder / "teacher_labels" / "signs")
    assert labels.classes == ("sign", "car (teacher)", "face (teacher)")
    mine = np.asarray(labels.labels) > 0
    objects = mine & (np.asarray(labels.flags) == 32)  # by a teacher, and not to be avoided
    assert 6 <= objects.sum() <= 24  # there is one car or face in each of 12 pictures
    truth = {"car": 24 * 14, "face": 16 * 16}
    area = np.median(np.asarray(labels.area)[objects & (np.asarray(labels.labels) == 1)])
    assert area == pytest.approx(truth["car"], rel=0.5)
    # what is saved does not speak of the teacher
    space = load_weights(folder)[1].space
    assert dict(space.sources[2]) == {"sign": 2}
    assert not space.trusted_array("signs")[:2].any()
    assert record["datasets"].keys() == {"signs"}


def test_distill_holds_what_training_on_new_data_loses(world, signs, trained, tmp_path):
    """Large steps on signs alone, with the old detector's labels, and with its answers only, as by default.

    How much the scores and boxes change where the old detector is sure, and what is left of the old classes' AP.
    """
    steps = {"train.lr": 0.1, "train.warmup_epochs": 0.0, "train.max_steps": 8, "train.clip_norm": 1.0}
    modes = {
        "replay": {},
        "labels": {"extend.mode": "distill", "extend.pseudo": True, "extend.trust": True, "extend.match": 0.0},
        "answers": {"extend.mode": "distill"},
    }
    teacher = load_detector(trained.folder, "cpu").model
    images = torch.stack([read_image(file) for file in pictures(world, signs)])
    moved, kept = {}, {}
    for name, more in modes.items():
        parsed = config(world, signs, {**steps, **more, "train.eval_every": 0})
        record = extend(trained.folder, parsed, output=tmp_path / name)
        assert (tmp_path / name / "teacher_labels").exists() == (name == "labels")
        with torch.inference_mode():
            before, after = teacher(images), load_detector(tmp_path / name, "cpu").model(images)
        scores = [torch.cat(o.logits, 1)[..., :2].sigmoid() for o in (before, after)]
        deltas = [torch.cat(o.deltas, 1) for o in (before, after)]
        sure = scores[0] > 0.3
        assert sure.sum() > 10
        moved[name] = [
            float((scores[0] - scores[1])[sure].abs().mean()),
            float((deltas[0] - deltas[1])[sure.any(2)].abs().mean()),
        ]
        kept[name] = sum(c["after"] for c in record["forgetting"]["classes"] if c["name"] in OLD)
    assert kept["labels"] > kept["replay"] + 0.1
    assert moved["answers"][0] < moved["replay"][0]
    assert moved["answers"][1] < moved["replay"][1]


def test_distill_without_any_old_dataset(world, signs, trained, tmp_path, capsys):
    """Nothing of old images is asked for; old thresholds stay, with a `val` split of signs and without any."""
    values = settings(world, signs, {"extend.mode": "distill", "train.max_steps": 2}, old="none")
    values["train"]["steps"] = [1.0]
    extend(trained.folder, Config.from_dict(values), output=tmp_path / "one")
    assert "warning: `train.steps`: from epoch 1 of 4 on the learning rate is 0.1" in capsys.readouterr().out
    values["datasets"]["signs"] = {key: value for key, value in signs.items() if key != "val"}
    record = extend(trained.folder, Config.from_dict(values), output=tmp_path / "two")
    assert record["forgetting"] == {
        "tolerance": 0.5,
        "unmeasured": OLD,
        "classes": [],
        "means": [],
        "regressions": [],
        "certain": [],
    }
    before = load_weights(trained.folder)[1].operating
    assert before.keys() == set(OLD)
    for folder in (tmp_path / "one", tmp_path / "two"):
        after = load_weights(folder)[1].operating
        assert {name: after[name] for name in OLD} == before
        detector = load_detector(folder, "cpu")
        assert detector.classes == ("car", "face", "sign")
        assert detector.space.datasets == ("cars", "faces", "signs")
        assert not (folder / "teacher_labels").exists()


def test_distill_needs_a_teacher(world, signs, trained, tmp_path):
    parsed = config(world, signs, {"extend.mode": "distill", "extend.match": 0})
    with pytest.raises(UserError, match="needs a weight under `match`, `pseudo: true`, or both"):
        extend(trained.folder, parsed, output=tmp_path / "run")


def test_distill_only_where_something_is_unlabelled(world, signs, trained, tmp_path):
    """A class that is known to be absent is not looked for."""
    changes = {"extend.mode": "distill", "extend.pseudo": True, "labels.absent": {"signs": OLD}}
    changes["train.max_steps"] = 1
    extend(trained.folder, config(world, signs, changes, old="none"), output=tmp_path / "run")
    assert not (tmp_path / "run" / "teacher_labels").exists()


# ------------------------------------------------------------------------------------------ after an adapter


def unchanged(before: Path, after: Path) -> bool:
    """Whether all that the classes of `before` are computed from is the same bit for bit."""
    old, new = tensors(before), tensors(after)
    bias, weight = (by_class(new[name], SHAPES)[:, : len(old[BIAS]) // SHAPES] for name in (BIAS, WEIGHT))
    width = old[WEIGHT].shape[1]
    same = [torch.equal(new[name], old[name]) for name in old if name not in (WEIGHT, BIAS)]
    same.append(torch.equal(bias, by_class(old[BIAS], SHAPES)))
    same.append(torch.equal(weight[:, :, :width], by_class(old[WEIGHT], SHAPES)))
    return all(same) and not weight[:, :, width:].any()  # what adapters add to these rows


def test_what_follows_an_adapter(world, signs, trained, tmp_path):
    """A second frozen extension beside it; one that trains old rows, too; classes merged across its border, which
    keep their box subnets, and extended again."""
    changes = {"extend.mode": "frozen", "extend.adapter": 4, "train.max_steps": 2}
    first = tmp_path / "first"
    extend(trained.folder, config(world, signs, changes, old="none"), output=first)
    again = settings(world, signs, changes, old="none")
    again["datasets"] = {"late": {**again["datasets"]["signs"]}}
    again["labels"] = {"merge": {"late_sign": ["late/sign"]}, "distinct": ["sign"]}
    extend(first, Config.from_dict(again), output=tmp_path / "second")
    assert unchanged(first, tmp_path / "second")
    assert adapters(tmp_path / "second") == (Adapter(2, 4, 2, 3), Adapter(3, 4, 3, 4))

    changes = {"extend.mode": "replay", "train.max_steps": 2}
    extend(first, config(world, signs, changes, old="all"), output=tmp_path / "third")
    assert adapters(tmp_path / "third") == (Adapter(0, 4, 2, 3),)
    assert not unchanged(first, tmp_path / "third")
    rows = by_class(tensors(tmp_path / "third")[WEIGHT], SHAPES)
    assert rows[:, :2, -4:].any()

    merged = tmp_path / "merged.safetensors"
    relabel(first, merged, (), [("thing", ["face", "sign"])])
    assert adapters(merged) == adapters(first) == (Adapter(2, 4, 2, 3),)
    assert load_detector(merged, "cpu").reported == ("car", "thing")
    extend(merged, Config.from_dict(again), output=tmp_path / "fourth")
    assert load_detector(tmp_path / "fourth", "cpu").reported == ("car", "thing", "late_sign")


def adapters(weights: Path) -> tuple[Adapter, ...]:
    return load_weights(weights)[1].settings.adapters


def test_an_adapter_is_for_frozen_extensions(world, signs, trained, tmp_path):
    parsed = config(world, signs, {"extend.mode": "replay", "extend.adapter": 4})
    with pytest.raises(UserError, match="`adapter` of the mode frozen, but this is replay"):
        extend(trained.folder, parsed, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_channel_cannot_be_a_group():
    with pytest.raises(UserError, match="group norm needs at least two channels"):
        RetinaNetSettings(group_norm=True).extended("frozen", adapter=1, known=1, classes=2)


# ------------------------------------------------------------------------------------------ after renaming


def test_renamed_weights_are_extended_under_their_new_names(world, signs, trained, tmp_path):
    """The old dataset still says `car`, and needs no rule for it."""
    renamed = tmp_path / "renamed.safetensors"
    relabel(trained.folder, renamed, [("car", "auto")])
    parsed = config(world, signs, {"extend.mode": "frozen", "train.max_steps": 1})
    record = extend(renamed, parsed, output=tmp_path / "run")
    assert load_detector(tmp_path / "run", "cpu").classes == ("auto", "face", "sign")
    rows = {c["name"]: c for c in record["forgetting"]["classes"]}
    assert rows["auto"]["difference"] == 0
    assert rows["auto"]["before"] > 0.2
    history = load_weights(tmp_path / "run")[1].generations
    assert [g.mode for g in history] == ["train", "labels", "frozen"]
    assert history[1].edits == ("rename car=auto",)


# ------------------------------------------------------------------------------------------ command line


def write(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def test_three_generations_from_the_weights_alone(world, signs, tmp_path, crossdet):
    """Cars, then faces, then signs; each time only the weights file of the last is there."""
    first = changed(world.settings(), {"datasets.faces": None, "train.max_steps": 3})
    train(Config.from_dict(first), output=tmp_path / "one")
    faces = settings(world, signs, {"train.max_steps": 3}, old="all")
    del faces["datasets"]["cars"], faces["datasets"]["signs"]
    files = {
        "two": (write(tmp_path / "faces.yaml", faces), "replay"),
        "three": (write(tmp_path / "signs.yaml", settings(world, signs, {"train.max_steps": 3}, "none")), "frozen"),
    }  # fmt: skip
    weights = tmp_path / "only.safetensors"
    shutil.move(tmp_path / "one" / "model.safetensors", weights)
    for name, (file, mode) in files.items():
        done = crossdet("extend", weights, file, "--mode", mode, "--output", tmp_path / name)
        assert done.returncode == 0, done.stderr
        shutil.move(tmp_path / name / "model.safetensors", weights)
        shutil.rmtree(tmp_path / name)
    assert load_detector(weights, "cpu").classes == ("car", "face", "sign")
    done = crossdet("check", weights, "--json", tmp_path / "weights.json")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any(line.startswith("0: train, ") and line.endswith(", 1 classes") for line in lines)
    for part in ("   cars: car", "   faces: face", "   signs: sign"):
        assert part in lines, part
    assert [line.split(",")[0] for line in lines if line[:2] in ("0:", "1:", "2:")] == [
        "0: train", "1: replay", "2: frozen",
    ]  # fmt: skip
    told = json.loads((tmp_path / "weights.json").read_text())["generations"]
    assert [len(g["classes"]) for g in told] == [1, 2, 3]
    assert [[s["name"] for s in g["scores"]] for g in told] == [["car"], ["face"], ["sign"]]
    assert all(g["version"] for g in told)
    assert all(len(g["parent"]) == 64 for g in told[1:])


def test_a_regression_beyond_the_tolerance_ends_with_status_3(world, signs, trained, tmp_path, crossdet):
    """Steps so large that nothing is left of the old classes."""
    file = write(tmp_path / "config.yaml", settings(world, signs, {"train.lr": 0.5, "train.warmup_epochs": 0.0}))
    run = ("extend", trained.folder, file, "--set", "train.clip_norm=1.0", "--json", tmp_path / "record.json")
    done = crossdet(*run, "--output", tmp_path / "run")
    assert done.returncode == 3, done.stderr
    old = {"car on cars", "face on faces"}  # which of them shows it depends on the processor
    assert any(f"warning forgotten more than the tolerance of 0.5 points: {one} -" in done.stderr for one in old)
    assert "warning: replay without training images of car, face" in done.stdout
    assert "car    cars     coco AP" in done.stdout
    report = json.loads((tmp_path / "record.json").read_text())["forgetting"]
    assert old & {*report["regressions"]}
    assert "face on faces" in report["certain"]
    again = crossdet(*run, "--output", tmp_path / "run", "--overwrite", "--tolerance", "100")
    assert again.returncode == 0, again.stderr


def test_contradictions_are_told_before_anything_is_trained(world, signs, trained, tmp_path, crossdet):
    for changes, message in (
        ({"model.channels": 32}, "`model.channels`: 32, but the weights have 16"),
        ({"labels.merge": {"auto": ["cars/car"]}}, "the weights know cars/car as 'car', not as 'auto'"),
        ({"extend.mode": "other"}, "`extend.mode`: expected 'replay', 'distill' or 'frozen'"),
        ({"extend.trust": True}, "`extend.trust`: it is about the labels of `extend.pseudo`, which is off"),
        ({"extend.pseudo": True}, "`pseudo` of the mode distill, but this is replay"),
        ({"extend.match": 5, "extend.mode": "frozen"}, "`match` of the mode distill, but this is frozen"),
    ):
        file = write(tmp_path / "config.yaml", settings(world, signs, changes))
        done = crossdet("extend", trained.folder, file, "--output", tmp_path / "run")
        assert done.returncode == 2, done.stderr
        assert message in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "run").exists()


def test_the_weights_are_not_written_over(world, signs, trained):
    with pytest.raises(UserError, match="holds the weights to extend"):
        extend(trained.folder, config(world, signs), output=trained.folder, overwrite=True)
