import pytest
import torch
from tests.generation.toys import FAMILIES


@pytest.fixture(params=FAMILIES)
def model(request):
    torch.manual_seed(3)
    return FAMILIES[request.param]()
