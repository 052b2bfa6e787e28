"""Names in figures are shown as they are."""

import pytest
from PIL import Image

from crossdet.evaluation.figures import in_legend, new_figure, save_figure


@pytest.mark.parametrize("suffix", [".png", ".svg"])
@pytest.mark.parametrize("name", ["usd_$1_$5", "$x$", "$", r"$\x$", "price $5 and $10"])
def test_dollars_are_no_formulas(name, suffix, tmp_path):
    figure = new_figure(8, 4)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], label=in_legend(name))
    axes.set(title=name, xlabel=name)
    axes.set_xticks([0, 1], [name, name])
    figure.suptitle(name)
    figure.legend(loc="outside right upper")
    axes.legend()
    save_figure(figure, tmp_path / f"figure{suffix}")
    if suffix == ".png":
        with Image.open(tmp_path / "figure.png") as picture:
            assert picture.size == (1200, 600)


def test_a_name_with_an_underscore_before_it_is_in_the_legend():
    axes = new_figure(3, 2).subplots()
    for name in ("_first", "second"):
        axes.plot([0, 1], [0, 1], label=in_legend(name))
    assert [text.get_text().strip() for text in axes.legend().get_texts()] == ["_first", "second"]
