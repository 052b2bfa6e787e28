"""Which evaluation of a training is the best one."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossdet.evaluation.protocols import main_number
from crossdet.training.choosing import is_better, relative_scores


def coco(ap: float | None) -> dict:
    return {"protocol": "coco", "AP": ap}


def voc(value: float) -> dict:
    return {"protocol": "voc", "mAP_area": value}


def metrics(**datasets: dict) -> dict:
    return {"datasets": datasets}


def test_the_main_number_of_each_protocol():
    assert main_number(coco(0.3)) == 0.3
    assert main_number(voc(0.6)) == 0.6
    faces = {"protocol": "wider_face", "easy": 0.9, "medium": 0.6, "hard": math.nan}
    assert main_number(faces) == pytest.approx(0.75)
    pedestrians = {"protocol": "wider_pedestrian", "challenge": {"AP": 0.9}, "coco_style": {"AP": 0.2}}
    assert main_number(pedestrians) == 0.2
    for undefined in (coco(None), coco(math.nan), {"protocol": "wider_face", "all": None}):
        assert math.isnan(main_number(undefined))


def test_a_coarse_metric_does_not_decide():
    """Five points of VOC's mAP are a thirteenth, three of COCO's AP a seventh; the plain mean decides for VOC."""
    first = metrics(a=coco(0.20), b=voc(0.60))
    second = metrics(a=coco(0.17), b=voc(0.65))
    assert (0.17 + 0.65) / 2 > (0.20 + 0.60) / 2
    assert relative_scores([first, second]) == pytest.approx([(1 + 60 / 65) / 2, (17 / 20 + 1) / 2])
    assert not is_better([first], 0, second)
    assert is_better([second], 0, first)


def test_one_dataset_is_judged_by_its_number():
    values = [0.1, 0.4, 0.3, 0.4, 0.5, 0.0]
    kept = None
    chosen = []
    for place, value in enumerate(values):
        if is_better([metrics(a=coco(v)) for v in values[:place]], kept, metrics(a=coco(value))):
            kept = place
        chosen.append(kept)
    assert chosen == [0, 1, 1, 1, 4, 4]  # the first of equals


def test_undefined_numbers_are_never_better():
    nothing, zero = metrics(a=coco(None)), metrics(a=coco(0.0))
    assert not is_better([], None, nothing)
    assert is_better([nothing], None, zero)
    assert not is_better([zero], 0, zero)
    assert not is_better([zero], 0, nothing)
    half = metrics(a=coco(0.2), b=coco(math.nan))
    assert is_better([half], 0, metrics(a=coco(0.2), b=coco(0.1)))
    assert not is_better([half], 0, metrics(a=coco(0.1), b=coco(math.nan)))


SHARES = st.floats(0, 1, allow_subnormal=False)  # half of the smallest subnormal number is 0


@given(st.lists(st.tuples(SHARES, SHARES), min_size=2, max_size=8), st.floats(0.01, 100))
def test_the_scale_of_a_protocol_does_not_matter(values, factor):
    plain = [metrics(a=coco(a), b=voc(b)) for a, b in values]
    scaled = [metrics(a=coco(a), b=voc(b * factor)) for a, b in values]
    assert relative_scores(scaled) == pytest.approx(relative_scores(plain), abs=1e-9)
    for earlier, later in pairwise(range(len(values))):
        a, b = values[earlier], values[later]
        if b[0] >= a[0] and b[1] > a[1] > 1e-6:  # better in one and worse in none
            assert is_better(plain[:later], earlier, plain[later])
