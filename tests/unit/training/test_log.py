"""The lines of a training on the terminal."""

from __future__ import annotations

import csv
from types import SimpleNamespace

import pytest
import torch

from crossdet.errors import RunError
from crossdet.training.log import RunLog, Step


@pytest.mark.parametrize(("waited", "told"), [(0.0, None), (0.9, None), (1.0, "10%"), (4.0, "40%"), (15.0, "100%")])
def test_waiting_for_pictures_is_told_where_it_takes_a_tenth_of_the_time(
    waited, told, tmp_path, monkeypatch, capsys
):
    now = iter([100.0, 110.0])
    monkeypatch.setattr("crossdet.training.log.time.monotonic", lambda: next(now))
    with RunLog(SimpleNamespace(is_global_zero=True), tmp_path, 0, ["box"]) as log:
        log.start_epoch()
        log.step(Step(1, 0, 1, 2, 0.1, {"box": torch.ones(())}, None, None, waited), 8, 1)
    (line,) = capsys.readouterr().out.splitlines()
    assert ("waiting for pictures" in line) == (told is not None)
    assert told is None or line.endswith(f"0.8 images/s  waiting for pictures {told}")
    with (tmp_path / "steps.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["waiting"]) == pytest.approx(min(1.0, waited / 10))


@pytest.mark.parametrize(
    ("saved", "told"),
    [(True, "the last saved state is kept, continue with"), (False, "nothing was saved yet, begin again with")],
)
def test_a_disk_that_is_full_before_or_after_the_first_state(saved, told, tmp_path):
    if saved:
        (tmp_path / "state.pt").touch()

    def full(_row):
        raise OSError(28, "No space left on device")

    with RunLog(SimpleNamespace(is_global_zero=True), tmp_path, 0, ["box"]) as log:
        log.start_epoch()
        log.csv.writerow = full
        with pytest.raises(RunError, match=rf"steps.csv could not be written .* at step 1; {told} --resume once"):
            log.step(Step(1, 0, 1, 2, 0.1, {"box": torch.ones(())}, None, None), 8, 1)
