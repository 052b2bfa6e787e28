"""`crossdet check`: everything that can be known before training, from annotations and image headers. No torch.

`report` holds what is found, `inspection` finds it, `files` looks at the image files, `printing` shows it.
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

__all__ = [
    "AnchorReport",
    "ClassReport",
    "DuplicateReport",
    "FileReport",
    "Places",
    "Report",
    "SplitReport",
    "inspect",
    "print_report",
]
