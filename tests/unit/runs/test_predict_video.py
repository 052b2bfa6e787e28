"""Detections of videos: a line per frame, a drawn video, few frames in memory, and what a command says."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from crossdet.data.video import Video, VideoWriter
from crossdet.errors import RunError, UserError
from crossdet.runs.predict_video import FRAMES_AT_ONCE, predict_videos
from crossdet.types import Detections

pytest.importorskip("av")
FRAMES, HEIGHT, WIDTH = 20, 48, 64


@pytest.fixture
def clip(tmp_path):
    """A green square walks over grey."""
    file = tmp_path / "clip.mp4"
    with VideoWriter(file, Fraction(10)) as video:
        for number in range(FRAMES):
            frame = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
            frame[16:32, number * 2 : number * 2 + 16] = (0, 230, 0)
            video.add(number / 10, frame)
    return file


def squares(pictures):
    """Finds them, by colour."""
    found = []
    for picture in pictures:
        y, x = np.nonzero((picture[..., 1] > 160) & (picture[..., 0] < 80))
        box = torch.tensor([[x.min(), y.min(), x.max() + 1, y.max() + 1]]).float()
        found.append(Detections(box, torch.tensor([0.5]), torch.tensor([0]), ("square",)))
    return found


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_every_frame_has_a_line_and_is_drawn(clip, tmp_path):
    seen, told = [], []

    def find(pictures):
        seen.append(len(pictures))
        return squares(pictures)

    (summary,) = predict_videos([str(clip)], find, tmp_path / "out", tell=lambda *state: told.append(state))
    assert max(seen) == FRAMES_AT_ONCE
    assert told[-1] == (str(clip), FRAMES, FRAMES)
    assert (summary.frames, summary.counts, summary.notes) == (FRAMES, {"square": FRAMES}, [])
    rows = lines(tmp_path / "out/clip.jsonl")
    assert [row["frame"] for row in rows] == list(range(FRAMES))
    assert [row["time"] for row in rows] == pytest.approx(np.arange(FRAMES) / 10, abs=2e-3)
    assert (rows[0]["width"], rows[0]["height"]) == (WIDTH, HEIGHT)
    for row in rows:
        (detection,) = row["detections"]
        assert (detection["class"], detection["score"]) == ("square", 0.5)
        assert detection["box_xyxy"] == pytest.approx([2 * row["frame"], 16, 2 * row["frame"] + 16, 32], abs=3)
    with Video(str(tmp_path / "out/clip.mp4")) as drawn:
        shown = list(drawn)
    with Video(str(clip)) as source:
        whole = list(source)
    assert [frame.time for frame in shown] == pytest.approx([row["time"] for row in rows], abs=2e-3)
    assert (
        shown[0].picture[..., 0].max() > 150 > 120 > whole[0].picture[..., 0].max()
    )  # a box in a red of its class


def test_ctrl_c_keeps_what_was_found(clip, tmp_path):
    calls = iter([squares, squares])

    def find(pictures):
        found = next(calls, None)
        if found is None:
            raise KeyboardInterrupt
        return found(pictures)

    (summary,) = predict_videos([str(clip)], find, tmp_path / "out", pictures=False)
    assert summary.frames == len(lines(tmp_path / "out/clip.jsonl")) == 2 * FRAMES_AT_ONCE
    assert summary.notes == [f"{clip}: ended by Ctrl-C"]
    assert not (tmp_path / "out/clip.mp4").exists()


def interrupted(monkeypatch, camera=None):
    """The second batch of whatever is looked at. camera: the file that a camera shows."""
    calls = iter([squares])

    def find(pictures):
        found = next(calls, None)
        if found is None:
            raise KeyboardInterrupt
        return found(pictures)

    monkeypatch.setattr("crossdet.runs.predict_video.finder", lambda _: find)
    if camera is not None:
        monkeypatch.setattr("crossdet.data.video._place", lambda _: (str(camera), None))


def test_ctrl_c_leaves_out_the_videos_after_it(clip, trained, tmp_path, crossdet, monkeypatch):
    """And is told as of pictures; one after the other had to be ended."""
    interrupted(monkeypatch)
    after = tmp_path / "after.mp4"
    after.write_bytes(clip.read_bytes())
    out = tmp_path / "out"
    done = crossdet("predict", trained.folder, clip, after, "-o", out, "--json", out / "all.json")
    told = f"interrupted after {FRAMES_AT_ONCE} frames of {clip}; what was found is kept; not looked at: {after}\n"
    assert (done.returncode, done.stderr) == (130, told)
    assert len(lines(out / "clip.jsonl")) == FRAMES_AT_ONCE
    assert not (out / "after.jsonl").exists()
    (video,) = json.loads((out / "all.json").read_text())["videos"]
    assert (video["frames"], video["notes"]) == (FRAMES_AT_ONCE, [f"{clip}: ended by Ctrl-C"])


def test_ctrl_c_is_the_end_of_a_camera(clip, trained, tmp_path, crossdet, monkeypatch):
    interrupted(monkeypatch, clip)
    done = crossdet("predict", trained.folder, "camera:0", "-o", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    interrupted(monkeypatch, clip)
    done = crossdet("predict", trained.folder, "camera:0", clip, "-o", tmp_path / "out")
    assert (done.returncode, f"not looked at: {clip}" in done.stderr) == (130, True)


def test_one_that_cannot_be_opened_does_not_end_the_others(clip, tmp_path):
    bad = tmp_path / "junk.mp4"
    bad.write_bytes(b"junk")
    junk, good = predict_videos([str(bad), str(clip)], squares, tmp_path / "out")
    assert (junk.frames, good.frames > 0) == (0, True)
    assert "no video can be read from it" in junk.notes[0]
    with pytest.raises(UserError, match="no video can be read"):
        list(predict_videos([str(bad)], squares, tmp_path / "out"))


@pytest.mark.parametrize("wrong", [("--classes", "foo"), ("--classes", ""), ("--score", "foo=0.3")])
def test_a_mistake_leaves_what_was_found_before(clip, trained, tmp_path, crossdet, wrong):
    """It emptied the earlier file; a folder that was not there is not left empty."""
    earlier = tmp_path / "out/clip.jsonl"
    earlier.parent.mkdir()
    earlier.write_text("earlier")
    done = crossdet("predict", trained.folder, clip, "-o", earlier.parent, *wrong)
    assert done.returncode == 2, done.stdout
    assert earlier.read_text() == "earlier"
    assert crossdet("predict", trained.folder, clip, "-o", tmp_path / "new", *wrong).returncode == 2
    assert not (tmp_path / "new").exists()


def test_an_earlier_result_is_kept_until_there_is_a_frame(clip, tmp_path):
    earlier = tmp_path / "out/clip.jsonl"
    earlier.parent.mkdir()
    earlier.write_text("earlier")

    def fail(_):
        raise MemoryError

    with pytest.raises(MemoryError):
        list(predict_videos([str(clip)], fail, earlier.parent))
    assert earlier.read_text() == "earlier"


def test_no_source_is_written_over(clip, tmp_path):
    """Neither its own nor a later one."""
    content = clip.read_bytes()
    other = tmp_path / "raw" / clip.name
    other.parent.mkdir()
    other.write_bytes(content)
    for sources in ([clip], [other, clip]):
        with pytest.raises(UserError, match=rf"--output {tmp_path}: {clip} would be written over"):
            list(predict_videos([str(source) for source in sources], squares, tmp_path))
    assert clip.read_bytes() == content
    assert not list(tmp_path.glob("*.jsonl"))


def test_the_command(clip, trained, tmp_path, crossdet):
    out = tmp_path / "out"
    done = crossdet(
        "predict", trained.folder, clip, "--every", "5", "-o", out, "--no-pictures", "--json", out / "all.json"
    )
    assert done.returncode == 0, done.stderr
    assert "clip.mp4: 4 frames: " in done.stdout
    assert [row["frame"] for row in lines(out / "clip.jsonl")] == [0, 5, 10, 15]
    (video,) = json.loads((out / "all.json").read_text())["videos"]
    assert (video["frames"], video["notes"]) == (4, [])
    assert not (out / "predictions.json").exists()
    bad = tmp_path / "junk.mp4"
    bad.write_bytes(b"junk")
    several = crossdet("predict", trained.folder, bad, clip, "--every", "5", "-o", out, "--no-pictures")
    assert f"skipped {bad}: no video can be read from it" in several.stdout
    assert "0 frames" not in several.stdout
    assert "clip.mp4: 4 frames: " in several.stdout
    pattern = crossdet("predict", trained.folder, tmp_path / "cl*.mp4", "--every", "5", "-o", out, "--no-pictures")
    assert "clip.mp4: 4 frames: " in pattern.stdout, pattern.stderr
    refused = crossdet("predict", trained.folder, tmp_path, "--every", "5", "-o", out)
    assert refused.returncode == 2
    assert "--every: it is for videos" in refused.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("name", ["clip.jsonl", "clip.mp4"])
def test_a_full_disk_is_no_traceback(clip, tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).symlink_to("/dev/full")
    with pytest.raises(RunError, match=r"clip.* could not be written \(No space left on device\); what was found"):
        list(predict_videos([str(clip)], squares, tmp_path / "out"))
