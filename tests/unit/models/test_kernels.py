"""The kernels of a GPU are compiled for one, as far as a machine without any can."""

import inspect
import os
import subprocess
import sys

import pytest

from tests import kernels

AMPERE, HOPPER = "80", "90"


@pytest.mark.parametrize(
    ("capability", "model"),
    [
        (HOPPER, "bf16"),
        pytest.param(HOPPER, "fp32", marks=pytest.mark.slow),
        pytest.param(AMPERE, "bf16", marks=pytest.mark.slow),
    ],
)
def test_every_kernel_is_compiled(capability: str, model: str) -> None:
    # By a process of its own: here they are interpreted, which Triton cannot take back.
    alone = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels", capability, model],
        capture_output=True,
        text=True,
        env=alone,
    )
    assert done.returncode == 0, done.stderr
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert len(names) == len(kernels.KERNELS)


def test_none_is_left_out() -> None:
    """Every kernel that is launched, by its name in its module."""
    homes = (kernels.layers_gpu, kernels.head_gpu, kernels.attend_gpu)
    launched = {
        name
        for home in homes
        for name, value in vars(home).items()
        if hasattr(value, "fn") and f"{name}[" in inspect.getsource(home)
    }
    assert launched == {kernel.fn.__name__ for kernel, _ in kernels.KERNELS}
