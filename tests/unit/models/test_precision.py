"""Which matrix multiply a phase may use, and that nothing of it stays behind."""

import pytest
import torch

from truing.models import precision, products
from truing.settings import SftConfig


def test_training_takes_the_fast_kernel_only_where_it_is_accurate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for accurate, wanted in ((True, "medium"), (False, "highest")):
        monkeypatch.setattr(precision, "medium_is_accurate", lambda _, found=accurate: found)
        with precision.training():
            assert torch.get_float32_matmul_precision() == wanted
        assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("wanted", ["highest", "high", "medium"])
def test_what_is_chosen_holds_in_training_and_not_while_decoding(
    monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    other = wanted != "medium"  # what the measurement would lead to is not what is asked for
    monkeypatch.setattr(precision, "medium_is_accurate", lambda _: other)
    monkeypatch.setattr(products, "tiles", lambda: False)
    start = {"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o"}
    config = SftConfig.model_validate(start | {"float32_matmul_precision": wanted})
    with precision.of(config):
        assert torch.get_float32_matmul_precision() == "highest"
        with precision.training():
            assert torch.get_float32_matmul_precision() == wanted
        with precision.decoding():
            assert torch.get_float32_matmul_precision() == "highest"
        assert precision.told() == wanted
    assert precision.told() == ("medium" if other else "highest")


@pytest.mark.parametrize(
    ("wanted", "bf16", "digits"),
    [("auto", False, 3), ("auto", True, 0), ("highest", False, 0), ("high", False, 2),
     ("medium", False, 0)],
)  # fmt: skip
def test_a_cpu_with_tiles_cuts_what_the_settings_allow(
    monkeypatch: pytest.MonkeyPatch, wanted: str, bf16: bool, digits: int
) -> None:
    accurate, there = False, True
    monkeypatch.setattr(precision, "medium_is_accurate", lambda _: accurate)
    monkeypatch.setattr(products, "tiles", lambda: there)
    start = {"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o", "bf16": bf16}
    config = SftConfig.model_validate(start | {"float32_matmul_precision": wanted})

    def cut() -> int:
        with precision.training():
            return products.digits_here()

    with precision.of(config):
        assert (cut(), products.digits_here()) == (digits, 0)
        assert ("digits" in precision.told()) == bool(digits)
        with precision.decoding():  # whatever the settings say: its prompts are float32's
            assert products.digits_here() == 3
        there = False
        assert cut() == 0
        assert "digits" not in precision.told()
        there = accurate = True  # where there is a fast float32, nothing need be cut for it
        assert cut() == (0 if wanted == "auto" else digits)


def test_the_measurement_notices_lost_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    measure = precision.medium_is_accurate.__wrapped__
    monkeypatch.setattr(precision, "TOLERANCE", 1.0)
    assert measure() is True
    # Eight bits of mantissa, as bfloat16 has them, are an error of about 4e-3.
    monkeypatch.setattr(precision, "TOLERANCE", 1e-12)
    assert measure() is False


def test_it_is_measured_where_the_run_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that a run does not use says nothing of it."""
    asked: list[bool] = []
    monkeypatch.setattr(
        precision, "medium_is_accurate", lambda use_cpu: bool(asked.append(use_cpu))
    )
    for use_cpu in (True, False):
        config = SftConfig(
            model_name_or_path="m", dataset_name="d", output_dir="o", use_cpu=use_cpu
        )
        with precision.of(config):
            for phase in (precision.training, precision.decoding):
                with phase():
                    pass
        assert set(asked) == {use_cpu}
        asked.clear()


def test_decoding_is_plain_float32_without_gradients() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        with precision.decoding():
            assert torch.get_float32_matmul_precision() == "highest"
            assert torch.is_inference_mode_enabled()
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert not torch.is_inference_mode_enabled()


def test_an_error_inside_leaves_nothing_behind() -> None:
    for phase in (precision.training, precision.decoding):
        with pytest.raises(KeyError), phase():
            raise KeyError
        assert torch.get_float32_matmul_precision() == "highest"
        assert torch.is_grad_enabled()
