"""Best score per labelled box, by hand and against a plain loop."""

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from crossdet.evaluation.arrays import DetectionArrays, GroundTruth
from crossdet.evaluation.operating import best_scores, confident_share


def random_case(seed):
    generator = np.random.default_rng(seed)

    def boxes(count):
        corner = generator.uniform(0, 40, (count, 2))
        return np.concatenate([corner, corner + generator.uniform(5, 30, (count, 2))], 1)

    truth = GroundTruth(
        image_ids=np.arange(3),
        boxes=boxes(20),
        labels=generator.integers(0, 2, 20),
        crowd=generator.random(20) < 0.2,
        area=np.ones(20),
        image_of_box=generator.integers(0, 3, 20),
    )
    found = DetectionArrays(
        boxes=boxes(60),
        scores=generator.random(60),
        labels=generator.integers(0, 2, 60),
        image_of_box=generator.integers(0, 3, 60),
    )
    return truth, found


@pytest.mark.parametrize("seed", range(5))
def test_equals_a_loop_over_all_pairs(seed):
    truth, found = random_case(seed)
    iou = box_iou(torch.tensor(truth.boxes), torch.tensor(found.boxes)).numpy()
    expected = [
        max(
            (
                found.scores[d]
                for d in range(60)
                if found.image_of_box[d] == truth.image_of_box[t]
                and found.labels[d] == truth.labels[t]
                and iou[t, d] >= 0.5
            ),
            default=0,
        )
        for t in range(20)
    ]
    assert best_scores(truth, found).tolist() == expected
    shares = confident_share(truth, found, [0, 1, 2])
    mine = (truth.labels == 1) & ~truth.crowd
    assert shares[1] == np.mean([e >= 0.3 for e in np.array(expected)[mine]])
    assert np.isnan(shares[2])


def test_no_detections():
    truth, _ = random_case(0)
    none = DetectionArrays(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), np.zeros(0, int))
    assert not best_scores(truth, none).any()
    assert confident_share(truth, none, [0])[0] == 0
