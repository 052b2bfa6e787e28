"""The examples of docs/extending_crossdet.md: what they add works without a line of the product changed."""

import re
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from crossdet.check.inspection import inspect
from crossdet.commands import main as cli
from crossdet.config import load_config
from crossdet.config.sources import open_sources
from crossdet.data.formats import FORMATS
from crossdet.errors import UserError

from .stand_ins import pictures

PAGE = (Path(__file__).parents[2] / "docs" / "extending_crossdet.md").read_text()


def blocks(section, language):
    """The code blocks of one section of the page."""
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


@pytest.fixture
def birds(tmp_path, monkeypatch):
    """The page's config on generated data, and its format among the others."""
    (code,), (config,) = blocks("An annotation format", "python"), blocks("An annotation format", "yaml")
    names: dict[str, object] = {}
    exec(code, names)
    monkeypatch.setitem(FORMATS, yaml.safe_load(config)["datasets"]["birds"]["format"], names["FORMAT"])
    monkeypatch.setenv("CROSSDET_CACHE", str(tmp_path / "cache"))
    for seed, split in enumerate(("train", "val")):
        files = [f"{split}/{number}.jpg" for number in range(3)]
        index = pictures(tmp_path / "images", files, ["owl", "wren"], seed)
        lines = [f"{split}/empty.jpg"]
        for row in range(len(index)):
            for (x1, y1, x2, y2), label in zip(
                index.boxes[index.rows(row)], index.labels[index.rows(row)], strict=True
            ):
                lines.append(f"{index.names[row]},{index.classes[label]},{x1},{y1},{x2 - x1},{y2 - y1}")
        pictures(tmp_path / "images", [f"{split}/empty.jpg"], ["owl"], seed)
        (tmp_path / f"birds_{split}.csv").write_text("\n".join(lines))
    (tmp_path / "birds.yaml").write_text(config)
    return tmp_path


def test_a_new_format_is_read_through_the_config(birds):
    sources = open_sources(load_config(birds / "birds.yaml"))
    train = sources.train["birds"]
    assert sources.space.classes == ("owl", "wren")
    assert [len(index) for index in (train, sources.val["birds"])] == [4, 4]
    assert train.sizes.tolist() == [[60, 80]] * 4  # from the image headers
    want = pictures(birds / "again", [f"train/{number}.jpg" for number in range(3)], ["owl", "wren"], 0)
    assert train.boxes.tolist() == want.boxes.tolist()
    assert train.labels.tolist() == want.labels.tolist()
    again = open_sources(load_config(birds / "birds.yaml")).train["birds"]  # from the cache
    assert again.boxes.tolist() == want.boxes.tolist()
    assert len(list((birds / "cache" / "index").iterdir())) == 2


def test_a_new_format_is_checked(birds, monkeypatch, capsys):
    report = inspect(load_config(birds / "birds.yaml"))
    assert [(split.images, split.empty_images, split.boxes) for split in report.splits] == [(4, 1, 6)] * 2
    monkeypatch.setattr(sys, "argv", ["crossdet", "check", str(birds / "birds.yaml")])
    with suppress(SystemExit):
        cli.main()
    assert "birds" in capsys.readouterr().out


def test_mistakes_in_a_new_format_are_told_like_others(birds):
    (birds / "birds_val.csv").write_text("a.jpg,owl,1,2\nb.jpg\nc.jpg,owl,1,2,x,4\n")
    with pytest.raises(UserError) as error:
        open_sources(load_config(birds / "birds.yaml"))
    file = birds / "birds_val.csv"
    assert str(error.value).splitlines() == [
        "1 split(s) cannot be read",
        f"  - datasets.birds.val: {file}: 2 mistake(s)",
        f"      - {file}:1: 'a.jpg,owl,1,2', expected image,class,x,y,w,h",
        f"      - {file}:3: 'c.jpg,owl,1,2,x,4', expected image,class,x,y,w,h",
    ]
    text = (birds / "birds.yaml").read_text()
    (birds / "birds.yaml").write_text(text.replace("images: images}", "images: images, ignore: x.txt}", 1))
    with pytest.raises(UserError, match="`ignore` has 1 entries, box_csv takes none"):
        open_sources(load_config(birds / "birds.yaml"))


def test_without_the_line_the_config_names_the_formats_there_are(birds, monkeypatch):
    monkeypatch.delitem(FORMATS, "box_csv")
    with pytest.raises(UserError, match=r"expected 'coco', .* or 'yolo', got \"box_csv\""):
        load_config(birds / "birds.yaml")
