"""Supervised fine-tuning from a file to a model: what it learns, writes, counts and refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from truing.data.batch import Encoder
from truing.data.formats import load
from truing.data.layout import Tokens
from truing.data.schema import Demonstration, Message
from truing.generation.engine import Request, Sampling
from truing.generation.local import LocalEngine
from truing.lineage import Parent, hash_file
from truing.models.model import load_policy
from truing.run import Run
from truing.settings import SftConfig
from truing.stages import sft
from truing.stages.outlook import Outlook

Write = Callable[..., str]
Settings = Callable[..., Any]
ROWS = [
    {"prompt": "cat?", "completion": " in the"},
    {"prompt": "dog?", "completion": " on"},
    {"prompt": "the end?", "completion": " here then"},
]
CHAT = [
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]},
    {
        "prompt": None,
        "messages": [
            {"role": "user", "content": "why?"},
            {"role": "assistant", "content": "so"},
            {"role": "user", "content": "hm"},
            {"role": "assistant", "content": "oh"},
        ],
    },
]


def test_it_learns_the_answers_by_heart_and_writes_it_all_down(
    tiny: Path, tmp_path: Path, jsonl: Write, settings: Settings
) -> None:
    data, held_out = jsonl("rows", ROWS), jsonl("held", ROWS[:1])
    config = settings(
        SftConfig,
        tiny,
        data,
        eval_dataset_name=held_out,
        max_steps=60,
        lr_scheduler_type="constant",
        report_to="tensorboard",
        logging_steps=20,
        eval_steps=30,
        log_completions_steps=30,
        num_completions_to_print=2,
    )
    run = sft.run(config)
    assert run is not None
    assert {p.name for p in run.path.iterdir()} == {
        "config.yaml", "run.json", "metrics.jsonl", "samples.jsonl", "trackers", "model",
    }  # fmt: skip
    assert yaml.safe_load((run.path / "config.yaml").read_text()) == config.model_dump(mode="json")
    info = json.loads((run.path / "run.json").read_text())
    assert (info["stage"], info["status"], info["seed"]) == ("sft", "finished", 0)
    assert run.parents == [
        Parent.of("policy", tiny),
        load(data, Demonstration).parent("dataset"),
        load(held_out, Demonstration, split="test").parent("evaluation dataset"),
    ]
    lines = run.metrics()
    logged = [line for line in lines if "loss" in line]
    assert [line["step"] for line in logged] == [20, 40, 60]
    read = {"tokens/forwarded", "tokens/filling", "tokens/prefix_saved"}
    told = {"step", "time", "loss", "grad_norm", "learning_rate", "epoch"}
    assert logged[0].keys() == told | read
    assert [line["step"] for line in lines if "eval_loss" in line] == [30, 60]
    looks = [line for line in lines if "completions/mean_length" in line]
    assert [line["step"] for line in looks] == [0, 30, 60]
    samples = run.samples()
    # One held-out prompt, looked at three times; in the end it is answered by heart.
    assert [(s["step"], s["prompt"]) for s in samples] == [(0, "cat?"), (30, "cat?"), (60, "cat?")]
    assert samples[-1]["completion"] == " in the"
    assert samples[-1]["finish_reason"] == "stop"
    assert list((run.path / "trackers").rglob("events.out.tfevents*"))
    summary = info["summary"]
    assert summary["loss"] < 0.2
    assert summary["eval_loss"] < 0.2
    assert summary["weight_version"] == 60
    # Plain transformers says the answers too, and ends them.
    model = AutoModelForCausalLM.from_pretrained(run.path / "model")
    tokenizer = AutoTokenizer.from_pretrained(run.path / "model")
    for row in ROWS:
        ids = tokenizer(row["prompt"], return_tensors="pt")
        out = model.generate(**ids, do_sample=False, max_new_tokens=20)[0]
        assert tokenizer.decode(out) == f"{row['prompt']}{row['completion']}<|end|>"


def test_the_same_settings_give_the_same_bytes(
    tiny: Path, tmp_path: Path, jsonl: Write, settings: Settings
) -> None:
    found: list[str] = []
    for name, more in (("a", {}), ("b", {}), ("c", {"seed": 1}), ("d", {"use_peft": True}),
                       ("e", {"use_peft": True})):  # fmt: skip
        torch.manual_seed(len(found))
        config = settings(
            SftConfig, tiny, jsonl("rows", ROWS), output_dir=str(tmp_path / name),
            max_steps=3, per_device_train_batch_size=2, **more,
        )  # fmt: skip
        run = sft.run(config)
        assert run is not None
        found.append(hash_file(run.path / "model" / "model.safetensors"))
    assert found[0] == found[1]
    assert found[2] != found[0]
    assert found[3] == found[4] != found[0]


def test_adapters_alone_are_trained(tiny: Path, jsonl: Write, settings: Settings) -> None:
    config = settings(
        SftConfig, tiny, jsonl("rows", ROWS), max_steps=20, use_peft=True, lora_dropout=0.0
    )  # fmt: skip
    run = sft.run(config)
    assert run is not None
    losses = [line["loss"] for line in run.metrics()]
    assert losses[-1] < losses[0] / 4
    old = load_file(tiny / "model.safetensors")
    new = load_file(run.path / "model" / "model.safetensors")
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed == {n for n in old if "proj" in n}  # no embedding, head or norm
    adapted = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny), run.path / "adapter"
    )
    merged = AutoModelForCausalLM.from_pretrained(run.path / "model")
    ids = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(adapted(ids).logits, merged(ids).logits, atol=1e-5, rtol=0)


def test_a_dry_run_writes_nothing(
    tiny: Path, jsonl: Write, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(SftConfig, tiny, jsonl("rows", ROWS), dry_run=True, num_train_epochs=5)
    ahead = sft.run(config)
    assert isinstance(ahead, Outlook)
    assert ahead.rows == ahead.data["rows"] == len(ROWS)
    assert ahead.data["tokens"] == round(ahead.tokens_per_step * ahead.steps / 5)
    assert not Path(config.output_dir).exists()
    shown = capsys.readouterr().out
    for figure in ("steps", "tokens in all", "memory, estimated (MB)"):
        assert figure in shown


def test_what_is_cut_or_left_out_is_counted(
    tiny: Path, jsonl: Write, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    data = jsonl("rows", [*ROWS, {"prompt": "x" * 12, "completion": "y"}])
    held_out = jsonl("held", ROWS[2:])
    config = settings(SftConfig, tiny, data, eval_dataset_name=held_out, max_length=10, max_steps=1)
    run = sft.run(config)
    assert run is not None
    counts = {
        "responses truncated": 1,  # "the end? here then" and EOS are more than 10 tokens
        "prompts too long, left out": 1,
        "evaluation: responses truncated": 1,
    }
    assert run.info["summary"].items() >= counts.items()
    shown = capsys.readouterr().out
    for name, count in counts.items():
        assert f"{name}: {count}" in shown


def test_messages(
    tiny: Path, tiny_chat: Path, jsonl: Write, settings: Settings, tmp_path: Path
) -> None:
    data = jsonl("chat", CHAT)
    with pytest.raises(ValueError, match="no chat template: set chat_template"):
        sft.run(settings(SftConfig, tiny, data))
    assert not (tmp_path / "run").exists()
    run = sft.run(settings(SftConfig, tiny, data, chat_template="hh", max_steps=1))
    assert run is not None
    # Whoever loads the model later renders messages as it was trained on them.
    encoder = Encoder(load_policy(run.path).tokenizer)
    assert encoder.render((Message("user", "hi"),), generate=True) == "\n\nHuman: hi\n\nAssistant:"
    encoder = Encoder(load_policy(tiny_chat).tokenizer)
    rows = sft.encode_rows(load(data, Demonstration), encoder)
    assert [encoder.decode(row.response) for row in rows] == ["yo", "oh"]


def test_plain_text_is_learnt_from_its_second_token(
    tiny: Path, tiny_bos: Path, jsonl: Write, settings: Settings
) -> None:
    data = jsonl("texts", [{"text": "the cat"}, {"text": "a"}])
    for folder, first in ((tiny, ()), (tiny_bos, (1,))):
        encoder = Encoder(load_policy(folder).tokenizer)
        rows = sft.encode_rows(load(data, Demonstration), encoder)
        assert [row.prompt for row in rows] == [first] * 2
        assert rows[1] == Tokens(first, (*encoder._ids("a"), encoder.eos))
    run = sft.run(settings(SftConfig, tiny_bos, data, max_steps=2, log_completions_steps=2))
    assert run is not None
    assert [s["prompt"] for s in run.samples()] == [""] * 4


def test_a_text_of_one_token_is_left_out_and_counted(tiny: Path, jsonl: Write) -> None:
    encoder = Encoder(load_policy(tiny).tokenizer)
    data = load(jsonl("texts", [{"text": "<|end|>"}, {"text": "a"}]), Demonstration)
    assert len(sft.encode_rows(data, encoder)) == 1
    assert encoder.counts == {"rows of a single token, left out": 1}


def test_the_prompt_is_learnt_only_where_asked_for(
    tiny: Path, jsonl: Write, settings: Settings
) -> None:
    for only, tokens in ((True, 3), (False, 2 + 3)):
        config = settings(SftConfig, tiny, "none", completion_only_loss=only)
        objective = sft.Imitation(config)
        batch = objective.collate([Tokens((1, 2, 3), (4, 5, 6))])
        assert objective.counts(batch) == {"tokens": tokens}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it holds no rows"),
        ('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n', "row 2, field 'completion'"),
        ('{"prompt": 3, "completion": "b"}\n', r"row 1, field 'prompt': 3 \(int\) came"),
        ('{"prompt": "a", "completion": "b"\n', "row 1: broken JSON"),
        ('{"question": "a"}\n', "needed: prompt [+] completion"),
    ],
)
def test_rows_that_cannot_be_used(
    tiny: Path, tmp_path: Path, settings: Settings, text: str, message: str
) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text(text)
    with pytest.raises(ValueError, match=message):
        sft.run(settings(SftConfig, tiny, str(data)))
    assert not (tmp_path / "run").exists()


def test_nothing_left_to_train_on(tiny: Path, jsonl: Write, settings: Settings) -> None:
    data = jsonl("rows", [{"prompt": "x" * 300, "completion": "y"}])
    with pytest.raises(ValueError, match=r"no row of .* can be used .*prompts too long.*: 1"):
        sft.run(settings(SftConfig, tiny, data))


def test_a_run_does_not_overwrite_another(tiny: Path, jsonl: Write, settings: Settings) -> None:
    config = settings(SftConfig, tiny, jsonl("rows", ROWS), max_steps=1)
    sft.run(config)
    with pytest.raises(ValueError, match=r"already holds a sft run \(finished\)"):
        sft.run(config)


def test_a_run_that_fails_says_so(
    tiny: Path, jsonl: Write, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        return torch.tensor(float("nan"), requires_grad=True), {}

    monkeypatch.setattr(sft.Imitation, "loss", broken)
    config = settings(SftConfig, tiny, jsonl("rows", ROWS), report_to="tensorboard")
    with pytest.raises(FloatingPointError, match="the loss is nan"):
        sft.run(config)
    info = Run.open(config.output_dir).info
    assert info["status"] == "failed"
    assert info["error"].startswith("Diverged: the loss is nan")
    assert not (Path(config.output_dir) / "model").exists()


def test_a_run_goes_on_from_another(
    tiny: Path, jsonl: Write, settings: Settings, tmp_path: Path
) -> None:
    data = jsonl("rows", ROWS)
    first = sft.run(settings(SftConfig, tiny, data, max_steps=2))
    assert first is not None
    config = settings(SftConfig, first.path, data, max_steps=1, output_dir=str(tmp_path / "two"))
    second = sft.run(config)
    assert second is not None
    assert second.parents[0] == Parent.of("policy", first.path)
    losses = [line["loss"] for run in (first, second) for line in run.metrics()]
    assert losses[2] < losses[1] < losses[0]
    (done,) = LocalEngine(load_policy(second.path)).generate(
        [Request((1, 2), 0)], Sampling(max_completion_length=2)
    )
    assert done.version == 0
