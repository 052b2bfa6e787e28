"""Latency of exported RetinaNets against torch eager, on one thread each.

    python benchmarks/exported.py [--size 320] [--backbone mobilenetv2_100] [--head 128 2] [--json FILE]

One picture, 4:3, in memory as uint8 at the size of the network, with random weights and a threshold that leaves
some hundred candidates (head: channels and convolutions before each output, by default those that `recipe: auto`
gives a small backbone): `Network.find` here, the exported file there (`Session.run`), with normalisation, padding,
top-k, suppression and boxes in pixels. They take turns; medians.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crossdet.export.about import About, Rules
from crossdet.export.files import openvino_model, write_onnx, write_openvino
from crossdet.export.graph import onnx_graph
from crossdet.export.parity import milliseconds
from crossdet.export.sessions import open_session
from crossdet.labels.space import LabelSpace
from crossdet.models.building import build_detector
from crossdet.models.card import Card, InputSettings
from crossdet.models.contract import Limits
from crossdet.models.retinanet.settings import SMALL_HEAD, RetinaNetSettings

CLASSES, CANDIDATES = 20, 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=320, help="shorter side, pixels")
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--head", type=int, nargs=2, default=SMALL_HEAD, metavar=("CHANNELS", "DEPTH"))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = (args.size, args.size * 4 // 3)
    settings = RetinaNetSettings(
        backbone=args.backbone, channels=args.head[0], head_depth=args.head[1], group_norm=True
    )
    network = build_detector(settings, CLASSES).eval().to(memory_format=torch.channels_last)
    picture = np.random.default_rng(0).integers(0, 256, (1, *shape, 3), dtype=np.uint8)
    images, sizes = torch.from_numpy(picture).permute(0, 3, 1, 2), torch.tensor([shape])
    with torch.inference_mode():
        scores = network.export_module()(images)[0].sigmoid().flatten()
    threshold = float(scores.topk(CANDIDATES).values[-1])
    limits, thresholds = Limits(threshold), np.full(CLASSES, threshold, np.float32)
    rules = Rules(None, False, (124, 116, 104), tuple(range(CLASSES)), 100, limits.nms_iou, False, limits.topk)
    space = LabelSpace.build(datasets={"one": [f"class {c}" for c in range(CLASSES)]})
    card = Card(space, settings, InputSettings(*shape), {})
    metadata = About(card, rules, "fp32", 18, "not stated", {}).to_metadata()
    with tempfile.TemporaryDirectory() as folder:
        files = {"onnxruntime": Path(folder) / "a.onnx", "openvino": Path(folder) / "a.xml"}
        graph = onnx_graph(network, rules, None, shape, 18)
        write_onnx(graph, metadata, files["onnxruntime"])
        write_openvino(openvino_model(graph), metadata, files["openvino"], half=False)
        sessions = {name: open_session(file, threads=1) for name, file in files.items()}

        def torch_eager(_round: int) -> Any:
            with torch.inference_mode():
                return network.find(images, sizes, None, limits)

        others = [lambda _round, run=one.run: run(picture, thresholds) for one in sessions.values()]
        found = [len(torch_eager(0)[0]), *(int((other(0)[2] >= 0).sum()) for other in others)]
        assert max(found) - min(found) <= 1, found  # a score at the threshold itself
        times = dict(zip(("torch", *files), milliseconds([torch_eager, *others], range(args.rounds)), strict=True))
    for name, time in times.items():
        print(f"{name:12} {time:7.1f} ms  {times['torch'] / time:5.2f} x")
    if args.json:
        ratios = {f"torch_over_{name}": times["torch"] / times[name] for name in files}
        about = {
            "backbone": args.backbone,
            "head": list(args.head),
            "size": list(shape),
            "detections": found,
            "torch": torch.__version__,
        }
        args.json.write_text(json.dumps(about | {"ms": times} | ratios, indent=1) + "\n")


if __name__ == "__main__":
    main()
