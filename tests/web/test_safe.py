"""What a model may write, and what of it reaches a page."""

import re
import time
from html.parser import HTMLParser

import pytest

from truing.web.safe import LONG, markdown, mask, turns, unmask, visible

HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)>",
    "[click](javascript:alert(1))",
    "[click](JaVaScRiPt:alert(1))",
    "[click](java\nscript:alert(1))",
    "[click](&#106;avascript:alert(1))",
    "[click](data:text/html,<script>alert(1)</script>)",
    "[click](vbscript:alert(1))",
    "<javascript:alert(1)>",
    "![x](https://evil.example/pixel.png)",
    '![x](x" onerror="alert(1))',
    "<iframe src=//evil.example></iframe>",
    "<style>*{display:none}</style>",
    "<base href=//evil.example>",
    "</div></main><h1>Admin</h1>",
    "<form action=//evil.example><input name=password>",
    "$\\text{<img src=x onerror=alert(1)>}$",
    "$\\href{javascript:alert(1)}{x}$",
    "$\\style{background:url(//evil.example)}{x}$",
    "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)></style></table></math>",
    "```html\n<script>alert(1)</script>\n```",
    "`<b onclick=alert(1)>`",
    '[a](https://ok.example "x" onclick="alert(1)")',
    '<a href="x" style="position:fixed;inset:0">all of the page</a>',
    "| <script>x</script> |\n|---|\n| <b>y</b> |",
)
FORBIDDEN = {
    "script",
    "img",
    "svg",
    "iframe",
    "style",
    "base",
    "form",
    "input",
    "object",
    "embed",
    "link",
    "meta",
}


class Seen(HTMLParser):
    """The elements that a browser would make of a text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.depth = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_hostile_becomes_an_element(text: str) -> None:
    for source in (text, f"before\n\n{text}\n\nafter", f"- {text}", f"> {text}", f"**{text}**"):
        seen = Seen(str(markdown(source)))
        assert not FORBIDDEN & set(seen.tags), source
        for tag, name, value in seen.attributes:
            assert not name.startswith("on"), source
            assert name not in ("style", "id", "srcset", "src"), source
            if name == "href":
                assert tag == "a"
                assert re.match(r"(https?|mailto):", value), source


def test_the_check_of_hostile_texts_bites() -> None:
    assert FORBIDDEN & set(Seen("<p><img src=x onerror=alert(1)>").tags)
    assert Seen("<a href='javascript:x'>").attributes == [("a", "href", "javascript:x")]


def test_html_in_a_text_can_be_read_as_it_stands() -> None:
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in markdown("<script>alert(1)</script>")


def test_markdown_is_drawn() -> None:
    drawn = str(
        markdown("# T\n\n- *a* **b**\n\n```\ncode\n```\n\n|x|\n|-|\n|1|\n\n[l](https://a.example)")
    )
    for part in (
        "<h1>T</h1>",
        "<li>",
        "<em>a</em>",
        "<strong>b</strong>",
        "<pre><code>code",
        "<td>1</td>",
    ):
        assert part in drawn
    assert 'rel="noopener noreferrer nofollow"' in drawn
    assert 'target="_blank"' in drawn


def test_formulas_are_drawn_and_prices_are_not() -> None:
    for formula in ("$x^2$", "$$\\frac{a}{b}$$", "\\(x^2\\)", "\\[\\sum_i x_i\\]"):
        assert "<math" in markdown(f"So {formula} holds"), formula
    assert "<math" not in markdown("It costs $5, and then $6 more")
    assert "<math" not in markdown("`$x^2$`")
    # One that cannot be drawn stays readable.
    assert "<code>\\frac{</code>" in markdown("$\\frac{$")


def test_signs_that_hide_or_turn_are_written_out() -> None:
    assert visible("a\u202eb\0c\u2066d\ud800") == "a⟦U+202E⟧b⟦U+0000⟧c⟦U+2066⟧d⟦U+D800⟧"
    drawn = str(markdown("safe\u202egnp.exe \0 \ud800 `\u202e`"))
    assert not re.search("[\0\u202e\ud800]", drawn)
    drawn.encode("utf-8")
    # What Hebrew and emoji need is left alone.
    assert visible("שלום\u200f! 👩\u200d🔬") == "שלום\u200f! 👩\u200d🔬"


@pytest.mark.parametrize(
    "sign", ["[", "*a ", "a|", "![[", "$", "$a", "`", "> ", "<", "\\(", "*_", "- \n"]
)
@pytest.mark.parametrize("size", [LONG, 200_000])
def test_long_hostile_texts_are_whole_and_take_no_long_time(sign: str, size: int) -> None:
    text = (sign * size)[:size]
    start = time.process_time()
    drawn = str(markdown(text))
    # Seconds on a busy machine; a quadratic one would take minutes.
    assert time.process_time() - start < 8
    if size > LONG:
        assert len(Seen(drawn).rawdata) == 0
        assert drawn.count(sign[0].replace("<", "&lt;").replace(">", "&gt;")) >= text.count(sign[0])


def test_a_model_that_names_itself_is_masked() -> None:
    for text in (
        "I am ChatGPT, a large language model by OpenAI.",
        "I'm Claude, made by Anthropic, and I can help.",
        "My name is Qwen2.5-7B-Instruct.",
        "As a language model trained by Meta AI, I cannot.",
        "As Gemini, I would say so.",
        "I was created by Mistral AI!",
    ):
        masked = mask(text)
        assert "⟦name 1⟧" in masked.text, text
        assert not any(
            word in masked.text for word in ("GPT", "Claude", "Qwen", "Meta", "Gemini", "Mistral")
        )
        assert unmask(masked.text, masked.names) == text


def test_a_text_about_models_keeps_its_names() -> None:
    for text in (
        "OpenAI released GPT-4 in 2023.",
        "I am fine. Claude Monet painted water lilies.",
        "I'm happy",
    ):
        assert mask(text) == (text, {})


def test_the_campaigns_own_models_are_masked_too() -> None:
    masked = mask("I am sft-final, at your service. sft-final is a name.", ["sft-final"])
    assert masked.text == "I am ⟦name 1⟧, at your service. sft-final is a name."


def test_an_edit_keeps_its_own_brackets() -> None:
    assert unmask("⟦name 1⟧ and ⟦name 2⟧", {"⟦name 1⟧": "X"}) == "X and ⟦name 2⟧"


def test_turns_of_all_forms() -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "**Yes**"}]
    assert [(t.role, t.raw) for t in turns(chat)] == [("user", "Hi"), ("assistant", "**Yes**")]
    assert "<strong>Yes</strong>" in turns(chat)[1].html
    assert [t.raw for t in turns({"steps": ["one", "two"]})] == ["one", "two"]
    assert [t.role for t in turns("x", role="assistant")] == ["assistant"]
