"""The class loss from slices of the last layer equals the one from all logits, in value and every gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from crossdet.losses import image_focal_losses
from crossdet.models.retinanet import background as background_module
from crossdet.models.retinanet import class_loss
from crossdet.models.retinanet.anchors import AnchorLabels
from crossdet.models.retinanet.class_loss import union_focal_losses
from crossdet.models.tiles import LocalTrust
from crossdet.types import BACKGROUND, IGNORE, trust_groups

DEPTH, SHAPES = 5, 3
GRIDS = [(6, 7), (3, 4), (2, 2), (1, 1)]
ANCHORS = SHAPES * sum(h * w for h, w in GRIDS)


@pytest.fixture(autouse=True, params=["in pieces", "batched"])
def background(request, monkeypatch):
    """Every test as on a CPU and as on other devices; the latter also with focal terms in several rounds."""
    if request.param == "batched":
        monkeypatch.setattr(class_loss, "is_batched", lambda device: True)
        monkeypatch.setattr(background_module, "DEVICE_ENTRIES", 2000)
    return request.param


class Case:
    """Towers, layer and labels of a batch; foreground also in the corners and on the 1x1 level."""

    def __init__(self, seed, images=5, classes=7, wide=False, regions=True, foreground=0.08):
        g = torch.Generator().manual_seed(seed)
        self.towers = [torch.randn(images, DEPTH, h, w, generator=g, dtype=torch.float64) for h, w in GRIDS]
        self.predict = nn.Conv2d(DEPTH, SHAPES * classes, 3, padding=1).double()
        if wide:
            self.predict = self.predict.to(memory_format=torch.channels_last)
            self.towers = [t.to(memory_format=torch.channels_last) for t in self.towers]
        for tower in self.towers:
            tower.requires_grad_()
        kind = torch.rand(images, ANCHORS, generator=g)
        labels = torch.full((images, ANCHORS), BACKGROUND)
        labels[kind < 0.1 + foreground] = IGNORE
        chosen = kind < foreground
        chosen[:, [0, 3 * 7 - 1, 3 * 6 * 7 - 1, -1]] = foreground > 0  # corners of P3, the single cell of the last
        labels[chosen] = torch.randint(0, classes, (int(chosen.sum()),), generator=g)
        labels[-1][labels[-1] >= 0] = BACKGROUND  # one image without any object
        image, anchor = (labels >= 0).nonzero(as_tuple=True)
        avoid = torch.zeros((0, 3), dtype=torch.int64)
        if regions:
            avoid = torch.stack(
                [
                    torch.randint(0, images, (60,), generator=g),
                    torch.randint(0, ANCHORS, (60,), generator=g),
                    torch.randint(-1, classes, (60,), generator=g),
                ],
                1,
            )
        self.labelled = AnchorLabels(labels, image, anchor, torch.zeros(len(image), 4), avoid)
        self.trusted = torch.rand(images, classes, generator=g) < 0.4
        self.trusted[1] = self.trusted[3]  # two images of one dataset, not side by side
        self.trusted[0] = False
        self.overlap = torch.rand(classes, classes, generator=g) < 0.2
        self.weight = torch.rand(images, generator=g, dtype=torch.float64)  # upstream gradients that differ

        self.background_weight = None
        self.local = None
        self.sure = torch.rand(images, ANCHORS, generator=g) < 0.5

    def in_mosaics(self, seed, tiles=4):
        """Every anchor touches some of the tiles, each of which trusts classes of its own."""
        g = torch.Generator().manual_seed(seed)
        images, classes = self.trusted.shape
        of_tiles = torch.rand(images, tiles, classes, generator=g) < 0.4
        touched = (torch.arange(1 << tiles)[:, None] & (1 << torch.arange(tiles))) != 0
        self.trusted = of_tiles.any(1)
        table = (of_tiles[:, None] | ~touched[:, :, None]).all(2) & self.trusted[:, None]
        self.local = LocalTrust(torch.randint(0, 1 << tiles, (images, ANCHORS), generator=g), table)

    def full(self, foreground_negatives, overlap, gamma):
        classes = self.trusted.shape[1]
        logits = [self.predict(t).permute(0, 2, 3, 1).reshape(len(t), -1, classes) for t in self.towers]
        foreground_negatives = self.sure if foreground_negatives == "sure" else foreground_negatives
        return image_focal_losses(
            torch.cat(logits, 1), self.labelled.labels,
            self.trusted if self.local is None else self.local.dense(), 0.25, gamma, foreground_negatives, overlap,
            self.labelled.avoid, background_weight=self.background_weight,
        )  # fmt: skip

    def sliced(self, foreground_negatives, overlap, gamma):
        if foreground_negatives == "sure":
            foreground_negatives = self.sure[self.labelled.image, self.labelled.anchor]
        return union_focal_losses(
            self.towers, self.predict, self.labelled, self.trusted, trust_groups(self.trusted), 0.25, gamma,
            foreground_negatives, overlap, background_weight=self.background_weight, local=self.local,
        )  # fmt: skip

    def gradients(self, losses):
        leaves = [*self.towers, self.predict.weight, self.predict.bias]
        return torch.autograd.grad((losses * self.weight).sum(), leaves)


def assert_equal(case, foreground_negatives=True, overlap=None, gamma=2.0):
    wanted, found = (f(foreground_negatives, overlap, gamma) for f in (case.full, case.sliced))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
    for one, other in zip(case.gradients(found), case.gradients(wanted), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("foreground_negatives", [True, False, "sure"])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_loss_and_gradients_are_those_of_all_logits(seed, wide, foreground_negatives):
    """Borders, empty and equal trusted sets, positives of untrusted classes, avoided regions, overlap."""
    case = Case(seed, wide=wide)
    own = case.labelled.labels[case.labelled.image, case.labelled.anchor]
    assert not case.trusted[case.labelled.image, own].all()  # some positives are of untrusted classes
    assert_equal(case, foreground_negatives, case.overlap if seed % 2 else None, gamma=(2.0, 1.3)[seed // 2])


@pytest.mark.parametrize("seed", range(3))
def test_weighed_background_is_that_of_all_logits(seed):
    """Images with equal trust and different weights: a person labelled the class here, a teacher there."""
    case = Case(seed)
    plain = case.sliced(True, None, 2.0)
    case.background_weight = torch.rand(case.trusted.shape, generator=torch.Generator().manual_seed(seed))
    assert_equal(case, overlap=case.overlap)
    assert_equal(case, "sure", overlap=case.overlap)
    assert not torch.allclose(case.sliced(True, None, 2.0), plain)
    case.background_weight = torch.ones(case.trusted.shape)
    torch.testing.assert_close(case.sliced(True, None, 2.0), plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("foreground_negatives", [True, False, "sure"])
@pytest.mark.parametrize("seed", range(3))
def test_trust_by_place_is_that_of_all_logits(seed, foreground_negatives):
    """Mosaics: an anchor trusts what all tiles trust that it touches; an object of one is a negative in all."""
    case = Case(seed)
    case.in_mosaics(seed)
    assert_equal(case, foreground_negatives, case.overlap, gamma=(2.0, 1.3, 0.0)[seed])
    case.background_weight = torch.rand(case.trusted.shape, generator=torch.Generator().manual_seed(seed))
    assert_equal(case, foreground_negatives)
    local, mosaics = case.sliced(True, None, 2.0), case.local
    case.local = None
    assert not torch.allclose(case.sliced(True, None, 2.0), local)
    # where all tiles trust the same it is the loss without tiles
    case.local = mosaics._replace(table=case.trusted[:, None].expand_as(mosaics.table))
    everywhere = case.sliced(True, None, 2.0)
    case.local = None
    torch.testing.assert_close(case.sliced(True, None, 2.0), everywhere, rtol=0, atol=1e-12)


def test_no_foreground_and_no_trusted_class_keep_the_parameters_in_the_graph():
    case = Case(0, foreground=0)
    assert len(case.labelled.image) == 0
    assert_equal(case)
    case.trusted[:] = False
    gradients = case.gradients(case.sliced(True, None, 2.0))
    assert all(bool((g == 0).all()) for g in gradients)
    assert_equal(case)


def test_everything_trusted_is_the_ordinary_focal_loss():
    case = Case(3, regions=False)
    case.trusted[:] = True
    assert len(trust_groups(case.trusted)) == 1
    assert_equal(case)


@pytest.mark.parametrize("entries", [1, 20, 100])
def test_chunks_of_the_foreground_change_nothing(monkeypatch, entries):
    case = Case(5)
    monkeypatch.setattr(class_loss, "FOREGROUND_ENTRIES", entries)
    assert_equal(case, overlap=case.overlap)


def test_one_step_with_weight_decay_gives_the_same_weights():
    steps = []
    for name in ("full", "sliced"):
        case = Case(7)
        torch.manual_seed(0)
        nn.init.normal_(case.predict.weight, std=0.2)  # logits below 20, where softplus stops being exact
        nn.init.zeros_(case.predict.bias)
        optimizer = torch.optim.SGD(case.predict.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
        for _ in range(2):
            optimizer.zero_grad()
            getattr(case, name)(True, None, 2.0).sum().backward()
            optimizer.step()
        steps.append(case.predict)
    torch.testing.assert_close(steps[0].weight, steps[1].weight, rtol=0, atol=1e-10)
    torch.testing.assert_close(steps[0].bias, steps[1].bias, rtol=0, atol=1e-10)


def test_the_dense_gradient_is_exactly_zero_where_nothing_was_computed():
    """A class that no image trusts, with foreground negatives off: its weights get no gradient at all."""
    case = Case(2)
    case.trusted[:, 4] = False
    case.labelled.labels[case.labelled.labels == 4] = IGNORE
    image, anchor = (case.labelled.labels >= 0).nonzero(as_tuple=True)
    case.labelled = case.labelled._replace(image=image, anchor=anchor)
    weight = case.gradients(case.sliced(False, None, 2.0))[len(GRIDS)]
    assert bool((weight.view(SHAPES, 7, -1)[:, 4] == 0).all())
    assert bool((weight != 0).any())


def test_a_graph_that_is_kept_gives_the_same_gradients_again():
    case = Case(4)
    losses = case.sliced(True, None, 2.0).sum()
    leaves = [*case.towers, case.predict.weight, case.predict.bias]
    first = torch.autograd.grad(losses, leaves, retain_graph=True)
    for one, other in zip(first, torch.autograd.grad(losses, leaves), strict=True):
        assert torch.equal(one, other)


def test_levels_of_any_sizes_lie_apart_in_one_map():
    """Put and taken out again; what is between them is zero, and no level touches another."""
    for grids in (GRIDS, [(3, 2)], [(2, 9), (4, 8), (1, 1)], [(9, 2), (5, 1), (3, 1), (2, 1), (1, 1)]):
        maps = [torch.full((1, 2, h, w), float(level + 1)) for level, (h, w) in enumerate(grids)]
        layout = background_module.Layout.of(maps)
        whole = layout.put(maps, torch.float32)
        assert whole.shape == (1, 2, layout.rows, layout.columns)
        for level, (down, across) in zip(maps, layout.windows(), strict=True):
            assert torch.equal(whole[:, :, down, across], level)
            top, left = max(0, down.start - 1), max(0, across.start - 1)
            around = whole[:, :, top : down.stop + 1, left : across.stop + 1]
            assert bool(((around == 0) | (around == level[0, 0, 0, 0])).all())
        assert int((whole > 0).sum()) == 2 * layout.cells
        anchors = torch.rand(1, layout.cells * SHAPES) < 0.5
        places = layout.anchor_places(SHAPES, torch.device("cpu"))
        silent = layout.put_anchors(anchors, SHAPES)
        assert torch.equal(silent[0, places], anchors[0])
        assert int((~silent).sum()) == int((~anchors).sum())


def test_groups_are_the_distinct_rows():
    trusted = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 0, 1], [1, 1, 1]], dtype=torch.bool)
    groups = [(group.images, group.classes.tolist()) for group in trust_groups(trusted)]
    assert groups == [((0, 2), [0, 2]), ((1,), []), ((3,), [0, 1, 2])]


def test_only_the_needed_slices_are_convolved(monkeypatch, background):
    """Never more output channels than the trusted classes of a group have; batched, once for all levels."""
    case = Case(1)
    widths = []
    conv2d = background_module.F.conv2d

    def watched(x, weight, *args, **kwargs):
        widths.append(len(weight))
        return conv2d(x, weight, *args, **kwargs)

    monkeypatch.setattr(background_module.F, "conv2d", watched)
    case.sliced(True, None, 2.0)
    sizes = {SHAPES * len(group.classes) for group in trust_groups(case.trusted)} - {0}
    sets = sum(bool(len(group.classes)) for group in trust_groups(case.trusted))
    if background == "batched":
        assert set(widths) == {-(-size // 8) * 8 for size in sizes}
        assert len(widths) == sets
    else:
        assert set(widths) == sizes
        assert len(widths) == sets * len(GRIDS)
        assert max(widths) < SHAPES * 7


@pytest.mark.parametrize("logit", [-4.6, -7.0])
def test_float16_keeps_the_gradient_of_quiet_background(logit):
    """Under a scaled loss, as a GradScaler has it: slopes of scores below 0.001 are less than float16 has."""
    case = Case(3, regions=False, foreground=0.0)
    case.trusted[:] = True
    case.towers = [tower.detach().float() for tower in case.towers]
    case.predict = case.predict.float()
    with torch.no_grad():
        case.predict.weight.mul_(0.1)
        case.predict.bias.fill_(logit)
    found = []
    for half, scale in ((False, 1.0), (True, 4096.0)):
        with torch.autocast("cpu", torch.float16, enabled=half):
            losses = case.sliced(foreground_negatives=True, overlap=None, gamma=2.0)
        (gradient,) = torch.autograd.grad(losses.sum() * scale, [case.predict.bias])
        found.append(gradient.double() / scale)
    torch.testing.assert_close(found[1], found[0], rtol=0.02, atol=0)
