"""Write the page that is generated from the code: docs/config.md, by `make docs`."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from truing.cli import COMMANDS
from truing.config import groups
from truing.retired import GROUP_NAMES, GROUP_RETIRED, ONLINE_NAMES, ONLINE_RETIRED, RETIRED

PAGE = Path(__file__).resolve().parents[1] / "docs" / "config.md"
HEAD = """# Settings

*Generated from the code by `make docs`; a test holds it up to date.*

Every command takes its settings from three places. Flags win over the YAML file, and the file wins
over the defaults below:

```sh
truing dpo --config recipes/hh-chat-lora-0.5b/dpo.yaml --beta 0.05
```

- A key in YAML and a flag are the same word: `learning_rate: 1e-5`, `--learning-rate 1e-5` or
  `--learning_rate 1e-5`. Keys are flat, and they are TRL's wherever TRL has one.
- `true` and `false` settings are flags without a value: `--packing`, `--no-packing`.
- A key that does not exist is refused, with the nearest one that does. So is a key that would
  change nothing, such as `lora_r` without `use_peft`. Nothing is ignored.
- `truing dpo --help` shows the same as this page; with `--config file.yaml` it shows the file's
  values as the defaults.
- `--dry-run` prints steps, tokens and an estimate of the memory, and writes nothing.
- Each run folder holds `config.yaml`, the settings as they were used; with another `--output-dir`
  they run again.
"""
NAMES: dict[Any, str] = {
    int: "whole number",
    float: "number",
    str: "text",
    bool: "true or false",
    NoneType: "none",
    list[float]: "numbers",
}


def title_of(group: str) -> str:
    """The first part of a topic's docstring, without its explanation."""
    return group.partition(": ")[0]


def kind(info: FieldInfo) -> str:
    """What a setting may hold: ``whole number >= 1, or none``."""
    alone = get_origin(info.annotation) in (None, list, Literal)
    members = [info.annotation] if alone else list(get_args(info.annotation))
    words = [
        " / ".join(f"`{word}`" for word in get_args(member))
        if get_origin(member) is Literal
        else NAMES.get(member, "texts")
        for member in members
    ]
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    bounds = [
        f"{sign} {getattr(limit, name):g}"
        for limit in info.metadata
        for name, sign in signs.items()
        if hasattr(limit, name)
    ]
    words[0] = " ".join([words[0], " and ".join(bounds)]).strip()
    return ", or ".join(words)


def default(info: FieldInfo) -> str:
    if info.is_required():
        positional = info.json_schema_extra == {"positional": True}
        return "required, as an argument" if positional else "required"
    value = info.default
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, str) and value.isspace():
        return f"`{value!r}`"
    return f"{value:g}" if isinstance(value, float) else str(value).strip("[]'") or "none"


def topics() -> dict[str, dict[str, dict[str, FieldInfo]]]:
    """Topic -> field -> command -> the field as that command has it."""
    found: dict[str, dict[str, dict[str, FieldInfo]]] = {}
    for command, row in COMMANDS.items():
        for group, names in groups(row.config).items():
            for name in names:
                info = row.config.model_fields[name]
                found.setdefault(group, {}).setdefault(name, {})[command] = info
    return found


def defaults(by_command: dict[str, FieldInfo]) -> str:
    """One default, or each command's own where they differ."""
    values = {command: default(info) for command, info in by_command.items()}
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return ", ".join(f"{value} ({command})" for command, value in values.items())


def described(by_command: dict[str, FieldInfo]) -> str:
    """The meaning; each command's own where they differ."""
    texts = {c: " ".join((info.description or "").split()) for c, info in by_command.items()}
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return " ".join(f"*{command}*: {text}" for command, text in texts.items())


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def lines() -> Iterator[str]:
    yield HEAD
    found = topics()
    yield "## Which command has which\n\n| command | what it does | settings |\n|---|---|---|"
    for command, row in COMMANDS.items():
        links = ", ".join(
            f"[{title_of(g)}](#{title_of(g).lower().replace(' ', '-')})" for g in groups(row.config)
        )
        yield f"| `truing {command}` | {cell(row.about)} | {links} |"
    for group, fields in found.items():
        title, _, about = group.partition(": ")
        yield f"\n## {title}\n" + (f"\n{about[0].upper()}{about[1:]}.\n" if about else "")
        commands = dict.fromkeys(c for by_command in fields.values() for c in by_command)
        yield "Of " + ", ".join(f"`{c}`" for c in commands) + ".\n"
        yield "| setting | holds | default | meaning |\n|---|---|---|---|"
        for name, by_command in fields.items():
            info = next(iter(by_command.values()))
            row = (f"`{name}`", kind(info), defaults(by_command), described(by_command))
            yield "| " + " | ".join(map(cell, row)) + " |"
    yield "\n## Names from elsewhere\n"
    yield "Settings of TRL and transformers that do not exist here, and what to do instead.\n"
    yield from answers(RETIRED)
    yield "\n## Names from elsewhere: the online stages\n"
    yield "Names that ppo, rloo, reinforce and grpo take for their own:\n"
    yield "| name | the same as |\n|---|---|"
    yield from (f"| `{name}` | `{own}` |" for name, own in ONLINE_NAMES.items())
    for name, own in GROUP_NAMES.items():
        yield f"| `{name}` of grpo | `{own}` |"
    yield "\nThose that they answer:\n"
    yield from answers(ONLINE_RETIRED)
    yield "\nAnd those that reinforce and grpo answer besides:\n"
    yield from answers(GROUP_RETIRED)


def answers(retired: Mapping[str, str]) -> Iterator[str]:
    """A table of names and what to do instead, those of one answer together."""
    yield "| name | instead |\n|---|---|"
    for advice in dict.fromkeys(retired.values()):
        names = ", ".join(f"`{name}`" for name, text in retired.items() if text == advice)
        yield f"| {names} | {cell(advice)} |"


def render() -> str:
    return "\n".join(lines()) + "\n"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
    print(PAGE)
