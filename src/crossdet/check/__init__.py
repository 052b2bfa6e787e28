"""`crossdet check`: everything that can be known before training, from annotations and image headers. No torch.

`report` holds what is found, `inspection` finds it, `files` looks at the image files, `printing` shows it.
`weights` does the same for trained weights, `teachers` looks at those of a config (with torch).
"""

from crossdet.check.inspection import inspect
from crossdet.check.printing import print_report
from crossdet.check.report import (
    AnchorReport,
    ClassReport,
    DuplicateReport,
    FileReport,
    Places,
    Report,
    SplitReport,
)
from crossdet.check.weights import WeightsReport, inspect_weights, print_weights

__all__ = [
    "AnchorReport",
    "ClassReport",
    "DuplicateReport",
    "FileReport",
    "Places",
    "Report",
    "SplitReport",
    "WeightsReport",
    "inspect",
    "inspect_weights",
    "print_report",
    "print_weights",
]
