"""A folder on its way through the detector: ahead of the network but bounded, in order, nothing lost."""

import threading

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from crossdet import LabelSpace, inference
from crossdet.commands.terminal import check_device
from crossdet.data.canvases import CANVASES, canvases_of
from crossdet.errors import UserError, check_counts
from crossdet.inference import BATCHES_AHEAD, Detector, predict_files
from crossdet.models.building import build_detector
from crossdet.models.card import InputSettings
from crossdet.models.retinanet.settings import RetinaNetSettings
from crossdet.runs import predict as predicting
from crossdet.types import Detections

FILES = 23


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    space = LabelSpace.build(datasets={"a": ["x", "y"]})
    settings = RetinaNetSettings(backbone="test_efficientnet", channels=8, head_depth=1, prior=0.3)
    return Detector(build_detector(settings, 2), space, InputSettings(64, 128), thresholds={"x": 0.0, "y": 0.0})


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Lying and upright pictures in turns, each with colours of its own; the sixth is no picture."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    paths = []
    for number in range(FILES):
        size = (48, 96) if number % 2 else (96, 48)
        path = folder / f"{number:02d}.png"
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        paths.append(path)
    paths[5].write_bytes(b"no picture")
    return paths


def test_a_folder_gives_what_single_pictures_give_in_order(detector, files):
    for batch_size in (1, 4, 100):
        rows = list(predict_files(detector, files, max_detections=5, batch_size=batch_size))
        assert [path for path, _, _ in rows] == files
        for number, (path, pixels, found) in enumerate(rows):
            if number == 5:
                assert pixels is None
                assert str(path) in found
                continue
            alone = detector(path, max_detections=5)
            assert torch.equal(pixels, inference.as_tensor(path))
            assert len(found) == 5
            torch.testing.assert_close(found.scores, alone.scores, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found.boxes, alone.boxes, rtol=1e-3, atol=1e-2)
    assert list(predict_files(detector, [])) == []
    assert [row[1] for row in predict_files(detector, [files[5]])] == [None]


def test_upright_and_lying_pictures_are_batched_apart(detector, files, monkeypatch):
    """Together they would be squares; one of a kind, and nearly square ones, stay together."""
    shapes = []
    find = detector.model.find

    def seen(images, *args, **kwargs):
        shapes.append(tuple(images.shape))
        return find(images, *args, **kwargs)

    monkeypatch.setattr(detector.model, "find", seen)
    assert len(detector.batch(files[:4], max_detections=3)) == 4
    assert sorted(shapes) == [(2, 3, 64, 128), (2, 3, 128, 64)]
    shapes.clear()
    detector.batch([files[1], files[3]])
    detector.batch([torch.zeros(3, 64, 60, dtype=torch.uint8), torch.zeros(3, 60, 64, dtype=torch.uint8)])
    assert shapes == [(2, 3, 64, 128), (2, 3, 96, 96)]


def test_files_are_prepared_ahead_but_not_all_at_once(detector, files, monkeypatch):
    """When the first batch comes out, the following ones are read already; never more than the bound."""
    read, finished = inference.read_image, threading.Semaphore(0)
    before, begun = set(threading.enumerate()), []  # other tests' pools may still be there

    def counting(path, **options):
        begun.append(path)
        try:
            return read(path, **options)
        finally:
            finished.release()

    monkeypatch.setattr(inference, "read_image", counting)
    stream = predict_files(detector, files, batch_size=2)
    for taken in range(3):
        next(stream)
        bound = 2 * (1 + BATCHES_AHEAD) + taken
        while len(begun) < bound:  # all of them are read without anybody asking for more
            assert finished.acquire(timeout=10)
        assert len(begun) == bound
    threads = set(threading.enumerate()) - before
    assert any(thread.name.startswith("ThreadPool") for thread in threads)
    stream.close()  # a caller who has seen enough leaves no threads behind
    assert len(begun) <= bound
    assert not any(thread.name.startswith("ThreadPool") and thread.is_alive() for thread in threads)


@pytest.fixture(scope="module")
def of_many_sizes(tmp_path_factory):
    """Fourteen sizes, one picture that EXIF turns, one that nobody can read."""
    folder, rng = tmp_path_factory.mktemp("sizes"), np.random.default_rng(1)
    paths = []
    for number in range(18):
        path = folder / f"{number:02d}.jpg"
        pixels = rng.integers(0, 256, (40 + 9 * (number * 5 % 14), 40 + 8 * (number * 3 % 7), 3), dtype=np.uint8)
        exif = Image.Exif()
        if number == 2:
            exif[ExifTags.Base.Orientation] = 6
        Image.fromarray(pixels).save(path, exif=exif)
        paths.append(path)
    paths[7].write_bytes(b"no picture")
    return paths


@pytest.mark.parametrize("batch_size", [1, 8])
def test_a_folder_of_many_sizes_is_looked_at_in_few(detector, of_many_sizes, monkeypatch, batch_size):
    """What is found in a picture is what is found in it alone on its canvas, whatever the batches, in order."""
    shapes, find = [], detector.model.find

    def seen(images, *args, **kwargs):
        shapes.append(tuple(images.shape))
        return find(images, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(detector.model, "find", seen)
        rows = list(predict_files(detector, of_many_sizes, max_detections=5, batch_size=batch_size))
    assert [path for path, _, _ in rows] == of_many_sizes
    assert "07.jpg" in rows[7][2]
    read = {path: inference.as_tensor(path) for path in of_many_sizes if path != of_many_sizes[7]}
    sizes = np.array([read[path].shape[1:] if path in read else (0, 0) for path in of_many_sizes])
    canvases = canvases_of(sizes, 64, 128)
    assert {shape[2:] for shape in shapes} == {canvas for row, canvas in enumerate(canvases) if row != 7}
    assert 2 <= len(set(canvases)) <= CANVASES < len(np.unique(sizes, axis=0))
    assert sum(shape[0] for shape in shapes) == len(read)
    assert (max(shape[0] for shape in shapes) > 1) == (batch_size > 1)
    for (path, picture, found), canvas in zip(rows, canvases, strict=True):
        if picture is not None:
            assert torch.equal(picture, read[path])
            pair = (picture, detector.resized(picture))
            (alone,) = detector.find([pair], None, detector.limits(max_detections=5), canvas)
            assert len(found) == 5
            torch.testing.assert_close(found.scores, alone.scores, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found.boxes, alone.boxes, rtol=1e-3, atol=1e-2)


def test_what_the_detector_does_not_take(detector, files):
    with pytest.raises(UserError, match="unknown option 'nms'; did you mean 'nms_iou'"):
        detector(files[0], nms=0.5)
    with pytest.raises(
        UserError, match="unknown option 'conf'; known: classes, score_threshold, max_detections, tile"
    ):
        detector(files[0], conf=0.5)
    with pytest.raises(UserError, match=r"got list; several at once: detector\.batch\(images\)"):
        detector(files[:2])


def test_an_exported_file_takes_no_device(tmp_path):
    with pytest.raises(
        UserError, match=r"--device: .*a\.onnx is an exported file and runs where its own software does"
    ):
        check_device("cpu", [tmp_path / "a.safetensors", tmp_path / "a.onnx"])
    check_device(None, [tmp_path / "a.onnx"])


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "cpu:x", "meta"])
def test_a_device_that_is_not_there(device):
    with pytest.raises(UserError, match=f"device {device}: torch has none of that name here; expected cpu"):
        inference._device(device)


def test_options_are_checked_before_anything_is_read(detector, files):
    with pytest.raises(inference.UserError, match="z"):
        next(predict_files(detector, files, classes=["z"]))


def test_pictures_are_written_in_threads_and_errors_come_back(tmp_path, monkeypatch):
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), ())
    picture = np.full((20, 30, 3), 90, np.uint8)
    with predicting._Drawing(tmp_path / "out") as drawing:
        for number in range(3 * predicting.MAX_OPEN_DRAWINGS):
            drawing.add({}, f"{number}.jpg", picture, nothing)
            assert len(drawing._open) <= predicting.MAX_OPEN_DRAWINGS
    assert len(list((tmp_path / "out").iterdir())) == 3 * predicting.MAX_OPEN_DRAWINGS
    (tmp_path / "file").write_text("")

    for count in (1, 2 * predicting.MAX_OPEN_DRAWINGS):  # found at the end, found on the way
        entries = [{} for _ in range(count)]
        with predicting._Drawing(tmp_path / "file") as drawing:
            for entry in entries:
                drawing.add(entry, "x.jpg", picture, nothing)
        assert drawing.ended == f"{tmp_path}/file/x.jpg could not be written (File exists)"
        assert not any(entries)


def test_a_picture_of_16_bits_is_that_of_its_file(tmp_path):
    """Pillow's own conversion clips to white."""
    Image.fromarray(np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16)).save(tmp_path / "g.png")
    with Image.open(tmp_path / "g.png") as opened:
        assert torch.equal(inference.as_tensor(opened), inference.as_tensor(tmp_path / "g.png"))
    with pytest.raises(UserError, match="image: its values are fractions"):
        inference.as_tensor(Image.fromarray(np.zeros((4, 4), np.float32)))


@pytest.mark.parametrize("most", [0, -1, 2.5, True])
def test_how_many_are_whole_numbers(most):
    with pytest.raises(UserError, match=f"max_detections {most}: expected a whole number from 1 on"):
        check_counts(max_detections=most)
