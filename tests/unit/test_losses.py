"""The dataset-aware focal loss against its definition (docs/design.md, paper sec. 3.3), term by term."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from crossdet import LabelSpace
from crossdet.losses import dataset_aware_focal_loss, image_focal_losses, negative_weights, smooth_l1
from crossdet.types import BACKGROUND, IGNORE

FACE, PERSON = 0, 1


def positive(logit: float, alpha: float = 0.25, gamma: float = 2.0) -> float:
    p = 1 / (1 + math.exp(-logit))
    return -alpha * (1 - p) ** gamma * math.log(p)


def negative(logit: float, alpha: float = 0.25, gamma: float = 2.0) -> float:
    p = 1 / (1 + math.exp(-logit))
    return -(1 - alpha) * p**gamma * math.log(1 - p)


def brute_force(
    logits: Tensor,
    labels: Tensor,
    trusted: Tensor,
    alpha: float = 0.25,
    gamma: float = 2.0,
    foreground_negatives: bool | Tensor = True,
    overlap: Tensor | None = None,
    avoid: Tensor | None = None,
    negative_weight: Tensor | None = None,
    background_weight: Tensor | None = None,
) -> list[float]:
    """One sum per image, by loops over images, anchors and classes in Python's float64."""
    avoided = set() if avoid is None else {tuple(row) for row in avoid.tolist()}
    everywhere = torch.as_tensor(foreground_negatives).expand(labels.shape)
    sums = []
    for b, image in enumerate(logits.double().tolist()):
        total = 0.0
        for n, anchor in enumerate(image):
            label = int(labels[b, n])
            if label == IGNORE:
                continue
            for c, logit in enumerate(anchor):
                if label == c:
                    total += positive(logit, alpha, gamma)
                    continue
                if (b, n, c) in avoided or (b, n, -1) in avoided:
                    continue
                as_background = label == BACKGROUND or not everywhere[b, n]
                if as_background and not trusted[b, c]:
                    continue
                if label != BACKGROUND and overlap is not None and overlap[label, c]:
                    continue
                weight = 1.0 if background_weight is None or not as_background else float(background_weight[b, c])
                if negative_weight is not None:
                    weight *= float(negative_weight.expand(len(logits), 1, logits.shape[2])[b, 0, c])
                total += weight * negative(logit, alpha, gamma)
        sums.append(total)
    return sums


def random_case(seed: int) -> dict:
    """Logits, labels, trust and all options; avoid rows hit every kind of anchor and come twice."""
    g = torch.Generator().manual_seed(seed)

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=g)

    images, anchors, classes = (int(v) for v in (integers(1, 4, 1), integers(1, 13, 1), integers(1, 6, 1)))
    labels = integers(-2, classes, images, anchors)
    labels[torch.rand(images, anchors, generator=g) < 0.4] = BACKGROUND
    overlap = torch.rand(classes, classes, generator=g) < 0.3
    rows = int(integers(0, 20, 1))
    avoid = torch.stack([integers(0, images, rows), integers(0, anchors, rows), integers(-1, classes, rows)], 1)
    shapes = [(images, 1, classes), (classes,), (1, 1, classes), (images, 1, 1), (1,)]
    return {
        "logits": torch.randn(images, anchors, classes, generator=g, dtype=torch.float64) * 3,
        "labels": labels,
        "trusted": torch.rand(images, classes, generator=g) < 0.5,
        "alpha": [0.25, 0.6][seed % 2],
        "gamma": [2.0, 2.0, 0.0, 1.0, 1.5, 0.5, 3.0][seed % 7],
        "foreground_negatives": (False, True, torch.rand(images, anchors, generator=g) < 0.5)[seed % 3],
        "overlap": (overlap | overlap.T) if seed % 4 != 1 else None,
        "avoid": torch.cat([avoid, avoid[: rows // 2]]) if seed % 5 != 2 else None,
        "negative_weight": torch.rand(shapes[seed % 5], generator=g) * 2 if seed % 2 else None,
        "background_weight": torch.rand(images, classes, generator=g) if seed % 4 > 1 else None,
    }


def avoided_pairs(case: dict) -> Tensor:
    """`[B, N, C]`: the pairs whose loss must be nothing at all, straight from the rules."""
    logits, labels, trusted = case["logits"], case["labels"], case["trusted"]
    nothing = torch.zeros(logits.shape, dtype=torch.bool)
    everywhere = torch.as_tensor(case["foreground_negatives"]).expand(labels.shape)
    for b, n, c in itertools.product(*map(range, logits.shape)):
        label = int(labels[b, n])
        if label == c:
            continue
        if label == IGNORE or (label == BACKGROUND and not trusted[b, c]):
            nothing[b, n, c] = True
        if label >= 0 and not everywhere[b, n] and not trusted[b, c]:
            nothing[b, n, c] = True
        if label >= 0 and case["overlap"] is not None and case["overlap"][label, c]:
            nothing[b, n, c] = True
    if case["avoid"] is not None:
        for b, n, c in case["avoid"].tolist():
            for other in range(logits.shape[2]) if c < 0 else [c]:
                if int(labels[b, n]) != other:
                    nothing[b, n, other] = True
    return nothing


@pytest.mark.parametrize("seed", range(70))
def test_value_is_the_brute_force_sum(seed):
    case = random_case(seed)
    expected = brute_force(**case)
    found = image_focal_losses(**case)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert float(dataset_aware_focal_loss(**case)) == pytest.approx(sum(expected), rel=1e-12, abs=1e-12)


def test_random_cases_cover_what_they_should():
    """The cases above would prove little if they missed a rule."""
    seen = {"ignore": 0, "empty avoid": 0, "avoid all on fg": 0, "avoid own class": 0, "avoid bg": 0, "twice": 0}
    for seed in range(70):
        case = random_case(seed)
        labels, avoid = case["labels"], case["avoid"]
        seen["ignore"] += bool((labels == IGNORE).any())
        if avoid is None:
            continue
        at = labels[avoid[:, 0], avoid[:, 1]]
        seen["empty avoid"] += len(avoid) == 0
        seen["avoid all on fg"] += bool(((avoid[:, 2] < 0) & (at >= 0)).any())
        seen["avoid own class"] += bool(((avoid[:, 2] >= 0) & (at == avoid[:, 2])).any())
        seen["avoid bg"] += bool((at == BACKGROUND).any())
        seen["twice"] += len(avoid.unique(dim=0)) < len(avoid)
    assert min(seen.values()) >= 2, seen


@pytest.mark.parametrize("seed", range(30))
def test_exactly_nothing_where_the_negative_is_not_trusted(seed):
    case = random_case(seed)
    nothing = avoided_pairs(case)
    logits = case["logits"].float().requires_grad_()
    before = dataset_aware_focal_loss(**case | {"logits": logits})
    (gradient,) = torch.autograd.grad(before, logits)
    assert (gradient[nothing] == 0).all()
    if case["negative_weight"] is None:
        assert (gradient[~nothing] != 0).all()

    # and the value does not move by one bit, whatever the logits there are
    wild = torch.where(nothing, torch.tensor(80.0), logits.detach())
    assert torch.equal(dataset_aware_focal_loss(**case | {"logits": wild}), before.detach())


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 1.5, 2.0])
def test_extreme_logits_stay_finite(gamma):
    """sigmoid(-200) is 0 in float32; 0 ** gamma has an infinite slope below 1."""
    logits = torch.tensor([[[-200.0, 200.0, 0.0], [-200.0, 200.0, 0.0]]], requires_grad=True)
    labels, trusted = torch.tensor([[BACKGROUND, 1]]), torch.tensor([[True, False, True]])
    loss = dataset_aware_focal_loss(logits, labels, trusted, gamma=gamma)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()
    assert logits.grad[0, 0, 1] == 0
    worst = dataset_aware_focal_loss(torch.tensor([[[-200.0]]]), torch.tensor([[0]]), torch.tensor([[True]]))
    assert float(worst) == pytest.approx(0.25 * 200)


@pytest.mark.parametrize("foreground_negatives", [True, False])
def test_all_trusted_is_the_ordinary_focal_loss(foreground_negatives):
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 40, 7, generator=g, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(-2, 7, (3, 40), generator=g)
    trusted = torch.ones(3, 7, dtype=torch.bool)
    target = F.one_hot(labels.clamp(min=0), 7) * (labels >= 0)[..., None]
    kept = labels != IGNORE
    wanted = sigmoid_focal_loss(logits[kept], target[kept].double(), alpha=0.3, gamma=1.5, reduction="sum")
    found = dataset_aware_focal_loss(logits, labels, trusted, 0.3, 1.5, foreground_negatives)
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-12)
    for ours, theirs in zip(torch.autograd.grad(found, logits), torch.autograd.grad(wanted, logits), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)


def test_figure_4b_faces_and_pedestrians():
    """An image of the face set and one of the pedestrian set, three anchors each, every term by hand."""
    space = LabelSpace.build({"faces": ["face"], "peds": ["person"]})
    trusted = torch.stack([space.trusted("faces"), space.trusted("peds")])
    logits = torch.tensor(
        [
            # face image:  face  person
            [[0.7, -0.4], [-1.1, 0.9], [0.2, 2.0]],
            # pedestrian image
            [[0.3, 1.2], [1.6, -0.8], [-0.5, 0.1]],
        ],
        dtype=torch.float64,
    )
    labels = torch.tensor([[FACE, BACKGROUND, BACKGROUND], [PERSON, BACKGROUND, BACKGROUND]])
    by_hand = [
        # "positive samples ... their loss values are calculated using the standard focal loss"
        positive(0.7)
        # "ground-truth patches from one dataset are included to un-shared negative examples of other datasets"
        + negative(-0.4)
        # "negative samples from one dataset will only contribute to ... classes within exactly the same dataset":
        # of the two background anchors only the face logits count; 0.9 and 2.0 of `person` may be real people
        + negative(-1.1)
        + negative(0.2),
        positive(1.2) + negative(0.3) + negative(-0.8) + negative(0.1),
    ]
    assert image_focal_losses(logits, labels, trusted).tolist() == pytest.approx(by_hand, rel=1e-13)

    # the variant that masks the foreground rows too loses exactly the two cross-dataset terms
    masked = image_focal_losses(logits, labels, trusted, foreground_negatives=False)
    assert masked.tolist() == pytest.approx([by_hand[0] - negative(-0.4), by_hand[1] - negative(0.3)], rel=1e-13)

    # naive concatenation takes the four untrusted background terms as negatives
    naive = image_focal_losses(logits, labels, torch.ones_like(trusted))
    extra = [negative(0.9) + negative(2.0), negative(1.6) + negative(-0.5)]
    assert naive.tolist() == pytest.approx([a + b for a, b in zip(by_hand, extra, strict=True)], rel=1e-13)


def background_id_loss(
    logits: Tensor, labels: Tensor, datasets: Tensor, backgrounds_to_avoid: list[set[int]]
) -> Tensor:
    """The formulation of United-Perception: background anchors carry the id of their dataset's background
    (`neg_targets`), and every class lists the backgrounds it must not learn from (`gt_class_to_avoid`)."""
    background_ids = -10 - datasets
    targets = torch.where(labels == BACKGROUND, background_ids[:, None], labels)
    total = logits.new_zeros(())
    for c, to_avoid in enumerate(backgrounds_to_avoid):
        p = logits[..., c].sigmoid()
        is_positive = targets == c
        counts = targets != IGNORE
        for background in to_avoid:
            counts = counts & (targets != background)
        loss = torch.where(is_positive, -0.25 * (1 - p) ** 2 * p.log(), -0.75 * p**2 * (1 - p).log())
        total = total + loss[counts].sum()
    return total


@pytest.mark.parametrize("seed", range(8))
def test_agrees_with_the_background_id_formulation(seed):
    space = LabelSpace.build(
        {"coco": ["person", "car", "dog"], "peds": ["pedestrian"], "faces": ["face"], "aerial": ["ship", "car"]},
        merge={"person": ["coco/person", "peds/pedestrian"], "car": ["coco/car", "aerial/car"]},
        absent={"aerial": ["face"]},
        not_exhaustive={"aerial": ["car"]},
    )
    avoid = [{-10 - k for k in range(4) if space.avoid[k, c]} for c in range(len(space.classes))]
    assert space.classes == ("person", "car", "dog", "face", "ship")
    assert avoid == [{-12, -13}, {-11, -12, -13}, {-11, -12, -13}, {-10, -11}, {-10, -11, -12}]
    g = torch.Generator().manual_seed(seed)
    datasets = torch.randint(0, 4, (6,), generator=g)
    logits = torch.randn(6, 30, len(space.classes), generator=g, dtype=torch.float64) * 2
    labels = torch.randint(-2, len(space.classes), (6, 30), generator=g)
    labels[:, ::2] = BACKGROUND
    wanted = background_id_loss(logits, labels, datasets, avoid)
    found = dataset_aware_focal_loss(logits, labels, ~space.avoid[datasets])
    assert float(found) == pytest.approx(float(wanted), rel=1e-12)


def test_federated_images_trust_what_was_verified():
    """LVIS: one row per image; the dataset's own row trusts nothing but `absent`."""
    space = LabelSpace.build(
        {"lvis": ["a", "b", "c", "d"], "faces": ["face"], "ships": ["ship"]},
        federated=["lvis"],
        absent={"lvis": ["ship"]},
    )
    row = space.dataset_index("lvis")
    trusted = torch.stack(
        [
            # boxes of a and b in the image, c verified absent, b not exhaustively labelled
            torch.from_numpy(space.trusted_row(row, negatives=[2], present=[0, 1], not_exhaustive=[1])),
            torch.from_numpy(space.trusted_row(row)),
        ]
    )
    assert trusted.tolist() == [[True, False, True, False, False, True], [False] * 5 + [True]]
    g = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 3, 6, generator=g, dtype=torch.float64)
    labels = torch.tensor([[0, BACKGROUND, 1], [BACKGROUND, BACKGROUND, IGNORE]])
    z = logits.tolist()
    by_hand = [
        positive(z[0][0][0])
        + sum(negative(z[0][0][c]) for c in (1, 2, 3, 4, 5))
        + sum(negative(z[0][1][c]) for c in (0, 2, 5))
        + positive(z[0][2][1])
        + sum(negative(z[0][2][c]) for c in (0, 2, 3, 4, 5)),
        negative(z[1][0][5]) + negative(z[1][1][5]),
    ]
    assert image_focal_losses(logits, labels, trusted).tolist() == pytest.approx(by_hand, rel=1e-12)


def test_avoided_pair_that_is_positive_stays_positive():
    logits = torch.tensor([[[0.4, -0.3], [1.0, 0.5]]], dtype=torch.float64)
    labels, trusted = torch.tensor([[1, BACKGROUND]]), torch.ones(1, 2, dtype=torch.bool)
    avoid = torch.tensor([[0, 0, -1], [0, 0, 1], [0, 1, 0]])
    found = dataset_aware_focal_loss(logits, labels, trusted, avoid=avoid)
    assert float(found) == pytest.approx(positive(-0.3) + negative(0.5), rel=1e-13)


def test_overlap_frees_objects_and_not_the_background():
    logits = torch.tensor([[[0.4, -0.3, 0.8], [1.0, 0.5, -0.2]]], dtype=torch.float64)
    labels, trusted = torch.tensor([[0, BACKGROUND]]), torch.ones(1, 3, dtype=torch.bool)
    overlap = torch.zeros(3, 3, dtype=torch.bool)
    overlap[0, 1] = overlap[1, 0] = True
    found = dataset_aware_focal_loss(logits, labels, trusted, overlap=overlap)
    expected = positive(0.4) + negative(0.8) + negative(1.0) + negative(0.5) + negative(-0.2)
    assert float(found) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_input_is_computed_in_float32(dtype):
    case = random_case(7) | {"negative_weight": None}
    half = (case["logits"] * 2).to(dtype)
    wanted = image_focal_losses(**case | {"logits": half.float()})
    leaf = half.clone().requires_grad_()
    found = image_focal_losses(**case | {"logits": leaf})
    assert found.dtype == torch.float32
    assert torch.equal(found.detach(), wanted)
    found.sum().backward()
    assert leaf.grad.dtype == dtype
    assert leaf.grad.isfinite().all()


def test_autocast_changes_nothing():
    g = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 500, 8, generator=g) - 3
    labels = torch.full((2, 500), BACKGROUND)
    labels[:, :20] = torch.randint(0, 8, (2, 20), generator=g)
    trusted = torch.rand(2, 8, generator=g) < 0.5
    weight = torch.rand(1, 1, 8, generator=g)
    wanted = image_focal_losses(logits, labels, trusted, negative_weight=weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (logits @ logits.mT).dtype == torch.bfloat16  # autocast is on
        found = image_focal_losses(logits, labels, trusted, negative_weight=weight)
    assert found.dtype == torch.float32
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("seed", [1, 3, 4, 5, 8, 9])
def test_gradient_is_that_of_the_value(seed):
    case = random_case(seed)
    logits = case.pop("logits").requires_grad_()
    assert torch.autograd.gradcheck(lambda x: dataset_aware_focal_loss(x, **case), logits, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("seed", range(6))
def test_logits_in_any_memory_order_learn_the_same(seed, dtype):
    """Heads give `[B, C, N]` or `[N, B, C]` just as often; a view of these is no copy."""
    case = random_case(seed)
    logits = case.pop("logits").to(dtype)
    wanted = logits.clone().requires_grad_()
    dataset_aware_focal_loss(wanted, **case).backward()
    for order in ((0, 2, 1), (1, 0, 2), (2, 1, 0)):
        back = [order.index(axis) for axis in range(3)]
        stored = logits.permute(order).contiguous().requires_grad_()
        dataset_aware_focal_loss(stored.permute(back), **case).backward()
        torch.testing.assert_close(stored.grad.permute(back), wanted.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("images", "anchors", "classes"), [(2, 0, 3), (0, 4, 3), (2, 4, 0)])
def test_empty_dimensions(images, anchors, classes):
    found = image_focal_losses(
        torch.zeros(images, anchors, classes),
        torch.full((images, anchors), BACKGROUND),
        torch.ones(images, classes, dtype=torch.bool),
        avoid=torch.zeros(0, 3, dtype=torch.int64),
    )
    assert found.tolist() == [0.0] * images


def test_no_foreground_and_nothing_trusted_is_zero_with_a_gradient():
    logits = torch.randn(2, 5, 3, requires_grad=True)
    labels = torch.full((2, 5), BACKGROUND)
    loss = dataset_aware_focal_loss(logits, labels, torch.zeros(2, 3, dtype=torch.bool))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert (logits.grad == 0).all()


def test_arguments_are_not_changed():
    case = random_case(8)
    copies = {k: v.clone() if isinstance(v, Tensor) else v for k, v in case.items()}
    dataset_aware_focal_loss(**case)
    for name, value in case.items():
        if isinstance(value, Tensor):
            assert torch.equal(value, copies[name]), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(4, 3)}, r"logits: expected floating point \[B, N, C\], got torch.float32 \[4, 3\]"),
        ({"logits": torch.zeros(2, 4, 3, dtype=torch.int64)}, r"logits: expected floating point"),
        (
            {"labels": torch.zeros(2, 5, dtype=torch.int64)},
            r"labels: expected int64 \[2, 4\] like the logits, got torch.int64 \[2, 5\]",
        ),
        (
            {"labels": torch.zeros(2, 4, dtype=torch.int32)},
            r"labels: expected int64 \[2, 4\] like the logits, got torch.int32 \[2, 4\]",
        ),
        (
            {"foreground_negatives": torch.ones(2, 3, dtype=torch.bool)},
            r"foreground_negatives: expected true, false or bool \[2, 4\], got torch.bool \[2, 3\]",
        ),
        ({"labels": torch.full((2, 4), 3)}, r"labels: 3 is no class id \(0 to 2\), BACKGROUND \(-1\) or IGNORE"),
        ({"labels": torch.full((2, 4), -3)}, r"labels: -3 is no class id"),
        (
            {"trusted": torch.ones(2, 4, dtype=torch.bool)},
            r"trusted: expected bool \[2, 3\] or \[2, 4, 3\], got torch.bool \[2, 4\]",
        ),
        ({"trusted": torch.ones(2, 3)}, r"trusted: expected bool \[2, 3\] .*, got torch.float32 \[2, 3\]"),
        ({"trusted": torch.ones(2, 3, 3, dtype=torch.bool)}, r"trusted: expected .* got torch.bool \[2, 3, 3\]"),
        ({"trusted": torch.ones(3, dtype=torch.bool)}, r"trusted: expected bool \[2, 3\]"),
        (
            {"overlap": torch.zeros(3, 2, dtype=torch.bool)},
            r"overlap: expected bool \[3, 3\], got torch.bool \[3, 2\]",
        ),
        ({"overlap": torch.zeros(3, 3)}, r"overlap: expected bool \[3, 3\], got torch.float32 \[3, 3\]"),
        (
            {"avoid": torch.zeros(5, 2, dtype=torch.int64)},
            r"avoid: expected int64 \[P, 3\] rows \(image, position, class\), got torch.int64 \[5, 2\]",
        ),
        ({"avoid": torch.zeros(3, dtype=torch.int64)}, r"avoid: expected int64 \[P, 3\]"),
        ({"avoid": torch.zeros(1, 3, dtype=torch.int32)}, r"avoid: expected int64 \[P, 3\]"),
        ({"avoid": torch.tensor([[0, 0, 0], [2, 0, 0]])}, r"avoid: image 2 is not in 0 to 1"),
        ({"avoid": torch.tensor([[-1, 0, 0]])}, r"avoid: image -1 is not in 0 to 1"),
        ({"avoid": torch.tensor([[0, 4, 0]])}, r"avoid: position 4 is not in 0 to 3"),
        ({"avoid": torch.tensor([[0, 0, 3]])}, r"avoid: class 3 is not in -1 to 2"),
        ({"avoid": torch.tensor([[0, 0, -2], [0, 0, -1]])}, r"avoid: class -2 is not in -1 to 2"),
        (
            {"negative_weight": torch.ones(2, 3)},
            r"negative_weight: .* broadcastable to \[2, 1, 3\], got \[2, 3\]; write negative_weight\[:, None\]",
        ),
        ({"negative_weight": torch.ones(2, 4, 3)}, r"negative_weight: .* got \[2, 4, 3\]"),
        ({"negative_weight": torch.ones(1, 2, 1, 3)}, r"negative_weight: .* got \[1, 2, 1, 3\]"),
        ({"negative_weight": torch.ones(4)}, r"negative_weight: .* got \[4\]$"),
    ],
)
def test_shapes_that_do_not_fit(change, message):
    good = {
        "logits": torch.zeros(2, 4, 3),
        "labels": torch.zeros(2, 4, dtype=torch.int64),
        "trusted": torch.ones(2, 3, dtype=torch.bool),
    }
    assert float(dataset_aware_focal_loss(**good)) > 0
    with pytest.raises(ValueError, match=message):
        dataset_aware_focal_loss(**good | change)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (1, 3), (1, 1, 3), (2, 1, 1), (2, 1, 3)])
def test_weights_of_every_shape_that_fits(shape):
    case = random_case(7) | {"logits": torch.zeros(2, 4, 3, dtype=torch.float64), "overlap": None, "avoid": None}
    case |= {"labels": torch.tensor([[0, -1, -1, -2], [-1, 2, -1, -1]]), "background_weight": None}
    case |= {"trusted": torch.tensor([[True, False, True], [True, True, False]])}
    weight = torch.rand(shape, dtype=torch.float64)
    full = weight.expand(2, 1, 3).contiguous()
    found = image_focal_losses(**case | {"negative_weight": weight})
    assert torch.equal(found, image_focal_losses(**case | {"negative_weight": full}))


@pytest.mark.parametrize("foreground_negatives", [True, False])
def test_trust_by_position(foreground_negatives):
    """Equal rows give what one row gives; else each position is that of an image that trusts what it trusts."""
    case = random_case(5) | {"foreground_negatives": foreground_negatives, "avoid": None}
    images, positions, classes = case["logits"].shape
    repeated = case["trusted"][:, None].expand(-1, positions, -1)
    one, same = (image_focal_losses(**case | {"trusted": t}) for t in (case["trusted"], repeated))
    torch.testing.assert_close(same, one, rtol=1e-12, atol=0)
    trusted = torch.rand(images, positions, classes, generator=torch.Generator().manual_seed(0)) < 0.5
    found = image_focal_losses(**case | {"trusted": trusted})
    alone = torch.zeros_like(found)
    for n in range(positions):
        part = {"logits": case["logits"][:, n : n + 1], "labels": case["labels"][:, n : n + 1]}
        alone += image_focal_losses(**case | part | {"trusted": trusted[:, n]})
        weights = negative_weights(case["labels"], trusted, case["overlap"], None, foreground_negatives)
        row = negative_weights(part["labels"], trusted[:, n], case["overlap"], None, foreground_negatives)
        assert torch.equal(weights[:, n], row[:, 0])
    torch.testing.assert_close(found, alone, rtol=1e-12, atol=0)


def test_a_broken_logit_is_not_hidden():
    """Exactly zero holds for finite logits only."""
    logits = torch.zeros(1, 1, 2)
    logits[0, 0, 1] = torch.inf
    found = dataset_aware_focal_loss(logits, torch.tensor([[BACKGROUND]]), torch.tensor([[True, False]]))
    assert found.isnan()


@pytest.mark.parametrize("beta", [0.0, 1 / 9, 1.0])
def test_smooth_l1_by_hand(beta):
    difference = [0.02, -0.5, 0.0, 3.0]
    expected = sum(0.5 * d * d / beta if abs(d) < beta else abs(d) - beta / 2 for d in difference)
    prediction = torch.tensor([difference, [1.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    target = torch.tensor([[0.0] * 4, [1.0] * 4], dtype=torch.float64)
    assert smooth_l1(prediction, target, beta).tolist() == pytest.approx([expected, 0.0], rel=1e-12)


def test_a_kept_graph_can_be_differentiated_again():
    """Without `retain_graph` the gradient reuses memory of the forward pass; with it every call gives the same."""
    g = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 30, 4, generator=g).requires_grad_()
    labels = torch.randint(-2, 4, (2, 30), generator=g)
    trusted = torch.tensor([[True, False, True, True], [False, True, True, False]])
    loss = dataset_aware_focal_loss(logits, labels, trusted)
    first, second = (torch.autograd.grad(loss, logits, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    (third,) = torch.autograd.grad(3 * loss, logits)
    torch.testing.assert_close(third, 3 * first)
