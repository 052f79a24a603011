"""What waits is as good as what does not: whoever touches it has the module itself."""

import subprocess
import sys
import textwrap

import pytest

SEEN = ["transformers", "scipy", "matplotlib", "PIL", "pandas", "sympy", "torch._inductor", "torch.distributed.tensor"]


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_training_imports_nothing_that_it_does_not_need():
    """Lightning, an optimizer and its step included."""
    code = f"""
        import sys, torch
        import lmlab.training.fit, lmlab.training.results
        weight = torch.nn.Parameter(torch.ones(2))
        optimizer = torch.optim.AdamW([weight], fused=True)
        weight.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        optimizer.load_state_dict(optimizer.state_dict())
        print([name for name in {SEEN} if name in sys.modules])
    """
    assert python(code) == "[]"


@pytest.mark.parametrize("first", ["import lmlab.training.fit", "import lightning, lmlab.training.fit"])
def test_the_metrics_are_all_there(first: str):
    code = f"""
        {first}
        import torchmetrics, torch, lightning
        from torchmetrics.utilities.imports import _MATPLOTLIB_AVAILABLE, _TRANSFORMERS_AVAILABLE
        import torchmetrics.classification
        assert torchmetrics.Metric is lightning.pytorch.core.module.Metric
        assert issubclass(torchmetrics.MeanMetric, torchmetrics.Metric) and "Accuracy" in dir(torchmetrics)
        assert bool(_MATPLOTLIB_AVAILABLE) and bool(_TRANSFORMERS_AVAILABLE)
        mean = torchmetrics.MeanMetric()
        mean.update(torch.tensor(1.0))
        figure, axes = mean.plot()
        print(type(torchmetrics).__name__, type(figure).__name__, torchmetrics.utilities.plot._AX_TYPE.__name__)
    """
    assert python(code) == "module Figure Axes"


@pytest.mark.parametrize("touch", ["torch._dynamo.config", "import torch._dynamo.eval_frame", "torch.compiler.reset()"])
def test_the_compiler_is_there_when_it_is_asked_for(touch: str):
    code = f"""
        import lmlab.training.fit, torch, lightning
        from lightning.fabric.wrappers import OptimizedModule
        model = torch.nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters())
        assert not isinstance(model, OptimizedModule)
        {touch}
        compiled = torch.compile(model, backend="eager")
        assert isinstance(compiled, OptimizedModule) and not isinstance(model, OptimizedModule)
        compiled(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        again = torch.optim.SGD(model.parameters())
        kept = torch.optim.Optimizer.add_param_group.__wrapped__.__dynamo_disable
        print(type(torch._dynamo).__name__, hasattr(kept, "_torchdynamo_disable"))
    """
    assert python(code) == "module True"


def test_what_was_loaded_before_is_left_alone():
    code = """
        import torch._dynamo, torchmetrics
        before = dict(vars(torch._dynamo)), dict(vars(torchmetrics))
        import lmlab.deferred
        print(before == (vars(torch._dynamo), vars(torchmetrics)))
    """
    assert python(code) == "True"


def test_lmlab_alone_imports_neither_torch_nor_hydra():
    code = """
        import sys
        from lmlab.cli import main
        assert main([]) == 0 and main(["--version"]) == 0
        print([name for name in ("torch", "hydra", "omegaconf", "numpy", "yaml") if name in sys.modules])
    """
    assert python(code).splitlines()[-1] == "[]"
