"""`crossdet check`: everything that can be known before training, from annotations and image headers. No torch.

`report` holds what is found, `inspection` finds it, `files` looks at the image files, `findings` says what it
means, `printing` shows it. `anchors_coverage` is what depends on the architecture. `extension` is for a config that
extends weights, `weights` for trained weights, `teachers` looks at those of a config (with torch).
"""

from crossdet.check.inspection import inspect
from crossdet.check.printing import print_report
from crossdet.check.weights import inspect_weights, print_weights

__all__ = ["inspect", "inspect_weights", "print_report", "print_weights"]
