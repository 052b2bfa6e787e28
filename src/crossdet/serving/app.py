"""A page to try detectors on one's own pictures: an aiohttp application over `Detector` and
`ExportedDetector`.

    GET  /        the page (`page.html`, `page.js`)
    GET  /about   detectors, their classes and thresholds, and the limits
    POST /detect?detector=NAME&class=A&class=B    a picture's file as the body -> detections as JSON

Pictures are looked at in memory and never written.
"""

from __future__ import annotations

import asyncio
import errno
import io
import math
import socket
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from PIL import Image

from crossdet.data.annotation_files import picture_formats
from crossdet.data.picture_files import UnreadableImage, decode_with_pillow
from crossdet.errors import UserError
from crossdet.labels.reporting import DEFAULT_THRESHOLD
from crossdet.serving.limits import Buckets, ServeLimits

if TYPE_CHECKING:
    from crossdet.export.detector import ExportedDetector
    from crossdet.inference import Detector

try:
    from aiohttp import web
except ImportError:
    raise UserError("`crossdet serve` needs aiohttp: pip install 'crossdet[serve]'") from None

LOWEST_SCORE = 0.05
"""Detections from here on, or from a lower threshold of a class on, are sent where nobody says another score; the
page's own thresholds choose among them."""
OWN = "own"
"""As a score: each class's own threshold."""
UPLOAD_SECONDS = 30
"""For one file to arrive."""
LOOPBACK = ("localhost", "127.0.0.1", "[::1]", "::1")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; img-src blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Refused(Exception):
    """status: of HTTP. The message is for the user of the page."""

    def __init__(self, status: int, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.status, self.wait = status, wait


class Server:
    """detectors: name -> detector, of weights or of an exported file. hosts: names that a browser may know this
    server by; empty = any. A page of another site that has its own name point here is refused by it. lowest: the
    score where nobody says another."""

    def __init__(
        self,
        detectors: Mapping[str, Detector | ExportedDetector],
        limits: ServeLimits,
        hosts: Sequence[str] = LOOPBACK,
    ) -> None:
        self.detectors, self.limits, self.hosts = dict(detectors), limits, tuple(hosts)
        thresholds = (score for one in self.detectors.values() for score in one.thresholds_used(None).values())
        self.lowest = min([LOWEST_SCORE, *thresholds])
        self._buckets = Buckets(limits.rate, limits.burst)
        self._one_at_a_time = threading.Lock()
        self._waiting: Counter[str] = Counter()

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self._answered], client_max_size=self.limits.largest_file)
        app.add_routes(
            [
                web.get("/", _file("page.html", "text/html")),
                web.get("/page.js", _file("page.js", "text/javascript")),
                web.get("/about", self.about),
                web.post("/detect", self.detect),
            ]
        )
        return app

    @web.middleware
    async def _answered(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Every mistake is an answer with a message."""
        try:
            if self.hosts and (host := _host(request)) not in self.hosts:
                raise Refused(403, f"this server is not {host}")
            response = await handler(request)
        except web.HTTPRequestEntityTooLarge:
            response = _told(413, f"the file is larger than {self.limits.file_mb:g} MB")
        except web.HTTPException as error:
            response = _told(error.status, error.reason)
        except web.RequestPayloadError:
            response = _told(400, "the body is not what its header says; send it whole, without Content-Encoding")
        except Refused as error:
            response = _told(error.status, str(error))
            if error.wait:
                response.headers["Retry-After"] = str(math.ceil(error.wait))
        except Exception:
            traceback.print_exc()  # whoever runs the server can do something about it, who asked cannot
            response = _told(500, "the server failed at this request; its terminal says why")
        response.headers.update(HEADERS)
        return response

    async def about(self, _: web.Request) -> web.Response:
        shown = [
            {
                "name": name,
                "classes": [
                    {"name": c, "threshold": detector.thresholds.get(c, DEFAULT_THRESHOLD)}
                    for c in detector.offered
                ],
            }
            for name, detector in self.detectors.items()
        ]
        return web.json_response({"detectors": shown, "file_mb": self.limits.file_mb, "lowest_score": self.lowest})

    async def detect(self, request: web.Request) -> web.Response:
        if wait := self._buckets.wait(request.remote or ""):
            raise Refused(429, "too many requests; try again in a moment", wait)
        if request.content_type.startswith("multipart/"):
            raise Refused(422, "send the picture as the body and not as a form: curl --data-binary @FILE")
        if strange := sorted(set(request.query) - {"detector", "class", "score"}):
            raise Refused(422, f"unknown parameter {strange[0]!r}; there are detector, class and score")
        score = _score(request.query.get("score", str(self.lowest)))
        name = request.query.get("detector") or next(iter(self.detectors))
        detector = self.detectors.get(name)
        if detector is None:
            raise Refused(422, f"no detector {name!r}; there are {', '.join(self.detectors)}")
        address = request.remote or ""
        if self._waiting[address] > self.limits.waiting // 2:
            raise Refused(429, "too many pictures of this address are waiting; try again in a moment", 1.0)
        if self._waiting.total() >= self.limits.waiting:
            raise Refused(503, "too many pictures are waiting; try again in a moment", 1.0)
        self._waiting[address] += 1
        try:
            data = await _body(request)
            classes = request.query.getall("class", None)
            found = await asyncio.to_thread(self._find, detector, data, classes, score)
        finally:
            self._waiting -= Counter([address])  # keeps no address with 0
        return web.json_response(found)

    def _find(
        self, detector: Detector | ExportedDetector, data: bytes, classes: Sequence[str] | None, score: float | None
    ) -> dict[str, Any]:
        self._check_size(data)
        with self._one_at_a_time:  # two at once would take each other's cores, and memory without limit
            begun = time.perf_counter()
            try:
                picture = decode_with_pillow(data, "the picture", rotate=True)
                found = detector(picture, classes, score_threshold=score)
            except (UnreadableImage, UserError) as error:
                raise Refused(422, str(error)) from None
            spent = time.perf_counter() - begun
        names = found.names or ()
        rows = zip(found.boxes.tolist(), found.scores.tolist(), names, strict=True)
        return {
            "width": int(picture.shape[1]),
            "height": int(picture.shape[0]),
            "milliseconds": round(1000 * spent, 1),
            "detections": [{"box": box, "score": score, "class": name} for box, score, name in rows],
        }

    def _check_size(self, data: bytes) -> None:
        """By the header alone: a small file may hold a picture that fills the memory."""
        most = f"at most {self.limits.megapixels:g} million pixels are taken"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                with Image.open(io.BytesIO(data), formats=picture_formats()) as opened:
                    width, height = opened.size
        except Image.DecompressionBombError:
            raise Refused(413, f"the picture is far too large; {most}") from None
        except Exception:  # Pillow raises what it likes about what is no picture
            raise Refused(422, "this is no picture of a known format") from None
        if width * height > self.limits.most_pixels:
            raise Refused(
                413,
                f"the picture has {width} x {height} pixels; at most {self.limits.megapixels:g} million are taken",
            )


def _host(request: web.Request) -> str:
    try:
        return request.url.host or ""
    except ValueError as error:  # such as a port of five nines
        raise Refused(400, f"the address cannot be read: {error}") from None


def _score(given: str) -> float | None:
    """None: the threshold of each class. Raises `Refused`."""
    if given == OWN:
        return None
    try:
        score = float(given)
    except ValueError:
        score = -1.0
    if not 0 <= score <= 1:
        raise Refused(422, f"score: expected a number from 0 to 1, or {OWN}, got {given[:20]!r}")
    return score


async def _body(request: web.Request) -> bytes:
    """Who sends nothing more gives up the place that others wait for."""
    try:
        async with asyncio.timeout(UPLOAD_SECONDS):
            return await request.read()
    except TimeoutError:
        raise Refused(408, f"the picture did not arrive within {UPLOAD_SECONDS} seconds") from None
    except ConnectionError:
        raise Refused(400, "the connection was closed before the picture had arrived") from None


def _told(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)


def _file(name: str, kind: str) -> Handler:
    text = files("crossdet.serving").joinpath(name).read_text()

    async def send(_: web.Request) -> web.Response:
        return web.Response(text=text, content_type=kind)

    return send


def serve(server: Server, host: str, port: int, started: Callable[[int], None]) -> None:
    """Until interrupted. started: called with the port once requests are taken, the one chosen where `port` is 0.

    Raises `UserError` where the address cannot be had.
    """
    asyncio.run(_serve(server, host, port, started))


async def _serve(server: Server, host: str, port: int, started: Callable[[int], None]) -> None:
    runner = web.AppRunner(server.application(), access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            other = (
                "--host" if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL else "--port"
            )
            raise UserError(
                f"--host {host} --port {port}: {error.strerror or error}; try another {other}"
            ) from None
        started(runner.addresses[0][1])
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
