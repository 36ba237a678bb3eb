"""Four roles on one backbone: each says what a model of its own would say, and learns alone."""

import json
import shutil
from collections.abc import Sequence
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.conftest import tiny_folder
from truing.data.layout import Tokens, padded, shared
from truing.models.actor import ActorCritic
from truing.models.checkpoint import ADAPTER, BASE, add_lora, export, fingerprint
from truing.models.heads import (
    CostModel,
    RewardModel,
    ValueModel,
    load_reward_model,
    load_value_model,
    of_kind,
)
from truing.models.loading import Loading
from truing.models.model import Policy, evaluating, load_policy
from truing.models.roles import Backbone, Role, Unfit, adapter_of, wearing

DOUBLE = Loading(dtype="float64")
LORA: Any = {"r": 4, "alpha": 8, "dropout": 0.0, "targets": "all-linear"}
ROWS = [Tokens((5, 6), (7, 8, 268)), Tokens((5, 6), (9, 10)), Tokens((9,), (1, 2, 3, 4, 268))]
ROLES = ("policy", "reference", "value", "reward")


def stir(weights: Sequence[Tensor], seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in weights:
            weight += 0.1 * torch.randn(weight.shape, generator=draw, dtype=weight.dtype)


def learnt(model: Any) -> list[Tensor]:
    return [p for p in model.parameters() if p.requires_grad]


def judge(base: Path, folder: Path, kind: str = "score", loading: Loading = DOUBLE) -> Path:
    """The folder of a reward run with LoRA on ``base``."""
    model = of_kind(load_reward_model(base, loading), kind)
    add_lora(model, **(LORA | {"r": 3}), seed=7)
    stir(learnt(model), 11)
    model.shift = 0.25
    export(model, folder)
    return folder


class Play:
    """The four roles, on one backbone or each by itself, and the numbers of each."""

    def __init__(self, base: Path, scorer: Path, *, together: bool) -> None:
        self.policy = load_policy(base, DOUBLE)
        self.together = together
        reference = self.policy if together else load_policy(base, DOUBLE)
        add_lora(self.policy, **LORA, seed=1)
        self.value: ValueModel
        if together:
            backbone = Backbone(self.policy)
            found = backbone.reward(scorer, "reward", DOUBLE)
            assert isinstance(found, RewardModel)
            self.reward, self.value = found, backbone.value(found, **LORA, seed=2)
        else:
            self.reward = load_reward_model(scorer, DOUBLE)
            self.value = load_value_model(scorer, DOUBLE)
            add_lora(self.value, **LORA, seed=2)
        self.reference = reference
        self.actor = ActorCritic(self.policy, self.value)

    def says(self, role: str) -> Tensor:
        """In float64, before any head puts its number into float32."""
        layout = padded(ROWS)
        if role == "reference" and self.together:
            with wearing(self.policy.network, ()):
                return self.policy(layout)
        if role in ("policy", "reference"):
            return getattr(self, role)(layout)
        model = getattr(self, role)
        return model.core.score(model.states(layout).hidden_NH).view(len(ROWS), -1)

    def own(self, role: str) -> list[Tensor]:
        """What learns in a role."""
        if role == "policy":
            return list(adapter_of(self.policy.network, "default").values())
        if role != "value":
            return []
        if isinstance(self.value.network, Role):
            return [*self.value.network.adapter().values(), self.value.core.score.weight]
        return learnt(self.value)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    base = tiny_folder(tmp_path_factory.mktemp("roles") / "base", "gpt2", dtype=torch.float64)
    return base, judge(base, base.parent / "scorer")


def both(folders: tuple[Path, Path]) -> tuple[Play, Play]:
    return Play(*folders, together=True), Play(*folders, together=False)


def same(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, atol=1e-9, rtol=0)


def slope(play: Play, role: str) -> Tensor:
    """What the last backward pass left at a role's own weights."""
    found = [weight.grad for weight in play.own(role)]
    assert all(grad is not None for grad in found)
    return torch.cat([grad.flatten() for grad in found if grad is not None])


def test_each_role_says_what_a_model_of_its_own_says(folders: tuple[Path, Path]) -> None:
    """In any order of calls, and after steps of policy and critic."""
    one, four = both(folders)
    for round_ in range(2):
        wanted = {role: four.says(role).detach() for role in ROLES}
        figures = torch.stack([wanted[role][:, :2] for role in ROLES])
        # The critic starts as the reward; else no two roles are alike, so a mix-up would be seen.
        gaps = (figures[:, None] - figures[None]).abs().amax((2, 3))
        alike = {(0, 1), (2, 3)} if round_ == 0 else set[tuple[int, int]]()
        for i, j in combinations(range(4), 2):
            assert (float(gaps[i, j]) < 1e-9) == ((i, j) in alike)
        for order in permutations(ROLES):
            for role in order:
                same(one.says(role), wanted[role])
        for play in (one, four):
            for role, rate in (("policy", 0.1), ("value", 0.05)):
                weights = play.own(role)
                slopes = torch.autograd.grad(play.says(role).square().sum(), weights)
                with torch.no_grad():
                    for weight, slope in zip(weights, slopes, strict=True):
                        weight -= rate * slope / (1 + slope.norm())


def test_a_gradient_reaches_the_role_that_spoke_and_no_other(folders: tuple[Path, Path]) -> None:
    one, four = both(folders)
    trained = {name for name, p in one.actor.named_parameters() if p.requires_grad}
    assert len(trained) == len(one.own("policy")) + len(one.own("value"))
    for role in ROLES:
        one.actor.zero_grad()
        spoken = one.says(role).square().sum()
        if not one.own(role):
            assert not spoken.requires_grad or role == "reward"
        if spoken.requires_grad:
            spoken.backward()
        moved = {id(p) for p in one.actor.parameters() if p.grad is not None}
        assert moved == {id(p) for p in one.own(role)}
    for role in ("policy", "value"):
        one.actor.zero_grad()
        four.actor.zero_grad()
        one.says(role).square().sum().backward()
        four.says(role).square().sum().backward()
        same(slope(one, role), slope(four, role))
    # Both at once, as a joint loss has it.
    one.actor.zero_grad()
    (one.says("policy").square().sum() + one.says("value").square().sum()).backward()
    four.says("policy").square().sum().backward()
    for role in ("policy", "value"):
        same(slope(one, role), slope(four, role))


def test_recomputed_layers_wear_what_they_wore(folders: tuple[Path, Path]) -> None:
    """Layers are computed again in the backward pass, when the policy's adapter is back on."""
    one, four = both(folders)
    for play in (one, four):
        for core in play.actor.cores:
            core.activation_checkpointing_enable()
    assert (len(one.actor.cores), len(four.actor.cores)) == (1, 2)
    for play in (one, four):
        loss = play.says("policy").square().sum() + play.says("value").square().sum()
        loss.backward()
    for role in ("policy", "value"):
        same(slope(one, role), slope(four, role))


def test_nothing_is_left_on(folders: tuple[Path, Path]) -> None:
    """After a pass that fails, too; and a role that is evaluated has no dropout, the others on."""
    one, _ = both(folders)
    before = one.says("policy")
    with pytest.raises(RuntimeError, match="stop"), wearing(one.policy.network, ("reward",)):
        raise RuntimeError("stop")
    same(one.says("policy"), before)
    for module in one.policy.network.modules():
        if type(module) is torch.nn.Dropout:
            module.p = 0.5
    wanted = one.reference.network.training
    with evaluating(one.reward):
        same(one.says("reward"), one.says("reward"))
    assert one.policy.network.training == wanted is True
    assert not torch.allclose(one.says("policy"), one.says("policy"))


def test_shared_prompts_and_counts(folders: tuple[Path, Path]) -> None:
    one, four = both(folders)
    assert isinstance(one.reward.network, Role)
    with torch.no_grad():
        assert (one.reward.shares_prompts, one.value.shares_prompts) == (True, True)
        assert one.reward.sharers == one.value.sharers > 1  # tried out, and not again
        same(one.reward(shared(ROWS)), four.reward(padded(ROWS)))
        passes = one.reward.network.passes
        same(one.reward(shared(ROWS)), four.reward(padded(ROWS)))
        assert one.reward.network.passes == passes + 1
        values = one.actor.value(shared(ROWS))
        same(values, four.actor.value(shared(ROWS)))
    assert one.reward.shift == 0.25 == one.value.shift


def test_the_policy_goes_out_alone(folders: tuple[Path, Path], tmp_path: Path) -> None:
    one, four = both(folders)
    for play in (one, four):
        stir(play.own("policy"), 5)
        export(play.policy, tmp_path / str(play.together))
    files = [tmp_path / str(t) / ADAPTER for t in (True, False)]
    assert sorted(p.name for p in files[0].iterdir()) == sorted(p.name for p in files[1].iterdir())
    got, wanted = (load_file(f / "adapter_model.safetensors") for f in files)
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    merged = load_policy(tmp_path / "True", DOUBLE)
    same(merged(padded(ROWS)), four.says("policy"))
    assert fingerprint(merged.core.base_model) != fingerprint(one.policy.core.base_model)
    same(one.says("value"), four.says("value"))


def test_a_critic_from_nothing_and_one_from_a_cost(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    base, _ = folders
    policy = load_policy(base, DOUBLE)
    add_lora(policy, **LORA)
    blank = Backbone(policy).value(None, **LORA, seed=3)
    assert not blank(padded(ROWS)).any()
    own = load_value_model(base, DOUBLE)
    add_lora(own, **LORA, seed=3)
    for mine, theirs in zip(blank.network.adapter().values(), learnt(own), strict=False):
        assert torch.equal(mine, theirs)
    harmful = judge(base, tmp_path / "cost", "cost")
    policy = load_policy(base, DOUBLE)
    add_lora(policy, **LORA)
    backbone = Backbone(policy)
    cost = backbone.reward(harmful, "cost", DOUBLE)
    assert isinstance(cost, CostModel)
    layout = padded(ROWS)
    same(backbone.value(cost, **LORA)(layout), load_value_model(harmful, DOUBLE)(layout))


def test_who_cannot_be_a_role_is_told_why(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, scorer = folders

    def asked(source: Path, loading: Loading = DOUBLE) -> str:
        policy = load_policy(base, loading)
        add_lora(policy, **LORA)
        found = Backbone(policy).reward(source, "reward", loading)
        return found.reason if isinstance(found, Unfit) else ""

    assert asked(scorer) == "" == asked(scorer / "model")
    whole = load_reward_model(base, DOUBLE)
    export(whole, tmp_path / "whole")
    assert "no run of `truing reward` with use_peft" in asked(tmp_path / "whole")
    other = tiny_folder(tmp_path / "other", "gpt2", dtype=torch.float64, initializer_range=0.1)
    assert "on other weights than the policy starts from" in asked(judge(other, tmp_path / "far"))
    # The same weights in other digits: merged and apart they would say other things.
    assert "or on the same in another dtype" in asked(scorer, Loading(dtype="float32"))

    def changed(name: str) -> Path:
        return Path(shutil.copytree(scorer, tmp_path / name))

    silent = changed("silent")
    (silent / ADAPTER / BASE).unlink()
    assert "does not say which weights" in asked(silent)
    more = changed("more")
    config = json.loads((more / ADAPTER / "adapter_config.json").read_text())
    config["modules_to_save"] = ["score", "wte"]
    (more / ADAPTER / "adapter_config.json").write_text(json.dumps(config))
    assert asked(more) == "its adapter trains wte besides"
    headless, weights = changed("headless"), "adapter_model.safetensors"
    state = load_file(headless / ADAPTER / weights)
    save_file({k: v for k, v in state.items() if "score" not in k}, headless / ADAPTER / weights)
    assert "without a head of its own" in asked(headless)
    half = changed("half")
    save_file(dict(sorted(state.items())[:-5]), half / ADAPTER / weights)
    with pytest.raises(ValueError, match="does not fit the network it says it belongs to"):
        asked(half)


def test_an_adapter_of_a_tied_weight_is_refused(tmp_path: Path) -> None:
    policy: Policy = load_policy(tiny_folder(tmp_path / "tied", tie_word_embeddings=True))
    for name in ("lm_head", "embed_tokens"):
        with pytest.raises(ValueError, match="share a weight in this model, and an adapter"):
            add_lora(policy, **(LORA | {"targets": ["q_proj", name]}))
    add_lora(policy, **LORA)
