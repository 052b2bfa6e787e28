"""`crossdet serve` as docs/using.md has it: takes requests, says where, ends with Ctrl-C; mistakes are told."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import time
import urllib.request

from forks import TIMEOUT, Fork


def test_it_serves_until_it_is_interrupted(trained, tmp_path):
    running = Fork("-m", "crossdet", "serve", trained.folder, "--port", "0", "--json", tmp_path / "served.json")
    try:
        found, end = None, time.monotonic() + TIMEOUT
        while found is None and running.returncode is None and time.monotonic() < end:
            time.sleep(0.01)
            found = re.search(r"^weights: .*\n.*http://127\.0\.0\.1:(\d+)", running.printed())
        assert found is not None, running.printed()
        with urllib.request.urlopen(f"http://127.0.0.1:{found[1]}/about", timeout=30) as answer:
            about = json.load(answer)
        assert [one["name"] for one in about["detectors"][0]["classes"]] == ["car", "face"]
        served = json.loads((tmp_path / "served.json").read_text())
        assert served == {"url": f"http://127.0.0.1:{found[1]}", "detectors": {"trained": ["car", "face"]}}
        os.kill(running.pid, signal.SIGINT)
        done = running.wait(30)
        assert done.returncode in (1, 130)
        assert "Traceback" not in done.stdout + done.stderr
    finally:
        running.kill()


def test_mistakes_are_told(trained, crossdet, monkeypatch):
    done = crossdet("serve", trained.folder, "--file-mb", "inf")
    assert (done.returncode, "--file-mb inf: expected a number" in done.stderr) == (2, True)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = crossdet("serve", trained.folder, "--port", taken.getsockname()[1])
    assert done.returncode == 2
    assert "try another --port" in done.stderr
    assert crossdet("serve", trained.folder, "--against", trained.folder).returncode == 2
    for module in ("aiohttp", "crossdet.serving.app"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    done = crossdet("serve", trained.folder)
    assert done.returncode == 2
    assert "pip install 'crossdet[serve]'" in done.stderr
