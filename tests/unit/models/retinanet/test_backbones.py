"""RetinaNet's backbones: kinds, batch norm, weights from files."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from crossdet.errors import UserError
from crossdet.models import backbones
from crossdet.models.backbones import Backbone, freeze_batch_norm, load_backbone_weights, read_state
from crossdet.models.building import build_detector
from crossdet.models.retinanet.network import RetinaNet
from crossdet.models.retinanet.settings import RetinaNetSettings
from crossdet.models.retinanet.subnets import GroupNorm

from .made import make


@pytest.fixture(scope="module")
def model() -> RetinaNet:
    return make()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_small_patch16_224", r"'vit_small_patch16_224' has features at strides \[16.*8, 16 and 32 are needed"),
        ("swin_tiny_patch4_window7_224", r"gives .*NHWC features; NCHW is needed"),
        ("nonsense_net", r"'nonsense_net' is no timm model; "),
        ("alexnet", r"model\.backbone: 'alexnet' is no timm model"),
    ],
)
def test_backbones_that_do_not_fit_are_refused(name, message):
    with pytest.raises(UserError, match=message):
        Backbone(name)


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("mobilenetv2_100", [32, 96, 320]),  # list starts at stride 2
        ("resnet18", [128, 256, 512]),
        ("convnext_atto", [80, 160, 320]),  # list starts at stride 4
    ],
)
def test_maps_are_chosen_by_stride(name, channels):
    backbone = Backbone(name).eval()
    assert backbone.channels == channels
    with torch.no_grad():
        maps = backbone(torch.zeros(1, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [
        (1, c, 64 // s, 96 // s) for c, s in zip(channels, (8, 16, 32), strict=True)
    ]


def test_maps_are_not_chosen_by_position(monkeypatch):
    """A model whose list is not in order of stride still gives C3, C4, C5."""
    real = backbones.timm.create_model
    asked = []

    def shuffled(name, **options):
        model = real(name, **options)
        if "out_indices" in options:
            asked.append(options["out_indices"])
        else:
            monkeypatch.setattr(model.feature_info, "reduction", lambda: [16, 4, 32, 2, 8])
        return model

    monkeypatch.setattr(backbones.timm, "create_model", shuffled)
    Backbone("resnet18")
    assert asked == [(4, 0, 2)]


def test_names_of_the_paper(monkeypatch):
    created = []

    def stop(name, **options):
        created.append(name)
        raise RuntimeError("enough")

    monkeypatch.setattr(backbones.timm, "create_model", stop)
    for name in ("resnet50", "mobilenetv2", "mobilenet_v2"):
        with pytest.raises(UserError):
            Backbone(name)
    assert created == ["resnet50.tv_in1k", "mobilenetv2_100", "mobilenetv2_100"]


class NotOnThisDisk(FileNotFoundError):
    """Like LocalEntryNotFoundError of huggingface_hub: an OSError with a long text."""


@pytest.mark.parametrize(
    "error", [NotOnThisDisk("no such entry\npage 2"), KeyError("x"), AssertionError(), ImportError("lib")]
)
@pytest.mark.parametrize("name", ["hf-hub:foo/bar", "resnet18"])
def test_whatever_timm_raises_is_an_error_of_the_user(name, error, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(backbones.timm, "create_model", fail)
    with pytest.raises(UserError, match=rf"model\.backbone: '{name}' is no timm model") as found:
        Backbone(name)
    assert "page 2" not in str(found.value)
    assert ("must be reachable" in str(found.value)) == (name != "resnet18")


def test_a_model_that_fails_only_with_its_maps_chosen(monkeypatch):
    real = backbones.timm.create_model

    def picky(name, **options):
        if "out_indices" in options:
            raise AssertionError("choose others")
        return real(name, **options)

    monkeypatch.setattr(backbones.timm, "create_model", picky)
    with pytest.raises(UserError, match=r"model\.backbone: 'resnet18' cannot be made \(choose others\)"):
        Backbone("resnet18")


def test_weights_that_cannot_be_fetched(monkeypatch):
    real = backbones.timm.create_model

    def offline(name, pretrained=False, **options):
        if pretrained:
            raise OSError("no route to host")
        return real(name, **options)

    monkeypatch.setattr(backbones.timm, "create_model", offline)
    with pytest.raises(
        UserError, match=r"model\.weights: .*could not be fetched \(no route to host\).*weights: none"
    ):
        Backbone("resnet18", pretrained=True)
    assert Backbone("resnet18").channels == [128, 256, 512]


@pytest.fixture(scope="module")
def trained_state() -> dict[str, Tensor]:
    torch.manual_seed(7)
    return {k: v.contiguous().clone() for k, v in Backbone("resnet18").body.state_dict().items()}


@pytest.mark.parametrize("kind", ["safetensors", "pth", "checkpoint", "model"])
def test_local_weights(tmp_path, trained_state, kind):
    """Plain and wrapped dictionaries, with a classifier that is not needed; into trained and frozen norms."""
    state = trained_state | {"fc.weight": torch.zeros(10, 512)}
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save({"checkpoint": {"state_dict": state}, "model": {"model": state}}.get(kind, state), path)
    torch.manual_seed(8)
    backbone, frozen = Backbone("resnet18"), Backbone("resnet18")
    freeze_batch_norm(frozen)
    assert not torch.equal(backbone.body.conv1.weight, state["conv1.weight"])
    for loaded in (backbone, frozen):
        load_backbone_weights(loaded, path)
        for name, value in loaded.body.state_dict().items():
            assert torch.equal(value, state[name]), name


def test_torchvisions_names_of_a_resnet(tmp_path):
    import torchvision

    torch.manual_seed(9)
    theirs = torchvision.models.resnet18().eval()
    torch.save(theirs.state_dict(), tmp_path / "tv.pth")
    backbone = Backbone("resnet18").eval()
    load_backbone_weights(backbone, tmp_path / "tv.pth")
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        y = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        c5 = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(y))))
        torch.testing.assert_close(backbone(x)[-1], c5, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("lacking", "misshapen", "message"),
    [
        (["layer1.0.conv1.weight"], [], "1 of {} entries missing (layer1.0.conv1.weight, ...), 0 of another shape"),
        ([], ["conv1.weight"], "0 of {} entries missing, 1 of another shape (conv1.weight, ...)"),
        (
            ["layer1.0.conv1.weight", "bn1.weight"],
            ["conv1.weight"],
            "2 of {} entries missing (bn1.weight, ...), 1 of another shape (conv1.weight, ...)",
        ),
    ],
)
def test_weights_that_do_not_fit(tmp_path, trained_state, lacking, misshapen, message):
    path = tmp_path / "w.safetensors"
    state = {k: v for k, v in trained_state.items() if k not in lacking}
    save_file(state | {k: torch.zeros(2, 3) for k in misshapen}, path)
    backbone = Backbone("resnet18")
    before = {k: v.clone() for k, v in backbone.body.state_dict().items()}
    with pytest.raises(UserError) as error:
        load_backbone_weights(backbone, path)
    wanted = f"model.weights: {path} does not fit the backbone: {message.format(len(trained_state))}"
    assert str(error.value) == wanted
    assert all(torch.equal(v, before[k]) for k, v in backbone.body.state_dict().items())


class Dangerous:
    """A pickle that would run code when loaded."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('code from a weights file ran')",))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_that_cannot_be_read(tmp_path, suffix):
    with pytest.raises(UserError, match="does not exist"):
        read_state(tmp_path / f"missing{suffix}")
    broken = tmp_path / f"broken{suffix}"
    for content in (b"", b"this is no weights file at all"):
        broken.write_bytes(content)
        with pytest.raises(UserError, match=f"broken{suffix} cannot be read"):
            read_state(broken)


def test_pickles_run_no_code_and_must_hold_tensors(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"state_dict": Dangerous()}, path)
    with pytest.raises(
        UserError, match="holds more than tensors, which could run code and is never loaded"
    ) as told:
        read_state(path)
    assert "weights_only" not in str(told.value)  # torch's advice is to let it run
    torch.save({"epoch": 3}, path)
    with pytest.raises(UserError, match="holds no plain dictionary of tensors"):
        read_state(path)
    torch.save([torch.zeros(1)], path)
    with pytest.raises(UserError, match="holds no plain dictionary of tensors"):
        read_state(path)


@pytest.mark.parametrize(("channels", "groups"), [(256, 32), (64, 16), (48, 12), (16, 4), (6, 1), (3, 1)])
def test_a_group_has_at_least_four_channels(channels, groups):
    """One image whose P7 is a single position can be trained on, and more than an order of values is left there."""
    norm = GroupNorm(channels, 4)
    assert norm.num_groups == groups
    found = norm(torch.randn(200, channels, 1, 1, generator=torch.Generator().manual_seed(0))).detach()
    assert torch.isfinite(found).all()
    if channels >= 4:  # with two per group all of them were +1 or -1
        assert float((found.abs() - 1).abs().median()) > 0.2


def test_weights_that_do_not_say_their_groups_keep_two_channels_in_each():
    """Weights files from before groups had a width: the network that they were trained as."""
    written = json.loads(RetinaNetSettings(backbone="test_efficientnet", channels=16, group_norm=True).to_json())
    del written["group_channels"]
    old, new = (
        RetinaNetSettings.from_json(json.dumps(written)),
        RetinaNetSettings(backbone="test_efficientnet", channels=16, group_norm=True),
    )
    groups = [
        {m.num_groups for m in build_detector(one, 2).modules() if isinstance(m, GroupNorm)} for one in (old, new)
    ]
    assert groups == [{8}, {4}]
