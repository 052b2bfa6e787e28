"""Detection speed against torchvision's RetinaNet with the same backbone, and a folder against a plain loop.

    python benchmarks/inference.py [--sizes 320 480 640 800] [--rounds 5] [--json FILE]

Latency is one picture at a time, throughput a batch of 8, pictures 4:3 with the shorter side as given, in memory
as uint8. Timed is what a user calls: `Detector.batch` here, `model([image / 255, ...])` there, both with
normalisation, padding, top-k, NMS and boxes in pixels. Both have random weights, ResNet-50, P3-P7 with 256
channels and 9 anchors; each side in its faster memory format. With random weights all scores are near the prior,
so each side's score threshold is set to that of its 2,000th best pair in a picture: the same number of candidates
for top-k and NMS on both sides, and as a rule 100 detections per picture; the means are in the table.

A model with 2,000 classes (`--union-sizes`) is also asked for one of them, as `crossdet predict --classes` does;
torchvision computes all classes, there is no other way. Folder: `predict_files` against the same detector called
file by file, and against batches of 8 read one after the other. All take turns; medians, and medians of the
ratios of each round.

`--folder-peer` is another table, alone: `predict_files` with the first of `--batches` at the first of `--sizes`,
against torchvision's RetinaNet in a plain loop over a DataLoader that decodes in processes (`--workers`, which stay
from round to round) and pins; torchvision resizes on the device. With `--dtype bfloat16` both run under autocast:
`crossdet predict` itself computes in float32.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_image
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from bench import card_of
from crossdet.data.decoding import read_image
from crossdet.inference import Detector, predict_files
from crossdet.labels.space import LabelSpace
from crossdet.models.building import build_detector
from crossdet.models.card import InputSettings
from crossdet.models.retinanet.settings import Anchors, RetinaNetSettings
from loading import write_generated_photos

CANDIDATES = 2000
Run = Callable[[], list[int]]
"""Detects and gives the number of detections per picture."""


def pictures(size: int, count: int) -> list[Tensor]:
    """4:3, shorter side `size`, smooth enough that the network's answers differ from place to place."""
    g = torch.Generator().manual_seed(size)
    coarse = torch.rand(count, 3, size // 16, size // 12, generator=g) * 255
    wide = (size, size * 4 // 3)
    return list(nn.functional.interpolate(coarse, wide, mode="bilinear").round().to(torch.uint8))


def our_model(backbone: str, classes: int, device: torch.device, channels_last: bool) -> nn.Module:
    torch.manual_seed(0)
    scales = tuple(4 * 2 ** (k / 3) for k in range(3))
    model = (
        build_detector(RetinaNetSettings(backbone=backbone, anchors=Anchors(scales=scales)), classes)
        .to(device)
        .eval()
    )
    return model.to(memory_format=torch.channels_last) if channels_last else model


def their_model(backbone: str, classes: int, device: torch.device, channels_last: bool) -> nn.Module:
    torch.manual_seed(0)
    body = getattr(torchvision.models, backbone)(weights=None, norm_layer=FrozenBatchNorm2d)
    channels = [body.layer2[-1].conv1.in_channels, body.layer3[-1].conv1.in_channels, body.fc.in_features]
    layers = {"layer2": "0", "layer3": "1", "layer4": "2"}
    pyramid = BackboneWithFPN(body, layers, channels, 256, extra_blocks=LastLevelP6P7(channels[-1], 256))
    model = TorchvisionRetinaNet(pyramid, classes, detections_per_img=100).to(device).eval()
    return model.to(memory_format=torch.channels_last) if channels_last else model


def spread(model: nn.Module, predict: str) -> None:
    """Random class weights of a size that makes scores differ clearly, as those of a trained model do."""
    torch.manual_seed(1)
    nn.init.normal_(model.get_submodule(predict).weight, std=0.05)


@torch.inference_mode()
def threshold_of(logits: Tensor) -> float:
    """Score of the `CANDIDATES`th best pair of the first picture. logits `[B, anchors, classes]`."""
    return float(logits[0].flatten().topk(min(CANDIDATES, logits[0].numel())).values[-1].sigmoid())


@torch.inference_mode()
def our_run(model: nn.Module, images: Sequence[Tensor], wanted: int | None = None) -> Run:
    """Looks for all classes, or for the first `wanted`."""
    size = min(images[0].shape[1:])
    names = [f"class {k}" for k in range(model.num_classes)]
    space = LabelSpace.build(datasets={"all": names})
    detector = Detector(model, space, InputSettings(size, 2 * size))
    outputs = model(images[0][None].to(detector.device))
    threshold = threshold_of(torch.cat(outputs.logits, 1))
    del outputs
    classes = None if wanted is None else names[:wanted]

    def run() -> list[int]:
        return [len(found) for found in detector.batch(images, classes, threshold)]

    return run


@torch.inference_mode()
def their_run(model: nn.Module, images: Sequence[Tensor]) -> Run:
    device = next(model.parameters()).device
    height, width = images[0].shape[1:]
    model.transform.min_size, model.transform.max_size = (height,), width
    first, _ = model.transform([images[0].to(device) / 255])
    features = list(model.backbone(first.tensors).values())
    model.score_thresh = threshold_of(model.head(features)["cls_logits"])

    @torch.inference_mode()
    def run() -> list[int]:
        return [len(found["boxes"].cpu()) for found in model([image.to(device) / 255 for image in images])]

    return run


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turns(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    for run in runs.values():
        seconds(run)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(seconds(run))
    return times


def summary(times: dict[str, list[float]], images: int) -> dict[str, Any]:
    """Medians per picture, and for every side the median of its time over crossdet's (the first) per round."""
    first = next(iter(times))
    return {
        "seconds_per_image": {name: statistics.median(t) / images for name, t in times.items()},
        "ratio": {
            name: statistics.median(b / a for a, b in zip(times[first], t, strict=True))
            for name, t in times.items()
            if name != first
        },
    }


def faster_format(
    build: Callable[[bool], nn.Module], run: Callable[[nn.Module], Run], rounds: int
) -> tuple[nn.Module, str]:
    """The model in the memory format in which a single picture takes less time."""
    models = {"contiguous": build(False), "channels_last": build(True)}
    runs = {name: run(model) for name, model in models.items()}
    times = in_turns(runs, rounds)
    name = min(times, key=lambda n: statistics.median(times[n]))
    return models[name], name


# ------------------------------------------------------------------------------------------------- tables


def compare(args: argparse.Namespace, classes: int, sizes: Sequence[int], one: bool) -> list[dict[str, Any]]:
    """Rows for one number of classes. one: in addition ours looking for a single class, against all others."""
    device, rows = torch.device(args.device), []
    small = pictures(sizes[0], 1)
    ours, our_format = faster_format(
        lambda last: our_model(args.backbone, classes, device, last),
        lambda model: our_run(model, small),
        min(3, args.rounds),
    )
    theirs, their_format = faster_format(
        lambda last: their_model(args.backbone, classes, device, last),
        lambda model: their_run(model, small),
        min(3, args.rounds),
    )
    spread(ours, "class_subnet.predict")
    spread(theirs, "head.classification_head.cls_logits")
    for size in sizes:
        for batch in args.batches:
            images = pictures(size, batch)
            runs: dict[str, Run] = {"crossdet": our_run(ours, images)}
            if one:
                runs = {"crossdet, 1 class": our_run(ours, images, wanted=1), **runs}
            runs["torchvision"] = their_run(theirs, images)
            found = {name: statistics.mean(run()) for name, run in runs.items()}
            row = {"size": size, "batch": batch, "classes": classes, "detections": found}
            row |= summary(in_turns(runs, args.rounds), batch)
            row |= {"formats": {"crossdet": our_format, "torchvision": their_format}}
            rows.append(row)
            for name, value in row["seconds_per_image"].items():
                ratio = f"{row['ratio'][name]:8.2f}" if name in row["ratio"] else " " * 8
                print(f"{classes:7} {size:5} {batch:5}  {name:18} {1000 * value:9.1f} {ratio} {found[name]:10.1f}")
    return rows


def folder(args: argparse.Namespace, count: int) -> dict[str, Any]:
    """`predict_files` and two plain loops over generated photographs, at the first of the sizes."""
    device = torch.device(args.device)
    model = our_model(args.backbone, 91, device, channels_last=True)
    spread(model, "class_subnet.predict")
    space = LabelSpace.build(datasets={"all": [f"class {k}" for k in range(91)]})
    detector = Detector(model, space, InputSettings(args.sizes[0], 2 * args.sizes[0]))
    with tempfile.TemporaryDirectory() as temporary:
        images, _ = write_generated_photos(Path(temporary) / "photos", count)
        files = sorted(images.iterdir())
        with torch.inference_mode():
            outputs = model(read_image(files[0])[None].to(device))
            threshold = threshold_of(torch.cat(outputs.logits, 1))

        def file_by_file() -> list[int]:
            return [len(detector(file, score_threshold=threshold)) for file in files]

        def batches() -> list[int]:
            parts = [files[a:b] for a, b in pairwise([*range(0, count, 8), count])]
            return [len(f) for part in parts for f in detector.batch(part, score_threshold=threshold)]

        def ahead() -> list[int]:
            return [len(f) for _, _, f in predict_files(detector, files, score_threshold=threshold)]

        runs = {"predict_files": ahead, "batches of 8": batches, "file by file": file_by_file}
        found = {name: statistics.mean(run()) for name, run in runs.items()}
        if found["predict_files"] != found["batches of 8"]:
            raise SystemExit(f"not the same detections: {found}")
        result = summary(in_turns(runs, args.rounds), count)
    print(f"\nfolder of {count} photographs, shorter side {args.sizes[0]}")
    for name, value in result["seconds_per_image"].items():
        ratio = f"{result['ratio'][name]:8.2f}" if name in result["ratio"] else ""
        print(f"{name:18} {1 / value:8.1f} images/s {ratio}")
    return {"files": count, "size": args.sizes[0], "detections": found, **result}


class Pictures(Dataset[Tensor]):
    """Files, as a user of torchvision reads them."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> Tensor:
        return decode_image(str(self.files[row]), ImageReadMode.RGB)


def plain_loop(model: nn.Module, files: Sequence[Path], batch: int, workers: int) -> Run:
    """torchvision's detector over batches of a DataLoader, with the size and threshold that stand in the model."""
    device = next(model.parameters()).device
    loader = DataLoader(
        Pictures(files),
        batch_size=batch,
        num_workers=workers,
        collate_fn=list,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
    )

    @torch.inference_mode()
    def run() -> list[int]:
        found = []
        for images in loader:
            inputs = [image.to(device, non_blocking=True) / 255 for image in images]
            found += [len(one["boxes"].cpu()) for one in model(inputs)]
        return found

    return run


def folder_against_peer(args: argparse.Namespace) -> dict[str, Any]:
    """`predict_files` and torchvision's plain loop over generated photographs."""
    device, size, batch = torch.device(args.device), args.sizes[0], args.batches[0]
    in_half = args.dtype == "bfloat16"

    def numbers() -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=in_half)

    some = pictures(size, batch)
    with numbers():
        theirs, their_format = faster_format(
            lambda last: their_model(args.backbone, 91, device, last), lambda model: their_run(model, some), 3
        )
    ours = our_model(args.backbone, 91, device, channels_last=True)  # as `load_detector` has it
    spread(ours, "class_subnet.predict")
    spread(theirs, "head.classification_head.cls_logits")
    space = LabelSpace.build(datasets={"all": [f"class {k}" for k in range(91)]})
    detector = Detector(ours, space, InputSettings(size, 2 * size))
    with tempfile.TemporaryDirectory() as temporary:
        images, _ = write_generated_photos(Path(temporary) / "photos", args.files, different=64)
        files = sorted(images.iterdir())
        first = detector.resized(read_image(files[0]))
        with torch.inference_mode(), numbers():
            threshold = threshold_of(torch.cat(ours(first[None].to(device)).logits, 1))
            their_run(theirs, [first])  # sets their threshold
        theirs.transform.min_size, theirs.transform.max_size = (size,), 2 * size
        their_loop = plain_loop(theirs, files, batch, args.workers)

        def ahead() -> list[int]:
            with numbers():
                found = predict_files(detector, files, score_threshold=threshold, batch_size=batch)
                return [len(one) for _, _, one in found]

        def plain() -> list[int]:
            with numbers():
                return their_loop()

        runs = {"predict_files": ahead, "torchvision, DataLoader": plain}
        found = {name: statistics.mean(run()) for name, run in runs.items()}
        result = summary(in_turns(runs, args.rounds), args.files)
    print(f"folder of {args.files} photographs, shorter side {size}, batch {batch}, {args.dtype}")
    for name, value in result["seconds_per_image"].items():
        ratio = f"{result['ratio'][name]:8.2f}" if name in result["ratio"] else " " * 8
        print(f"{name:24} {1 / value:8.1f} images/s {ratio}   {found[name]:.1f} detections")
    about = {"files": args.files, "size": size, "batch": batch, "dtype": args.dtype, "workers": args.workers}
    return about | {"detections": found, "their_format": their_format, **result}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet50", choices=["resnet50", "resnet18"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[320, 480, 640, 800], help="shorter side")
    parser.add_argument("--union-sizes", type=int, nargs="*", default=[320], help="for the model of the union")
    parser.add_argument("--union-classes", type=int, default=2000)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--files", type=int, default=48, help="photographs of the folder")
    parser.add_argument("--folder-peer", action="store_true", help="only a folder against torchvision's loop")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of --folder-peer")
    parser.add_argument("--workers", type=int, default=min(8, max(1, (os.cpu_count() or 1) - 1)), help="of it, too")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="tiny pictures, small backbone: does it run?")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    args = parser.parse_args()
    if args.quick:
        args.backbone, args.sizes, args.union_sizes, args.batches = "resnet18", [64], [64], [1, 2]
        args.files, args.union_classes, args.workers = 9, 200, min(1, args.workers)
    print(f"{args.backbone}, {args.device}, {torch.get_num_threads()} threads, median of {args.rounds} rounds")
    result = {"folder": folder_against_peer(args)} if args.folder_peer else in_memory_and_folder(args)
    result |= {
        "backbone": args.backbone,
        "rounds": args.rounds,
        "candidates": CANDIDATES,
        "device": card_of(args.device) or platform.processor() or "cpu",
        "gpu": card_of(args.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


def in_memory_and_folder(args: argparse.Namespace) -> dict[str, Any]:
    print("classes  size batch  side                ms/image  x first detections")
    rows = compare(args, 91, args.sizes, one=False)
    if args.union_sizes:
        rows += compare(args, args.union_classes, args.union_sizes, one=True)
    return {"runs": rows, "folder": folder(args, args.files)}


if __name__ == "__main__":
    main()
