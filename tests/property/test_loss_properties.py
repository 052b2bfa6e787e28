"""What must hold for the dataset-aware focal loss whatever the datasets are.

An example is a label space, one image per drawn dataset row, and logits; everything in float64.
"""

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crossdet import LabelSpace, dataset_aware_focal_loss, negative_weights
from crossdet.losses import image_focal_losses
from crossdet.types import BACKGROUND, IGNORE

FEW = settings(max_examples=60, deadline=None)
NAMES = ["a", "b", "c", "d", "e", "f"]


@dataclass(frozen=True)
class Case:
    """`datasets[k]`: the names that dataset k labels (equal names are merged); one row of `rows` per image."""

    datasets: list[list[str]]
    absent: dict[str, list[str]]
    overlap: list[tuple[str, str]]
    rows: list[int]
    logits: Tensor
    labels: Tensor
    avoid: Tensor

    def space(self, order: list[int] | None = None, extra: dict[str, list[str]] | None = None) -> LabelSpace:
        order = list(range(len(self.datasets))) if order is None else order
        return LabelSpace.build(
            {f"d{k}": self.datasets[k] for k in order} | (extra or {}),
            merge={"same_names": True},
            absent=self.absent,
            overlap=self.overlap,
        )

    def trusted(self, space: LabelSpace) -> Tensor:
        return torch.stack([space.trusted(f"d{k}") for k in self.rows])


@st.composite
def cases(draw) -> Case:
    datasets = draw(
        st.lists(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True), min_size=1, max_size=4)
    )
    classes = list(dict.fromkeys(name for names in datasets for name in names))
    absent = {}
    for k, names in enumerate(datasets):
        others = [c for c in classes if c not in names]
        if others and draw(st.booleans()):
            absent[f"d{k}"] = [draw(st.sampled_from(others))]
    overlap = []
    if len(classes) > 1 and draw(st.booleans()):
        overlap = [tuple(draw(st.permutations(classes))[:2])]
    count = len(classes)
    images = draw(st.integers(1, 4))
    rows = draw(st.lists(st.integers(0, len(datasets) - 1), min_size=images, max_size=images))
    anchors = draw(st.integers(1, 6))
    # an anchor's label can only be a class that the image's own dataset labels
    labels = [
        [
            draw(st.sampled_from([BACKGROUND, BACKGROUND, IGNORE, *(classes.index(c) for c in datasets[row])]))
            for _ in range(anchors)
        ]
        for row in rows
    ]
    g = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    pairs = draw(
        st.lists(
            st.tuples(st.integers(0, images - 1), st.integers(0, anchors - 1), st.integers(-1, count - 1)),
            max_size=4,
        )
    )
    return Case(
        datasets=datasets,
        absent=absent,
        overlap=overlap,
        rows=rows,
        logits=torch.randn(images, anchors, count, generator=g, dtype=torch.float64) * 2,
        labels=torch.tensor(labels),
        avoid=torch.tensor(pairs, dtype=torch.int64).reshape(-1, 3),
    )


def losses(case: Case, space: LabelSpace, foreground_negatives: bool) -> Tensor:
    return image_focal_losses(
        case.logits,
        case.labels,
        case.trusted(space),
        foreground_negatives=foreground_negatives,
        overlap=space.overlap,
        avoid=case.avoid,
    )


def renumbered(values: Tensor, new_id: Tensor) -> Tensor:
    return torch.where(values >= 0, new_id[values.clamp(min=0)], values)


def in_space(case: Case, old: LabelSpace, new: LabelSpace) -> Case:
    """The same images in another label space that has at least the old classes (new logits: zeros)."""
    new_id = torch.tensor([new.classes.index(c) for c in old.classes])
    logits = case.logits.new_zeros(*case.logits.shape[:2], len(new.classes))
    logits[..., new_id] = case.logits
    avoid = case.avoid.clone()
    avoid[:, 2] = renumbered(avoid[:, 2], new_id)
    return replace(case, logits=logits, labels=renumbered(case.labels, new_id), avoid=avoid)


def same(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@FEW
@given(cases(), st.booleans(), st.data())
def test_the_order_of_the_datasets_does_not_matter(case, foreground_negatives, data):
    """Other order of the datasets: other rows, other class ids, the same loss and the same gradient."""
    order = data.draw(st.permutations(range(len(case.datasets))))
    old, new = case.space(), case.space(list(order))
    moved = in_space(case, old, new)
    same(losses(moved, new, foreground_negatives), losses(case, old, foreground_negatives))

    back = torch.tensor([new.classes.index(c) for c in old.classes])
    gradients = []
    for c, space in ((case, old), (moved, new)):
        leaf = c.logits.clone().requires_grad_()
        losses(replace(c, logits=leaf), space, foreground_negatives).sum().backward()
        gradients.append(leaf.grad)
    same(gradients[1][..., back], gradients[0])


@FEW
@given(cases(), st.booleans(), st.data())
def test_permuted_classes_permute_the_gradient_and_nothing_else(case, foreground_negatives, data):
    space = case.space()
    count = len(space.classes)
    shuffle = torch.tensor(data.draw(st.permutations(range(count))))  # new column j holds old class shuffle[j]
    new_id = torch.argsort(shuffle)
    avoid = case.avoid.clone()
    avoid[:, 2] = renumbered(avoid[:, 2], new_id)
    leaf = case.logits[..., shuffle].clone().requires_grad_()
    permuted = image_focal_losses(
        leaf,
        renumbered(case.labels, new_id),
        case.trusted(space)[:, shuffle],
        foreground_negatives=foreground_negatives,
        overlap=space.overlap[shuffle][:, shuffle],
        avoid=avoid,
    )
    permuted.sum().backward()
    original = case.logits.clone().requires_grad_()
    plain = losses(replace(case, logits=original), space, foreground_negatives)
    plain.sum().backward()
    same(permuted.detach(), plain.detach())
    same(leaf.grad, original.grad[..., shuffle])


@FEW
@given(cases(), st.booleans(), st.data())
def test_permuted_images_permute_the_sums(case, foreground_negatives, data):
    space = case.space()
    shuffle = torch.tensor(data.draw(st.permutations(range(len(case.rows)))))
    place = torch.argsort(shuffle)
    avoid = case.avoid.clone()
    avoid[:, 0] = place[avoid[:, 0]]
    moved = replace(
        case,
        rows=[case.rows[i] for i in shuffle],
        logits=case.logits[shuffle],
        labels=case.labels[shuffle],
        avoid=avoid,
    )
    same(losses(moved, space, foreground_negatives), losses(case, space, foreground_negatives)[shuffle])


@FEW
@given(cases(), st.booleans(), st.integers(0, 10_000))
def test_a_dataset_with_nothing_in_common_changes_no_old_class(case, foreground_negatives, seed):
    old = case.space()
    new = case.space(extra={"new": ["x", "y"]})
    count = len(old.classes)
    assert new.classes == (*old.classes, "x", "y")
    g = torch.Generator().manual_seed(seed)
    wider = replace(
        case,
        logits=torch.cat(
            [case.logits, torch.randn(*case.logits.shape[:2], 2, generator=g, dtype=torch.float64)], 2
        ),
    )
    before = losses(case, old, foreground_negatives)

    # the sum over the old classes: the gradient of every old logit, and the value with the new ones at -inf
    # (a negative with probability 0 costs nothing)
    leaf, narrow = wider.logits.clone().requires_grad_(), case.logits.clone().requires_grad_()
    total = losses(replace(wider, logits=leaf), new, foreground_negatives)
    total.sum().backward()
    losses(replace(case, logits=narrow), old, foreground_negatives).sum().backward()
    same(leaf.grad[..., :count], narrow.grad)
    silent = wider.logits.clone()
    silent[..., count:] = -800.0
    same(losses(replace(wider, logits=silent), new, foreground_negatives), before)

    # the total: nothing more without foreground negatives, else the new classes at the foreground anchors
    terms = torch.zeros_like(before)
    everywhere = {(b, n) for b, n, c in case.avoid.tolist() if c == -1}
    for b, n in (case.labels >= 0).nonzero().tolist():
        if foreground_negatives and (b, n) not in everywhere:
            p = wider.logits[b, n, count:].sigmoid()
            terms[b] += (-0.75 * p**2 * (1 - p).log()).sum()
    same(total.detach(), before + terms)
    if not foreground_negatives:
        assert (leaf.grad[..., count:] == 0).all()


@FEW
@given(cases(), st.booleans())
def test_every_image_stands_alone(case, foreground_negatives):
    """The sum of an image does not depend on what it is batched with."""
    space = case.space()
    together = losses(case, space, foreground_negatives)
    for b, row in enumerate(case.rows):
        avoid = case.avoid[case.avoid[:, 0] == b].clone()
        avoid[:, 0] = 0
        alone = replace(case, rows=[row], logits=case.logits[b : b + 1], labels=case.labels[b : b + 1], avoid=avoid)
        assert float(losses(alone, space, foreground_negatives)) == pytest.approx(
            float(together[b]), rel=1e-12, abs=1e-12
        )


@FEW
@given(cases())
def test_more_trust_never_lowers_the_loss(case):
    """Trusted background only adds terms, all of them positive: dataset-aware <= naive concatenation."""
    space = case.space()
    aware = losses(case, space, True)
    naive = image_focal_losses(
        case.logits,
        case.labels,
        torch.ones(len(case.rows), len(space.classes), dtype=torch.bool),
        overlap=space.overlap,
        avoid=case.avoid,
    )
    assert (naive - aware >= -1e-12).all()
    untrusted = (~case.trusted(space)).any(1) & (case.labels == BACKGROUND).any(1)
    if not len(case.avoid):
        assert torch.equal(naive > aware + 1e-12, untrusted)


def weighed(
    case: Case, trusted: Tensor, weight: Tensor | None, foreground_negatives: bool
) -> tuple[Tensor, Tensor]:
    """Losses per image and the gradient by the logits."""
    leaf = case.logits.clone().requires_grad_()
    found = image_focal_losses(
        leaf, case.labels, trusted, foreground_negatives=foreground_negatives, overlap=case.space().overlap,
        avoid=case.avoid, background_weight=weight,
    )  # fmt: skip
    found.sum().backward()
    return found.detach(), leaf.grad


@FEW
@given(cases(), st.booleans(), st.data())
def test_background_weights_lie_between_avoided_and_trusted(case, foreground_negatives, data):
    """Some pairs (image, class) that the data avoid become trusted by a teacher, with a weight.

    Weight 1 is trusted, 0 is avoided, and between the two loss and gradient are linear; where the weight is 1
    nothing changes.
    """
    avoided = case.trusted(case.space())
    taught = torch.tensor([[data.draw(st.booleans()) for _ in row] for row in avoided.tolist()]) & ~avoided
    trusted = avoided | taught

    def at(weight: float) -> tuple[Tensor, Tensor]:
        table = torch.ones(avoided.shape).masked_fill(taught, weight)
        return weighed(case, trusted, table, foreground_negatives)

    whole, none = weighed(case, trusted, None, foreground_negatives), at(0.0)
    for one, other in zip(at(1.0), whole, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(none, weighed(case, avoided, None, foreground_negatives), strict=True):
        assert torch.equal(one, other)
    share = data.draw(st.sampled_from([0.25, 0.5, 0.75]))  # exact in float32
    for part, low, high in zip(at(share), none, whole, strict=True):
        same(part, low + share * (high - low))
    gradient = at(share)[1]
    labels = case.labels[..., None]
    weighs = labels == BACKGROUND if foreground_negatives else labels != torch.arange(avoided.shape[1])
    elsewhere = ~(taught[:, None] & weighs)
    assert torch.equal(gradient[elsewhere], whole[1][elsewhere])  # positives and others' classes keep 1
    assert (none[1][~elsewhere] == 0).all()


@FEW
@given(
    case=cases(), foreground_negatives=st.booleans(), seed=st.integers(0, 999), gamma=st.sampled_from([0.0, 2.0])
)
def test_the_loss_is_the_focal_loss_with_the_negative_weights(case, foreground_negatives, seed, gamma):
    """`negative_weights` times the negative term, plus the positive term: nothing else is in the loss."""
    space, alpha = case.space(), 0.3
    trusted = case.trusted(space)
    background = torch.rand(trusted.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    options = {
        "overlap": space.overlap,
        "avoid": case.avoid,
        "foreground_negatives": foreground_negatives,
        "background_weight": background,
    }
    weights = negative_weights(case.labels, trusted, **options)
    p = case.logits.sigmoid()
    positive = (
        torch.nn.functional.one_hot(case.labels.clamp(min=0), p.shape[2]) * (case.labels >= 0)[..., None].double()
    )
    by_hand = -alpha * positive * (1 - p) ** gamma * p.log() - (1 - alpha) * weights * p**gamma * (1 - p).log()
    found = dataset_aware_focal_loss(case.logits, case.labels, trusted, alpha, gamma, **options)
    torch.testing.assert_close(found, by_hand.sum(), rtol=1e-10, atol=1e-12)
    assert (weights * positive == 0).all()
    assert (weights[case.labels == IGNORE] == 0).all()
