"""The harness that measures the product beside TRL (benchmarks/): what it compares and tells."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from benchmarks import feedback, goals, page, roles, runner, scaling, where, where_gpu, work
from benchmarks.__main__ import main
from benchmarks.runner import SIDES, Comparison, equal_tokens, gradient_difference, spread
from benchmarks.side import Died, Side
from truing.data.ledger import Ledger
from truing.stages import online
from truing.stages.outlook import Outlook

SHAPE = work.SHAPES["tiny"]
KEYS = {
    *("workload", "shape", "precision", "ratio_tuned", "ratio_plain", "memory_plain", "mfu"),
    *("loss_difference", "gradient_difference"),
}


def record(workload: str = "sft", tuned: float = 2.0, **more: Any) -> dict[str, Any]:
    """A record with made-up figures."""
    each = dict.fromkeys(SIDES, 1.0)
    return {
        "workload": workload,
        "shape": "small",
        "precision": "fp32",
        "device": "cpu",
        "ratio_tuned": {"min": 1.0, "median": tuned, "max": 9.0},
        "ratio_plain": {"min": 1.0, "median": 3.5, "max": 9.0},
        "memory_plain": 0.8,
        "mfu": each,
        "loss_difference": 1e-7,
        "gradient_difference": 2e-7,
        "tokens_per_second": {name: spread([1.0]) for name in SIDES},
        "peak_mb": each,
        "machine": "a machine",
        "date": "2026-01-01",
        "commit": "abc",
        "versions": {"torch": "2"},
        **more,
    }


def test_the_page_says_where_lengths_were_not_the_same() -> None:
    told = "each side drew responses with lengths of its own"
    same = {"tokens": dict.fromkeys(SIDES, 100)}
    other = {"tokens": {**same["tokens"], "plain": 90}}
    assert told not in page.render([record("grpo", **same), record("sampling-8", **other)])
    nearly = {"tokens": {**same["tokens"], "plain": 99.5}}
    assert told not in page.render([record("rloo", **nearly)])
    assert f"- Of rloo, small, {told}." in page.render(
        [record("grpo", **same), record("rloo", **other)]
    )


def test_of_a_gpu_there_is_no_tuned_side() -> None:
    sides = {"truing": 2.0, "plain": 1.0}
    gpu = record("dpo", shape="0.5b", precision="bf16", ratio_tuned=None, device="gpu")
    gpu |= {"peak_mb": sides, "tokens_per_second": {n: spread([v]) for n, v in sides.items()}}
    assert set(goals.figures(gpu)) == {"plain"}
    text = page.render([gpu])
    assert "## On a GPU, bf16 against bf16" in text
    assert "| tokens/s: Truing, plain |" in text
    low = page.render([gpu | {"mfu": {"truing": 0.25, "plain": 0.5}}])
    assert "Below\nthat: dpo, 0.5b (25%)." in low
    assert "Below\nthat: none." in page.render([gpu | {"mfu": {"truing": 0.4, "plain": 0.1}}])
    assert "No GPU was at hand" not in text


def test_gradients_are_compared_by_name(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("one", "two", "three")]
    torch.save({"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([0.0])}, files[0])
    torch.save({"b": torch.tensor([0.0]), "a": torch.tensor([3.0, 0.0])}, files[1])
    torch.save({"a": torch.tensor([3.0, 4.0])}, files[2])
    # The difference is (0, 4), the second's norm 3.
    assert gradient_difference(files[0], files[1]) == pytest.approx(4 / 3)
    with pytest.raises(ValueError, match="other weights: \\['b'\\]"):
        gradient_difference(files[0], files[2])


def test_sides_that_read_other_tokens_are_refused() -> None:
    bench = Comparison("sft", "tiny", pairs=1, threads=1, precision="fp32")
    same = {name: {"digest": "a"} for name in SIDES}
    bench.check(same)
    with pytest.raises(ValueError, match="read other tokens"):
        bench.check({**same, "plain": {"digest": "b"}})
    bench.folder.rmdir()


def test_a_reference_pass_is_paid_for() -> None:
    bench = Comparison("dpo", "tiny", pairs=1, threads=1, precision="fp32")
    answer = {"seconds": 1.0}
    bench.charge(answer, {"reference_seconds_per_row": 0.5})
    # Three steps of four pairs.
    assert answer["seconds"] == 1.0 + 3 * 4 * 0.5
    bench.folder.rmdir()


def test_a_segment_is_all_of_its_steps() -> None:
    bench = Comparison("kto", "tiny", pairs=1, threads=1, precision="fp32")
    told = [{"seconds": s, "tokens": 10 * s, "peak_mb": p} for s, p in ((1, 7), (2, 9), (3, 8))]
    bench.sides["plain"] = cast("Side", SimpleNamespace(step=iter(told).__next__))
    assert bench.segment("plain") == {"seconds": 6, "tokens": 60, "peak_mb": 9}
    # One step is compared, a segment warms up, one counts.
    assert bench.steps == 1 + 3 + 3
    bench.folder.rmdir()


def test_a_side_that_dies_says_why(tmp_path: Path) -> None:
    side = Side("plain", sys.executable, "no_such_module", {"threads": 1, "settings": []}, tmp_path)
    with pytest.raises(Died, match=r"(?s)plain ended with 1:.*No module named no_such_module"):
        side.step()
    side.close()


@pytest.mark.parametrize("settings", [[], ["malloc", "openmp"]])
def test_a_peer_waits_as_the_product_does_only_where_it_is_tuned(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "5000")  # as the product leaves it behind
    seen = dict[str, str]()
    monkeypatch.setattr("subprocess.Popen", lambda *_, env, **__: seen.update(env))
    Side("a", sys.executable, "m", {"threads": 1, "settings": settings}, tmp_path)
    assert ("GOMP_SPINCOUNT" in seen) == bool(settings)


@pytest.mark.parametrize("accurate", [False, True])
def test_a_product_of_fewer_bits_is_neither_the_peers_nor_the_peak(
    accurate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "medium_is_accurate", lambda: accurate)
    told, asked = list[dict[str, Any]](), set[str]()
    monkeypatch.setattr(runner, "Side", lambda *a: told.append(a[3]))
    for name in ("sft", "sampling-8"):
        with_it = Comparison(name, "tiny", pairs=1, threads=1, precision="fp32")
        with_it.start("tuned")
        with_it.start("truing")
        with_it.folder.rmdir()
    faster = ["matmul"] if accurate else []
    both = ["malloc", "openmp"]
    assert [spec["settings"] for spec in told] == [both + faster, [], both, []]
    monkeypatch.setattr(torch, "set_float32_matmul_precision", asked.add)
    assert runner.peak_flops(1, cpu=True, half=False, seconds=0.01) > 0
    assert ("medium" in asked) == accurate


def test_a_commit_is_marked_where_code_differs_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> None:
        named = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *named, *words], check=True, timeout=60)

    git("init", "-q")
    for name in ("code.py", "docs/page.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("one\n")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    assert (first := runner.commit())
    (tmp_path / "docs" / "page.md").write_text("what measuring wrote\n")
    assert runner.commit() == first
    (tmp_path / "code.py").write_text("two\n")
    assert runner.commit() == first + "+"


def test_equal_responses_are_counted() -> None:
    done = {"truing": {"responses": [[1], [2]]}, "plain": {"responses": [[1], [3]]}}
    assert equal_tokens([done]) == 0.5


def test_floors_and_goals() -> None:
    # The floor of sft is 1.5, its goal 2; of memory 0.70 and 0.55.
    assert goals.verdicts(record(tuned=2.1))["tuned"] == "goal"
    assert goals.verdicts(record(tuned=1.6)) == {
        "tuned": "floor",
        "plain": "floor",
        "memory": "below",
    }
    assert goals.tally([record(tuned=2.1)]) == {"floor": (2, 3), "goal": (1, 3)}
    # Of grpo against tuned there is a goal and no floor.
    assert goals.verdicts(record("grpo", tuned=1.0))["tuned"] == "floor"
    assert goals.tally([record("grpo", tuned=5.0)]) == {"floor": (0, 2), "goal": (1, 3)}
    assert goals.verdicts(record(shape="tiny")) == {}
    assert {key[0] for key in goals.GOALS} <= set(work.WORKLOADS)
    assert set(goals.DEFAULT) >= {key for key in goals.GOALS if key[2] == "fp32"}


def test_the_page_tells_what_was_reached_and_what_was_not() -> None:
    text = page.render([record(tuned=2.1), record("dpo", failed="TRL died of\na bug")])
    assert "| sft, small | **2.10** (1.00 to 9.00) | 1.5 / 2 |" in text
    assert "*0.80* | 0.7 / 0.55 |" in text
    assert "dpo, small was not measured: TRL died of\n" in text
    assert "2 of 3 floors hold and 1 of 3 goals are reached" in text
    # Of a goal that is missed: what it would take. That of tuned TRL is reached.
    assert "- sft, small, x plain: 3.50 of 4, by an MFU of 100 %; it would take 114 %" in text
    assert "x tuned: " not in text
    assert "- sft, small, memory: 0.8000 of 0.55" in text
    assert "not reached on a CPU" not in page.render([record("sampling-8", shape="small")])
    assert "No GPU was at hand" in text
    gpu = page.render([record(device="gpu")])
    assert "## On a GPU, bf16 against bf16" in gpu
    assert "No GPU was at hand" not in gpu


def test_where_the_time_of_a_step_goes() -> None:
    found = where.measured("grpo", "tiny", threads=1)
    assert found["seconds"] > 0
    assert found["shares"].keys() == {*where.KINDS.values(), where.ADAMW}
    assert found["shares"][where.ADAMW] > 0
    assert 0 < sum(found["shares"].values()) < 1


def test_the_page_tells_where_the_time_goes() -> None:
    step = {"seconds": 1.25, "shares": {"products": 0.5, "attention": 0.125}}
    told = {"date": "d", "commit": "c", "machine": "m", "shape": "small", "steps": {"dpo": step}}
    text = page.render([record()], told)
    assert "| | seconds | products | attention | the rest |" in text
    assert "| dpo | 1.25 | 50 % | 12 % | 38 % |" in text
    assert "Where the time goes" not in page.render([record()])


def test_kernels_of_a_gpu_by_what_they_compute() -> None:
    named = {
        "nvjet_sm90_tst_128x256": "products",
        "void cublasLt::splitKreduce_kernel<32>": "products",
        "void pytorch_flash::flash_bwd_kernel<Traits<128, cutlass::bfloat16_t>>": "attention",
        "_attend": "attention",
        "_norm_back": "norms, gates, rotations",
        "_gate": "norms, gates, rotations",
        "_read": "log-probs",
        "void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor>": where_gpu.ADAMW,
        "void at::native::vectorized_elementwise_kernel<8>": "other kernels",
    }
    events = [{"cat": "kernel", "name": name, "dur": 2e6} for name in named]
    events += [{"cat": "gpu_memcpy", "name": "Memcpy HtoD", "dur": 1e6}]
    # Neither what the host does nor a note around kernels keeps the GPU busy.
    events += [{"cat": "cpu_op", "name": "aten::mm", "dur": 9e6}, {"name": "no category"}]
    found = where_gpu.spent(events)
    for kind in where_gpu.KINDS:
        more = kind == "other kernels"
        assert found[kind] == 2 * list(named.values()).count(kind) + more
    assert sum(found.values()) == 2 * len(named) + 1


def test_the_page_tells_where_the_time_goes_on_a_gpu() -> None:
    phases = {"generate": 0.5, "learn": 0.25}
    step = {"seconds": 0.5, "shares": {"products": 0.5, "attention": 0.25}, "phases": phases}
    told = {"date": "d", "commit": "c", "machine": "m", "shape": "1.5b", "steps": {"grpo": step}}
    low = record("grpo", device="gpu", shape="1.5b", mfu={"truing": 0.1, "plain": 0.1})
    text = page.render([low], None, [told])
    assert "| | seconds | products | attention | no kernel | phases |" in text
    assert "| grpo | 0.500 | 50 % | 25 % | 25 % | 50 %, 25 % |" in text
    assert "that: grpo, 1.5b (10%)." in text
    assert "was not looked into" not in text
    assert "was not looked into" in page.render([low])
    # Where learning is timed apart, it is what is asked.
    high = {**low, "mfu": {**low["mfu"], "learning": 0.45}}
    assert "that: none." in page.render([high])
    assert "| 10, 10, 45 |" in page.render([high])


def test_the_exponent_of_a_cost() -> None:
    assert scaling.exponent({n: 3.0 * n**2 for n in (1, 2, 4)}) == pytest.approx(2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", scaling.SIZES)
def test_a_step_costs_in_proportion(kind: str) -> None:
    found = scaling.measured({kind: scaling.SIZES[kind][:2]})[kind]
    assert 0.3 < found["exponent"] < 1.5


def peers() -> Sequence[str]:
    return [name for name in work.WORKLOADS if name not in ("ppo", "sampling-32", "sampling-128")]


@pytest.mark.slow
@pytest.mark.parametrize("workload", peers())
def test_both_sides_compute_the_same(workload: str, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    file = tmp_path / "record.json"
    words = [workload, "--shape", "tiny", "--pairs", "1", "--threads", "1", "--json", str(file)]
    assert main(words) == 0
    found = SimpleNamespace(**json.loads(file.read_text(encoding="utf-8")))
    assert set(vars(found)) >= KEYS
    assert found.ratio_plain["min"] == found.ratio_plain["median"] > 0
    assert found.tokens["truing"] > 0
    if workload.startswith("sampling"):
        assert found.equal_tokens > 0.9
    else:
        assert found.loss_difference < 1e-5
        assert found.gradient_difference < 1e-4


def test_four_roles_are_foretold_in_the_memory_of_one(tmp_path: Path) -> None:
    roles.prepare(tmp_path, "tiny")
    ways = (roles.ALONE, "four roles on one backbone, LoRA", "four models, LoRA")
    made = [roles.settings(tmp_path, way).model_copy(update={"dry_run": True}) for way in ways]
    one, shared, apart = (online.run(config) for config in made)
    assert isinstance(one, Outlook)
    assert isinstance(shared, Outlook)
    assert isinstance(apart, Outlook)
    # An adapter of rank 16 on 7 matrices of 6 layers: those of value and reward come in addition,
    # and their heads.
    sizes = [(192, 192)] * 4 + [(192, 640)] * 3
    adapter = 6 * 16 * sum(map(sum, sizes))
    assert shared.parameters == one.parameters + 2 * (adapter + 192)
    assert shared.trainable == one.trainable + adapter + 192
    assert shared.parameters < 1.3 * one.parameters < 0.4 * apart.parameters
    assert shared.memory_mb < 1.3 * one.memory_mb


@pytest.mark.slow
def test_four_roles_take_the_memory_of_one() -> None:
    record = roles.compared("tiny")
    ways = record["ways"]
    assert ways["four roles on one backbone, LoRA"]["of_one_model"] < 1.3
    assert max(record["one_backbone_of"].values()) < 1
    for way, of in ways.items():
        if "LoRA" in way:
            # As it is promised.
            assert of["foretold_mb"] == pytest.approx(of["peak_mb"], rel=0.15)


def test_the_pages_are_measured_at_each_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(feedback, "SIZES", (20,))
    place = tmp_path / "ledger.sqlite"
    flags = ["--items", "40", "--annotators", "4", "--seconds", "0.5", "--ledger", str(place)]
    flags += ["--export", "jsonl"]
    record = feedback.main(
        [*flags, "--judgements", "40", "--think", "0.05", "--json", str(tmp_path / "record.json")]
    )
    assert record == json.loads((tmp_path / "record.json").read_text()) | record
    assert [row["judgements"] for row in record["sizes"]] == [20, 40]
    for row in record["sizes"]:
        # Each of the four got an item and judged it, at least once.
        assert row["next"]["count"] == row["submit"]["count"] >= 4
        assert 0 < row["next"]["median_ms"] <= row["next"]["p99_ms"] <= row["next"]["max_ms"]
        assert row["server_cpu_ms_per_request"] > 0
    assert [row["format"] for row in record["exports"]] == ["jsonl"]
    for row in record["exports"]:
        assert min(row["cpu_seconds"], row["peak_mb"], row["file_mb"]) > 0
    with Ledger.open(place) as ledger:
        made = ledger.campaign("load")
        judged = 40 + sum(row["next"]["count"] for row in record["sizes"]) + 2 * 4
        assert ledger.progress(made.id).done == judged
        assert ledger.verify() == []
        with pytest.raises(ValueError, match="at most 1 for each item"):
            feedback.Filling(Ledger.open(tmp_path / "other.sqlite"), 10, 20, 4)


def test_what_people_waited_is_told_by_rank() -> None:
    told = feedback.spread([i / 1000 for i in range(1, 102)])
    # Of 1 to 101 the middle is 51, and 99 % of the way from the first to the last is 100.
    assert told == {
        "count": 101,
        "median_ms": pytest.approx(51.0),
        "p99_ms": pytest.approx(100.0),
        "max_ms": 101.0,
    }
    with pytest.raises(ValueError, match="Measure for longer"):
        feedback.spread([1.0])
