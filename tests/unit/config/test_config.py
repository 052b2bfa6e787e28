"""The config file: defaults, the wording of mistakes, overrides, paths, round trip."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from crossdet import evaluate
from crossdet.config import Config, as_config, dump_config, files, load_config
from crossdet.config.schema import AugmentConfig
from crossdet.data.index import IndexBuilder
from crossdet.errors import ConfigError, UserError
from crossdet.training.recipe import Recipe

MINIMAL = "datasets:\n  a: {format: coco, train: {images: i, annotations: a.json}}\n"
OF_WEIGHTS = " (those of weights to extend: `crossdet check CONFIG --extends WEIGHTS`)"


def write(folder, text, name="run.yaml"):
    path = folder / name
    path.write_text(text)
    return path


def mistakes(folder, text, overrides=(), files=False):
    """The lines of the error, without the heading and the marks. files: those of files that are not there, too."""
    with pytest.raises(ConfigError) as caught:
        load_config(write(folder, text), overrides)
    heading, *lines = str(caught.value).split("\n")
    assert heading == f"{folder / 'run.yaml'}: {len(lines)} mistake(s)"
    assert all(line.startswith("  - ") for line in lines)
    return [line.removeprefix("  - ") for line in lines if files or not line.endswith(" is not there")]


def test_a_seed_is_what_numpy_takes(tmp_path):
    (line,) = mistakes(tmp_path, MINIMAL, [f"seed={2**32}"])
    assert line.startswith("--set seed=4294967296: `seed`: expected a number < 4.29497e+09")


def test_defaults(tmp_path):
    """Those of `train` are in tests/unit/training/test_recipe.py."""
    config = load_config(write(tmp_path, MINIMAL))
    model = config.model
    assert config.train == Recipe()
    assert (model.backbone, model.weights, model.channels, model.head_depth) == ("resnet50", "imagenet", None, None)
    assert (model.anchors.scales, model.anchors.ratios) == ((2, 3, 4), (0.5, 1, 2))
    assert (config.loss.alpha, config.loss.gamma, config.loss.box_beta) == (0.25, 2, 1 / 9)
    assert (config.input.shorter, config.input.longer, config.augment.flip) == (800, 1333, 0.5)
    assert (config.eval.score_threshold, config.eval.nms_iou, config.eval.max_detections) == (None, 0.5, None)
    assert config.datasets["a"].protocol == ("coco",)
    assert config.seed == 0


def test_the_schedule_keeps_its_proportions(tmp_path):
    train = load_config(write(tmp_path, MINIMAL + "train: {recipe: paper, epochs: 4, steps: [3]}\n")).train
    assert (train.warmup_epochs, train.steps) == (0.4, (3,))
    train = load_config(write(tmp_path, MINIMAL), ["train.epochs=8", "train.recipe=paper"]).train
    assert (train.warmup_epochs, train.steps) == (0.8, (4, 6))


def test_an_empty_section_is_all_defaults(tmp_path):
    config = load_config(write(tmp_path, MINIMAL + "train:\nlabels: {merge: , overlap: }\n"))
    assert config == load_config(write(tmp_path, MINIMAL))


def test_fixed_and_strict():
    config = Config.from_dict({"datasets": {"a": {"format": "coco", "train": {"images": "x"}}}})
    with pytest.raises(ValidationError):
        config.train.lr = 1.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train: {epoch: 3}", "unknown key `train.epoch`; did you mean `epochs`?"),
        ("lr: 0.1", "unknown key `lr`; did you mean `train.lr`?"),
        ("trian: {}", "unknown key `trian`; did you mean `train`?"),
        ("train: {weights: none}", "unknown key `train.weights`; did you mean `model.weights`?"),
        ("train: {pseudo: {}}", "unknown key `train.pseudo`; did you mean `pseudo` at the top level?"),
        ("train: {seed: 1}", "unknown key `train.seed`; did you mean `seed` at the top level?"),
        ("train: {output: x}", "unknown key `train.output`; did you mean `output` at the top level?"),
        ("input: {zzz: 1}", "unknown key `input.zzz`; known keys: shorter, longer"),
        ("train: {lr: -1}", "`train.lr`: expected a number > 0, got -1"),
        ("train: {lr: fast}", '`train.lr`: expected a number, got "fast"'),
        ("train: {lr: .inf}", "`train.lr`: expected a finite number, got Infinity"),
        ("train: {epochs: 2.5}", "`train.epochs`: expected a whole number, got 2.5"),
        ("train: {epochs: yes}", "`train.epochs`: expected a whole number, got true"),
        ("train: {plain: 1}", "`train.plain`: expected true or false, got 1"),
        ("train: 3", "`train`: expected a mapping (recipe, epochs, max_steps, minutes, patience, ...), got 3"),
        ("train: {accelerator: tpu}", "`train.accelerator`: expected 'auto', 'cpu' or 'cuda', got \"tpu\""),
        (
            "train: {schedule: steps, steps: [5, 3]}",
            "`train.steps`: expected epochs in increasing order, got [5.0, 3.0]",
        ),
        (
            "train: {epochs: 1, warmup_epochs: 2.0}",
            "`train.warmup_epochs`: expected at most `train.epochs` = 1, got 2.0",
        ),
        ("train: {accumulate: 3}", "`train.batch_size`: expected a multiple of accumulate x devices = 3, got 8"),
        ("model: {weights: 3}", "`model.weights`: expected `imagenet`, `none` or a path, got 3"),
        ("model: {anchors: {scales: []}}", "`model.anchors.scales`: expected at least one value, got []"),
        ("model: {anchors: {ratios: [1, 0]}}", "`model.anchors.ratios[1]`: expected a number >= 0.001, got 0"),
        (
            "model: {positive_iou: 0.3}",
            "`model.negative_iou`: expected at most `model.positive_iou` = 0.3, got 0.4",
        ),
        ("augment: {mosaic: 2}", "`augment.mosaic`: expected a number <= 1, got 2"),
        ("train: {backbone: resnet50}", "unknown key `train.backbone`; did you mean `model.backbone`?"),
        ("augment: {scale_jitter: [2, 1]}", "`augment.scale_jitter`: expected [smallest, largest], got [2.0, 1.0]"),
        ("input: {longer: 100}", "`input.shorter`: expected at most `input.longer` = 100, got 800"),
        ("labels: {merge: {same_names: 3}}", "`labels.merge.same_names`: expected true, false or common, got 3"),
        ("labels: {merge: {x: {}}}", "`labels.merge.x`: expected a list of source classes `dataset/name`, got {}"),
        ("labels: {merge: {x: car}}", '`labels.merge.x`: expected `dataset/name`, got "car"'),
        (
            "labels: {drop: [b/car]}",
            '`labels.drop`: no dataset "b" (in "b/car"); known datasets: a (those of weights to extend: `crossdet '
            "check CONFIG --extends WEIGHTS`)",
        ),
        ("labels: {overlap: [[x]]}", '`labels.overlap[0]`: expected two values, got ["x"]'),
        (
            "labels: {distinct: [1]}",
            "`labels.distinct[0]`: expected text (quote what YAML reads as something else), got 1",
        ),
        ("labels: {absent: {aa: [x]}}", '`labels.absent.aa`: no dataset "aa"; did you mean `a`?'),
    ],
)
def test_wording(tmp_path, text, expected):
    assert mistakes(tmp_path, f"{MINIMAL}{text}\n") == [f"line 3: {expected}"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "a/b: {format: coco, train: {}}",
            '`datasets.a/b`: expected a dataset name that is not empty and has no "/"',
        ),
        ("a: {train: {images: i}}", "`datasets.a.format` is missing: expected one of coco, voc, wider_face"),
        ("a: {format: coco}", "`datasets.a`: expected `train`, `val`, `test` or several of them"),
        ("a:", "`datasets.a`: expected `train`, `val`, `test` or several of them"),
        ("a: {format: coco, train: {}, weights: 2}", "key `datasets.a.weights`; did you mean `weight`?"),
        *(
            (
                f"a: {{format: coco, train: {{{key}: x}}}}",
                f"`datasets.a.train.{key}`; did you mean `datasets.a.{key}`?",
            )
            for key in ("format", "classes", "ignore_classes")
        ),
        (
            "a: {format: coco, train: {}, images: x}",
            "key `datasets.a.images`; did you mean `datasets.a.train.images`?",
        ),
        ("a: {test: {images: i}}", "`datasets.a.format` is missing"),
        (
            "a: {format: coco, train: x.json}",
            '`datasets.a.train`: expected a mapping (images, annotations, image_set, ignore, lists), got "x.json"',
        ),
        (
            "a: {format: coco, train: {}, protocol: kitti}",
            '`datasets.a.protocol`: expected one of coco, lvis, voc, wider_face, wider_pedestrian, got "kitti"',
        ),
        (
            "a: {format: coco, train: {}, protocol: [x]}",
            '`datasets.a.protocol`: expected one of coco, lvis, voc, wider_face, wider_pedestrian, got "x"',
        ),
        ("a: {format: coco, train: {}, part: 3/2}", '`datasets.a.part`: expected "i/n" with i from 1 to n'),
        (
            "a: {format: coco, train: {}, edition: 2018}",
            "only the format `wider_pedestrian` has editions, got 2018",
        ),
        ("a: {format: coco, train: {images: 3}}", "`datasets.a.train.images`: expected a path, got 3"),
        ("a: {format: coco, val: {images: ['${NOT_SET}/x']}}", "environment variable `NOT_SET` is not set"),
    ],
)
def test_wording_for_datasets(tmp_path, text, expected, monkeypatch):
    monkeypatch.delenv("NOT_SET", raising=False)
    (line,) = mistakes(tmp_path, f"datasets:\n  {text}\n")
    assert line.startswith("line 2: ")
    assert expected in line


def test_an_unknown_architecture_makes_no_mistakes_of_its_sections(tmp_path):
    text = "model: {name: dfin, size: nano}\nloss: {classification: mal}\ntrain: {epochs: 0}\n"
    first, second = mistakes(tmp_path, MINIMAL + text)
    assert first.startswith("line 3: `model.name`: expected 'retinanet'")
    assert second == "line 5: `train.epochs`: expected a number >= 1, got 0"
    assert [line.split(": ")[0] for line in mistakes(tmp_path, f"{MINIMAL}model: {{size: 3}}\n")] == ["line 3"]


def test_no_dataset(tmp_path):
    assert mistakes(tmp_path, "seed: 3\n") == ["`datasets`: expected at least one dataset"]


def test_missing_files_are_told_beside_other_mistakes(tmp_path):
    """They would be found out next; alone they are no mistake of the config, whose data may lie elsewhere."""
    (tmp_path / "here.json").write_text("{}")
    text = """datasets:
  a:
    format: coco
    train: {images: [gone, .], annotations: here.json}
    val: {images: 3, annotations: gone.json}
    wieght: 2
  b: 7
"""
    told = [line for line in mistakes(tmp_path, text, files=True) if line.endswith(" is not there")]
    assert told == [
        f"line 4: `datasets.a.train.images`: {tmp_path}/gone is not there",
        f"line 5: `datasets.a.val.annotations`: {tmp_path}/gone.json is not there",
    ]
    good = text.replace("images: 3", "images: 3x").replace("    wieght: 2\n  b: 7\n", "")
    assert load_config(write(tmp_path, good)).datasets["a"].train is not None


def test_all_mistakes_at_once_and_no_echoes(tmp_path):
    text = """datasets:
  faces:
    format: wider
    train: {images: i}
    weight: 0
  b: 7
train:
  epochs: 20
  warmup_epochs: 50
  devices: 0
  lr: 1
  lr: 2
labels: {absent: {b: [x], c: [x]}}
"""
    lines = mistakes(tmp_path, text, ["seed=-1", "train.lr"])
    places = [line.split(":")[0] for line in lines]
    # `b` is a dataset although its value is wrong; the bad `devices` says nothing about the batch size
    assert places == [
        *("line 12", "--set train.lr", "line 3", "line 5", "line 6", "line 10", "--set seed=-1"),
        *("line 13", "line 9"),
    ]


def test_a_key_that_stands_twice(tmp_path):
    assert mistakes(tmp_path, MINIMAL + "seed: 1\nseed: 1\n") == ["line 4: `seed` stands twice, first in line 3"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a: [", "not valid YAML: line 1: "),
        (b"seed: !!bool x", "not valid YAML: line 1: a value that cannot be read (KeyError"),
        (b'seed: !!int ""', "not valid YAML: line 1: a value that cannot be read (IndexError"),
        (b"a:\n  b: " + b"9" * 5000, "not valid YAML: line 2: a value that cannot be read (ValueError"),
        (b"a: " + b"[" * 4000, "not valid YAML: its values are nested too deeply"),
        (b'output: "a\\0b"', "not valid YAML: line 1: a text with a character that no name"),
        (b'output: "\\ud800"', "not valid YAML: line 1: a text with a character that no name"),
        (b"a: &x [*x]", "not valid YAML: line 1: an alias that contains itself"),
        (
            b"a0: &a0 [x, x]\n"
            + b"".join(b"a%d: &a%d [*a%d, *a%d]\n" % (i, i, i - 1, i - 1) for i in range(1, 40)),
            "not valid YAML: line 1: its aliases repeat values, so that there are ",
        ),
        (
            b"a0: &a0 {x: 1}\n"
            + b"".join(b"a%d: &a%d {<<: [*a%d, *a%d]}\n" % (i, i, i - 1, i - 1) for i in range(1, 30)),
            "not valid YAML: line 1: its aliases repeat values, so that there are ",
        ),
        (b"a: !!python/object:x {}", "not valid YAML: line 1: could not determine a constructor"),
        (
            b"seed: 1\noutput: a\x07b",
            "not valid YAML: line 2: a character that YAML does not allow (U+0007); remove",
        ),
        (b"- 1", "expected a mapping (`key: value` lines), got a list"),
        (b"a: \xff", "not UTF-8 text"),
        (b'a: "C:\\data"', "not valid YAML: line 1: found unknown escape character 'd'; between double quotes"),
        (
            b'a: "C:\\Users\\x"',
            "not valid YAML: line 1: expected escape sequence of 8 hexadecimal numbers, but found 's'; between",
        ),
        (
            b"train: images/train\nnames: [a]\n",
            "a data set in the format `yolo`, no config of crossdet; `crossdet new",
        ),
        (b'{"images": [], "annotations": [], "categories": []}', "a data set in the format `coco`, no config"),
    ],
)
def test_no_config_file(tmp_path, content, expected):
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: {expected}")
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read: No such file or directory"):
        load_config(tmp_path / "none.yaml")


@pytest.mark.parametrize("written", ["Faces.yaml", "faces", "face.yaml", "faces.yml"])
def test_a_config_of_nearly_that_name(tmp_path, written):
    (tmp_path / "faces.yaml").write_text(MINIMAL)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / written)
    if not (tmp_path / "FACES.YAML").exists():  # else the file system takes any spelling
        assert str(caught.value).endswith(f"No such file or directory; did you mean {tmp_path / 'faces.yaml'}?")
    with pytest.raises(ConfigError, match=r"No such file or directory$"):
        load_config(tmp_path / "other.yaml")


def test_a_date_is_text(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(f"{MINIMAL}output: 2024-31-12\n")
    assert load_config(path).output == tmp_path / "2024-31-12"
    assert load_config(path, ["output=2024-02-30"]).output == tmp_path / "2024-02-30"


def test_a_bare_sign_is_text(tmp_path):
    config = load_config(write(tmp_path, MINIMAL + "labels: {absent: {a: [=, <<]}}\n"))
    assert config.labels.absent == {"a": ("=", "<<")}
    assert load_config(write(tmp_path, dump_config(config))) == config


def test_annotations_are_told_from_a_config_without_reading_them_as_yaml(tmp_path, monkeypatch):
    """Which takes hours where they are many."""
    monkeypatch.setattr("crossdet.config.files._parse", None)
    path = write(tmp_path, '{"images": [], "annotations": []}', "instances.json")
    with pytest.raises(ConfigError, match="a data set in the format `coco`"):
        load_config(path)


def test_overrides(tmp_path):
    path = write(tmp_path, "datasets:\n  a.b: {format: coco, train: {images: i}}\nmodel:\n")
    overrides = ["train.lr=1e-3", "datasets.a.b.weight=2", "model.anchors.scales=[1, 2]", "labels.distinct=car"]
    config = load_config(path, [*overrides, "datasets.c={format: voc, val: {image_set: test}}"])
    assert config.train.lr == 1e-3
    assert config.datasets["a.b"].weight == 2
    assert config.model.anchors.scales == (1, 2)
    assert config.labels.distinct == ("car",)
    assert config.datasets["c"].val.image_set == ("test",)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.epoch=3", "unknown key `train.epoch`; did you mean `epochs`?"),
        ("trian.epochs=3", "unknown key `trian`; did you mean `train`?"),
        ("datasets.aa.weight=3", "unknown key `datasets.aa`; did you mean `a`?"),
        (
            "labels.merge.traffic.light=[a/x]",
            "unknown key `labels.merge.traffic`; there are no names yet; a new name with a dot is given as "
            "'labels.merge={traffic.light: ...}'",
        ),
        ("trian.epochs.x=3", "unknown key `trian`; did you mean `train`?"),
        ("seed.x=3", "`seed`: expected a whole number, got {"),
        ("datasets.a.format.x=3", "`datasets.a.format` has no keys below it"),
        ("seed", "expected `key=value`"),
        ("seed=[", "the value is not valid YAML: line 1: "),
        ("seed=x", '`seed`: expected a whole number, got "x"'),
    ],
)
def test_wrong_overrides(tmp_path, override, expected):
    (line,) = mistakes(tmp_path, MINIMAL, [override])
    assert line.startswith(f"--set {override}: ")
    assert expected in line


def test_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH", "/data")
    monkeypatch.setenv("WHICH", "train2017")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    text = """datasets:
  a:
    format: voc
    train:
      images: ${BENCH}/$HOME/~/${WHICH}.d
      annotations: [x, ../y]
      image_set: [trainval, "${WHICH}", sets/test, val.txt]
model: {weights: w.pth}
output: out
"""
    config = load_config(write(tmp_path / "sub", text, "my.run.yaml"))
    split = config.datasets["a"].train
    assert split.images == (Path("/data/$HOME/~/train2017.d"),)
    assert split.annotations == (tmp_path / "sub/x", tmp_path / "sub/../y")
    assert split.image_set == ("trainval", "train2017", f"{tmp_path}/sub/sets/test", f"{tmp_path}/sub/val.txt")
    assert split.ignore == ()
    assert config.model.weights == tmp_path / "sub/w.pth"
    assert config.output == tmp_path / "sub/out"
    relative = load_config(Path("sub/my.run.yaml"), ["output=null"])
    assert relative.output == tmp_path / "runs/my.run"
    assert relative.datasets == config.datasets


@pytest.mark.parametrize(
    ("written", "read"),
    [("none", "none"), ("null", "none"), ("imagenet", "imagenet"), ("./none", Path("/base/none"))],
)
def test_weights(written, read):
    data = {
        "datasets": {"a": {"format": "coco", "val": {}}},
        "model": {"weights": None if written == "null" else written},
    }
    assert Config.from_dict(data, base=Path("/base")).model.weights == read


def test_a_config_can_be_sent_to_another_process():
    """Its type is made for its architecture, and has no name of its own."""
    values = {"images": "i", "annotations": "a.json"}
    config = Config.from_dict({"datasets": {"a": {"format": "coco", "train": values}}, "model": {"channels": 8}})
    assert pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize(
    ("given", "value"),
    [("010", 10), ("-012", -12), ("0", 0), ("1_000", 1000), ("0x10", 16), ("1e-4", 1e-4), ("0.5", 0.5),
     ("1:30", "1:30"), ("1:30.5", "1:30.5"), ("2026-11-30", "2026-11-30")],
)  # fmt: skip
def test_numbers_are_those_of_yaml_1_2(given, value):
    """1.1 reads 010 as eight and 1:30 as ninety."""
    assert yaml.load(given, files._Loader) == value


def test_round_trip(tmp_path):
    text = """datasets:
  no: {format: voc, train: {images: [i, j], image_set: trainval}, val: {annotations: /x},
    part: 2/3, weight: 1e-4}
  "1": {format: wider_pedestrian, edition: 2019, train: {ignore: g}, classes: ["1", "no", "1e-4"]}
labels:
  merge: {person: [no/person, 1/pedestrian], same_names: true}
  drop: {no: [car, "a/b"]}
  overlap: [[person, face]]
  absent: {no: x}
train: {accelerator: gpu, clip_norm: 1e1}
"""
    config = load_config(write(tmp_path, text))
    assert config.labels.drop == ("no/car", "no/a/b")
    assert config.train.accelerator == "cuda"
    assert config.datasets["no"].part_of == (1, 3)
    (tmp_path / "elsewhere").mkdir()
    assert load_config(write(tmp_path / "elsewhere", dump_config(config))) == config


def test_an_index_from_python(tmp_path):
    builder = IndexBuilder("/images")
    builder.image("x.jpg", 10, 10)
    index = builder.build(["car"])
    config = Config.from_dict({"datasets": {"a": {"train": index}}}, base=tmp_path)
    assert config.datasets["a"].train is index
    assert "train: an index of 1 images, given from Python" in dump_config(config)
    with pytest.raises(ConfigError) as caught:
        Config.from_dict({"datasets": {"a": {"train": index, "val": {}, "wieght": 1}}, "seed": 0.5})
    assert str(caught.value).split("\n")[1:] == [
        "  - unknown key `datasets.a.wieght`; did you mean `weight`?",
        "  - `seed`: expected a whole number, got 0.5",
        "  - `datasets.a.format` is missing: expected one of coco, voc, wider_face, wider_pedestrian, yolo",
    ]


def test_needs_no_torch():
    code = "import sys, crossdet.config; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_index_alone_is_a_dataset_to_train_on():
    builder = IndexBuilder("/pictures")
    builder.image("a.jpg", 10, 10)
    config = Config.from_dict({"datasets": {"a": builder.build(["x"])}})
    assert config.datasets["a"].train.classes == ("x",)
    assert config.datasets["a"].val is None


def test_pictures_are_not_taken_apart_unless_the_config_says_so():
    augment = AugmentConfig(mosaic=0.2, flip=0.0)
    assert (augment.zoom_out, augment.iou_crop, AugmentConfig().mosaic) == (0, 0, 0)


def test_what_is_no_config_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"got a dict; `Config.from_dict` makes one of a dict"):
        as_config({"datasets": {}})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="expected a `Config` or the path of its file, got a NoneType"):
        as_config(None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"'seed=2' is a text; give a list, \['seed=2'\]"):
        load_config(tmp_path / "config.yaml", "seed=2")
    with pytest.raises(UserError, match="its weights or run come first"):
        evaluate(load_config(write(tmp_path, MINIMAL)), "runs/first")  # type: ignore[arg-type]


def test_the_config_of_a_run_on_data_from_python_says_so(tmp_path):
    builder = IndexBuilder(tmp_path)
    builder.image("a.jpg", 10, 10)
    config = Config.from_dict({"datasets": {"pets": {"train": builder.build(("cat",)), "val": "1/6"}}})
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(config))
    with pytest.raises(ConfigError, match=r"data of pets were given from Python, so .*`crossdet report RUN"):
        load_config(file)
