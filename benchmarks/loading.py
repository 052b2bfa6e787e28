"""Images per second and core of the input pipeline, against torchvision's CocoDetection with the same transforms.

    python benchmarks/loading.py [--sizes 320 800] [--rounds 7] [--workers 0 2] [--json FILE]
    python benchmarks/loading.py --images DIR --annotations FILE.json     # real pictures instead of generated ones

Read, decode, resize (shorter side to the size, longer at most 1333/800 of it; antialiased), flip half of them,
batches of 8 padded to multiples of 32, uint8: on both sides, one thread per process. torchvision: `CocoDetection`
wrapped for transforms v2, once as tensors (`ToImage` first, the faster way), once with the PIL images that
`CocoDetection` gives. Before anything is timed, pictures and boxes of both are compared.

The sides take turns. "per core" is images per second of processor time of all processes involved, which other
load on the machine disturbs little; wall-clock times are in the JSON file as well. `floor` is what must be paid
anyway: decoding and resizing alone.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.transforms import v2

from crossdet.data.augment import Augment
from crossdet.data.cache import load_index, save_index
from crossdet.data.canvases import resized
from crossdet.data.decoding import read_image
from crossdet.data.formats.coco import read_coco
from crossdet.data.hybrid import Draw, HybridDataset, Part
from crossdet.data.index import Index
from crossdet.data.loading import collate, make_loader, pad_images
from crossdet.labels.space import LabelSpace

BATCH, PADDED_TO = 8, 32
Run = Callable[[int], None]


def natural_picture(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """A picture with the spectrum of photographs (amplitude ~ 1 / frequency), channels alike but not equal."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    amplitude = 1 / np.maximum(frequency, 1 / max(height, width))

    def field() -> np.ndarray:
        phases = np.exp(2j * np.pi * rng.random(amplitude.shape))
        values = np.fft.irfft2(amplitude * phases, s=(height, width))
        return values / values.std()

    common = field()
    channels = [np.clip(128 + 40 * (common + 0.25 * field()), 0, 255) for _ in range(3)]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


def write_generated_photos(
    folder: Path, count: int, seed: int = 0, different: int | None = None
) -> tuple[Path, Path]:
    """(folder of JPEG files, annotation file): COCO's sizes (640x480, every fourth upright), quality 90, about 7
    boxes with polygons each. different: so many pictures are generated, and are there several times under other
    names; a multiple of 4."""
    rng = np.random.default_rng(seed)
    pictures = folder / "images"
    pictures.mkdir(parents=True)
    images: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    for i in range(count):
        height, width = (640, 480) if i % 4 == 3 else (480, 640)
        file = pictures / f"{i:012d}.jpg"
        if different is None or i < different:
            natural_picture(rng, height, width).save(file, quality=90)
        else:
            shutil.copyfile(pictures / f"{i % different:012d}.jpg", file)
        images.append({"id": i, "file_name": f"{i:012d}.jpg", "height": height, "width": width})
        for _ in range(int(rng.integers(1, 14))):
            side = 8 + rng.random(2) * [width * 0.35, height * 0.35]
            corner = rng.random(2) * ([width, height] - side)
            polygon = np.tile(corner, 22) + rng.random(44) * np.tile(side, 22)
            row = {"id": len(boxes), "image_id": i, "category_id": int(rng.integers(1, 81)), "iscrowd": 0}
            row |= {"bbox": [*corner.tolist(), *side.tolist()], "area": float(side.prod() * 0.6)}
            boxes.append(row | {"segmentation": [polygon.round(2).tolist()]})
    categories = [{"id": k, "name": f"class {k}"} for k in range(1, 81)]
    annotations = folder / "instances.json"
    annotations.write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))
    return pictures, annotations


# ------------------------------------------------------------------------------------------ the two sides


def longest(size: int) -> int:
    return size * 1333 // 800


def our_dataset(index: Index, size: int, flip: float = 0.5) -> HybridDataset:
    space = LabelSpace.build(datasets={"coco": list(index.classes)})
    part = Part(index, 0, space.ids("coco", index.classes))
    return HybridDataset([part], space, Augment(size, longest(size), flip))


def their_dataset(images: Path, annotations: Path, size: int, as_tensor: bool, flip: float = 0.5) -> Any:
    geometry = [v2.Resize(size, max_size=longest(size), antialias=True), v2.RandomHorizontalFlip(flip)]
    steps = [v2.ToImage(), *geometry] if as_tensor else [*geometry, v2.ToImage()]
    with redirect_stdout(None):  # pycocotools tells how it gets on
        dataset = CocoDetection(str(images), str(annotations), transforms=v2.Compose(steps))
    return wrap_dataset_for_transforms_v2(dataset, target_keys=("image_id", "boxes", "labels"))


def padded(samples: Sequence[tuple[Tensor, dict[str, Any]]]) -> tuple[Tensor, list[dict[str, Any]]]:
    """As `GeneralizedRCNNTransform.batch_images` of torchvision: a filled batch, each picture copied into it."""
    height, width = (-(-max(image.shape[side] for image, _ in samples) // PADDED_TO) * PADDED_TO for side in (1, 2))
    batch = samples[0][0].new_full((len(samples), 3, height, width), 0)
    for place, (image, _) in zip(batch, samples, strict=True):
        place[:, : image.shape[1], : image.shape[2]].copy_(image)
    return batch, [target for _, target in samples]


def sides(index: Index, images: Path, annotations: Path, size: int, draws: int) -> dict[str, Run]:
    """Name -> a run over `draws` images with so many workers."""
    rows = [i % len(index) for i in range(draws)]
    batches = [rows[i : i + BATCH] for i in range(0, draws, BATCH)]
    ours = our_dataset(index, size)
    our_batches = [[Draw(row, 1000 * size + k) for k, row in enumerate(batch)] for batch in batches]
    tensors = their_dataset(images, annotations, size, as_tensor=True)
    pil = their_dataset(images, annotations, size, as_tensor=False)

    def run_ours(workers: int) -> None:
        for _ in make_loader(ours, our_batches, workers):
            pass

    def run_theirs(dataset: Any) -> Run:
        def run(workers: int) -> None:
            loader = DataLoader(dataset, batch_sampler=batches, num_workers=workers, collate_fn=padded)
            for _ in loader:
                pass

        return run

    return {"crossdet": run_ours, "torchvision, tensors": run_theirs(tensors), "torchvision, PIL": run_theirs(pil)}


def compare(index: Index, images: Path, annotations: Path, size: int = 240) -> float:
    """Mean difference of our pixels and torchvision's (two JPEG decoders), after checking sizes and boxes.

    torchvision cuts off fractions of the new size where ours rounds: pictures are compared where that makes no
    difference, boxes where in addition ours drops none (such without area).
    """
    ours = our_dataset(index, size, flip=0.0)
    theirs = their_dataset(images, annotations, size, as_tensor=True, flip=0.0)
    differences, boxes = [], 0
    for row in range(min(4 * BATCH, len(index))):
        sample, (image, target) = ours[Draw(row, 0)], theirs[row]
        if sample.image.shape != image.shape:
            if max(abs(a - b) for a, b in zip(sample.image.shape, image.shape, strict=True)) > 1:
                raise SystemExit(f"image {row}: {list(sample.image.shape)} here, {list(image.shape)} there")
            continue
        differences.append(float((sample.image.int() - image.int()).abs().float().mean()))
        if "boxes" in target and len(target["boxes"]) == len(sample.target):
            torch.testing.assert_close(sample.target.boxes, target["boxes"].data, atol=0.01, rtol=1e-4)
            boxes += len(sample.target)
    if not boxes:
        raise SystemExit("no picture with boxes that could be compared")
    if max(differences) > 1.5:
        raise SystemExit(f"pictures differ by {max(differences):.2f} grey levels on average")
    return statistics.mean(differences)


# ------------------------------------------------------------------------------------------------- timing


def processor_seconds() -> float:
    """Of this process and of all children that have ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def stages(index: Index, size: int, count: int) -> dict[str, float]:
    """Milliseconds per image of each part of our pipeline, one after the other. `rest` is what is left of a run."""
    dataset = our_dataset(index, size)
    draws = [Draw(row, row) for row in range(min(count, len(index)))]
    spent = dict.fromkeys(("decode", "resize", "annotations", "collate", "all"), 0.0)

    def timed(name: str, function: Callable[[], Any]) -> Any:
        start = time.process_time()
        result = function()
        spent[name] += time.process_time() - start
        return result

    for first in range(0, len(draws), BATCH):
        some = draws[first : first + BATCH]
        timed("all", lambda some=some: collate([dataset[draw] for draw in some]))
        pictures = timed("decode", lambda some=some: [read_image(index.path(d.row)) for d in some])
        targets = [resized(p.shape[1], p.shape[2], size, longest(size)) for p in pictures]
        small = timed(
            "resize",
            lambda p=pictures, t=targets: [
                v2.functional.resize(x, list(s), antialias=True) for x, s in zip(p, t, strict=True)
            ],
        )
        timed("annotations", lambda some=some: [dataset.annotations(0, d.row) for d in some])
        timed("collate", lambda small=small: pad_images(small, (124, 116, 104)))
    per_image = {name: 1000 * seconds / len(draws) for name, seconds in spent.items()}
    rest = per_image["all"] - sum(per_image[n] for n in ("decode", "resize", "annotations", "collate"))
    return per_image | {"rest": rest}


def measure(
    index: Index, images: Path, annotations: Path, size: int, workers: int, draws: int, rounds: int
) -> dict[str, Any]:
    runs = sides(index, images, annotations, size, draws)
    for run in runs.values():
        run(0)
    processor: dict[str, list[float]] = {name: [] for name in runs}
    wall: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start, began = time.perf_counter(), processor_seconds()
            run(workers)
            processor[name].append((processor_seconds() - began) / draws)
            wall[name].append((time.perf_counter() - start) / draws)
    ours = processor["crossdet"]
    return {
        "size": size,
        "workers": workers,
        "images_per_second_per_core": {n: 1 / statistics.median(v) for n, v in processor.items()},
        "images_per_second_wall": {n: 1 / statistics.median(v) for n, v in wall.items()},
        "ratio": {
            name: statistics.median(b / a for a, b in zip(ours, values, strict=True))
            for name, values in processor.items()
            if name != "crossdet"
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of real pictures, with --annotations")
    parser.add_argument("--annotations", type=Path, help="COCO instances file of --images")
    parser.add_argument("--sizes", type=int, nargs="+", default=[320, 480, 800], help="shorter side, pixels")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--draws", type=int, default=512, help="images per run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="few pictures, one size: does it run?")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    args = parser.parse_args()
    if (args.images is None) != (args.annotations is None):
        parser.error("--images and --annotations go together")
    if args.quick:
        args.sizes, args.draws = [160], 32
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        photos = 8 if args.quick else 64
        pictures, annotations = (
            (args.images, args.annotations) if args.images else write_generated_photos(folder / "data", photos)
        )
        save_index(read_coco(annotations, pictures), folder / "index")
        index = load_index(folder / "index")  # as a run has it: opened from the cache
        result = report(index, pictures, annotations, args)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


def report(index: Index, pictures: Path, annotations: Path, args: argparse.Namespace) -> dict[str, Any]:
    some = [index.path(i).stat().st_size for i in range(min(len(index), args.draws))]
    result: dict[str, Any] = {
        "pictures": "generated" if args.images is None else "real",
        "mean_file_kb": statistics.mean(some) / 1000,
        "rounds": args.rounds,
        "draws": args.draws,
        "batch": BATCH,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "pixel_difference": compare(index, pictures, annotations),
        "stages_ms": {},
        "runs": [],
    }
    print(f"{len(index)} {result['pictures']} pictures, {result['mean_file_kb']:.0f} kB each on average")
    print(f"{'size':>4} {'workers':>7}  {'images per second and core':26} {'x crossdet':>10}")
    for size in args.sizes:
        parts = stages(index, size, args.draws)
        result["stages_ms"][str(size)] = parts
        for workers in args.workers:
            row = measure(index, pictures, annotations, size, workers, args.draws, args.rounds)
            result["runs"].append(row)
            for name, rate in row["images_per_second_per_core"].items():
                ratio = f"{row['ratio'][name]:10.2f}" if name in row["ratio"] else ""
                print(f"{size:4} {workers:7}  {name:20} {rate:5.0f} {ratio}")
        floor = (parts["decode"] + parts["resize"]) / parts["all"]
        listed = ", ".join(f"{name} {value:.2f}" for name, value in parts.items())
        print(f"{size:4} ms per image: {listed}; floor (decode, resize) {floor:.0%}")
    return result


if __name__ == "__main__":
    main()
