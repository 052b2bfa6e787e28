"""Where a missing picture probably is."""

from pathlib import Path

import pytest

from crossdet.data.nearby import instead

NAMES = [
    ("there.jpg", None, "", ""),
    ("images/p0.jpg", "images/p0.jpg", "paths", "images: {root}`"),  # images: root/images
    ("set/images/p0.jpg", "images/p0.jpg", "paths", ""),
    ("p0.jpg", "images/p0.jpg", "paths", "images: {root}/images`"),
    ("images\\p0.jpg", "images/p0.jpg", "paths", "images: {root}`"),
    ("http://localhost:8080/data/upload/3/p0.jpg", "images/p0.jpg", "paths", ""),
    ("../../label-studio/p0.jpg", "images/p0.jpg", "paths", ""),
    ("/data/local-files/?d=p0.jpg", "images/p0.jpg", "paths", ""),
    ("images/P0.JPG", "images/p0.jpg", "names", ""),
    ("images/p0.png", "images/p0.jpg", "names", ""),
    ("cafe\u0301.jpg", "caf\u00e9.jpg", "names (its accents are written by other signs, which look the same)", ""),
    ("p1.jpg", "b/p1.jpg", "paths", "images: {root}/b`"),  # rather than a/p1.png
    ("p00.jpg", None, "", ""),
    ("p0", "images/p0.jpg", "names", ""),
    ("..", None, "", ""),
    ("x\0", None, "", ""),
]


@pytest.mark.parametrize(("name", "found", "what", "cure"), NAMES)
def test_the_name_elsewhere(name: str, found: str | None, what: str, cure: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    for file in ("images/p0.jpg", "caf\u00e9.jpg", "a/p1.png", "b/p1.jpg", "p00.txt", "a/x"):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    folder = root / "images" if name == "images/p0.jpg" else root
    if found is None:
        assert instead(name, folder) == ""
        return
    told = f"; {root}/{found} is there: did the export write other {what}?"
    assert instead(name, folder) == told
    way = f" With `{cure.format(root=root)} it is found" if cure else ""
    assert instead(name, folder, with_root=True) == told + way
