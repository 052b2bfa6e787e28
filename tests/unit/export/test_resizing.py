"""Pictures are resized without torch to the very bytes that torchvision gives."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as F

from crossdet.export.resizing import resize


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize(
    ("old", "new"),
    [((48, 64), (30, 40)), ((37, 201), (64, 64)), ((300, 20), (7, 45)), ((50, 50), (50, 13)), ((9, 9), (9, 9))],
)
def test_every_byte_is_torchvisions(old, new, antialias):
    picture = np.random.default_rng(0).integers(0, 256, (*old, 3), dtype=np.uint8)
    planes = F.resize(torch.from_numpy(picture).permute(2, 0, 1), list(new), antialias=antialias)
    theirs = planes.permute(1, 2, 0).numpy()
    ours = resize(picture, new, antialias)
    assert ours.shape == (*new, 3)
    apart = np.abs(ours.astype(int) - theirs).max()
    assert apart <= (0 if "AVX" in torch.backends.cpu.get_cpu_capability() else 1)
