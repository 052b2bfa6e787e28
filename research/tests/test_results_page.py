"""`make results`: what the pages say is what the JSONs in docs/data say."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
DATA = ROOT / "docs/data"


@pytest.fixture(scope="module")
def module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_results", ROOT / "docs/make_results.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.mark.parametrize(("page", "least"), [("docs/results.md", 6), ("docs/performance.md", 3)])
def test_the_pages_say_what_the_data_say(module, page, least, monkeypatch, tmp_path):
    def undrawn(*_: object) -> list[Path]:
        return []

    for name in ("draw_learning_curves", "draw_sweep", "draw_generations"):
        monkeypatch.setattr(module, name, undrawn)
    text = (ROOT / page).read_text()
    text = re.sub(r"<!-- results: (curves|bench).*?<!-- end -->", "", text, flags=re.S)  # figures alone
    assert text.count("<!-- results: ") >= least
    assert module.page(text, DATA, tmp_path) == text


@pytest.mark.parametrize(("row", "split"), [("dice in two ²", "dice_two"), ("aquarium in two", "aquarium_two")])
def test_the_first_page_says_what_the_data_say(module, row, split):
    methods = ("naive", "aware", "full")
    values = [module.words(f"value ../ablation_untuned/{split} {method} AP50", DATA) for method in methods]
    assert f"| {row} | {' | '.join(values)} |" in (ROOT / "README.md").read_text()


def test_statements_within_a_line(module, tmp_path):
    text = (
        "Gain <!-- results: difference bccd_look aware naive -->old<!-- end -->, "
        "<!-- results: difference bccd_plain aware naive --><!-- end -->\n"
    )
    assert module.page(text, DATA, tmp_path) == (
        "Gain <!-- results: difference bccd_look aware naive -->+7.0 (-0.1 to +14.0, 3 seeds), may be 0<!-- end -->"
        ", "
        "<!-- results: difference bccd_plain aware naive -->+4.0 (1 seed)<!-- end -->\n"
    )
    assert module.words("value bccd_look naive", DATA) == "14.4 ± 1.4"
    assert module.words("steps demo_life_all replay", DATA) == "4,068 steps, 200 % of joint training's 2,034"
    assert module.words("share lifelong_bench_all replay val", DATA) == "92 %"  # one seed
    with pytest.raises(SystemExit, match="unknown statement 'praise bccd_look'"):
        module.words("praise bccd_look", DATA)
    with pytest.raises(SystemExit, match="no seed that both have"):
        module.words("difference bccd_plain full naive", DATA)
    with pytest.raises(SystemExit, match="2 blocks begin, 1 end"):
        module.page("<!-- results: a -->\n<!-- results: value bccd_look naive -->x<!-- end -->", DATA, tmp_path)


def test_blanks_for_a_card_are_filled_by_its_results_alone(module, tmp_path):
    """Without the file nothing but that there is none; with one, what it has."""
    page = (ROOT / "docs/performance.md").read_text()
    blanks = re.findall(r"<!-- results: card (\S+) -->[^\n]*?<!-- end -->", page)
    with pytest.raises(SystemExit, match=r"unknown target of a card 'speed'; there are .*, machine$"):
        module.words("card speed", tmp_path)
    from bench import CARD_TARGETS  # in a folder that make_results puts into the path

    assert sorted(blanks) == sorted([*CARD_TARGETS, "machine"])
    said = {name: module.words(f"card {name}", tmp_path) for name in blanks}
    assert said.pop("machine") == "No card has run these rows yet."
    assert set(said.values()) == {""}
    row = {"ratio": 2.875, "gpu": "NVIDIA H200"}
    content = {
        "machine": {"gpu": "NVIDIA H200", "torch": "2.11.0", "cores": 16},
        "results": {"card_step_resnet50_800": row, "card_step_resnet50_320": {**row, "gpu": None}},
    }
    (tmp_path / "bench_gpu.json").write_text(json.dumps(content))
    text = "| <!-- results: card step_800 --><!-- end --> | <!-- results: card step_320 -->old<!-- end --> |"
    assert module.page(text, tmp_path, tmp_path) == (
        "| <!-- results: card step_800 -->2.88: met<!-- end --> | <!-- results: card step_320 --><!-- end --> |"
    )
    assert module.words("card machine", tmp_path) == "Measured on NVIDIA H200, torch 2.11.0, 16 CPU cores."
