"""What YAML's `<<` brings into a mapping of a config."""

import pytest

from crossdet.config import load_config

from .test_config import MINIMAL, mistakes, write


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<<: {seed: 1, seed: 2}\n", ["line 3: `seed` stands twice, first in line 3"]),
        (
            "train:\n  <<: {epochs: 3}\n  <<: {lr: 1}\n",
            ["line 5: `train.<<` stands twice, first in line 4; several go into a list, `<<: [*a, *b]`"],
        ),
        ("<<:\n  trian: {}\n", ["line 4: unknown key `trian`; did you mean `train`?"]),
        ("<<: [{trian: {}},\n  {trian: 3}]\n", ["line 3: unknown key `trian`; did you mean `train`?"]),
        ("<<:\n  seed: x\nseed: y\n", ['line 5: `seed`: expected a whole number, got "y"']),
        # what an alias brings stands where its anchor does, and is told once
        (
            "train: &t\n  lr: 1\n  lr: 2\neval:\n  <<: *t\n",
            [
                "line 5: `train.lr` stands twice, first in line 4",
                "line 5: unknown key `eval.lr`; did you mean `train.lr`?",
            ],
        ),
    ],
)
def test_mistakes_in_what_is_merged(tmp_path, text, expected):
    assert mistakes(tmp_path, MINIMAL + text) == expected


def test_keys_of_what_is_merged_are_text(tmp_path):
    text = "labels:\n  absent:\n    <<: {no: [x]}\n"
    config = load_config(write(tmp_path, "datasets:\n  no: {format: coco, train: {images: i}}\n" + text))
    assert config.labels.absent == {"no": ("x",)}
