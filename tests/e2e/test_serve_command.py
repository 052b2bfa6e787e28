"""`crossdet serve` as docs/using.md has it: takes requests, says where, ends with Ctrl-C; mistakes are told."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request


def test_it_serves_until_it_is_interrupted(trained):
    command = [sys.executable, "-u", "-m", "crossdet", "serve", str(trained.folder), "--port", "0"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert running.stdout is not None
        assert running.stdout.readline().startswith("weights: ")
        found = re.search(r"http://127\.0\.0\.1:(\d+)", running.stdout.readline())
        assert found is not None
        with urllib.request.urlopen(f"http://127.0.0.1:{found[1]}/about", timeout=30) as answer:
            about = json.load(answer)
        assert [one["name"] for one in about["detectors"][0]["classes"]] == ["car", "face"]
        running.send_signal(signal.SIGINT)
        rest, _ = running.communicate(timeout=30)
        assert running.returncode in (1, 130)
        assert "Traceback" not in rest
    finally:
        running.kill()


def test_mistakes_are_told(trained, crossdet, monkeypatch):
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
