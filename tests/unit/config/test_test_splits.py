"""`test` beside `train` and `val`: read by who asks for it, and by no training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crossdet.check import inspect
from crossdet.config import Config
from crossdet.config.schema import ALL_SPLITS
from crossdet.config.sources import check_not_empty, check_split, open_sources
from crossdet.data.index import Index, IndexBuilder
from crossdet.errors import UserError
from crossdet.runs.building import check_trainable

SIZE = {"input": {"shorter": 48, "longer": 80}}


def made(root: Path, count: int, seed: int = 0) -> Index:
    """So many pictures of noise with a cup each."""
    rng, builder = np.random.default_rng(seed), IndexBuilder(root)
    root.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8)).save(root / f"{seed}_{number}.png")
        builder.image(f"{seed}_{number}.png", 48, 64)
        builder.box((10, 10, 40, 40), 0)
    return builder.build(("cup",))


def configured(**splits) -> Config:
    return Config.from_dict({"datasets": {"a": splits}, **SIZE})


def test_training_reads_no_test_split(tmp_path):
    """Nor does it take classes, or what is labelled, from one; a broken one stops no training."""
    config = configured(train=made(tmp_path, 3), test=made(tmp_path, 2, seed=3))
    assert open_sources(config).test == {}
    assert len(open_sources(config, ["test"]).test["a"]) == len(open_sources(config, ALL_SPLITS).test["a"]) == 2
    sources = open_sources(config, ALL_SPLITS)
    assert sources.labelled == open_sources(config).labelled  # of what is trained on
    gone = {"images": tmp_path, "annotations": tmp_path / "gone.json"}
    config = configured(format="coco", train=made(tmp_path, 3), test=gone)
    assert len(open_sources(config).train["a"]) == 3
    with pytest.raises(UserError, match=r"(?s)datasets.a.test: .*gone.json"):
        open_sources(config, ["test"])


def test_a_split_without_pictures_is_judged_on_nothing(tmp_path):
    """`check` calls it an error."""
    empty = made(tmp_path, 3, seed=1).take(np.zeros(0, np.int64))
    sources = open_sources(configured(train=made(tmp_path, 3), val=empty))
    with pytest.raises(UserError, match=r"^datasets\.a\.val: no images$"):
        check_trainable(sources)
    with pytest.raises(UserError, match=r"^datasets\.a\.test: no images$"):
        check_not_empty({"a": empty}, "test")


def test_lists_of_the_training_split_judge_no_other(tmp_path):
    """Easy, medium and hard of WIDER FACE are lists of pictures of the split that they are given for."""
    lists = Path(tmp_path / "lists")
    split = {"images": tmp_path, "annotations": tmp_path / "faces.txt"}
    (tmp_path / "faces.txt").write_text("a.png\n1\n10 10 30 30 0 0 0 0 0 0\n")
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    faces = {"format": "wider_face", "protocol": "wider_face", "train": {**split, "lists": lists}, "val": split}
    config = Config.from_dict({"datasets": {"a": faces}, **SIZE})
    assert open_sources(config).lists == {}
    with pytest.raises(UserError, match=r"datasets\.a\.train\.lists"):
        open_sources(config, ["train"])  # where the training pictures are what is judged; they are not there


def test_a_test_split_is_whole_beside_shares(tmp_path):
    config = configured(train=made(tmp_path, 12), val="1/6", part="1/2", test=made(tmp_path, 4, seed=1))
    sources = open_sources(config, ALL_SPLITS)
    assert len(sources.test["a"]) == 4
    assert len(sources.val["a"]) + len(sources.train["a"]) < 12


def test_pictures_of_a_test_split_that_are_trained_on_are_told(tmp_path):
    report = inspect(configured(train=made(tmp_path, 3), test=made(tmp_path, 2)))
    assert [(split.dataset, split.split) for split in report.splits] == [("a", "train"), ("a", "test")]
    (double,) = report.duplicates
    assert (double.other, double.leak, double.pictures) == (("a", "test"), True, 2)


def test_a_split_that_there_is_none_of(tmp_path):
    config = configured(train=made(tmp_path, 3), test=made(tmp_path, 2, seed=1))
    check_split(config, "test")
    with pytest.raises(
        UserError, match=r"no dataset of the config has a `val` split; `--split train` looks at its other pictures"
    ):
        check_split(config, "val")
    with pytest.raises(UserError, match="split: expected one of train, val, test, got 'tset'"):
        check_split(config, "tset")


def test_a_dataset_with_a_test_split_alone_is_none_of_the_training(tmp_path):
    """`check` sees the label space that training has, and says what it did not look at."""
    train, test = made(tmp_path, 3), made(tmp_path / "b", 2, seed=1)
    labels = {"merge": {"same_names": True}}
    config = Config.from_dict({"datasets": {"a": {"train": train}, "b": {"test": test}}, "labels": labels, **SIZE})
    assert open_sources(config, ALL_SPLITS).space == open_sources(config).space
    report = inspect(config)
    assert [split.dataset for split in report.splits] == ["a"]
    assert any(note.startswith("b has a `test` split alone") for note in report.notes)
    assert len(open_sources(config, ["test"]).test["b"]) == 2
