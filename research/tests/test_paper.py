"""The paper's experiments as data: every printed value, every config at both scales, tables from result files."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml
from torchvision.models._meta import _COCO_CATEGORIES
from typer.testing import CliRunner

from crossdet.config import Config, load_config
from crossdet.errors import ConfigError, UserError
from crossdet.files import write_json
from crossdet.labels.space import LabelSpace
from crossdet.training.recipe import Recipe
from crossdet.training.schedule import Schedule
from crossdet_research.ablation.methods import FURTHER, METHODS
from crossdet_research.jobs import check_same, comparable
from crossdet_research.paper import data as paper_data
from crossdet_research.paper.command import app, gpu_hours
from crossdet_research.paper.experiments import DATA, Experiment, Place, experiments_of, find_rows, resolve, show
from crossdet_research.paper.rows import CONTRADICTIONS, DATASETS, MINI_STEPS, ROWS, TITLES, TRAININGS
from crossdet_research.paper.tables import as_json, markdown, paper_table, value_of

# Typed from the tables of arXiv 2001.04621, columns as there. "-" is printed there for what was not evaluated.
PRINTED = """
1 | AP AP50 AP75 APS APM APL
COCO           R50 [0.5,1,2] [4,5.03,6.35] | 35.5 54.9 38.0 19.8 39.2 46.2
COCO           R50 [0.5,1,2] [2,3,4]       | 35.4 56.4 37.3 19.8 38.7 45.6
COCO           Mv2 [0.5,1,2] [4,5.03,6.35] | 30.0 48.6 31.4 16.2 31.9 39.3
COCO           Mv2 [0.5,1,2] [2,3,4]       | 29.5 48.0 30.6 16.1 31.3 39.3
COCO+FACE      R50 [0.5,1,2] [2,3,4]       | 35.2 56.1 37.1 20.9 38.3 45.4
COCO+FACE      Mv2 [0.5,1,2] [2,3,4]       | 29.5 49.0 30.4 16.2 31.4 39.5
COCO+PED       R50 [0.5,1,2] [2,3,4]       | 35.2 55.6 36.9 20.2 38.0 44.9
COCO+FACE+PED  R50 [0.5,1,2] [2,3,4]       | 35.0 56.0 36.7 20.8 38.2 44.6
2 | PED:AP PED:AP50 PED:AP75 Easy Medium Hard
PED            R50 [1.25,2.44] [2,3]       | 48.37 84.26 50.24 - - -
PED            Mv2 [1.25,2.44] [2,3]       | 43.73 81.94 41.1 - - -
FACE           R50 [1.25,2.44] [2,3]       | - - - 95.21 93.7 87.88
FACE           Mv2 [1.25,2.44] [2,3]       | - - - 93.0 90.98 84.64
FACE+PED       R50 [1.25,2.44] [2,3]       | 48.32 84.26 49.71 94.58 93.22 87.59
FACE+PED       Mv2 [1.25,2.44] [2,3]       | 43.86 81.0 42.1 92.24 90.41 84.63
COCO+PED       R50 [0.5,1,2] [2,3,4]       | 52.46 85.64 56.6 - - -
COCO+FACE+PED  R50 [0.5,1,2] [2,3,4]       | 51.44 85.03 54.9 95.02 93.76 86.66
3 | COCO:AP PED:AP Easy Medium Hard
FACE           R50 [1.25] [2,3]            | - - 94.7 93.27 87.60
FACE           R50 [0.5,1,2] [2,3,4]       | - - 95.14 93.80 86.48
FACE           R50 [1.25,2.44] [2,3]       | - - 95.21 93.7 87.88
COCO           R50 [0.5,1,2] [4,5,6]       | 35.5 - - - -
COCO           R50 [0.5,1,2] [2,3,4]       | 35.4 - - - -
PED            R50 [2.44] [2,3,4]          | - 50.82 - - -
PED            R50 [1.25,2.44] [2,3]       | - 48.37 - - -
PED            R50 [0.5,1,2] [2,3,4]       | - 50.0 - - -
COCO+FACE      R50 [0.5,1,2] [2,3,4]       | 35.2 - 95.23 93.97 87.06
FACE+PED       R50 [1.25,2.44] [2,3]       | - 48.32 94.58 93.22 87.59
4 | COCO:AP PED:AP
COCO+PED       R50 no ?                    | 35.2 51.0
COCO+PED       R50 yes ?                   | 35.3 51.43
COCO+PED       Mv2 no ?                    | 29.1 46.75
COCO+PED       Mv2 yes ?                   | 29.1 47.21
COCO+FACE+PED  R50 no ?                    | 35.1 50.99
COCO+FACE+PED  R50 yes ?                   | 35.0 51.45
5 | COCO:AP mAP
COCO           R50 ? ?                     | 35.5 -
COCO           Mv2 ? ?                     | 29.5 -
VOC            R50 ? ?                     | - 83.0
VOC            Mv2 ? ?                     | - 76.4
COCO+VOC       R50 ? ?                     | 35.4 87.5
COCO+VOC       Mv2 ? ?                     | 29.5 83.1
6 | PED:AP Easy Medium Hard
FACE           R50 ? [2,3]                 | - 95.21 93.7 87.88
FACE           Mv2 ? [2,3]                 | - 93.00 90.98 84.64
PED            R50 ? [2,3]                 | 48.37 - - -
PED            Mv2 ? [2,3]                 | 43.73 - - -
FACE+PED       R50 ? [2,3]                 | 48.32 94.58 93.22 87.59
FACE+PED       Mv2 ? [2,3]                 | 43.86 92.5 90.6 84.41
"""
EVALUATED = {"Easy": "FACE", "Medium": "FACE", "Hard": "FACE", "mAP": "VOC"}
BACKBONE = {"R50": "resnet50", "Mv2": "mobilenetv2_100"}
Value = tuple[str, frozenset[str], str, str, str, float]
"""table, datasets, backbone, evaluated dataset, metric, percent"""


def printed_values() -> Counter[Value]:
    values: Counter[Value] = Counter()
    table, columns = "", []
    for line in PRINTED.strip().splitlines():
        head, _, tail = line.partition("|")
        if len(head.split()) == 1:
            table, columns = head.strip(), tail.split()
            continue
        data, backbone, *_ = head.split()
        for column, text in zip(columns, tail.split(), strict=True):
            dataset, _, metric = column.rpartition(":")
            if text != "-":
                key = (table, frozenset(data.split("+")), BACKBONE[backbone])
                values[(*key, dataset or EVALUATED.get(metric, "COCO"), metric, float(text))] += 1
    return values


def our_values() -> Counter[Value]:
    return Counter(
        (row.table, frozenset(TRAININGS[row.training].datasets), TRAININGS[row.training].backbone, *value)
        for row in ROWS
        if row.table != "fig5"
        for value in (
            (dataset, metric, number)
            for dataset, metrics in row.values.items()
            for metric, number in metrics.items()
        )
    )


def test_all_139_values_are_those_of_the_paper():
    assert our_values() == printed_values()
    assert sum(our_values().values()) == 139


def test_rows_stand_in_the_papers_order_with_its_anchors_and_merging():
    lines = [line for line in PRINTED.strip().splitlines() if len(line.partition("|")[0].split()) > 1]
    rows = [row for row in ROWS if row.table != "fig5"]
    for line, row in zip(lines, rows, strict=True):
        _, _, third, fourth = line.partition("|")[0].split()
        training = TRAININGS[row.training]
        if third in ("yes", "no"):
            assert training.merge == (third == "yes"), row.name
        elif third != "?":
            assert list(training.anchors.ratios) == yaml.safe_load(third), row.name
        if fourth != "?":
            assert list(row.scales or training.anchors.scales) == yaml.safe_load(fourth), row.name


@pytest.mark.skipif("CROSSDET_PAPER_TABLES" not in os.environ, reason="no other transcription at hand")
def test_the_values_of_another_transcription():
    """A CSV with table, train_data, eval_data, backbone, ratios, scales, merge, metric, value."""
    evaluated = {"COCO": "COCO", "WIDER Pedestrian": "PED", "WIDER FACE": "FACE", "PASCAL VOC": "VOC"}
    theirs: Counter[Value] = Counter()
    with Path(os.environ["CROSSDET_PAPER_TABLES"]).open(newline="") as file:
        for line in csv.DictReader(file):
            dataset = next(v for k, v in evaluated.items() if line["eval_data"].startswith(k))
            backbone = {"ResNet-50": "resnet50", "MobileNetV2": "mobilenetv2_100"}[line["backbone"]]
            data = frozenset(line["train_data"].split("+"))
            theirs[line["table"], data, backbone, dataset, line["metric"], float(line["value"])] += 1
    assert our_values() == theirs


def test_rows_trainings_and_contradictions_refer_to_each_other():
    assert {row.training for row in ROWS} == set(TRAININGS)
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert {note for row in ROWS for note in row.notes} == set(CONTRADICTIONS) == set(range(1, 17))
    assert len(set(TRAININGS.values())) == len(TRAININGS)
    settings = {(t.datasets, t.backbone, t.anchors, t.merge) for t in TRAININGS.values()}
    assert len(settings) == len(TRAININGS)  # no training under two names


def test_figure_5_has_the_curve_that_is_in_no_table():
    in_tables = {row.training for row in ROWS if row.table != "fig5" and "FACE" in row.values}
    curves = [row.training for row in ROWS if row.table == "fig5"]
    assert len(curves) == 8
    assert "coco_face_mobilenetv2" in set(curves) - in_tables


# ------------------------------------------------------------------------------------------- configs

COCO = [name for name in _COCO_CATEGORIES if name not in ("__background__", "N/A")]


def class_names(experiment: Experiment) -> dict[str, list[str]]:
    mini = {"coco": ["person", "car", "dog", "sign"], "voc": ["car", "dog", "sign"]}
    full = {"coco": COCO, "voc": list(DATASETS["VOC"].full["classes"])}
    both = {"faces": ["face"], "peds": ["pedestrian", "cyclist"]}
    known = both | (full if experiment.scale == "full" else mini)
    return {DATASETS[name].key: known[DATASETS[name].key] for name in experiment.training.datasets}


def space_of(config: Config, experiment: Experiment) -> LabelSpace:
    rules = config.labels.model_dump(exclude={"per_dataset", "open_members"})
    return LabelSpace.build(class_names(experiment), **rules)


@pytest.mark.parametrize("name", TRAININGS)
@pytest.mark.parametrize("scale", ["full", "mini"])
def test_every_training_resolves(name, scale, tmp_path):
    training = TRAININGS[name]
    experiment = Experiment(training, scale)
    config = resolve(experiment, Place(tmp_path, tmp_path), seed=3)
    assert list(config.datasets) == [DATASETS[d].key for d in training.datasets]
    assert config.model.anchors.scales == training.anchors.scales
    assert config.model.anchors.ratios == training.anchors.ratios
    assert config.seed == 3
    assert not config.train.plain
    assert config.loss.foreground_negatives == "all"
    for dataset in config.datasets.values():
        for split in (dataset.train, dataset.val):
            assert all(path.is_relative_to(tmp_path) for path in (*split.images, *split.annotations))
    space = space_of(config, experiment)
    assert not space.likely_duplicates()
    if scale == "full":
        expected = {"FACE": 1, "PED": 1, "COCO": 80, "VOC": 20}
        count = sum(expected[d] for d in training.datasets)
        count -= 20 if {"COCO", "VOC"} <= set(training.datasets) else 0
        count -= 1 if {"COCO", "PED"} <= set(training.datasets) and training.merge else 0
        assert len(space.classes) == count


@pytest.mark.parametrize("name", TRAININGS)
def test_full_is_the_papers_recipe_and_the_configs_defaults(name, tmp_path):
    config = resolve(Experiment(TRAININGS[name], "full"), Place(tmp_path, tmp_path))
    assert config.model.backbone == TRAININGS[name].backbone
    assert config.model.weights == "imagenet"
    train = config.train
    assert (train.epochs, train.batch_size, train.lr) == (20, 32, 0.04)
    assert (train.warmup_epochs, train.steps, train.factor) == (2, (10, 15), 0.1)
    assert (train.optimizer, train.momentum, train.decay()) == ("sgd", None, 1e-4)
    assert (config.input.shorter, config.input.longer) == (800, 1333)
    assert Schedule.of(train, 1000).rate(3.0, 300, 0.15) == 0.04
    for key in type(train).model_fields:
        assert getattr(train, key) == getattr(Recipe(recipe="paper", lr=0.04), key), key


@pytest.mark.parametrize("scale", ["full", "mini"])
def test_merging_and_not_merging_differ_in_the_label_space_alone(scale, tmp_path):
    merged, apart = (Experiment(TRAININGS[f"coco_face_ped_resnet50{end}"], scale) for end in ("", "_unmerged"))
    configs = [resolve(experiment, Place(tmp_path, tmp_path)) for experiment in (merged, apart)]
    assert configs[0].model_copy(update={"labels": configs[1].labels}) == configs[1]
    one, two = (space_of(config, merged) for config in configs)
    assert one.index("coco", "person") == one.index("peds", "pedestrian") == one.index("peds", "cyclist")
    person, pedestrian = two.index("coco", "person"), two.index("peds", "pedestrian")
    assert person != pedestrian == two.index("peds", "cyclist")
    # each dataset is judged on its own class, and the background of the other is not its negative
    assert two.ids("peds", ["pedestrian", "cyclist"]).tolist() == [pedestrian, pedestrian]
    assert two.avoid_array[two.dataset_index("coco"), pedestrian]
    assert two.avoid_array[two.dataset_index("peds"), person]
    assert not two.overlap_array.any()  # labelled pedestrians stay negatives for person, as in the paper


def test_voc_classes_become_cocos(tmp_path):
    experiment = Experiment(TRAININGS["coco_voc_resnet50"], "full")
    space = space_of(resolve(experiment, Place(tmp_path, tmp_path)), experiment)
    assert sorted(space.classes) == sorted(COCO)
    for voc, coco in (("tvmonitor", "tv"), ("sofa", "couch"), ("person", "person")):
        assert space.index("voc", voc) == space.index("coco", coco)


def test_mini_trainings_share_one_budget_and_schedule(tmp_path):
    rates = {}
    for name, training in TRAININGS.items():
        train = resolve(Experiment(training, "mini"), Place(tmp_path, tmp_path)).train
        assert train.max_steps == MINI_STEPS
        images = 300 * len(training.datasets)
        per_epoch = -(-images // train.batch_size)
        assert train.epochs * per_epoch >= MINI_STEPS, name
        schedule = Schedule.of(train, images)
        rates[name] = [schedule.rate(step / (images / 8), step, 0.0) for step in range(MINI_STEPS)]
    assert all(r == pytest.approx(rates["coco_resnet50"], rel=1e-3) for r in rates.values())
    falls = [i for i in range(1, MINI_STEPS) if rates["coco_resnet50"][i] < rates["coco_resnet50"][i - 1]]
    assert falls == [507, 619]  # 3/4 and 11/12 of 675


def test_table_5_takes_photographs_where_there_are_some(tmp_path):
    place = Place(tmp_path, tmp_path)
    rows = find_rows(["t1", "t5"])
    assert not any(e.photos for e in experiments_of(rows, "mini", tmp_path))
    (tmp_path / "coco/annotations").mkdir(parents=True)
    (tmp_path / "coco/images/train").mkdir(parents=True)
    (tmp_path / "coco/annotations/instances_train.json").write_text(json.dumps({"images": [{}] * 40}))
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (tmp_path / "voc_animals" / name).mkdir(parents=True)
    (tmp_path / "voc_animals/ImageSets/Main/train.txt").write_text("a\nb\n\n" + "c\n" * 0 + "d\ne\n")
    found = experiments_of(rows, "mini", tmp_path)
    assert [e.name for e in found if e.photos] == [f"{r.training}_photos" for r in rows if r.table == "5"]
    assert {e.training.name for e in found if not e.photos} == {r.training for r in rows if r.table == "1"}
    assert not any(e.photos for e in experiments_of(rows, "full", tmp_path))
    union = resolve(next(e for e in found if e.name == "coco_voc_resnet50_photos"), place)
    assert union.datasets["voc"].train.annotations == (tmp_path / "voc_animals/Annotations",)
    assert union.train.epochs == -(-MINI_STEPS * 8 // 44)
    assert paper_data.count_photos(tmp_path, "VOC") == 4


def test_the_data_folder_and_the_machine_are_no_part_of_an_experiment(tmp_path, monkeypatch):
    experiment = Experiment(TRAININGS["coco_face_resnet50"], "full")
    here, there = (Place(tmp_path / name, tmp_path) for name in ("here", "there"))
    one = comparable(resolve(experiment, here), {here.root: DATA})
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "8")
    config = resolve(experiment, there, overrides=["train.workers=7"])
    assert config.train.devices == 8
    assert comparable(config, {there.root: DATA}) == one
    assert str(tmp_path) not in json.dumps(one)
    check_same(one, one | {"key_of_an_older_version": 1}, tmp_path)
    changed = comparable(resolve(experiment, there, overrides=["train.lr=0.1"]), {there.root: DATA})
    with pytest.raises(UserError, match=r"differing: train\.lr\. "):
        check_same(changed, one, tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "5")
    with pytest.raises(ConfigError, match=r"multiple of accumulate x devices = 5"):
        resolve(experiment, there)


# ------------------------------------------------------------------------------------------- commands


def command(*words: str | Path) -> str:
    done = CliRunner().invoke(app, [*map(str, words)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def test_names_of_rows_trainings_and_tables():
    assert [row.name for row in find_rows(["t3/coco_face_resnet50"])] == ["t3/coco_face_resnet50"]
    assert {row.table for row in find_rows(["coco_face_resnet50"])} == {"1", "3", "fig5"}
    assert find_rows(["t4"]) == [row for row in ROWS if row.table == "4"]
    assert len(find_rows(["t4", "t4/coco_ped_resnet50"])) == 6
    with pytest.raises(UserError, match=r"(?s)'coco_face_resnet5'; did you mean.*no row.*'t9'"):
        find_rows(["coco_face_resnet5", "t9"])


@pytest.mark.parametrize("scale", ["full", "mini"])
def test_what_show_prints_is_the_config(scale, tmp_path):
    text = command("show", "t4/coco_ped_resnet50", "--scale", scale, "--data", tmp_path / "data", "--seed", "2")
    assert text.startswith(f"# coco_ped_resnet50, {scale} scale: COCO 2017, WIDER Pedestrian (2018)\n")
    assert "t1/coco_ped_resnet50, t2/coco_ped_resnet50, t4/coco_ped_resnet50" in text
    file = tmp_path / "shown.yaml"
    file.write_text(text)
    loaded = load_config(file).model_copy(update={"output": None})
    assert loaded == resolve(
        Experiment(TRAININGS["coco_ped_resnet50"], scale), Place(tmp_path / "data", tmp_path), 2
    )
    assert load_config(file).train == loaded.train
    assert "lr: 0.5" in command("show", "coco_resnet50", "--set", "train.lr=0.5")
    with pytest.raises(ConfigError, match="train"):
        command("show", "coco_resnet50", "--set", "train.speed=1")
    with pytest.raises(UserError, match="6 trainings"):
        show("t5", Place(tmp_path, tmp_path), "full")


def test_list_shows_every_row_and_every_contradiction(tmp_path):
    text = command("list", "--images-per-second", "resnet50=100", "--json", tmp_path / "rows.json")
    for row in ROWS:
        assert row.name in text
    for number in CONTRADICTIONS:
        assert f"({number}) " in text
    for method in (*METHODS, *FURTHER):
        assert re.search(rf"^  {method.name} +{re.escape(method.title)}$", text, re.M)
    line = next(line for line in text.splitlines() if line.startswith("t1/coco_resnet50 "))
    assert line.rstrip().endswith(" 6.6")  # 118,287 x 20 / 100 / 3,600
    content = json.loads((tmp_path / "rows.json").read_text())
    assert [row["row"] for row in content["rows"]] == [row.name for row in ROWS]
    for wrong in ("0", "resnet18=5", "fast", "nan"):
        with pytest.raises(UserError, match="--images-per-second"):
            command("list", "--images-per-second", wrong)


def test_gpu_hours_count_all_draws_of_all_datasets():
    assert gpu_hours(TRAININGS["face_ped_resnet50"], 50) == pytest.approx((12_880 + 11_500) * 20 / 50 / 3600)


def test_run_wants_names_or_all(tmp_path):
    for words in ([], ["--all", "t1"]):
        with pytest.raises(UserError, match="or give --all"):
            command("run", *words, "--data", tmp_path)


def test_missing_downloads_are_all_named_before_anything_is_trained(tmp_path):
    with pytest.raises(UserError) as caught:
        command("run", "t2", "--data", tmp_path, "-o", tmp_path / "out")
    for file in ("coco/train2017", "WIDER_val/images", "eval_tools/ground_truth", "val_annotations.txt"):
        assert file in str(caught.value)
    assert "VOCdevkit" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_listing_showing_and_tables_load_no_torch(tmp_path):
    code = (
        "import sys; from typer.testing import CliRunner; from crossdet_research.paper.command import app\n"
        f"for words in (['list'], ['show', 'voc_resnet50'], ['table', '1', '--results', {str(tmp_path)!r}]):\n"
        "    assert CliRunner().invoke(app, words).exit_code == 0, words\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------------------- tables


def write_result(folder: Path, name: str, seed: int, datasets: dict, scale: str = "mini") -> None:
    training = name.removesuffix("_photos")
    content = {"training": training, "scale": scale, "seed": seed, "metrics": {"datasets": datasets},
               "data": "generated pictures", "seconds": 90.0, "hardware": {"cpus": 2}}  # fmt: skip
    write_json(folder / scale / f"{name}_seed{seed}.json", content)


def test_tables_without_results_show_the_papers_numbers_alone(tmp_path):
    for table in TITLES:
        found = paper_table(table, tmp_path)
        values = as_json(found)["rows"]
        assert len(values) == sum(row.table == table for row in ROWS)
        for row in values:
            for metrics in row["values"].values():
                for entry in metrics.values():
                    assert entry["full"] == {"mean": None, "std": None, "seeds": {}}
    text = markdown(paper_table("1", tmp_path))
    assert "| COCO | ResNet-50 | [0.5, 1, 2] | [2, 3, 4] | 35.4 /  | 56.4 /  | 37.3 /  |" in text
    assert "nothing has been run" in text


def test_ours_stand_beside_the_papers(tmp_path):
    for seed, ap in ((0, 0.20), (1, 0.22), (10, 0.24)):
        coco = {"AP": ap, "AP50": 0.4, "APs": 0.1, "APl": None}
        write_result(tmp_path, "coco_face_resnet50", seed, {"coco": coco, "faces": {"easy": 0.9}})
    write_result(tmp_path, "coco_resnet50", 0, {"coco": {"AP": 0.355}}, "full")
    found = paper_table("1", tmp_path)
    text = markdown(found)
    assert "paper / ours, full / ours, mini" in text
    # mean and standard deviation over the seeds; a metric without a number is blank
    assert "| 35.2 /  / 22.0 ± 2.0 | 56.1 /  / 40.0 ± 0.0 | 37.1 /  /  | 20.9 /  / 10.0 ± 0.0 |" in text
    assert "| 45.4 /  /  |" in text
    assert "| 35.4 / 35.5 /  |" in text
    assert "mini is another experiment" in text
    row = next(row for row in as_json(found)["rows"] if row["row"] == "t1/coco_face_resnet50")
    assert row["values"]["COCO"]["AP"]["mini"]["seeds"] == pytest.approx({0: 20, 1: 22, 10: 24})
    assert row["values"]["COCO"]["AP"]["mini"]["std"] == pytest.approx(2.0)
    # the same runs fill the other tables that they belong to, and only there what is evaluated there
    assert "| 35.2 /  / 22.0 ± 2.0 |  | 95.23 /  / 90.0 ± 0.0 | 93.97 /  /  |" in markdown(
        paper_table("3", tmp_path)
    )
    assert "|  /  / 90.0 ± 0.0 |" not in text
    assert "| [2, 3, 4] |  / 90.0 ± 0.0 |  /  |" in markdown(paper_table("fig5", tmp_path))
    shown = command(
        "table", "t3", "--results", tmp_path, "--json", tmp_path / "3.json", "--markdown", tmp_path / "3.md"
    )
    assert "35.2 /  / 22.0 ± 2.0" in shown
    assert (tmp_path / "3.md").read_text() == markdown(paper_table("3", tmp_path))
    assert json.loads((tmp_path / "3.json").read_text())["unit"] == "percent"


def test_every_metric_is_read_from_where_its_protocol_writes_it():
    record = {"metrics": {"datasets": {
        "peds": {"challenge": {"AP": 0.1}, "coco_style": {"AP": 0.2, "AP50": 0.3, "AP75": 0.4}},
        "voc": {"mAP_area": 0.5, "mAP_11pt": 0.6}, "faces": {"easy": 0.7, "medium": 0.8, "hard": 0.9},
    }}}  # fmt: skip
    found = {d: [value_of(record, d, m) for m in metrics] for d, metrics in
             {"PED": ("AP", "AP50", "AP75"), "VOC": ("mAP",), "FACE": ("Easy", "Medium", "Hard"),
              "COCO": ("AP", "APS")}.items()}  # fmt: skip
    assert found == {
        "PED": pytest.approx([20, 30, 40]),
        "VOC": pytest.approx([50]),
        "FACE": pytest.approx([70, 80, 90]),
        "COCO": [None, None],
    }


def test_table_5_does_not_mix_photographs_and_generated_pictures(tmp_path):
    write_result(tmp_path, "voc_resnet50", 0, {"voc": {"mAP_area": 0.9}})
    assert "83.0 / 90.0" in markdown(paper_table("5", tmp_path))
    write_result(tmp_path, "coco_voc_resnet50_photos", 0, {"voc": {"mAP_area": 0.3}, "coco": {"AP": 0.01}})
    text = markdown(paper_table("5", tmp_path))
    assert "87.5 / 30.0" in text
    assert "90.0" not in text
    # nor do photographs reach the tables of generated pictures
    write_result(tmp_path, "coco_resnet50_retinanet_photos", 0, {"coco": {"AP": 0.02}})
    assert not paper_table("1", tmp_path).results


def test_a_strange_file_among_the_results_is_named(tmp_path):
    (tmp_path / "mini").mkdir()
    (tmp_path / "mini/other_seed0.json").write_text("{}")
    with pytest.raises(UserError, match=r"other_seed0\.json"):
        paper_table("2", tmp_path)
    with pytest.raises(UserError, match="no table '7'"):
        paper_table("7")
