"""Frames of videos: their number, times and colours; turned, damaged and truncated files; a video written."""

from __future__ import annotations

import struct
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from crossdet.data.video import Video, VideoWriter, find_videos, is_video
from crossdet.errors import RunError, UserError

av = pytest.importorskip("av")
FRAMES, HEIGHT, WIDTH = 24, 48, 64


def picture(number: int) -> np.ndarray:
    """Red at the left, and a grey that grows with the number at the right."""
    found = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    found[:, : WIDTH // 2, 0] = 220
    found[:, WIDTH // 2 :] = 9 * number
    return found


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """2.4 seconds."""
    file = tmp_path_factory.mktemp("clips") / "clip.mp4"
    with VideoWriter(file, Fraction(10)) as video:
        for number in range(FRAMES):
            video.add(number / 10, picture(number))
    return file


def frames(file: Path, every: int = 1):
    with Video(str(file), every) as video:
        found = list(video)
    return found, video.notes


def test_frames_have_numbers_times_and_colours(clip):
    found, notes = frames(clip)
    assert notes == []
    assert [frame.number for frame in found] == list(range(FRAMES))
    assert [frame.time for frame in found] == pytest.approx([number / 10 for number in range(FRAMES)], abs=2e-3)
    for frame in found:
        assert np.abs(frame.picture.astype(int) - picture(frame.number)).mean() < 6
    some, _ = frames(clip, every=5)
    assert [frame.number for frame in some] == [0, 5, 10, 15, 20]
    assert [frame.time for frame in some] == [found[number].time for number in (0, 5, 10, 15, 20)]


@pytest.mark.parametrize("begin", [0.0, 7200.0])
def test_times_are_those_of_the_pictures(tmp_path, begin):
    """Not evenly spread, as of a camera, whose clock begins anywhere; sides that are odd are made even."""
    times = [0.0, 0.25, 0.3, 2.0]
    with VideoWriter(tmp_path / "odd.mp4", Fraction(25)) as video:
        for number, time in enumerate(times):
            video.add(begin + time, np.pad(picture(number), ((0, 1), (0, 1), (0, 0)), mode="edge"))
    found, _ = frames(tmp_path / "odd.mp4")
    assert [frame.time for frame in found] == pytest.approx(times, abs=2e-3)
    assert {frame.picture.shape for frame in found} == {(HEIGHT, WIDTH, 3)}


def test_a_video_held_upright_is_turned(clip, tmp_path):
    """The display matrix of a quarter clockwise, (x, y) -> (height - y, x), written into the file."""
    data = bytearray(clip.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    one = 1 << 16
    data[at : at + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, HEIGHT * one, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(data)
    found, _ = frames(tmp_path / "turned.mp4")
    assert found[0].picture.shape == (WIDTH, HEIGHT, 3)
    red = found[0].picture[..., 0]
    assert red[: WIDTH // 2].mean() > 150  # what was left is on top
    assert red[WIDTH // 2 :].mean() < 50


def test_what_is_left_of_a_file_is_read(clip, tmp_path):
    stream = tmp_path / "clip.ts"  # a container that can be read from any part
    with av.open(str(clip)) as source, av.open(str(stream), "w") as target:
        copy = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = copy
                target.mux(packet)
    whole, notes = frames(stream)
    assert (len(whole), notes) == (FRAMES, [])

    data = bytearray(clip.read_bytes())
    start = data.index(b"mdat")
    data[start + len(data) // 2 : start + len(data) // 2 + 60] = bytes(60)
    (tmp_path / "damaged.mp4").write_bytes(data)
    found, notes = frames(tmp_path / "damaged.mp4")
    assert FRAMES // 4 < len(found) <= FRAMES
    assert len(found) == FRAMES or notes


def test_a_clock_that_begins_later(clip, tmp_path):
    """A whole file, of which nothing is missing: its end is told as a place on that clock."""
    late = tmp_path / "late.mkv"
    with av.open(str(clip)) as source, av.open(str(late), "w") as target:
        copy = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                later = int(9 / packet.time_base)
                packet.dts, packet.pts, packet.stream = packet.dts + later, packet.pts + later, copy
                target.mux(packet)
    found, notes = frames(late)
    assert (len(found), notes) == (FRAMES, [])
    assert found[0].time == 0


def test_a_truncated_file_says_so(clip, tmp_path):
    """With its table at the front, as players on the web want it; without the table nothing can be read."""
    fast = tmp_path / "fast.mp4"
    with av.open(str(clip)) as source, av.open(str(fast), "w", options={"movflags": "faststart"}) as target:
        copy = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = copy
                target.mux(packet)
    assert len(frames(fast)[0]) == FRAMES
    data = fast.read_bytes()
    start = data.index(b"mdat")
    fast.write_bytes(data[: start + 3 * (len(data) - start) // 4])
    found, notes = frames(fast)
    assert 0 < len(found) < FRAMES
    assert notes[-1] == f"{fast}: the file says that it has {FRAMES} frames, {len(found)} could be read"
    (tmp_path / "cut.mp4").write_bytes(clip.read_bytes()[:-200])
    with pytest.raises(UserError, match=r"cut\.mp4: no video can be read from it"):
        frames(tmp_path / "cut.mp4")


def test_what_is_no_video(tmp_path, monkeypatch):
    assert [is_video(name) for name in ("a.MP4", "camera:0", "b.gif", "camera:x", "mp4")] == [True, True] + 3 * [
        False
    ]
    (tmp_path / "text.mp4").write_text("no video")
    for source, message in (
        (tmp_path / "text.mp4", "no video can be read"),
        (tmp_path / "gone.mp4", "is no file"),
        ("camera:97", "camera:97: no video can be read from it"),
    ):
        with pytest.raises(UserError, match=message):
            frames(source)
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(UserError, match="on Linux and macOS only"):
        frames("camera:0")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"videos need PyAV: pip install 'crossdet\[video\]'"):
        frames(tmp_path / "text.mp4")


def test_a_name_with_a_colon_is_a_file(tmp_path, monkeypatch):
    """FFmpeg takes what stands before a colon for a protocol."""
    monkeypatch.chdir(tmp_path)
    file = Path("2026-11-30T19:00/clip.mp4")
    file.parent.mkdir()
    with VideoWriter(file, Fraction(10)) as video:
        video.add(0, picture(3))
    assert len(frames(file)[0]) == 1


def test_what_ffmpeg_cannot_write_is_told_with_the_file(tmp_path):
    """The codec has no pictures of so many pixels; and what FFmpeg cannot name by a number of the system."""
    for file, side in ((tmp_path / "wide.mp4", 40_000), (tmp_path / "gone" / "clip.mp4", 64)):
        with (
            pytest.raises(RunError, match=rf"^{file} could not be written \(.+\); what was found before is kept"),
            VideoWriter(file, Fraction(10)) as video,
        ):
            video.add(0, np.zeros((2, side, 3), np.uint8))


def test_the_first_error_is_the_one_that_is_told(tmp_path):
    with pytest.raises(KeyError), VideoWriter(tmp_path / "clip.mp4", Fraction(10)) as video:  # noqa: PT012
        video.add(0, picture(3))
        video._stream = None
        raise KeyError


def test_videos_of_patterns_each_once(tmp_path, monkeypatch):
    """A shell expands no pattern in quotes."""
    monkeypatch.chdir(tmp_path)
    for name in ("b.mp4", "a.mp4", "[1].mp4", "a.png"):
        (tmp_path / name).write_bytes(b"")
    given = ["b.mp4", "*.mp4", "camera:0", f"{tmp_path}/a.mp4", "gone.mp4", "camera:0", "[1].mp4"]
    assert find_videos(given) == ["b.mp4", "[1].mp4", "a.mp4", "camera:0", "gone.mp4"]
    with pytest.raises(UserError, match=r"^no video found for x\*\.mp4, y/\?\.avi$"):
        find_videos(["x*.mp4", "b.mp4", "y/?.avi"])
