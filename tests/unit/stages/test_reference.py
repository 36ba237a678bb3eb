"""The reference's log-probs: computed once, found again, made anew where anything moved."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import tiny_network
from truing.config import ConfigError, check, parse
from truing.data.batch import Encoder
from truing.data.formats import load
from truing.data.schema import Comparison
from truing.models import precision
from truing.models.checkpoint import add_lora
from truing.models.loading import Loading
from truing.models.model import Policy, load_policy
from truing.settings import DpoConfig, KtoConfig
from truing.stages import preference, reference, setup, unpaired
from truing.stages.preference import encode_pairs
from truing.stages.reference import Shelf, fingerprint, with_reference

Settings = Callable[..., Any]
Write = Callable[..., str]
ROWS = [{"prompt": f"p{i}", "chosen": " in the end", "rejected": f" er{'!' * i}"} for i in range(6)]


@pytest.fixture
def policy(tiny: Path) -> Policy:
    return load_policy(tiny)


@pytest.fixture
def pairs(policy: Policy, jsonl: Write) -> list[preference.Pair]:
    return encode_pairs(load(jsonl("pairs", ROWS), Comparison), Encoder(policy.tokenizer))


def counted(found: Any) -> tuple[int, int]:
    """Responses of a run that were read, and that were computed."""
    summary = found.info["summary"]
    return summary["reference/read"], summary["reference/computed"]


def test_another_run_beside_the_same_reference_computes_nothing(
    tiny: Path, tmp_path: Path, jsonl: Write, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    data, cache = jsonl("rows", ROWS), tmp_path / "cache"
    more = {"ref_log_probs_cache": str(cache), "max_steps": 1, "eval_dataset_name": data}
    plain: Any = preference.run(
        settings(DpoConfig, tiny, data, max_steps=1, eval_dataset_name=data)
    )
    # 6 chosen and 6 rejected, no two behind one prompt; the held-out rows are the same ones again.
    assert counted(plain) == (0 + 12, 12)
    assert list((tmp_path / "run").glob("checkpoints*")) == []
    first: Any = preference.run(
        settings(DpoConfig, tiny, data, output_dir=str(tmp_path / "a"), **more)
    )
    assert counted(first) == (0 + 12, 12)
    again = settings(DpoConfig, tiny, data, output_dir=str(tmp_path / "b"), beta=0.5, **more)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "sequence_logps", None)  # who computes fails
        second: Any = preference.run(again)
    assert counted(second) == (12 + 12, 0)
    assert f"0 computed, 12 read from {cache}" in capsys.readouterr().out.replace("\n", "")
    losses = [run.metrics()[0]["logps/chosen"] for run in (plain, first, second)]
    assert losses[0] == losses[1] == losses[2]
    # With adapters the reference is the same model; of other rows, only the new are computed.
    rows = [*ROWS[:5], {"prompt": "p9", "chosen": " in the end", "rejected": " er"}]
    lora = settings(
        DpoConfig, tiny, jsonl("other", rows), output_dir=str(tmp_path / "c"), use_peft=True,
        loss_type="ipo", max_steps=1, ref_log_probs_cache=str(cache),
    )  # fmt: skip
    assert counted(preference.run(lora)) == (10, 2)


def test_thumbs_share_the_cache_with_pairs(
    tiny: Path, tmp_path: Path, jsonl: Write, settings: Settings
) -> None:
    data, cache = jsonl("rows", ROWS), {"ref_log_probs_cache": str(tmp_path / "cache")}
    preference.run(settings(DpoConfig, tiny, data, max_steps=1, **cache))
    config = settings(KtoConfig, tiny, data, max_steps=1, output_dir=str(tmp_path / "k"), **cache)
    read, computed = counted(unpaired.run(config))
    # The 12 answers were there, and of their partners those that say " in the end".
    assert read >= 12
    assert 0 < computed <= 12


def test_what_is_read_is_what_was_computed(
    policy: Policy, pairs: list[preference.Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "PART", 1)
    shelf = Shelf(tmp_path / "cache")
    wanted = with_reference(pairs, policy, 1)
    assert with_reference(pairs, policy, 1, shelf) == wanted
    assert len(list(shelf.folder.iterdir())) == 6  # 12 responses, two to a batch, a batch to a file
    assert with_reference(pairs, policy, 1, shelf) == wanted
    assert shelf.figures() == {"reference/read": 12, "reference/computed": 12}
    # A response that stands in many rows is computed once.
    shelf = Shelf(tmp_path / "twice")
    assert with_reference(pairs + pairs, policy, 1, shelf) == wanted + wanted
    assert (shelf.read, shelf.computed) == (0, 12)
    assert with_reference([], policy, 1, shelf) == []


def test_one_that_may_not_write_reads_only(
    policy: Policy, pairs: list[preference.Pair], tmp_path: Path
) -> None:
    shelf = Shelf(tmp_path / "cache", writes=False)
    with_reference(pairs, policy, 2, shelf)
    assert not shelf.folder.exists()
    with_reference(pairs, policy, 2, Shelf(shelf.folder))
    with_reference(pairs, policy, 2, shelf)
    assert (shelf.read, shelf.computed) == (12, 12)


def test_a_damaged_file_is_made_anew_aloud(
    policy: Policy, pairs: list[preference.Pair], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(reference, "PART", 1)
    wanted = with_reference(pairs, policy, 2, Shelf(tmp_path))
    files = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    spoilt, cut, *_ = sorted(tmp_path.iterdir())
    content = bytearray(spoilt.read_bytes())
    content[-1] ^= 1  # a bit of the last log-prob
    spoilt.write_bytes(content)
    cut.write_bytes(files[cut.name][:-20])
    shelf = Shelf(tmp_path)
    assert with_reference(pairs, policy, 2, shelf) == wanted
    assert (shelf.read, shelf.computed) == (4, 8)
    told = capsys.readouterr().out.replace("\n", "")
    assert told.count("is not as it was written: removed") == 2
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == files


def test_numbers_that_are_not_finite_are_not_kept(
    policy: Policy, pairs: list[preference.Pair], tmp_path: Path
) -> None:
    with torch.no_grad():
        policy.core.lm_head.weight.fill_(float("nan"))
    with_reference(pairs, policy, 2, Shelf(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


def test_a_full_disk_is_named(
    policy: Policy, pairs: list[preference.Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"safetensors could not be written \(No space left"):
        with_reference(pairs, policy, 2, Shelf(tmp_path))
    assert list(tmp_path.glob("*.safetensors")) == []


def test_the_key_tells_whatever_moves_a_number(
    tiny: Path, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = fingerprint(policy)
    assert fingerprint(load_policy(tiny)) == own
    keys = {own}
    keys.add(fingerprint(load_policy(tiny, Loading(dtype="bfloat16"))))
    keys.add(fingerprint(load_policy(tiny, Loading(attn_implementation="eager"))))
    with monkeypatch.context() as patch:
        patch.setattr(precision, "told", lambda: "another")
        keys.add(fingerprint(policy))
    with torch.no_grad():
        weight = policy.core.model.layers[1].mlp.up_proj.weight
        weight[0, 0] += 2**-20
    keys.add(fingerprint(policy))
    policy.core.config.rope_parameters["rope_theta"] *= 2
    keys.add(fingerprint(policy))
    assert len(keys) == 6
    fresh = load_policy(tiny)
    add_lora(fresh, r=2, alpha=4, dropout=0.5, targets="all-linear", seed=3)
    assert fingerprint(fresh) == own
    with torch.no_grad():
        next(p for n, p in fresh.network.named_parameters() if "lora_B" in n)[0, 0] = 1.0
    assert fingerprint(fresh) not in keys


def test_another_reference_finds_nothing(
    tiny: Path, tmp_path: Path, jsonl: Write, settings: Settings
) -> None:
    other = tmp_path / "other"
    network = tiny_network()
    with torch.no_grad():
        network.lm_head.weight *= 0.5
    network.save_pretrained(other)
    load_policy(tiny).tokenizer.save_pretrained(other)
    more = {"ref_log_probs_cache": str(tmp_path / "cache"), "max_steps": 1}
    for place, model in enumerate((tiny, other)):
        config = settings(
            DpoConfig, tiny, jsonl("rows", ROWS), ref_model_name_or_path=str(model),
            output_dir=str(tmp_path / f"run{place}"), **more,
        )  # fmt: skip
        assert counted(preference.run(config)) == (0, 12)
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.parametrize("named", [False, True])
def test_a_run_that_is_killed_goes_on_behind_the_last_file(
    tiny: Path, tmp_path: Path, jsonl: Write, settings: Settings,
    monkeypatch: pytest.MonkeyPatch, named: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr(reference, "PART", 1)
    monkeypatch.setattr(setup, "discard", lambda _: None)
    more: dict[str, Any] = {"per_device_eval_batch_size": 1, "max_steps": 2}
    rows = jsonl("rows", ROWS)
    whole: Any = preference.run(settings(DpoConfig, tiny, rows, **more))
    more |= {"output_dir": str(tmp_path / "killed")}
    more |= {"ref_log_probs_cache": str(tmp_path / "cache")} if named else {}
    config = settings(DpoConfig, tiny, rows, **more)
    child = os.fork()
    if child == 0:
        replace, moves = os.replace, list[str]()

        def third(source: Any, target: Any) -> None:
            moves.append(str(target))
            if sum(".safetensors" in name for name in moves) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target)

        os.replace = third
        preference.run(config)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    found: Any = preference.run(config)
    assert counted(found) == (4, 8)
    assert (found.path / "model" / "model.safetensors").read_bytes() == (
        whole.path / "model" / "model.safetensors"
    ).read_bytes()
    line, other = ({k: v for k, v in r.metrics()[0].items() if k != "time"} for r in (found, whole))
    assert json.dumps(line) == json.dumps(other)


def test_the_files_can_be_read_by_hand(
    policy: Policy, pairs: list[preference.Pair], tmp_path: Path
) -> None:
    filled = with_reference(pairs, policy, 8, Shelf(tmp_path))
    (file,) = tmp_path.glob("*.safetensors")
    kept = load_file(file)
    assert kept["names_N16"].shape == (12, 16)
    logps = {logp for pair in filled for logp in (pair.ref_chosen, pair.ref_rejected)}
    assert set(kept["logps_N"].tolist()) == logps


@pytest.mark.parametrize("run", [(DpoConfig, preference.run), (KtoConfig, unpaired.run)])
def test_a_folder_that_cannot_be_is_refused(
    run: tuple[Any, Any], tiny: Path, tmp_path: Path, jsonl: Write, settings: Settings
) -> None:
    rows = jsonl("rows", ROWS)
    for place, said in ((rows, "is a file; give the name of a folder"), (f"{rows}/x", "is a file")):
        with pytest.raises(ValueError, match=said):
            run[1](settings(run[0], tiny, rows, ref_log_probs_cache=place))
    assert not (tmp_path / "run").exists()


def test_a_loss_without_a_reference_has_no_cache(settings: Settings) -> None:
    with pytest.raises(ConfigError, match="ref_log_probs_cache has no effect with loss_type simpo"):
        settings(DpoConfig, "m", "d", loss_type="simpo", ref_log_probs_cache="c")


@pytest.mark.parametrize("config", [DpoConfig, KtoConfig])
def test_the_name_of_trl_says_what_is_done_anyway(config: Any) -> None:
    start = {"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o"}
    assert check(config, start | {"precompute_ref_log_probs": True}) == check(config, start)
    words = [word for k, v in start.items() for word in (f"--{k}", v)]
    made = parse(config, [*words, "--precompute-ref-log-probs", "true"], prog="truing")
    assert made == check(config, start)
    with pytest.raises(ConfigError, match=r"always computed once.*ref_log_probs_cache"):
        check(config, start | {"precompute_ref_log_probs": False})
