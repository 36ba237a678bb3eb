"""Texts that models and strangers wrote, as HTML that is safe to show and does not steer.

Markdown, code and formulas are drawn; HTML in a text stays text. Signs that turn the reading order
or that nobody sees are written out. A model that names itself is masked: what is shown must not say
who wrote it.
"""

import html
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import nh3
from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline
from markupsafe import Markup

# Beyond this Markdown would take seconds, and a hostile text more: it is shown as it is.
LONG = 40_000  # characters
FORMULA, FORMULAS = 1_000, 200  # characters of one, and how many of a text are drawn

# Controls, embeddings, overrides and isolates, and halves of surrogate pairs. The marks that Hebrew
# and Arabic need (U+200E, U+200F, U+061C) reach no further than their neighbours, and stay.
HIDDEN = re.compile(
    "[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)

WRITTEN_OUT = re.compile(r"⟦U\+[0-9A-F]{4}⟧")

NAMES = (
    *("ChatGPT", "GPT", "OpenAI", "Claude", "Anthropic", "Gemini", "Bard", "Google DeepMind"),
    *("DeepMind", "Google AI", "Llama", "LLaMA", "Meta AI", "Mistral AI", "Mistral", "Mixtral"),
    *("Qwen", "Tongyi", "Alibaba Cloud", "Alibaba", "DeepSeek", "Grok", "xAI", "Copilot"),
    *("Microsoft", "Command R", "Cohere", "Yi", "01.AI", "Kimi", "Moonshot AI", "ChatGLM", "GLM"),
    *("Zhipu AI", "Phi", "Gemma", "Falcon", "Vicuna", "Alpaca", "Pythia", "OLMo", "Tülu", "Tulu"),
    *("SmolLM", "Hugging Face", "Nemotron", "NVIDIA", "InternLM", "Baichuan", "Ernie", "Baidu"),
)
# Only where the speaker is meant: an answer *about* these models keeps their names.
SELF = re.compile(
    r"\b(I\s+am|I['’]m|my\s+name(\s+is|['’]s)|I\s+was\s+(made|created|trained|developed|built)"
    r"|(call|named)\s+me|known\s+as|(trained|created|made|developed|built)\s+me"
    r"|as\s+an?\s+(\w+\s+){0,4}(model|assistant|AI)\b|as\s+(an?\s+)?(?={names}))",
    re.IGNORECASE,
)
SENTENCE = re.compile(r"[^.!?\n]*(?:[.!?](?=\w)[^.!?\n]*)*[.!?\n]*")


class Masked(NamedTuple):
    """A text without its author's names, and what stood at each blank."""

    text: str
    names: dict[str, str]


def visible(text: str) -> str:
    """The text with signs that hide or turn others written out, such as ⟦U+202E⟧."""
    return HIDDEN.sub(
        lambda m: f"⟦U+{ord(m[0]):04X}⟧", text.replace("\r\n", "\n").replace("\r", "\n")
    )


@lru_cache(maxsize=64)
def _patterns(more: tuple[str, ...]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    words = sorted({*NAMES, *(n for n in more if len(n) > 2)}, key=len, reverse=True)
    # With a version behind it: GPT-4o, Llama 3.1 8B, Claude-3-opus.
    names = rf"(?:{'|'.join(map(re.escape, words))})(?:[- ]?v?\d[\w.-]*\w|[- ]?\d)?(?:-[a-z]\w*)*"
    name = re.compile(rf"(?<!\w){names}(?!\w)", re.IGNORECASE)
    return name, re.compile(SELF.pattern.replace("{names}", names), re.IGNORECASE)


def mask(text: str, names: Iterable[str] = ()) -> Masked:
    """Blank the names in each sentence in which a model says who it is.

    ``names``: those of the campaign's own models, besides the well-known ones. The same name gets
    the same blank, so that an edited text can be given its names back by `unmask`.
    """
    name, itself = _patterns(tuple(sorted(set(names))))
    blanks: dict[str, str] = {}

    def blank(match: re.Match[str]) -> str:
        return blanks.setdefault(match[0], f"⟦name {len(blanks) + 1}⟧")

    def sentence(match: re.Match[str]) -> str:
        return name.sub(blank, match[0]) if itself.search(match[0]) else match[0]

    if name.search(text):
        text = SENTENCE.sub(sentence, text)
    return Masked(text, {shown: was for was, shown in blanks.items()})


def unmask(text: str, names: Mapping[str, str]) -> str:
    """An edited text with its names where their blanks still are."""
    return re.sub(r"⟦name \d+⟧", lambda m: names.get(m[0], m[0]), text)


# --- Markdown -------------------------------------------------------------------------------------

TAGS = {
    *("p", "br", "hr", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li", "blockquote", "pre"),
    *("code", "em", "strong", "s", "a", "table", "thead", "tbody", "tr", "th", "td", "span"),
    *("math", "mrow", "mi", "mo", "mn", "ms", "mtext", "mspace", "mfrac", "msqrt", "mroot", "msub"),
    *("msup", "msubsup", "munder", "mover", "munderover", "mtable", "mtr", "mtd", "mpadded"),
    *("mphantom", "menclose", "mstyle"),
}
ATTRIBUTES = {
    "a": {"href", "title"},
    "ol": {"start"},
    "span": {"class"},
    "math": {"display"},
    "mo": {"stretchy", "fence", "form", "minsize", "maxsize", "lspace", "rspace", "movablelimits"},
    "mi": {"mathvariant"},
    "mspace": {"width"},
    "mfrac": {"linethickness"},
    "mtable": {"columnalign"},
    "mtd": {"columnalign"},
    "mstyle": {"displaystyle", "scriptlevel"},
    "menclose": {"notation"},
}
# Whole formulas: $…$ as Pandoc reads it (so that prices stay prices), $$…$$, \(…\) and \[…\].
INLINE = (
    (re.compile(r"\$\$(.+?)\$\$", re.DOTALL), True),
    (re.compile(r"\$(?![\s$])((?:[^$\\\n]|\\.)+?)(?<!\s)\$(?!\d)"), False),
    (re.compile(r"\\\[(.+?)\\\]", re.DOTALL), True),
    (re.compile(r"\\\((.+?)\\\)", re.DOTALL), False),
)


def _formula(state: StateInline, silent: bool) -> bool:
    if state.src[state.pos] not in "$\\" or state.env.setdefault("formulas", 0) >= FORMULAS:
        return False
    for pattern, block in INLINE:
        # The end of the region, so that no search runs through a text of 40,000 characters.
        match = pattern.match(state.src, state.pos, state.pos + FORMULA + 4)
        if match is None or match.end() > state.posMax:
            continue
        if not silent:
            state.env["formulas"] += 1
            token = state.push("formula", "math", 0)
            token.content, token.meta = match[1].strip(), {"block": block}
        state.pos = match.end()
        return True
    return False


def _draw(tokens: Sequence[Any], index: int, *_: Any) -> str:
    token, block = tokens[index], tokens[index].meta["block"]
    try:
        if "<" in token.content and "\\text" in token.content:
            raise ValueError("latex2mathml does not escape in \\text")
        drawn = convert(token.content, display="block" if block else "inline")
    except Exception:  # whatever it stumbles over, the source is shown
        return f"<code>{html.escape(token.content)}</code>"
    return drawn


def _image(tokens: Sequence[Any], index: int, *_: Any) -> str:
    """No picture is fetched from anywhere: that would tell its server who judges what, and when."""
    alt, source = tokens[index].content, str(tokens[index].attrGet("src") or "")
    return f'<span class="picture">picture: {html.escape(alt)} ({html.escape(source)})</span>'


def _reader() -> MarkdownIt:
    reader = MarkdownIt("commonmark", {"html": False, "breaks": True, "maxNesting": 40})
    reader.enable(["table", "strikethrough"])
    reader.inline.ruler.before("escape", "formula", _formula)
    renderer: Any = reader.renderer
    renderer.rules |= {"formula": _draw, "image": _image}
    return reader


_READER = _reader()


def _plain(text: str) -> str:
    return f'<div class="plain">{html.escape(text)}</div>'


@lru_cache(maxsize=512)
def _rendered(text: str) -> str:
    if len(text) > LONG:
        return _plain(text)
    try:
        drawn = _READER.render(text, {})
    except (RecursionError, ValueError, IndexError):
        return _plain(text)
    return nh3.clean(
        drawn,
        tags=TAGS,
        attributes=ATTRIBUTES,
        url_schemes={"http", "https", "mailto"},
        link_rel="noopener noreferrer nofollow",
        set_tag_attribute_values={"a": {"target": "_blank"}},
        attribute_filter=_only_ours,
    )


def _only_ours(tag: str, name: str, value: str) -> str | None:
    return value if (tag, name) != ("span", "class") or value == "picture" else None


def markdown(text: str) -> Markup:
    """A text as HTML: Markdown drawn, everything else as it stands."""
    return Markup(_rendered(visible(text)))


class Turn(NamedTuple):
    """One message to show: who speaks, drawn, and as it stands."""

    role: str
    html: Markup
    raw: str


def turns(content: Any, shown: Callable[[str], str] = visible, role: str = "user") -> list[Turn]:
    """A prompt or response as the ledger holds it (a text, messages, or steps), turn by turn."""
    if isinstance(content, str):
        content = [{"role": role, "content": content}]
    elif isinstance(content, Mapping):
        content = [{"role": role, "content": str(step)} for step in content.get("steps", ())]
    return [
        Turn(str(m.get("role", role))[:40], markdown(text), visible(text))
        for m in content
        for text in [shown(str(m.get("content", "")))]
    ]
