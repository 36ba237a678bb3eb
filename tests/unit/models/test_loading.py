"""Models are loaded so that nothing about them is assumed, and what cannot be is said."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from tests.conftest import END, byte_tokenizer, tiny_folder, tiny_network
from truing.models.loading import Loading, load_tokenizer
from truing.models.model import load_policy
from truing.settings_judging import SampleConfig


def test_what_a_loaded_policy_knows(tiny: Path, tiny_bos: Path) -> None:
    policy = load_policy(tiny)
    assert (policy.version, policy.context) == (0, 160)
    assert policy.device == torch.device("cpu")
    assert policy.tokenizer.pad_token_id == 269
    tokenizer = load_policy(tiny_bos).tokenizer
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2


def saved(folder: Path, change: Callable[[PreTrainedTokenizerFast], None]) -> Path:
    tokenizer = byte_tokenizer()
    tiny_network(tokenizer=tokenizer).save_pretrained(folder)
    change(tokenizer)
    tokenizer.save_pretrained(folder)
    return folder


def test_end_and_padding_tokens_are_settled_aloud(
    tmp_path: Path, tiny_bos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert load_tokenizer(tiny_bos, Loading()).pad_token == "</s>"
    assert "has no padding token: its end token </s> fills up batches" in " ".join(
        capsys.readouterr().out.split()
    )
    folder = saved(tmp_path / "m", lambda t: setattr(t, "eos_token", None))
    with pytest.raises(ValueError, match=r"has no end-of-sequence token.*set eos_token"):
        load_policy(folder)
    with pytest.raises(ValueError, match=r"eos_token '<end>' is not in the vocabulary"):
        load_policy(folder, Loading(eos_token="<end>"))
    policy = load_policy(folder, Loading(eos_token="!", pad_token="?"))
    tokenizer = policy.tokenizer
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("!", "?")
    # Plain `generate` stops there too, and still where the model's makers said.
    own = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids([END, "!"])
    assert policy.core.generation_config.eos_token_id == own
    assert load_tokenizer(folder, Loading(eos_token=END)).pad_token == "<|pad|>"


def test_what_is_no_model_is_refused(tmp_path: Path, tiny: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no model: expected config\.json"):
        load_policy(tmp_path)
    with pytest.raises(ValueError, match=r"no model folder at .*nothing/here/at/all"):
        load_policy("nothing/here/at/all")
    for path in ("./sft", "../sft", str(tmp_path / "sft"), "a b"):
        with pytest.raises(ValueError, match=r"no model folder at .*not a hub name"):
            load_policy(path)
    run = tmp_path / "run"
    run.mkdir()
    (run / "model").symlink_to(tiny)
    assert load_policy(run).context == 160
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    for file in tiny.iterdir():
        if file.suffix == ".json":
            (pickled / file.name).write_bytes(file.read_bytes())
    torch.save({}, pickled / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin, which can run code .*safetensors"):
        load_policy(pickled)


@pytest.mark.parametrize("name", ["gpt2", "owner/name", "runs/sft"])
def test_what_may_be_a_hub_name_is_asked_for_and_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an owner or without; a mistyped folder looks like one, so both are said."""
    asked: list[str] = []

    def hub(source: str, **_: Any) -> Any:
        asked.append(source)
        raise OSError("no such model\nand much more")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", hub)
    with pytest.raises(OSError, match=rf"no model folder at {name}, .*\(no such model\): check"):
        load_policy(name)
    assert asked == [name]
    # A damaged folder is not taken for a name.
    (tmp_path / name).mkdir(parents=True)
    for file in ("config.json", "model.safetensors"):
        (tmp_path / name / file).touch()
    with pytest.raises(ValueError, match=rf"^the tokenizer of {name} cannot be read \(no such mod"):
        load_policy(name)


def test_missing_weights_are_refused_and_tied_ones_are_not_missing(
    tmp_path: Path, tiny: Path
) -> None:
    scorer = AutoModelForSequenceClassification.from_pretrained(tiny, num_labels=1)
    scorer.save_pretrained(tmp_path / "scorer")
    byte_tokenizer().save_pretrained(tmp_path / "scorer")
    with pytest.raises(ValueError, match=r"no weights for \['lm_head.weight'\]: is it"):
        load_policy(tmp_path / "scorer")
    policy = load_policy(tiny_folder(tmp_path / "tied", "qwen2", tie_word_embeddings=True))
    assert policy.core.lm_head.weight is policy.core.model.embed_tokens.weight


def test_settings_become_loading() -> None:
    config = SampleConfig(
        model_name_or_path="m",
        prompts="p",
        output_file="o.jsonl",
        dtype="bfloat16",
        model_revision="v2",
        use_cpu=True,
        eos_token="!",
    )
    loading = Loading.of(config)
    assert (loading.dtype, loading.revision, loading.device) == ("bfloat16", "v2", "cpu")
    assert (loading.eos_token, loading.disable_dropout) == ("!", True)
    assert loading.options()["dtype"] == torch.bfloat16
    assert loading.options()["use_safetensors"] is True


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    config = SampleConfig(model_name_or_path="m", prompts="p", output_file="o.jsonl")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert Loading.of(config).device == "cuda:0"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert Loading.of(config).device == "cuda:1"
    assert Loading.of(config.model_copy(update={"use_cpu": True})).device == "cpu"
