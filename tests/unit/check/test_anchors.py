"""`crossdet anchors`: coverage against all anchors one by one, proposals with known answers, the printed report."""

import io
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import typer
import yaml
from rich.console import Console
from torchvision.ops import box_iou
from typer.testing import CliRunner

from crossdet.check import anchors as module
from crossdet.check import inspect
from crossdet.check.anchors import (
    PAPER_SETTINGS,
    AnchorSetting,
    DatasetBoxes,
    anchors_report,
    configured,
    coverage,
    propose,
    training_boxes,
)
from crossdet.check.anchors_printing import draw_anchors, print_anchors
from crossdet.commands.anchors import anchors
from crossdet.config import Config, load_config
from crossdet.data.hybrid import HybridDataset, Part
from crossdet.data.index import IndexBuilder
from crossdet.demo.scenes import write_demo_datasets
from crossdet.errors import UserError
from crossdet.labels.space import LabelSpace
from crossdet.models.retinanet.anchors import cell_anchors, grid_anchors
from crossdet.models.retinanet.settings import PYRAMID_STRIDES
from crossdet.types import Flag

DEFAULT = AnchorSetting((2.0, 3.0, 4.0), (0.5, 1.0, 2.0))
PEDESTRIAN = 2.44


def boxes_of(name, sides, ratios, share=1.0, seed=0):
    """One dataset of 640 x 640 images: boxes of these sides (root of the area) and ratios, anywhere in them."""
    rng = np.random.default_rng(seed)
    sides, ratios = np.broadcast_arrays(np.asarray(sides, float), np.asarray(ratios, float))
    size = np.stack([sides / np.sqrt(ratios), sides * np.sqrt(ratios)], 1)
    corner = rng.uniform(0, 1, size.shape) * np.maximum(640 - size, 0)
    boxes = np.concatenate([corner, corner + size], 1)
    return DatasetBoxes(name, len(boxes), share, boxes, np.full((len(boxes), 2), 640))


def pedestrians(count=1500, share=1.0, name="peds"):
    rng = np.random.default_rng(1)
    return boxes_of(name, rng.uniform(30, 250, count), PEDESTRIAN, share)


def wide_things(count=1500, share=1.0):
    rng = np.random.default_rng(2)
    return boxes_of("wide", rng.uniform(30, 250, count), 0.4, share)


def mixed(count, seed, name="mixed", share=1.0):
    rng = np.random.default_rng(seed)
    sides, ratios = np.exp(rng.normal(4, 0.9, count)), np.exp(rng.normal(0, 0.6, count))
    return boxes_of(name, sides, ratios, share, seed)


# -------------------------------------------------------------------------------------------------- coverage


def test_coverage_equals_all_anchors_of_the_model():
    rng = np.random.default_rng(0)
    setting = AnchorSetting((1.7, 3.0), (0.6, 1.0, 2.44))
    height, width = 150, 213  # padded to 160 x 224, where the coarsest levels do not divide it
    sides = np.exp(rng.uniform(np.log(4), np.log(200), (300, 2)))
    corner = rng.uniform(-10, 1, sides.shape) * 10 + rng.uniform(0, 1, sides.shape) * [width, height]
    boxes = np.concatenate([corner, corner + sides], 1)
    levels = [
        grid_anchors(cell_anchors(stride, *setting), (-(-160 // stride), -(-224 // stride)), stride)
        for stride in PYRAMID_STRIDES
    ]
    best = box_iou(torch.from_numpy(boxes), torch.cat(levels).double()).amax(1).numpy()
    assert np.abs(best - 0.5).min() > 1e-5  # no box that float32 anchors could decide otherwise
    assert np.abs(best - 0.4).min() > 1e-5

    data = [DatasetBoxes("a", 1, 1.0, boxes, np.tile([height, width], (300, 1)))]
    per_dataset, mean = coverage(data, setting)
    assert per_dataset["a"] == mean
    assert mean.recall == (best >= 0.5).mean()
    assert mean.recall_low == (best >= 0.4).mean()
    assert mean.mean_iou == pytest.approx(best.mean(), abs=1e-6)
    assert mean.objective == pytest.approx((mean.recall + mean.mean_iou) / 2)
    assert 0.2 < mean.recall < mean.recall_low < 1


def test_the_mean_is_weighted_by_share_not_by_boxes():
    data = [pedestrians(900, 0.25), wide_things(30, 0.75)]
    per_dataset, mean = coverage(data, AnchorSetting((2.0, 3.0), (PEDESTRIAN,)))
    for key in ("recall", "recall_low", "mean_iou"):
        expected = 0.25 * getattr(per_dataset["peds"], key) + 0.75 * getattr(per_dataset["wide"], key)
        assert getattr(mean, key) == pytest.approx(expected)
    assert per_dataset["peds"].recall > 0.9 > 0.1 > per_dataset["wide"].recall


# -------------------------------------------------------------------------------------------------- proposal


def test_one_ratio_is_found():
    (ratio,) = propose([pedestrians()], 2, 1).ratios
    assert ratio == pytest.approx(PEDESTRIAN, rel=0.06)


def test_two_ratios_are_found():
    proposal = propose([pedestrians(share=0.5), wide_things(share=0.5)], 3, 2)
    assert proposal.ratios == pytest.approx((0.4, PEDESTRIAN), rel=0.06)
    assert len(proposal.scales) == 3


def test_one_size_is_found():
    """Boxes of 96 px: a scale that gives 96 px on some level, 3 x 32 or 6 x 16 or 1.5 x 64, and few bad fits."""
    data = [boxes_of("a", np.full(800, 96.0), 1.0)]
    setting = propose(data, 1, 1)
    octaves = np.log2(96 / (setting.scales[0] * 8))
    assert abs(octaves - round(octaves)) < 0.08
    assert coverage(data, setting)[1].mean_iou > 0.8


def test_weights_decide():
    def ratio(share):
        return propose([pedestrians(share=share), wide_things(share=1 - share)], 2, 1).ratios[0]

    assert ratio(0.9) == pytest.approx(PEDESTRIAN, rel=0.1)
    assert ratio(0.1) == pytest.approx(0.4, rel=0.1)


def test_box_counts_do_not_decide():
    proposal = propose([pedestrians(3000, 0.1), wide_things(200, 0.9)], 2, 1)
    assert proposal.ratios[0] == pytest.approx(0.4, rel=0.1)


@pytest.mark.parametrize("own", [DEFAULT, *PAPER_SETTINGS[1:], AnchorSetting((1.1, 3.3), (0.3, 5.0))])
@pytest.mark.parametrize("seed", [0, 1])
def test_never_worse_than_what_costs_the_same(own, seed):
    data = [mixed(700, seed, "a", 0.3), mixed(150, seed + 10, "b", 0.7)]
    report = anchors_report(data, own)
    proposal = report.of("proposal")
    assert report.of("config").setting == own
    assert {row.setting for row in report.settings} == {own, *PAPER_SETTINGS, proposal.setting}
    for row in report.settings:
        if row.setting.per_position == own.per_position:
            assert proposal.mean.objective >= row.mean.objective, row.setting


def test_not_worse_even_where_the_search_sees_few_boxes(monkeypatch):
    monkeypatch.setattr(module, "MAX_SAMPLE", 1)
    data = [mixed(900, 3, "a", 0.5), pedestrians(400, 0.5)]
    for own in (DEFAULT, PAPER_SETTINGS[3]):
        report = anchors_report(data, own)
        assert report.of("proposal").mean.objective >= report.of("config").mean.objective


def test_as_good_as_every_setting_of_the_grid():
    data = [mixed(600, 5)]
    sample = module._Sample(data)
    grid = [
        AnchorSetting((one, two), (ratio,))
        for one in module._grid(0.5, 8, 6)
        for two in module._grid(0.5, 8, 6)
        if one < two
        for ratio in module._grid(0.25, 4, 4)
    ]
    best = max(sample.objective(sample.best(setting)) for setting in grid)
    found = propose(data, 2, 1)
    assert sample.objective(sample.best(found)) >= best - 1e-6


def test_objective_of_the_sample_is_that_of_all_boxes():
    data = [mixed(500, 1, "a", 0.2), pedestrians(300, 0.8)]
    sample = module._Sample(data)
    assert sample.objective(sample.best(DEFAULT)) == pytest.approx(coverage(data, DEFAULT)[1].objective, abs=1e-5)


def test_shape_digits_and_determinism():
    data = [mixed(800, 7, "a", 0.6), pedestrians(800, 0.4)]
    first, again = propose(data, 4, 2), propose(data, 4, 2)
    assert first == again
    assert (len(set(first.scales)), len(set(first.ratios))) == (4, 2)
    for values in first:
        assert list(values) == sorted(values)
        assert all(value == float(f"{value:.3g}") for value in values)
    assert all(0.5 <= scale <= 8 for scale in first.scales)


def test_boxes_beyond_all_limits_are_no_problem():
    """Every ratio past the largest that is proposed, and boxes far smaller and larger than any anchor."""
    data = [boxes_of("lines", np.array([0.5, 40.0, 3000.0] * 20), np.array([30.0, 50.0, 40.0] * 20))]
    assert max(propose(data, 2, 2).ratios) <= 8
    assert len(propose([boxes_of("one", [50.0], [1.0])], 3, 3).ratios) == 3


@pytest.mark.parametrize(
    ("scales", "ratios", "option"), [(0, 1, "--scales"), (2, 13, "--ratios"), (-1, 2, "--scales")]
)
def test_counts_out_of_range(scales, ratios, option):
    with pytest.raises(UserError, match=f"{option}: expected a number from 1 to 12"):
        propose([pedestrians(10)], scales, ratios)


def test_thirty_thousand_boxes_take_seconds():
    import time

    data = [mixed(10_000, k, str(k), 1 / 3) for k in range(3)]
    start = time.perf_counter()
    anchors_report(data, DEFAULT)
    assert time.perf_counter() - start < 10  # about 0.5 s alone on one core


# ------------------------------------------------------------------------------------------ boxes of a config


def index(tmp_path, name, images, classes=("thing",)):
    """images: (height, width, [(label, xyxy, flags)]). No files: nothing here opens a picture."""
    builder = IndexBuilder(tmp_path / name)
    for number, (height, width, rows) in enumerate(images):
        builder.image(f"{number}.png", height, width)
        for label, xyxy, flags in rows:
            builder.box(xyxy, label, flags)
    return builder.build(classes)


def two_datasets(tmp_path, **second):
    crowd = (0, (0, 0, 60, 40), int(Flag.CROWD))
    one = index(tmp_path, "one", [(100, 200, [(0, (10, 10, 30, 50), 0), crowd])] * 3)
    rows = [(0, (5, 5, 55, 25), 0), (1, (0, 0, 9, 9), 0), (0, (3, 3, 20, 20), int(Flag.DIFFICULT))]
    other = index(tmp_path, "two", [(50, 100, rows), (50, 100, []), (0, 0, rows)], ("wide", "dropped"))
    return {
        "datasets": {"one": {"train": one}, "two": {"train": other, **second}},
        "labels": {"drop": ["two/dropped"]},
        "input": {"shorter": 200, "longer": 400},
    }


def test_only_what_is_learnt_counts_at_the_size_of_the_input(tmp_path):
    data, empty = training_boxes(Config.from_dict(two_datasets(tmp_path, difficult="ignore")))
    assert empty == ()
    assert [d.name for d in data] == ["one", "two"]
    np.testing.assert_allclose(data[0].boxes, [[20, 20, 60, 100]] * 3)
    np.testing.assert_allclose(data[1].boxes, [[20, 20, 220, 100]])
    assert data[1].sizes.tolist() == [[200, 400]]
    assert [d.images for d in data] == [3, 3]
    data, _ = training_boxes(Config.from_dict(two_datasets(tmp_path)))
    assert len(data[1].boxes) == 2


def test_the_config_row_agrees_with_check(tmp_path):
    config = Config.from_dict(two_datasets(tmp_path))
    data, _ = training_boxes(config)
    row = anchors_report(data, configured(config)).of("config")
    for report in inspect(config).network.datasets:
        assert row.datasets[report.dataset].recall == pytest.approx(report.recall)


@pytest.mark.parametrize("threshold", [None, 0.9])
def test_shares_are_those_of_the_sampler(tmp_path, threshold):
    settings = two_datasets(tmp_path, weight=3.0, repeat_threshold=threshold)
    data, _ = training_boxes(Config.from_dict(settings))
    indexes = [settings["datasets"][name]["train"] for name in ("one", "two")]
    space = LabelSpace.build({"one": ["thing"], "two": ["wide", "dropped"]}, drop=["two/dropped"])
    parts = [
        Part(indexes[0], 0, space.ids("one", indexes[0].classes)),
        Part(indexes[1], 1, space.ids("two", indexes[1].classes), 3.0, threshold),
    ]
    weights = HybridDataset(parts, space, lambda image, boxes: (image, boxes)).draw_weights()
    assert [d.share for d in data] == pytest.approx(
        [weights[:3].sum() / weights.sum(), weights[3:].sum() / weights.sum()]
    )
    assert (threshold is None) == (data[1].share == pytest.approx(0.75))


@pytest.mark.parametrize("threshold", [None, 0.9])
def test_pictures_of_several_directions_count_once(tmp_path, threshold):
    upright, turned = (
        training_boxes(Config.from_dict(two_datasets(tmp_path, repeat_threshold=threshold, **changes)))[0]
        for changes in ({}, {"directions": 4})
    )
    assert [d.share for d in turned] == pytest.approx([d.share for d in upright])
    assert [d.images for d in turned] == [d.images for d in upright] == [3, 3]
    assert len(turned[1].boxes) == 4 * len(upright[1].boxes)


def test_datasets_without_boxes_are_left_out(tmp_path):
    settings = two_datasets(tmp_path)
    settings["datasets"]["none"] = {"train": index(tmp_path, "none", [(50, 50, [])], ("x",))}
    config = Config.from_dict(settings)
    data, empty = training_boxes(config)
    assert empty == ("none",)
    assert sum(d.share for d in data) == pytest.approx(1)
    assert "none: no training boxes, left out" in printed(
        anchors_report(data, configured(config), None, None, empty)
    )


def test_nothing_to_choose_from(tmp_path):
    empty = index(tmp_path, "none", [(50, 50, [])], ("x",))
    with pytest.raises(UserError, match=r"no training boxes in a, b: .*`crossdet check`"):
        training_boxes(
            Config.from_dict(
                {
                    "datasets": {"a": {"train": empty}, "b": {"train": empty}},
                    "labels": {"merge": {"same_names": True}},
                }
            )
        )
    with pytest.raises(UserError, match="no dataset of the config has a `train` split"):
        training_boxes(Config.from_dict({"datasets": {"a": {"val": empty}}}))


# ------------------------------------------------------------------------------------------------ the command


def printed(report, width=100):
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    print_anchors(report, console)
    return console.file.getvalue()


def test_report_shows_every_dataset_and_setting():
    report = anchors_report([pedestrians(300, 0.5), mixed(300, 1, "[b]x", 0.5)], DEFAULT)
    text = printed(report)
    assert "[b]x" in text
    rows = [line.split() for line in text.splitlines() if line.split()[:1] in (["peds"], ["[b]x"])]
    assert [len(row) for row in rows[2:]] == [8] * 6  # name, config, A to E, proposal; three tables
    peds = [f"{100 * row.datasets['peds'].recall:.1f}" for row in report.settings]
    assert rows[2][1:] == peds
    scales, ratios = report.overrides
    assert f"--set '{scales}' --set '{ratios}'" in text


def test_what_is_not_better_is_said():
    data = [mixed(400, 2)]
    best = propose(data, 2, 2)
    report = anchors_report(data, best)
    kept = report.of("proposal")
    assert kept.mean.objective >= report.of("config").mean.objective
    text = " ".join(printed(report).split())
    assert "nothing better with as many anchors" in text or "hardly better" in text


def test_a_dataset_that_loses_is_named():
    data = [pedestrians(300, 0.02), wide_things(300, 0.98)]
    own = AnchorSetting((2.0, 3.0), (PEDESTRIAN,))
    assert "fewer boxes than the config's setting in peds" in " ".join(printed(anchors_report(data, own)).split())


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    from crossdet.demo.comparison import demo_config

    root = tmp_path_factory.mktemp("demo")
    write_demo_datasets(root / "data", train_images=12, val_images=2, union_images=2)
    settings = demo_config(False, 0)
    settings["datasets"]["faces"]["val"].pop("lists")
    (root / "config.yaml").write_text(yaml.safe_dump(settings))
    return root


def run(*arguments):
    app = typer.Typer()
    app.command()(anchors)
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_the_printed_line_can_be_used(demo, tmp_path):
    done = run(demo / "config.yaml", "--scales", 3, "--json", tmp_path / "a.json", "--plot", tmp_path / "a.png")
    assert done.exit_code == 0, done.output
    content = json.loads((tmp_path / "a.json").read_text())
    overrides = re.findall(r"--set '([^']+)'", done.output)
    assert overrides == content["set"]
    chosen = load_config(demo / "config.yaml", overrides).model.anchors
    (row,) = [row for row in content["settings"] if "proposal" in row["roles"]]
    assert (list(chosen.scales), list(chosen.ratios)) == (row["scales"], row["ratios"])
    assert (len(chosen.scales), len(chosen.ratios), row["per_position"]) == (3, 3, 9)
    assert set(row["datasets"]) == set(content["datasets"]) == {"faces", "peds", "objects"}
    assert sum(d["share"] for d in content["datasets"].values()) == pytest.approx(1)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_mistakes_of_the_command(demo, tmp_path):
    for arguments, told in (
        (["--plot", tmp_path / "a.jpg"], r"--plot: expected a file name that ends in \.png, \.pdf, \.svg"),
        (["--scales", 0], "--scales: expected a number from 1 to 12, got 0"),
        (["--set", "input.shorte=3"], "shorter"),
    ):
        done = run(demo / "config.yaml", *arguments)
        assert isinstance(done.exception, UserError)
        assert re.search(told, str(done.exception))


def test_no_file_of_the_data_is_written_over(demo):
    train = load_config(demo / "config.yaml").datasets["objects"].train
    picture = next(file for file in train.images[0].rglob("*") if file.suffix in (".png", ".jpg"))
    annotations = train.annotations[0]
    annotations.write_text(annotations.read_text().replace(picture.name, f"{picture.stem}.png"))
    picture = picture.rename(picture.with_suffix(".png"))
    figure = picture.with_name("figure.png")  # beside the pictures, and none of them
    for _ in range(2):
        done = run(demo / "config.yaml", "--plot", figure)
        assert done.exit_code == 0, done.output
    figure.unlink()
    for option, file in (("--json", train.annotations[0]), ("--plot", picture)):
        before = file.read_bytes()
        done = run(demo / "config.yaml", option, file)
        assert isinstance(done.exception, UserError), done.output
        assert str(done.exception) == f"{option} {file}: this file is read; choose another name"
        assert file.read_bytes() == before


def test_figure_of_many_datasets(tmp_path):
    data = [mixed(40, k, f"set {k}", 0.25) for k in range(4)]
    draw_anchors(tmp_path / "a.svg", data, anchors_report(data, DEFAULT))
    text = (tmp_path / "a.svg").read_text()
    assert text.count('<g id="axes_') == 6  # 2 x 3 panels, two of them empty


def test_no_torch(demo):
    code = (
        "import sys, pathlib; from crossdet.commands.anchors import anchors; "
        f"anchors(pathlib.Path({str(demo / 'config.yaml')!r})); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
