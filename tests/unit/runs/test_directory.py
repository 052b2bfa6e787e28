"""What `check_run_dir` makes of a stored config; the rest of it is tested with real runs (tests/e2e)."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from crossdet.config import CONFIG_FILE, load_config
from crossdet.errors import UserError
from crossdet.runs.directory import check_run_dir


@pytest.mark.parametrize("changed", [False, True])
def test_an_extension_of_an_older_version_is_resumed(tmp_path: Path, changed: bool) -> None:
    """A stored config with fewer keys, whose label rules name a dataset that only the weights know."""
    split = {"images": "images", "annotations": "signs.json"}
    values = {
        "datasets": {"signs": {"format": "coco", "train": split}},
        "labels": {"merge": {"person": ["faces/human", "signs/person"]}},
        "train": {"lr": 0.01},
    }
    (tmp_path / CONFIG_FILE).write_text(yaml.safe_dump(values))
    (tmp_path / "steps.csv").touch()  # by what such a run is known
    now = tmp_path / "now.yaml"
    now.write_text(yaml.safe_dump(values | {"train": {"lr": 0.02 if changed else 0.01}}))
    config = load_config(now, known_datasets=["faces"])
    if changed:
        with pytest.raises(UserError, match=r"another config; differing: train\.lr\. Resume"):
            check_run_dir(tmp_path, config, resume=True, overwrite=False, known_datasets=["faces"])
    else:
        check_run_dir(tmp_path, config, resume=True, overwrite=False, known_datasets=["faces"])


@pytest.mark.parametrize(("key", "value", "differs"), [("nms", False, False), ("queries", 50, True)])
def test_what_is_decided_for_a_run_is_no_other_config(
    tmp_path: Path, key: str, value: object, differs: bool
) -> None:
    """An extension has it from the weights, and a run of an older version says nothing of it."""
    split = {"images": str(tmp_path / "images"), "annotations": str(tmp_path / "signs.json")}
    values = {"datasets": {"signs": {"format": "coco", "train": split}}, "model": {"name": "dfine"}}
    (tmp_path / CONFIG_FILE).write_text(yaml.safe_dump(values))
    (tmp_path / "steps.csv").touch()
    (tmp_path / "now.yaml").write_text(yaml.safe_dump(values | {"model": {"name": "dfine", key: value}}))
    config = load_config(tmp_path / "now.yaml")
    if differs:
        with pytest.raises(UserError, match=rf"another config; differing: model\.{key}"):
            check_run_dir(tmp_path, config, resume=True, overwrite=False)
    else:
        check_run_dir(tmp_path, config, resume=True, overwrite=False)


def test_a_run_without_its_state_does_not_begin_anew_unasked(tmp_path: Path) -> None:
    """`--resume` would replace the weights of 20 epochs by those of a new training."""
    split = {"images": str(tmp_path / "images"), "annotations": str(tmp_path / "signs.json")}
    values = {"datasets": {"signs": {"format": "coco", "train": split}}}
    (tmp_path / "now.yaml").write_text(yaml.safe_dump(values))
    config = load_config(tmp_path / "now.yaml")
    run = tmp_path / "run"
    run.mkdir()
    (run / CONFIG_FILE).write_text(yaml.safe_dump(values))
    (run / "metrics.json").write_text('{"epochs": [{"epoch": 1}]}')
    check_run_dir(run, config, resume=True, overwrite=False)  # killed before the first state
    (run / "metrics.json").write_text('{"epochs": [{"epoch": 1}, {"epoch": 2}]}')
    with pytest.raises(UserError, match=r"state\.pt is gone, without which this run cannot go on"):
        check_run_dir(run, config, resume=True, overwrite=False)
    check_run_dir(run, config, resume=False, overwrite=True)


@pytest.mark.parametrize(("name", "differs"), [("retinanet", False), ("dfine", True)])
def test_a_run_of_before_the_share_of_the_backbone_is_resumed_where_it_means_the_same(tmp_path, name, differs):
    split = {"images": str(tmp_path / "images"), "annotations": str(tmp_path / "signs.json")}
    model = {"name": name, "weights": "someone/checkpoint"} if name == "dfine" else {"name": name}
    values = {"datasets": {"signs": {"format": "coco", "train": split}}, "model": model}
    (tmp_path / "now.yaml").write_text(yaml.safe_dump(values))
    config = load_config(tmp_path / "now.yaml")
    run = tmp_path / "run"
    run.mkdir()
    (run / CONFIG_FILE).write_text(yaml.safe_dump(values | {"train": {"backbone_lr": 1.0}}))
    (run / "steps.csv").touch()
    if differs:
        with pytest.raises(UserError, match=r"differing: train\.backbone_lr"):
            check_run_dir(run, config, resume=True, overwrite=False)
    else:
        check_run_dir(run, config, resume=True, overwrite=False)
