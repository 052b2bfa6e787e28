"""What a config means on a machine."""

from __future__ import annotations

import json
import os
import signal
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from crossdet import Config, LabelSpace
from crossdet.errors import UserError
from crossdet.models.retinanet.settings import RetinaNetSettings
from crossdet.runs import building
from crossdet.training.recipe import Recipe
from tests.unit.models.detr.made import TINY_SETTINGS


@pytest.mark.parametrize(
    ("train", "gpu", "bf16", "numbers"),
    [
        ({}, True, True, "bf16-mixed"),
        ({}, True, False, "32-true"),
        ({}, False, True, "32-true"),
        ({"accelerator": "cpu"}, True, True, "32-true"),
        ({"precision": "32-true"}, True, True, "32-true"),
        ({"precision": "16-mixed"}, True, True, "16-mixed"),
        ({"recipe": "paper"}, True, True, "32-true"),
    ],
)
def test_auto_computes_in_bfloat16_on_a_card_that_has_it(monkeypatch, train, gpu, bf16, numbers):
    given = {}

    def fabric(**options):
        given.update(options)
        return SimpleNamespace(launch=lambda: None, strategy=SimpleNamespace(launcher=None))

    monkeypatch.setattr(building, "Fabric", fabric)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(gpu))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda emulated=True: bf16 or emulated)
    config = Config.from_dict(
        {"datasets": {"a": {"format": "coco", "train": {}}}, "train": {"loggers": [], **train}}
    )
    building.build_fabric(config)
    on_card = gpu and train.get("accelerator") != "cpu"
    assert (given["precision"], given["accelerator"]) == (numbers, "cuda" if on_card else "cpu")


@pytest.mark.parametrize("external", [False, True])
def test_sigterm_at_the_start_ends_the_processes_that_are_started(monkeypatch, external):
    """Not where somebody else has started them, or in these themselves."""
    ended, before = [], signal.signal(signal.SIGTERM, signal.SIG_DFL)
    procs: list[str] = []
    environment = SimpleNamespace(creates_processes_externally=external)
    launcher = SimpleNamespace(procs=procs, cluster_environment=environment)

    def launch():
        procs.append("another")
        if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            os.kill(os.getpid(), signal.SIGTERM)

    fabric = SimpleNamespace(launch=launch, strategy=SimpleNamespace(launcher=launcher))
    monkeypatch.setattr(building, "Fabric", lambda **_options: fabric)
    monkeypatch.setattr(building.atexit, "register", lambda end, some: ended.append((end, some)))
    datasets = {"a": {"format": "coco", "train": {}}}
    config = Config.from_dict({"datasets": datasets, "train": {"devices": 2, "accelerator": "cpu", "loggers": []}})
    try:
        with nullcontext() if external else pytest.raises(SystemExit):
            building.build_fabric(config)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended == ([] if external else [(building._end, ["another"])])


def test_a_batch_is_shared_evenly_by_the_processes_of_torchrun(monkeypatch):
    """`train.devices` is not what torchrun starts: with a picture too few each a process had an empty batch."""
    monkeypatch.setattr(torch.distributed, "is_torchelastic_launched", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", "3")
    train = {"batch_size": 8, "accumulate": 2, "accelerator": "cpu"}
    config = Config.from_dict(
        {"datasets": {"a": {"format": "coco", "train": {"annotations": "a"}}}, "train": train}
    )
    with pytest.raises(
        UserError, match=r"`train.batch_size`: expected a multiple of accumulate x processes = 6, got 8"
    ):
        building.build_fabric(config)


@pytest.mark.parametrize("name", ["retinanet", "dfine"])
def test_a_resumed_run_keeps_the_batch_norm_that_it_began_with(monkeypatch, name):
    """Two pictures at once are too few to train it, four are not. What the config says counts."""

    def settings(processes, began=None, **model):
        monkeypatch.setattr(building, "processes", lambda _config: processes)
        model |= {"name": name, "backbone": "test_efficientnet", "weights": "imagenet"}
        datasets = {"a": {"format": "coco", "train": {}}}
        return building.network_settings(
            Config.from_dict({"datasets": datasets, "model": model, "train": {"batch_size": 4}}), began
        )

    for first, then in ((2, 1), (1, 2)):
        began = settings(first)
        identity = {"architecture": name, "model": began.to_json()}
        assert settings(then).freeze_batch_norm != began.freeze_batch_norm
        assert settings(then, identity) == began
        said = not began.freeze_batch_norm
        assert settings(then, identity, freeze_batch_norm=said).freeze_batch_norm == said


def test_a_run_of_before_nms_goes_on_without():
    config = Config.from_dict({"datasets": {"a": {"format": "coco", "train": {}}}, "model": {"name": "dfine"}})
    began = building.network_settings(config)
    assert began.nms
    stored = {key: value for key, value in json.loads(began.to_json()).items() if key != "nms"}
    identity = {"architecture": "dfine", "model": json.dumps(stored)}
    assert building.network_settings(config, identity) == began.model_copy(update={"nms": False})


RETINANET = RetinaNetSettings(channels=16, head_depth=1)
NETWORKS = {
    "resnet": RETINANET.model_copy(update={"backbone": "resnet18"}),
    "activation within": RETINANET.model_copy(update={"backbone": "test_efficientnet"}),
    "layer norm": RETINANET.model_copy(update={"backbone": "test_convnext"}),
    "timm in D-FINE": TINY_SETTINGS["dfine"].model_copy(update={"backbone": "test_efficientnet", "square": 64}),
    **TINY_SETTINGS,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_batch_norm_is_fixed_where_there_is_some_and_the_setting_says_so(name):
    """Whose modules are in training mode all the same, as those of a stem that is not trained are not."""
    for fixed in (True, False):
        settings = NETWORKS[name].model_copy(update={"freeze_batch_norm": fixed})
        network = building.build_network(settings, LabelSpace.build({"a": ["car"]})).train()
        if name in ("resnet", "activation within"):
            network.freeze_stem()
            network.training_mode(False)
        assert building.has_fixed_batch_norm(network, settings) == (fixed and name not in ("layer norm", "rfdetr"))


def test_loader_processes_share_the_cores_with_those_of_torchrun(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    assert Recipe().loader_workers(True) == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert Recipe().loader_workers(True) == 3
