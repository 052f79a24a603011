"""The precision in which a model is put to use."""

import pytest
import torch
from torch import nn

from lmlab.models.precision import PRECISIONS, check, using


def test_products_are_made_in_the_precision_asked_for_whatever_is_around():
    layer, x = nn.Linear(3, 2), torch.randn(1, 3)
    kinds = dict(zip(PRECISIONS, (torch.float32, torch.bfloat16), strict=True))
    for precision, dtype in kinds.items():
        with torch.autocast("cpu", torch.bfloat16), using(precision, torch.device("cpu")):
            assert layer(x).dtype == dtype
    assert layer(x).dtype == torch.float32


def test_a_number_means_its_text_and_others_are_refused_by_name():
    assert check("precision", 32) == "32"
    with pytest.raises(ValueError, match=r"evaluation\.precision=64 must be one of 32, bf16-mixed"):
        check("evaluation.precision", 64)
