"""The precision in which a model is put to use, whatever it was trained in."""

import torch

PRECISIONS = ("32", "bf16-mixed")


def check(name: str, precision: str | int) -> str:
    """`precision` as text, or a ValueError that says what `name` may be."""
    if str(precision) not in PRECISIONS:
        raise ValueError(f"{name}={precision} must be one of {', '.join(PRECISIONS)}")
    return str(precision)


def using(precision: str, device: torch.device) -> torch.autocast:
    """Within, products are made in this precision: fp32, or bf16 by autocast, which leaves sums and norms in fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed")
