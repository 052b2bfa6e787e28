"""Wildcards in lists of class names: what they stand for in label rules, commands and weights."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from crossdet import LabelSpace
from crossdet.check import inspect, print_report
from crossdet.config import Config, load_config
from crossdet.config.sources import open_sources
from crossdet.data.index import Index, IndexBuilder
from crossdet.errors import ConfigError, LabelError, UserError
from crossdet.labels.edits import edited, grown
from crossdet.labels.patterns import matching
from crossdet.labels.reporting import Reporting

CHESS = {"chess": ["white_king", "white_pawn", "black_king", "White_x"], "more": ["white_king", "clock"]}


def test_what_a_pattern_means():
    known = ["ab", "a*", "aB", "b?", "[x]"]
    assert matching(["a*"], known) == ["a*"]  # an exact name wins
    assert matching(["a?"], known) == ["ab", "a*", "aB"]
    assert matching(["[ab]?"], known) == ["ab", "a*", "aB", "b?"]
    assert matching(["[x]", "A*", "nothing"], known) == ["[x]", "A*", "nothing"]  # case counts, the rest stays
    assert matching(["?b", "*", "aB"], known) == ["ab", "a*", "b?", "[x]", "aB"]  # each once


def test_white_space_around_both_names_of_a_source_class_means_nothing():
    known = ["a/nut", "b / c"]
    assert matching(["a/ nut", " a/nut", "b / c", "x / y"], known) == ["a/nut", "a/nut", "b / c", "x / y"]
    space = LabelSpace.build({"a": ["nut", "bolt"]}, drop=["a/ nut"])
    assert space.classes == ("bolt",)


def test_rules_with_patterns_are_those_with_names():
    patterns = LabelSpace.build(
        CHESS,
        merge={"white": ["chess/white_*", "*/white_king"]},
        drop=["chess/W*"],
        absent={"more": ["black_*"]},
        labelled=None,
    )
    names = LabelSpace.build(
        CHESS,
        merge={"white": ["chess/white_king", "chess/white_pawn", "more/white_king"]},
        drop=["chess/White_x"],
        absent={"more": ["black_king"]},
    )
    assert patterns == names
    assert "*" not in patterns.to_json()
    assert LabelSpace.build(CHESS, drop={"chess": ["*"]}).classes == ("white_king", "clock")


def test_a_rule_of_unified_classes_sees_their_unified_names():
    space = LabelSpace.build(CHESS, merge={"w": ["*/white_king"]}, drop=["chess/[!w]*"], unlabelled={"more": "w*"},
                             labelled={"chess": CHESS["chess"], "more": ["clock"]})  # fmt: skip
    assert space.classes == ("w", "white_pawn", "clock")
    row, w = space.dataset_index("more"), space.id_of("w")
    assert (row, "white_king", w) in space.listed_only
    assert space.avoid_array[row].tolist() == [True, True, False]


def test_a_pattern_without_a_match_is_a_mistake_with_near_names():
    with pytest.raises(LabelError) as error:
        LabelSpace.build(CHESS, merge={"w": ["chess/wite_*"]}, drop=["more/z*"], absent={"more": ["blak*"]},
                         distinct=["white_king"])  # fmt: skip
    text = str(error.value)
    assert "merge.w: no source class matches 'chess/wite_*'; near: 'chess/" in text
    assert "drop: no source class matches 'more/z*'" in text
    assert "absent.more: no unified class matches 'blak*'; near: 'black_king'" in text


def test_a_pattern_never_overrules_another_rule():
    with pytest.raises(LabelError, match="'chess/white_king' is also in `drop`"):
        LabelSpace.build(CHESS, merge={"white": ["*/white_*"]}, drop=["chess/*_king"])
    with pytest.raises(LabelError, match=r"absent.chess: \[white_pawn\]: but this dataset labels the class"):
        LabelSpace.build(CHESS, merge={"same_names": True}, absent={"chess": ["*"]})


def test_growing_by_patterns():
    known = LabelSpace.build({"old": ["person", "car"]})
    space = grown(known, {"yard": ["Person_a", "Person_b", "forklift"]},
                  merge={"person": ["*/?erson*"]}, absent={"old": "fo*"}, unlabelled={"yard": ["c*"]})  # fmt: skip
    assert space.classes == ("person", "car", "forklift")
    assert space.sources_of(0) == ["old/person", "yard/Person_a", "yard/Person_b"]
    assert space.avoid_array.tolist() == [[False, False, False], [False, True, False]]


def test_classes_that_are_asked_for_and_merged_in_weights():
    space = LabelSpace.build({"a": ["white_king", "white_pawn", "black_king"]})
    assert Reporting(space, None, True).class_ids(["*_king", "white_*"]) == [0, 2, 1]
    merged = edited(space, [], [("white", ["white_*"])])
    assert merged.reported == ("white", "black_king")
    assert Reporting(merged, None, True).class_ids("w*") == [0, 1]  # the whole and its members, each once
    with pytest.raises(UserError, match=r"no class matches 'wite_k\*'; near: 'white_king'"):
        Reporting(space, None, True).class_ids(["wite_k*"])
    with pytest.raises(UserError, match="no class matches"):
        edited(space, [], [("green", ["green_*"])])


def test_check_prints_what_they_stand_for(tmp_path):
    image = IndexBuilder(tmp_path)
    image.image("0.png", 48, 64)
    for label in range(3):
        image.box((10, 10, 40, 40), label, 0)
    index = image.build(("white_king", "white_pawn", "black_king"))
    labels = {"merge": {"white": ["c*/white_*"]}, "drop": {"chess": "black_*"}}
    config = Config.from_dict({"datasets": {"chess": {"train": index}}, "labels": labels})
    sources = open_sources(config)
    assert sources.space.classes == ("white",)
    report = inspect(config)
    console = Console(file=io.StringIO(), width=120)
    print_report(report, console)
    assert "labels.merge.white: c*/white_* is chess/white_king, chess/white_pawn" in console.file.getvalue()
    assert report.dropped == ("chess/black_king",)
    members = Config.from_dict({"datasets": {"chess": {"train": index}}, "labels": {"per_dataset": ["white_*"]}})
    found = open_sources(members)
    assert found.space.classes == ("white_king@chess", "white_pawn@chess", "black_king")
    assert [(p.rule, p.names) for p in found.patterns] == [("per_dataset", ("white_king", "white_pawn"))]
    assert [(p.rule, p.pattern, p.names) for p in report.patterns] == [
        ("merge.white", "c*/white_*", ("chess/white_king", "chess/white_pawn")),
        ("drop", "chess/black_*", ("chess/black_king",)),
    ]


def test_the_dataset_of_a_pattern_exists(tmp_path: Path):
    file = tmp_path / "c.yaml"
    file.write_text(
        "datasets: {a: {format: yolo, train: {annotations: d.yaml}}}\nlabels: {drop: ['b*/x', '?/x']}\n"
    )
    with pytest.raises(ConfigError) as error:
        load_config(file)
    assert 'no dataset "b*"' in str(error.value)
    assert '"?/x"' not in str(error.value)


def test_patterns_of_distinct_and_of_pairs():
    two = {"chess": ["white_king", "white_pawn", "clock"], "more": ["white_king", "clock"]}
    space = LabelSpace.build(
        two, distinct=["more/w*", "c*"], overlap=[["chess/*", "white_*"], ["*k", "more/[!w]*"]]
    )
    assert space.classes == ("white_king", "white_pawn", "chess/clock", "more/white_king", "more/clock")
    pairs = {(a, b) for a, b in zip(*space.overlap_array.nonzero(), strict=True) if a < b}
    of = {name: c for c, name in enumerate(space.classes)}
    assert pairs == {
        (of["white_king"], of["chess/clock"]),
        (of["white_pawn"], of["chess/clock"]),
        (of["chess/clock"], of["more/clock"]),
    }
    with pytest.raises(LabelError, match=r"distinct: no class matches 'x\*'"):
        LabelSpace.build(two, distinct=["x*"])
    with pytest.raises(LabelError, match=r"overlap: no unified class matches 'x\*'"):
        LabelSpace.build(two, distinct=["*"], overlap=[["x*", "more/clock"]])


def test_datasets_are_no_patterns():
    with pytest.raises(
        LabelError, match=r"absent: unknown dataset 'ch\*'; .*chess.*; datasets are named one by one"
    ):
        LabelSpace.build(CHESS, merge={"same_names": True}, absent={"ch*": ["clock"]})


NFC, NFD = "Fu\u00dfg\u00e4nger", "Fu\u00dfga\u0308nger"


def test_an_accent_of_its_own_makes_no_other_class(tmp_path):
    """Readers compose names, and rules, so that both spellings are one; in between a warning."""
    assert NFC != NFD
    (tmp_path / "a.jpg").write_bytes(b"")
    record = {"image": "a.jpg", "boxes": [[1, 1, 9, 9]], "labels": [NFD]}
    assert Index.from_records([record], root=tmp_path).classes == (NFC,)
    assert Index.from_records([record], classes=[NFD], root=tmp_path).classes == (NFC,)
    space = LabelSpace.build({"a": [NFC], "b": ["car"]}, unlabelled={"b": [NFD]}, overlap=[[NFD, "car"]])
    assert space.overlap_pairs == {(0, 1)}
    merged = LabelSpace.build({"a": [NFC], "b": ["car"]}, merge={NFD: [f"a/{NFD}", "b/car"]}, labelled=None)
    assert merged.classes == (NFC,)
    assert LabelSpace.build({"a": [NFC], "b": [NFD]}).likely_duplicates() == [(f"a/{NFC}", f"b/{NFD}")]
    assert LabelSpace.build({"a": ["person"], "b": ["\uff50\uff45\uff52\uff53\uff4f\uff4e"]}).likely_duplicates()
