"""Our RetinaNet against torchvision's with the same weights: features, logits, losses, gradients, detections.

The comparison needs torchvision's conditions: sides divisible by 128 (it derives strides from image / grid), its
rounded anchors with corners on the grid (handed to both), L1 boxes, frozen batch norm, thresholds 0.5 / 0.4 with
low-quality matches, everything trusted. P6 comes from C5 in both, as the channels of C5 and P5 differ here
(torchvision takes P5 when they are equal).

Ours differs on purpose in two places, shown in tests of their own: the normaliser (all positives of the batch,
not a mean over images of sums divided by their own positives; the same for batch 1) and boxes clipped to nothing
(not reported).
"""

from dataclasses import dataclass

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from crossdet.models.backbones import Backbone, freeze_batch_norm
from crossdet.models.contract import Limits
from crossdet.models.retinanet.network import Outputs, RetinaNet
from crossdet.models.retinanet.settings import PYRAMID_STRIDES, Anchors, RetinaNetLoss, RetinaNetSettings
from crossdet.types import Annotations, Batch

HEIGHT, WIDTH, CLASSES = 128, 256, 5
SCALES, RATIOS = (4.0, 5.03, 6.35), (0.5, 1.0, 2.0)
OURS = RetinaNetSettings(
    anchors=Anchors(scales=SCALES, ratios=RATIOS), loss=RetinaNetLoss(box_beta=0.0), weights="none"
)
SETTINGS = {"score_threshold": 0.12, "topk": 150, "nms_iou": 0.5, "max_detections": 60}


@dataclass
class Pair:
    ours: RetinaNet
    theirs: TorchvisionRetinaNet
    images: Tensor
    targets: list[Annotations]

    def batch(self, rows: list[int]) -> Batch:
        count = len(rows)
        sizes = torch.tensor([[HEIGHT, WIDTH]] * count)
        return Batch(
            images=self.images[rows],
            sizes=sizes,
            original_sizes=sizes,
            targets=[self.targets[i] for i in rows],
            trusted=torch.ones(count, CLASSES, dtype=torch.bool),
            image_ids=torch.arange(count),
            dataset_ids=torch.zeros(count, dtype=torch.int64),
        )

    def their_losses(self, rows: list[int]) -> dict[str, Tensor]:
        targets = [{"boxes": self.targets[i].boxes, "labels": self.targets[i].labels} for i in rows]
        return self.theirs.train()([self.images[i] / 255 for i in rows], targets)

    def their_names(self) -> dict[str, str]:
        """Our parameter names -> torchvision's."""
        names = {}
        for name in self.ours.state_dict():
            theirs = name
            if name.startswith("fpn."):
                theirs = f"backbone.{name}"
            for subnet, head, predict in (
                ("class_subnet", "classification_head", "cls_logits"),
                ("box_subnet", "regression_head", "bbox_reg"),
            ):
                if name.startswith(subnet):
                    theirs = name.replace(subnet, f"head.{head}").replace("predict", predict)
                    for i in range(4):
                        theirs = theirs.replace(f"tower.{i}.", f"conv.{i}.0.")
            if name not in ("mean", "std"):
                names[name] = theirs
        return names


def make_pair(backbone: str, channels_of_c5: int) -> Pair:
    torch.manual_seed(0)
    sizes = tuple(tuple(int(s * stride) for s in SCALES) for stride in (8, 16, 32, 64, 128))
    body = getattr(torchvision.models, backbone)(weights=None, norm_layer=FrozenBatchNorm2d)
    theirs = TorchvisionRetinaNet(
        _resnet_fpn_extractor(body, 5, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(channels_of_c5, 256)),
        CLASSES,
        anchor_generator=AnchorGenerator(sizes, (RATIOS,) * 5),
        min_size=HEIGHT,
        max_size=WIDTH,
        score_thresh=SETTINGS["score_threshold"],
        nms_thresh=SETTINGS["nms_iou"],
        detections_per_img=SETTINGS["max_detections"],
        topk_candidates=SETTINGS["topk"],
    )
    our_backbone = Backbone(backbone)
    freeze_batch_norm(our_backbone)
    ours = RetinaNet(our_backbone, CLASSES, OURS)
    for module in ours.modules():  # statistics that a forgotten batch norm would show
        if type(module).__name__ == "FrozenBatchNorm2d":
            for name, low, high in (("weight", 0.4, 0.8), ("bias", -0.1, 0.1), ("running_mean", -0.1, 0.1)):
                nn.init.uniform_(getattr(module, name), low, high)
            nn.init.uniform_(module.running_var, 0.7, 1.3)
    nn.init.normal_(ours.class_subnet.predict.weight, std=0.08)  # scores that differ
    nn.init.constant_(ours.class_subnet.predict.bias, -2.5)
    for conv in (*ours.class_subnet.tower, *ours.box_subnet.tower):
        nn.init.kaiming_normal_(conv.weight)

    g = torch.Generator().manual_seed(1)
    pair = Pair(
        ours,
        theirs,
        torch.randint(0, 256, (2, 3, HEIGHT, WIDTH), generator=g, dtype=torch.uint8),
        [
            Annotations(
                torch.tensor(boxes), torch.arange(len(boxes)) % CLASSES, torch.zeros(len(boxes), dtype=torch.uint8)
            )
            for boxes in (
                [[10.0, 20.0, 60.0, 90.0], [100.0, 5.0, 250.0, 120.0], [201.0, 60.0, 209.0, 66.0]],
                [[30.5, 40.0, 70.0, 75.5]],
            )
        ],
    )
    state = ours.state_dict()
    copied = {their: state[our] for our, their in pair.their_names().items()}
    assert set(copied) == set(theirs.state_dict())
    theirs.load_state_dict(copied)

    # their anchors are rounded and centred at the corner of a cell, ours at its middle
    blank = ImageList(torch.zeros(1, 3, HEIGHT, WIDTH), [(HEIGHT, WIDTH)])
    maps = [torch.zeros(1, 1, HEIGHT // stride, WIDTH // stride) for stride in PYRAMID_STRIDES]
    whole = theirs.anchor_generator(blank, maps)[0]
    for level, stride in enumerate(PYRAMID_STRIDES):
        ours.register_buffer(f"cell_{level}", theirs.anchor_generator.cell_anchors[level] - stride / 2, False)
    assert torch.equal(torch.cat(ours.anchors([m.shape[2:] for m in maps])), whole)
    return pair


@pytest.fixture(scope="module", params=[("resnet18", 512), ("resnet50", 2048)], ids=["resnet18", "resnet50"])
def pair(request) -> Pair:
    return make_pair(*request.param)


def their_features(pair: Pair, images: Tensor) -> list[Tensor]:
    normalised, _ = pair.theirs.transform(list(images / 255))
    return list(pair.theirs.backbone(normalised.tensors).values())


@torch.inference_mode()
def test_features_and_logits(pair):
    ours, theirs = pair.ours.eval(), pair.theirs.eval()
    our_maps, their_maps = ours.features(pair.images), their_features(pair, pair.images)
    assert [tuple(f.shape[2:]) for f in our_maps] == [(16, 32), (8, 16), (4, 8), (2, 4), (1, 2)]
    for a, b in zip(our_maps, their_maps, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))
    outputs, wanted = ours(pair.images), theirs.head(their_maps)
    logits = torch.cat(outputs.logits, 1)
    assert logits.std() > 0.3  # the comparison would say little about constant logits
    torch.testing.assert_close(logits, wanted["cls_logits"], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(torch.cat(outputs.deltas, 1), wanted["bbox_regression"], rtol=1e-3, atol=1e-3)


def test_losses_and_gradients_of_one_image(pair):
    ours, theirs = pair.ours.train(), pair.theirs.train()
    found = ours.losses_of(ours.features(pair.images[:1]), pair.batch([0])).normalised(ours.normaliser)
    wanted = pair.their_losses([0])
    for a, b in (("classification", "classification"), ("box", "bbox_regression")):
        assert float(found[a].detach()) == pytest.approx(float(wanted[b].detach()), rel=1e-4), a

    ours.zero_grad()
    theirs.zero_grad()
    sum(found.values()).backward()
    sum(wanted.values()).backward()
    their_parameters = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        their_gradient = their_parameters[pair.their_names()[name]].grad
        scale = float(their_gradient.abs().max())
        assert scale > 0, name
        torch.testing.assert_close(
            parameter.grad, their_gradient, rtol=1e-2, atol=2e-3 * scale, msg=lambda m, name=name: f"{name}: {m}"
        )


@torch.no_grad()
def test_batches_are_normalised_by_all_their_positives(pair):
    """On purpose: torchvision averages over images what it divides by the positives of each image."""
    ours = pair.ours.eval()
    batch = pair.batch([0, 1])
    features = ours.features(batch.images)
    sums = ours.losses_of(features, batch)
    positives = sums.positives
    assert len(set(positives.tolist())) == 2  # else the two rules agree
    wanted = pair.their_losses([0, 1])
    by_image = (sums.terms["classification"] / positives).mean(), (sums.terms["box"] / positives).mean()
    assert float(by_image[0]) == pytest.approx(float(wanted["classification"]), rel=1e-4)
    assert float(by_image[1]) == pytest.approx(float(wanted["bbox_regression"]), rel=1e-4)
    found = ours.losses_of(features, batch).normalised(ours.normaliser)
    assert float(found["classification"]) == pytest.approx(
        float(sums.terms["classification"].sum() / positives.sum())
    )
    assert float(found["box"]) == pytest.approx(float(sums.terms["box"].sum() / positives.sum()))
    assert float(found["classification"]) != pytest.approx(float(wanted["classification"]), rel=1e-3)
    ours.normaliser = "image"
    found = ours.losses_of(features, batch).normalised(ours.normaliser)
    ours.normaliser = "batch"
    assert float(found["classification"]) == pytest.approx(float(wanted["classification"]), rel=1e-4)
    assert float(found["box"]) == pytest.approx(float(wanted["bbox_regression"]), rel=1e-4)


@torch.inference_mode()
def test_detections(pair):
    """Their candidates, top-k per level, NMS and cap on the very same head outputs."""
    ours, theirs = pair.ours.eval(), pair.theirs.eval()
    outputs = ours(pair.images)
    sizes = [(HEIGHT, WIDTH), (100, 230)]  # the second image ends inside its padding
    anchors = ours.anchors(outputs.grids)
    wanted = theirs.postprocess_detections(
        {"cls_logits": outputs.logits, "bbox_regression": outputs.deltas}, [anchors, anchors], sizes
    )
    found = ours.decode(outputs, torch.tensor(sizes), limits=Limits(**SETTINGS))
    for a, b in zip(found, wanted, strict=True):
        assert len(a) == SETTINGS["max_detections"]  # the cap binds
        assert a.labels.tolist() == b["labels"].tolist()
        torch.testing.assert_close(a.scores, b["scores"], rtol=1e-6, atol=0)
        torch.testing.assert_close(a.boxes, b["boxes"], rtol=1e-5, atol=1e-3)
    above = sum(int((level[0].sigmoid() > SETTINGS["score_threshold"]).sum()) for level in outputs.logits)
    assert above > SETTINGS["topk"]  # so does the limit per level


@torch.inference_mode()
def test_detections_end_to_end(pair):
    """From pixels: the same objects, up to the rounding of two float32 networks."""
    ours, theirs = pair.ours.eval(), pair.theirs.eval()
    wanted = theirs([pair.images[0] / 255])[0]
    found = ours.decode(ours(pair.images[:1]), torch.tensor([[HEIGHT, WIDTH]]), limits=Limits(**SETTINGS))[0]
    assert len(found) == len(wanted["boxes"])
    torch.testing.assert_close(found.scores, wanted["scores"], rtol=1e-2, atol=1e-3)
    close = (found.boxes[:, None] - wanted["boxes"]).abs().amax(2) < 0.05
    close &= found.labels[:, None] == wanted["labels"]
    assert close.any(1).float().mean() > 0.95


@torch.inference_mode()
def test_boxes_clipped_to_nothing_are_not_reported(pair):
    """On purpose: torchvision reports them with zero area, where they use up the cap."""
    ours, theirs = pair.ours.eval(), pair.theirs.eval()
    outputs = ours(pair.images[:1])
    away = [d.clone() for d in outputs.deltas]
    for d in away:
        d[:, ::2, 0] = 40.0  # every second anchor's box far to the right
    outputs = Outputs(outputs.logits, away, outputs.grids)
    sizes = [(HEIGHT, WIDTH)]
    theirs_unlimited = theirs.detections_per_img
    try:
        theirs.detections_per_img = 10_000
        wanted = theirs.postprocess_detections(
            {"cls_logits": outputs.logits, "bbox_regression": away}, [ours.anchors(outputs.grids)], sizes
        )[0]
    finally:
        theirs.detections_per_img = theirs_unlimited
    found = ours.decode(outputs, torch.tensor(sizes), limits=Limits(**SETTINGS | {"max_detections": 10_000}))[0]
    seen = (wanted["boxes"][:, 2:] > wanted["boxes"][:, :2]).all(1)
    assert 0 < int(seen.sum()) < len(seen)
    assert found.labels.tolist() == wanted["labels"][seen].tolist()
    torch.testing.assert_close(found.boxes, wanted["boxes"][seen], rtol=1e-5, atol=1e-3)
