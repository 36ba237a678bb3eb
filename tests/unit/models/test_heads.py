"""The reward model: where its score is read, its new head, its shift, and other libraries."""

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    LlamaForSequenceClassification,
)

from tests.conftest import byte_tokenizer, tiny_network
from truing.data.layout import Tokens, packed, padded
from truing.models.heads import RewardModel, load_reward_model, sequence_scores
from truing.models.loading import Loading

ROWS = [Tokens((5, 6), (7, 8, 268)), Tokens((9,), (1, 2, 3, 4, 268)), Tokens((3, 3, 3), (268,))]


@torch.no_grad()
def raw(model: RewardModel, tokens: Tokens) -> float:
    """The head on the hidden state of the last token, by transformers alone."""
    ids = torch.tensor([[*tokens.prompt, *tokens.response]])
    return float(model.core.score(model.core.model(input_ids=ids).last_hidden_state[0, -1]))


@pytest.fixture
def reward(tiny: Path) -> RewardModel:
    return load_reward_model(tiny)


def test_the_score_is_read_at_the_last_token_in_every_layout(reward: RewardModel) -> None:
    wanted = torch.tensor([raw(reward, tokens) for tokens in ROWS])
    assert wanted.std() > 0.1
    for layout in (padded(ROWS), padded(ROWS, fill=268), packed(ROWS, capacity=11)):
        torch.testing.assert_close(reward(layout), wanted, atol=1e-5, rtol=0)
    got = sequence_scores(reward, ROWS, batch_size=2)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
    assert not got.requires_grad
    assert reward.training


def test_the_shift_is_subtracted_and_kept_in_the_config(reward: RewardModel) -> None:
    before = sequence_scores(reward, ROWS)
    assert reward.shift == 0
    reward.shift = torch.tensor(1.5).item()
    torch.testing.assert_close(sequence_scores(reward, ROWS), before - 1.5)
    assert reward.network.config.to_dict()["reward_shift"] == 1.5


def test_a_new_head_is_small_and_always_the_same(tiny: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        one = load_reward_model(tiny).core.score.weight.detach()
        torch.manual_seed(2)
        two = load_reward_model(tiny).core.score.weight.detach()
    assert torch.equal(one, two)
    assert one.shape == (1, 32)
    # N(0, 1 / 33): the root mean square of 32 draws is 0.174, give or take 12.5 %, three times.
    assert 0.11 < float(one.square().mean().sqrt()) < 0.24
    draw = torch.randn(1, 32, generator=torch.Generator().manual_seed(0)) / 33**0.5
    torch.testing.assert_close(one, draw)


def test_the_body_is_that_of_the_language_model(tiny: Path, reward: RewardModel) -> None:
    language = tiny_network()
    for name, weight in language.model.state_dict().items():
        assert torch.equal(weight, reward.core.model.state_dict()[name])


def test_a_reward_model_of_another_library_keeps_its_head(tmp_path: Path, tiny: Path) -> None:
    other = AutoModelForSequenceClassification.from_pretrained(tiny, num_labels=1)
    with torch.no_grad():
        other.score.weight.fill_(0.25)
    other.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    model = load_reward_model(tmp_path)
    assert (model.core.score.weight == 0.25).all()
    ids = torch.tensor([[5, 6, 7, 8, 268]])
    torch.testing.assert_close(sequence_scores(model, ROWS[:1]), other(ids).logits[0])


def test_padding_that_is_eos_is_not_told_to_other_readers(tiny: Path, tiny_bos: Path) -> None:
    """They score the last token that is not padding, which would be the one before EOS."""
    assert load_reward_model(tiny).network.config.pad_token_id == 269
    assert load_reward_model(tiny_bos).network.config.pad_token_id is None


def test_what_cannot_be_a_reward_model(tmp_path: Path, tiny: Path) -> None:
    three = LlamaForSequenceClassification(tiny_network().config)
    assert three.config.num_labels == 2
    three.save_pretrained(tmp_path / "two")
    byte_tokenizer().save_pretrained(tmp_path / "two")
    with pytest.raises(ValueError, match=r"\['score.weight'\]; a classifier of several labels"):
        load_reward_model(tmp_path / "two")
    tiny_bert = BertConfig(
        vocab_size=270,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    BertForSequenceClassification(tiny_bert).save_pretrained(tmp_path / "bert")
    byte_tokenizer().save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="no linear 'score' head: use a decoder-only model"):
        load_reward_model(tmp_path / "bert")


def test_dropout_is_off(tmp_path: Path, tiny: Path) -> None:
    model = load_reward_model(tiny, Loading(disable_dropout=True))
    assert all(
        getattr(m, "attention_dropout", 0.0) == 0 and getattr(m, "p", 0.0) == 0
        for m in model.modules()
    )
