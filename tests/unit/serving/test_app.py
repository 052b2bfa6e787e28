"""The server over real connections: answers as the detector gives them, limits, hostile files, load, a browser."""

from __future__ import annotations

import base64
import http.client
import io
import json
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import numpy as np
import pytest
import torch
from browsers import open_tab
from PIL import EpsImagePlugin, Image

from crossdet.data.picture_files import UnreadableImage, decode_with_pillow
from crossdet.inference import Detector
from crossdet.labels.space import LabelSpace
from crossdet.models.building import build_detector
from crossdet.models.card import InputSettings
from crossdet.models.retinanet.settings import RetinaNetSettings
from crossdet.serving import app
from crossdet.serving.app import Server, serve
from crossdet.serving.limits import ServeLimits

EVIL = "<script>alert(1)</script>"


def make_detector(seed: int, prior: float = 0.3) -> Detector:
    torch.manual_seed(seed)
    space = LabelSpace.build({"photos": ["car", EVIL, "[red]"]})
    settings = RetinaNetSettings(backbone="test_efficientnet", channels=8, head_depth=1, prior=prior)
    return Detector(build_detector(settings, 3), space, InputSettings(64, 96), thresholds={"car": 0.31})


def started(server: Server) -> int:
    """The port of a server that runs until the tests end."""
    ready, port = threading.Event(), []

    def told(number: int) -> None:
        port.append(number)
        ready.set()

    threading.Thread(target=serve, args=(server, "127.0.0.1", 0, told), daemon=True).start()
    assert ready.wait(20)
    return port[0]


@pytest.fixture(scope="module")
def detectors():
    return {"first": make_detector(0), "second": make_detector(1)}


@pytest.fixture(scope="module")
def port(detectors):
    return started(Server(detectors, ServeLimits(file_mb=0.2, megapixels=0.1)))


def ask(port: int, path: str, body: bytes | None = None, **headers: str) -> tuple[int, dict, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET" if body is None else "POST", path, body, headers)
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    is_json = answer.headers["Content-Type"].startswith("application/json")
    return answer.status, json.loads(text) if is_json else {"text": text.decode()}, dict(answer.headers)


def picture(seed: int = 0, size: tuple[int, int] = (90, 60), kind: str = "PNG", **options) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def test_the_answers_are_the_detectors(port, detectors):
    status, about, headers = ask(port, "/about")
    assert status == 200
    assert [one["name"] for one in about["detectors"]] == ["first", "second"]
    assert about["detectors"][0]["classes"][0] == {"name": "car", "threshold": 0.31}
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    data = picture()
    for name, detector in detectors.items():
        status, found, _ = ask(port, f"/detect?detector={name}&class=car&class={quote(EVIL)}", data)
        assert (status, found["width"], found["height"]) == (200, 90, 60)
        expected = detector(Image.open(io.BytesIO(data)), ["car", EVIL], score_threshold=0.05)
        assert [row["class"] for row in found["detections"]] == list(expected.names)
        assert len(expected) > 0
        for score, limit in (("0.4", 0.4), ("own", None)):
            _, found, _ = ask(port, f"/detect?detector={name}&score={score}", data)
            wanted = detector(Image.open(io.BytesIO(data)), score_threshold=limit)
            assert [row["score"] for row in found["detections"]] == pytest.approx(wanted.scores.tolist())
        _, found, _ = ask(port, f"/detect?detector={name}&class=car&class={quote(EVIL)}", data)
        assert np.allclose([row["box"] for row in found["detections"]], expected.boxes, atol=1e-4)


def test_a_class_with_a_low_threshold_is_shown_as_predict_reports_it(detectors):
    """One detector's is below 0.05; the slider begins there."""
    low = make_detector(2, prior=0.02)
    low.thresholds["car"] = 0.0125
    port = started(Server({**detectors, "low": low}, ServeLimits()))
    assert ask(port, "/about")[1]["lowest_score"] == 0.0125
    score = min(row["score"] for row in ask(port, "/detect?detector=low&score=0", picture())[1]["detections"])
    assert score < 0.05
    low.thresholds["car"] = 0.99 * score
    port = started(Server({**detectors, "low": low}, ServeLimits()))
    _, found, _ = ask(port, "/detect?detector=low", picture())
    assert min(row["score"] for row in found["detections"]) == score
    with open_tab() as (tab, errors):
        tab.goto(f"http://127.0.0.1:{port}/")
        tab.wait_for_selector("#classes label")
        sliders = tab.query_selector_all("#classes input[type=range]")
        assert {one.get_attribute("min") for one in sliders} == {"0.01"}  # 0.0198, in steps of the slider
        assert errors == []


def test_a_turned_picture_is_looked_at_upright(port):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    _, found, _ = ask(port, "/detect", picture(kind="JPEG", exif=exif))
    assert (found["width"], found["height"]) == (60, 90)


def bomb() -> bytes:
    """A PNG of a few bytes whose header says 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/detect", b"", 422, "no picture of a known format"),
        ("/detect", b"no picture", 422, "no picture of a known format"),
        ("/detect", picture()[:200], 422, "the picture: "),
        ("/detect", bomb(), 413, "far too large; at most 0.1 million pixels"),
        ("/detect", picture(size=(400, 400), kind="JPEG", quality=1), 413, "400 x 400 pixels; at most 0.1 million"),
        ("/detect", b"x" * 300_000, 413, "larger than 0.2 MB"),
        ("/detect?detector=third", picture(), 422, "no detector 'third'; there are first, second"),
        ("/detect?class=lorry", picture(), 422, "lorry"),
        ("/detect?scores=0.4", picture(), 422, "unknown parameter 'scores'; there are detector, class and score"),
        ("/detect?score=40", picture(), 422, "score: expected a number from 0 to 1, or own, got '40'"),
        ("/other", None, 404, "Not Found"),
        ("/../../etc/passwd", None, 404, "Not Found"),
    ],
    ids=["empty", "text", "cut", "bomb", "large", "long", "detector", "class", "scores", "score", "path", "above"],
)
def test_mistakes_are_answers(port, path, body, status, message):
    answered, content, _ = ask(port, path, body)
    assert (answered, list(content)) == (status, ["error"])
    assert message in content["error"]


def test_a_form_is_told_how_to_send_a_picture(port):
    status, content, _ = ask(port, "/detect", b"--x", **{"Content-Type": "multipart/form-data; boundary=x"})
    assert status == 422
    assert "curl --data-binary @FILE" in content["error"]


def test_a_body_that_is_not_what_its_header_says(port, capfd):
    status, told, headers = ask(port, "/detect", picture(), **{"Content-Encoding": "gzip"})
    assert (status, list(told)) == (400, ["error"])
    assert told["error"].startswith("the body is not what its header says")
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert ask(port, "/about")[0] == 200
    assert "Traceback" not in capfd.readouterr().err


def test_what_nobody_foresaw_is_an_answer_and_told_in_the_terminal(detectors, monkeypatch, capfd):
    port = started(Server(detectors, ServeLimits()))
    monkeypatch.setattr(app, "decode_with_pillow", lambda *_, **__: 1 / 0)
    status, told, headers = ask(port, "/detect", picture())
    assert (status, told) == (500, {"error": "the server failed at this request; its terminal says why"})
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_a_page_with_another_name_is_refused(port):
    status, content, _ = ask(port, "/about", Host=f"evil.example:{port}")
    assert (status, content) == (403, {"error": "this server is not evil.example"})
    assert ask(port, "/about", Host=f"localhost:{port}")[0] == 200


def test_an_address_that_is_none(port):
    status, told, _ = ask(port, "/about", Host="127.0.0.1:99999")
    assert status == 400
    assert told["error"].startswith("the address cannot be read")


def test_who_sends_nothing_gives_up_the_place(detectors, monkeypatch):
    monkeypatch.setattr(app, "UPLOAD_SECONDS", 0.5)
    port = started(Server(detectors, ServeLimits(waiting=2)))
    silent = []
    for _ in range(2):
        silent.append(http.client.HTTPConnection("127.0.0.1", port, timeout=30))
        silent[-1].putrequest("POST", "/detect")
        silent[-1].putheader("Content-Length", "1000")
        silent[-1].endheaders()
    answers = [connection.getresponse().status for connection in silent]
    assert answers == [408, 408]
    assert ask(port, "/detect", picture())[0] == 200


def test_no_other_program_reads_a_picture(port, monkeypatch):
    """Pillow would hand PostScript to Ghostscript."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("called"))
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n%%EndComments\n50 50 scale\nshowpage\n%%EOF\n"
    assert ask(port, "/detect", script)[:2] == (422, {"error": "this is no picture of a known format"})
    with pytest.raises(UnreadableImage, match="no image of a known format"):
        decode_with_pillow(script, "holiday.jpg", True)


def test_nobody_takes_it_all(detectors):
    port = started(Server(detectors, ServeLimits(rate=0.01, burst=2)))
    answers = [ask(port, "/detect", b"no picture") for _ in range(3)]
    assert [status for status, _, _ in answers] == [422, 422, 429]
    assert int(answers[2][2]["Retry-After"]) > 50


def test_two_hundred_requests_eight_at_a_time(detectors):
    port = started(Server(detectors, ServeLimits()))
    bodies = [picture(seed) for seed in range(4)]
    expected = [ask(port, "/detect", body)[1]["detections"] for body in bodies]
    port = started(Server(detectors, ServeLimits()))
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda i: ask(port, "/detect", bodies[i % 4]), range(200)))
    assert [status for status, _, _ in answers] == [200] * 200
    for i, (_, content, _) in enumerate(answers):
        assert content["detections"] == expected[i % 4]


def test_in_a_browser(port, tmp_path):
    """Drops a picture, moves a threshold, unticks a class, downloads JSON; names are text."""
    (tmp_path / "street.png").write_bytes(picture())
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with open_tab() as (tab, errors):
        tab.goto(f"http://127.0.0.1:{port}/")
        tab.wait_for_selector("#classes label")
        assert [row.inner_text().split("\n")[0] for row in tab.query_selector_all("#classes label span")] == [
            "car", EVIL, "[red]",
        ]  # fmt: skip
        tab.set_input_files("#file", str(tmp_path / "street.png"))
        tab.locator("figcaption").nth(1).filter(has_text=" ms").wait_for()

        def shown() -> int:
            text = tab.inner_text("figcaption >> nth=0")
            assert text.startswith("first: ")
            return int(text.split()[1])

        for slider in tab.query_selector_all("#classes input[type=range]"):
            slider.fill("0.05")
        everything = shown()
        assert everything > 0
        tab.query_selector("#classes input[type=range]").fill("1")
        fewer = shown()
        assert fewer < everything
        with tab.expect_response("**/detect?*detector=first*") as answer:
            tab.query_selector("#classes input[type=checkbox]").click()
        assert "class=car" not in answer.value.url
        with tab.expect_download() as download:
            tab.click("#save")
        saved = json.loads(download.value.path().read_text())
        assert [one["detector"] for one in saved] == ["first", "second"]
        tab.set_input_files("#file", str(tmp_path / "broken.png"))
        tab.locator("#error").filter(has_text="broken.png").wait_for()
        assert errors == []


def test_several_files_are_taken_one_at_a_time(port):
    with open_tab() as (tab, errors):
        tab.goto(f"http://127.0.0.1:{port}/")
        tab.wait_for_selector("#classes label")
        assert tab.get_attribute("#file", "multiple") is None
        tab.evaluate(
            """data => {
              const files = new DataTransfer()
              const bytes = Uint8Array.from(atob(data), one => one.charCodeAt(0))
              for (const name of ['a.png', 'b.png']) files.items.add(new File([bytes], name, { type: 'image/png' }))
              document.getElementById('place').dispatchEvent(new DragEvent('drop', { dataTransfer: files }))
            }""",
            base64.b64encode(picture()).decode(),
        )
        tab.locator("figcaption").nth(1).filter(has_text=" ms").wait_for()
        assert tab.inner_text("#note") == "One picture at a time: a.png is looked at, 1 more left out."
        with tab.expect_download() as download:
            tab.click("#save")
        assert download.value.suggested_filename == "a.json"
        assert errors == []


WITHOUT_BOXES = """async () => {
  let missing = 0
  for (const end = performance.now() + 1500; performance.now() < end;) {
    await new Promise(resolve => requestAnimationFrame(resolve))
    if ([...document.querySelectorAll('figcaption')].some(one => !one.textContent.includes(' ms'))) missing++
  }
  return missing
}"""
"""How many frames of the screen show a picture without the answers to it."""


def test_the_camera(detectors):
    """Boxes stay until there are newer ones, also for the download; however fast it is clicked, one loop runs."""
    port = started(Server(detectors, ServeLimits(rate=1000, burst=1000)))
    with open_tab() as (tab, errors):
        tab.goto(f"http://127.0.0.1:{port}/")
        tab.wait_for_selector("#classes label")
        tab.click("#camera")
        tab.locator("figcaption").nth(1).filter(has_text=" ms").wait_for()
        assert tab.evaluate(WITHOUT_BOXES) == 0
        with tab.expect_download() as download:
            tab.click("#save")
        assert download.value.suggested_filename == "camera.json"
        assert [one["width"] for one in json.loads(download.value.path().read_text())] == [640, 640]
        tab.evaluate("for (let i = 0; i < 2; i++) document.getElementById('camera').click()")  # off and on
        tab.locator("#camera").filter(has_text="stop").wait_for()
        most = tab.evaluate(MOST_AT_ONCE)
        assert most == len(detectors)
        tab.click("#camera")
        tab.wait_for_timeout(500)
        assert tab.evaluate(MOST_AT_ONCE) == 0
        tab.evaluate("Object.defineProperty(navigator, 'mediaDevices', { value: undefined })")
        tab.click("#camera")
        assert tab.inner_text("#error") == "no camera: browsers give it to pages of HTTPS or of localhost alone"
        assert errors == []


MOST_AT_ONCE = """async () => {
  const real = window.fetch
  let open = 0, most = 0
  window.fetch = async (...given) => {
    most = Math.max(most, ++open)
    try { return await real(...given) } finally { open-- }
  }
  await new Promise(resolve => setTimeout(resolve, 1500))
  window.fetch = real
  return most
}"""
"""Most requests that were under way together: one for each detector of a loop."""
