"""Which backbones there are, read from timm's source: its own list comes with torch, and takes seconds."""

from __future__ import annotations

import re
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path

ALIASES = {"resnet50": "resnet50.tv_in1k", "mobilenetv2": "mobilenetv2_100", "mobilenet_v2": "mobilenetv2_100"}
"""The names of the paper; timm's own default tag for resnet50 is another training recipe (a1_in1k)."""

_MODEL = re.compile(r"^@register_model\s+def (\w+)\(", re.MULTILINE)
_RENAMED = re.compile(r"^register_model_deprecations\(__name__, \{(.*?)\}\)", re.MULTILINE | re.DOTALL)
_OLD_NAME = re.compile(r"['\"]([\w.]+)['\"]\s*:")


@cache
def backbone_names() -> frozenset[str]:
    """The names that timm and this package know, without tags. Empty where timm's source is not to be found."""
    spec = find_spec("timm")  # does not import it
    folders = [] if spec is None else [Path(place) / "models" for place in spec.submodule_search_locations or ()]
    found = set(ALIASES)
    for file in (file for folder in folders for file in folder.glob("*.py")):
        text = file.read_text(encoding="utf-8")
        found |= {*_MODEL.findall(text)}
        found |= {old for block in _RENAMED.findall(text) for old in _OLD_NAME.findall(block)}
    return frozenset(found) if found > set(ALIASES) else frozenset()


def backbone_problem(name: str) -> str | None:
    """What to say of a name that timm does not know; None where it does, or the name is one of a model hub."""
    known, plain = backbone_names(), name.partition(".")[0]
    if not known or ":" in name or {name, plain} & known:
        return None
    close = get_close_matches(plain, known, 3)
    hint = f"did you mean {' or '.join(close)}?" if close else "timm.list_models() names them"
    return f"model.backbone: {name!r} is no timm model; {hint}"
