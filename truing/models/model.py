"""A causal language model and the one way to ask it for log-probabilities: `logp(model, layout)`.

Padding, packing and attention masks hide behind the `Layout`; the [B, T, V] logits never exist:
only the hidden states that predict a scored token reach the output head, a slice at a time.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import logging

from truing.data.layout import CELLS, SHARERS, Kept, Layout, Tokens, flat, packed, padded, shared
from truing.models import precision
from truing.models.attention import attend
from truing.models.family import States, goes_whole, span
from truing.models.head import Scaling, figures
from truing.models.layers import fuse
from truing.models.loading import (
    Loading,
    load_tokenizer,
    prepare,
    reading,
    refuse_missing,
    refuse_other_tokenizer,
    resolve,
)
from truing.models.memory import release
from truing.models.products import adopt

# Columns of a row and scored tokens are rounded up to multiples of these. CPU kernels are made, and
# kept, for each shape that occurs: where shapes repeat, that costs time and memory but once.
COLUMNS, SCORED = 16, 128
# How several responses may lie in one row: told apart by spans, a mask, or restarting positions.
# Where it reads by spans, `family` leaves cells out, and lets layers go as a whole.
How = Literal["spans", "tails", "whole", "mask", "restarts"]

logging.disable_progress_bar()
ALL_ATTENTION_FUNCTIONS["sdpa"] = attend


class Model(nn.Module):
    """A transformers network (perhaps with adapters), its tokenizer and its weights' version.

    ``version`` counts the optimiser steps behind the weights; samplers and caches record it.
    """

    def __init__(self, network: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.network = network
        self.tokenizer = tokenizer
        self.version = 0
        self._trials: dict[tuple[str, torch.device], bool] = {}
        adopt(self.core)
        fuse(self.core)
        span(self.core)

    @property
    def core(self) -> Any:
        """The transformers model itself, adapters (if any) in place."""
        network = self.network
        return network.get_base_model() if hasattr(network, "get_base_model") else network

    @property
    def cores(self) -> list[Any]:
        """All transformers models in it: this one."""
        return [self.core]

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def context(self) -> int | None:
        """Longest sequence in tokens that the model was made for, if its config says."""
        return getattr(self.core.config.get_text_config(), "max_position_embeddings", None)

    def states(self, layout: Layout, *, ends: bool = False) -> States:
        """Final hidden states of a layout's cells: those at least that predict scored tokens or
        end a sequence, or, where nothing else is read, the ``ends`` alone.

        Documents that share a row are kept apart by spans, or by a mask where the model reads none;
        filling on the right needs neither, for causal attention never looks there, and in packed
        rows transformers keeps sequences apart by their restarting positions.
        """
        kept, whole = None, False
        one_row = layout.by_spans and self.reads_spans
        if one_row and self._tried("tails"):
            kept = layout.ends if ends else layout.tails
            whole = self._tried("whole")
        # With flash attention it looks for restarts in a batch of one row only.
        one_row |= layout.kind == "packed" and "flash" in self._attention
        with precision.mixed(self.device):
            return self._read(layout, one_row, kept, **({"whole": True} if whole else {}))

    def _read(self, layout: Layout, one_row: bool, kept: Kept | None, **told: bool) -> States:
        inputs = self._in_one_row(layout, kept) if one_row else self._widened(layout)
        hidden = self.core.base_model(**inputs, **told, use_cache=False).last_hidden_state
        columns = layout.ids_RC.shape[1] if one_row else hidden.shape[1]
        return States(hidden.flatten(0, 1), columns, kept)

    def _in_one_row(self, layout: Layout, kept: Kept | None = None) -> dict[str, Any]:
        """A layout's cells as inputs, all rows in one; by spans filled up to `CELLS`, and the last
        layer told which cells are ``kept``."""
        grids = (layout.ids_RC, layout.positions_RC)
        ids, positions = (grid_RC.reshape(1, -1) for grid_RC in grids)
        if layout.kind == "packed":
            return {"input_ids": ids, "position_ids": positions}
        more = (0, -layout.cells % CELLS)
        ids, positions = (nn.functional.pad(cells, more) for cells in (ids, positions))
        found = {"input_ids": ids, "position_ids": positions, "attention_mask": layout.table}
        return found if kept is None else {**found, "kept": kept}

    def _widened(self, layout: Layout) -> dict[str, Tensor]:
        """A layout's cells as inputs, filled on the right, as its own rows are, up to a multiple
        of `COLUMNS`; never beyond the context."""
        ids, positions = layout.ids_RC, layout.positions_RC
        more = -ids.shape[1] % COLUMNS
        if layout.kind == "padded":
            more = max(0, min(more, (self.context or sys.maxsize) - ids.shape[1]))
            beyond = torch.arange(more, device=ids.device) + ids.shape[1]
        else:
            beyond = torch.zeros(more, dtype=torch.long, device=ids.device)
        filled = torch.cat([positions, beyond.expand(len(ids), -1)], 1)
        inputs = {"input_ids": nn.functional.pad(ids, (0, more)), "position_ids": filled}
        if layout.by_spans:
            documents = nn.functional.pad(layout.documents_RC, (0, more), value=-1)
            seen_RCC = sight(documents, nn.functional.pad(layout.segments_RC, (0, more)))
            mask_RCC = torch.zeros_like(seen_RCC, dtype=self.network.dtype)
            mask_RCC.masked_fill_(~seen_RCC, torch.finfo(mask_RCC.dtype).min)
            inputs["attention_mask"] = mask_RCC.unsqueeze(1)
        return inputs

    @property
    def _attention(self) -> str:
        return str(self.core.config._attn_implementation)

    def place(self, sequences: Sequence[Tokens], *, score_prompt: bool = False) -> Layout:
        """The layout for responses of which neighbours may answer the same prompt: without filling,
        and the prompt read once, where the model can; else what it can."""
        if self.reads_spans:
            return flat(sequences, score_prompt=score_prompt)
        if self._packs:
            whole = sum(tokens.length for tokens in sequences)
            return packed(sequences, capacity=whole, score_prompt=score_prompt)
        if self.shares_prompts and not score_prompt:
            return shared(sequences)
        return padded(sequences, score_prompt=score_prompt)

    @property
    def reads_spans(self) -> bool:
        """Whether the model reads many texts in one row by `spans`: tried out, once."""
        on_cpu = self.device.type == "cpu"
        return (on_cpu or precision.halves(self.network.dtype)) and self._tried("spans")

    @property
    def shares_prompts(self) -> bool:
        """Whether responses can share the row of their prompt: tried out, once, on six tokens."""
        return self._tried("mask")

    @property
    def sharers(self) -> int:
        """How many responses one reading of their prompt serves."""
        return sys.maxsize if self.reads_spans else SHARERS if self.shares_prompts else 1

    @property
    def _windows(self) -> bool:
        """Whether some layer looks back a limited way only."""
        config = self.core.config.get_text_config()
        windows = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
        return bool(windows or getattr(config, "sliding_window", None))

    @property
    def _packs(self) -> bool:
        """Whether flash attention keeps texts in one row apart by themselves."""
        return "flash" in self._attention and self._tried("restarts")

    def tried(self, what: str, trial: Callable[[], bool]) -> bool:
        """The outcome of a trial of the model where it is now, which is made but once."""
        key = what, self.device
        if key not in self._trials:
            self._trials[key] = trial()
        return self._trials[key]

    def _tried(self, how: How) -> bool:
        """Whether the model reads responses in one row."""
        return self.tried(how, lambda: self._may_read(how) and self._reads(how))

    def _may_read(self, how: How) -> bool:
        if how in ("tails", "whole"):
            return self.reads_spans
        ways = {"spans": ("sdpa",), "mask": ("eager", "sdpa"), "restarts": (self._attention,)}
        known = self._attention in ways[how] and not (self._windows and how != "restarts")
        random = any(getattr(m, "attention_dropout", 0.0) for m in self.core.modules())
        return known and not (random and how == "spans")

    def _reads(self, how: How) -> bool:
        """Whether two responses to one prompt, in one row, come out as each alone."""
        vocabulary = self.core.config.get_text_config().vocab_size
        ids = tuple(i % vocabulary for i in range(1, 7))
        rows = [Tokens(ids[:3], ids[3:5]), Tokens(ids[:3], ids[5:])]
        together = packed(rows, capacity=10) if how == "restarts" else shared(rows)
        if how == "whole":
            inputs = self._in_one_row(together.to(self.device))
            with evaluating(self):
                return goes_whole(self.core, inputs["position_ids"], inputs["attention_mask"])
        alone, found = padded(rows), list[Tensor]()
        half = self.network.dtype in precision.HALF
        # A GPU reads spans in 16 bits alone, as it will be asked to.
        by_spans = how in ("spans", "tails")
        mixed = by_spans and self.device.type != "cpu" and not half
        with evaluating(self), torch.autocast(self.device.type, torch.bfloat16, enabled=mixed):
            for layout in (together.to(self.device), alone.to(self.device)):
                one_row = layout.kind != "padded" and how != "mask"
                kept = layout.ends if one_row and how == "tails" else None
                try:
                    states = self._read(layout, one_row, kept)
                except torch.OutOfMemoryError:
                    raise
                except (RuntimeError, ValueError, IndexError, TypeError):
                    return False  # its attention is another
                found.append(states.at(*layout.last_B2.T).float())
        one, other = found
        # 16 bits round their sums in another order; else only the last digits may differ.
        return bool((one - other).norm() <= (2e-2 if half or mixed else 1e-5) * other.norm())


def cells(responses: Sequence[Tokens], model: Model) -> int:
    """Tokens that ``model`` reads for the responses to one prompt, which it may read once."""
    tokens = sum(response.length for response in responses)
    again = (len(responses) - 1) * len(responses[0].prompt)
    return tokens - again if len(responses) <= model.sharers else tokens


def sight(documents_RC: Tensor, segments_RC: Tensor) -> Tensor:
    """Which cells (last axis) each cell may look at: itself and those before it in the document, of
    the prompt or of its own response. No cell is without any: filling sees filling."""
    alike_RCC = documents_RC[:, :, None] == documents_RC[:, None, :]
    own_RCC = segments_RC[:, :, None] == segments_RC[:, None, :]
    return (alike_RCC & (own_RCC | (segments_RC[:, None, :] == 0))).tril()


class Policy(Model):
    """A causal language model: log-probs of the scored tokens of a layout."""

    def forward(self, layout: Layout, temperature: float = 1.0) -> Tensor:
        """Log-probs (B, T) of the scored tokens at ``temperature``; zero where the mask is."""
        return self.figures(self.states(layout), layout, temperature)[0]

    def figures(
        self, states: States, layout: Layout, temperature: float, *, spread: bool = False
    ) -> tuple[Tensor, ...]:
        """Of each scored token (B, T) its log-prob at ``temperature`` and, with ``spread``, the
        entropy of its distribution; zero where the mask is."""
        number = layout.scored
        # With zeros behind them up to a multiple of `SCORED`, once at least.
        more = -number % SCORED if number else SCORED
        row_N, column_N, target_N = nn.functional.pad(layout.picked_4N[1:], (0, more))
        with precision.mixed(self.device):
            found = figures(
                self.core.get_output_embeddings(),
                states.at(row_N, column_N),
                target_N,
                Scaling.of(self.core.config.get_text_config(), temperature),
                spread=spread,
            )
        return tuple(layout.spread(found_N[:number]) for found_N in found)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states, float32 at least, with the scalings some families apply."""
        scaling = Scaling.of(self.core.config.get_text_config())
        return scaling(self.core.get_output_embeddings()(hidden))


def logp(model: nn.Module, layout: Layout, temperature: float = 1.0) -> Tensor:
    """Log-probs (B, T) of a layout's scored tokens under ``model`` (a Policy, or one wrapped by
    DDP), at the sampling ``temperature``. Zero where ``layout.mask_BT`` is false."""
    return model(layout, temperature)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No dropout and no gradients inside, whatever the model is doing outside."""
    before = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(before)


class Places(Protocol):
    """A module that lays out its own input: a `Model`, or an actor with its critic."""

    @property
    def device(self) -> torch.device: ...

    def place(self, sequences: Sequence[Tokens]) -> Layout: ...


def measure(
    model: Model, rows: Sequence[Tokens], batch_size: int, figure: Callable[[Layout], Tensor]
) -> Tensor:
    """``figure`` (B,) of every row (N,), on the CPU, in the order of ``rows``; no gradients."""
    figure_N = torch.zeros(len(rows))
    for chunk, found_B in _in_batches(model, rows, batch_size, figure):
        figure_N[chunk] = found_B.float()
    return figure_N


def measure_tokens(
    model: Places, rows: Sequence[Tokens], batch_size: int, figure: Callable[[Layout], Tensor]
) -> list[Tensor]:
    """``figure`` (B, T) of every row's response tokens (its own T), as `measure` does it."""
    found: dict[int, Tensor] = {}
    for chunk, found_BT in _in_batches(model, rows, batch_size, figure):
        found |= {i: x[: len(rows[i].response)] for i, x in zip(chunk, found_BT, strict=True)}
    return [found[i] for i in range(len(rows))]


def _in_batches(
    model: Places, rows: Sequence[Tokens], batch_size: int, figure: Callable[[Layout], Tensor]
) -> Iterator[tuple[list[int], Tensor]]:
    """Row numbers and their figures, on the CPU. Prompts of like length share a batch, responses
    to one prompt lie together."""
    order = sorted(range(len(rows)), key=lambda i: (-len(rows[i].prompt), rows[i].prompt))
    for start in range(0, len(order), batch_size):
        chunk = order[start : start + batch_size]
        layout = model.place([rows[i] for i in chunk]).to(model.device)
        with evaluating(cast(nn.Module, model)), precision.training():
            found = figure(layout).cpu()
        yield chunk, found
    release(model.device)


def sequence_logps(policy: Policy, rows: Sequence[Tokens], batch_size: int = 32) -> Tensor:
    """Log-probs (N,) of whole responses, on the CPU, in the order of ``rows``; no gradients."""
    return measure(policy, rows, batch_size, lambda layout: logp(policy, layout).sum(-1))


def load_policy(source: Path | str, loading: Loading | None = None) -> Policy:
    """Load a causal language model from a folder, a run folder or a hub name (safetensors only)."""
    loading = loading or Loading()
    place = resolve(source)
    tokenizer = load_tokenizer(place, loading)
    with reading(source):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            place, output_loading_info=True, **loading.options()
        )
    network, report = loaded
    refuse_missing(source, report["missing_keys"])
    refuse_other_tokenizer(source, network, tokenizer)
    network.to(loading.device)
    prepare(network, loading)
    _stop_at_eos(network, tokenizer)
    policy = Policy(network, tokenizer)
    _check_head(policy)
    return policy


def _stop_at_eos(network: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Plain `generate` must stop where responses end, also at an EOS named by the user."""
    generation = getattr(network, "generation_config", None)
    found = getattr(generation, "eos_token_id", None)
    stops = found if isinstance(found, list) else [] if found is None else [found]
    if generation is not None and tokenizer.eos_token_id not in stops:
        generation.eos_token_id = [*stops, tokenizer.eos_token_id]


def _check_head(policy: Policy) -> None:
    """Our head on hidden states must give the model's own logits; some family may scale anew, and
    one of another kind has another head."""
    vocabulary = policy.core.config.get_text_config().vocab_size
    ids = torch.arange(1, 7, device=policy.device).remainder(vocabulary).unsqueeze(0)
    with evaluating(policy):
        hidden = policy.core.base_model(input_ids=ids, use_cache=False).last_hidden_state
        ours = policy.logits(hidden)
        theirs = policy.core(input_ids=ids).logits.to(ours.dtype)
        if torch.allclose(ours, theirs, atol=1e-3, rtol=1e-2):
            return
        other = torch.cat([ids[:, :-1], ids[:, :1]], dim=1)
        again = policy.core(input_ids=other).logits.to(ours.dtype)
    name = type(policy.core).__name__
    if not torch.allclose(theirs[:, :-1], again[:, :-1], atol=1e-6, rtol=1e-5):
        raise ValueError(
            f"{name} looks ahead: its logits depend on later tokens, so it cannot write text from "
            "left to right. Choose a causal language model"
        )
    raise ValueError(
        f"{name} changes its logits in a way this version does not know (largest difference "
        f"{float((ours - theirs).abs().max()):.3g}): please report it"
    )
