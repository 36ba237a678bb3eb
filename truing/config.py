"""Settings: pydantic models <-> YAML <-> command-line flags, with nothing silently ignored.

A config is a class that inherits from several ``Topic`` mixins; its keys and flags are flat.
Whatever the way in (YAML or flag), a value goes through the same check and the same messages.
Precedence: flags, then YAML, then the defaults of the class.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field, make_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, ClassVar, Literal, TypeVar, cast, get_args, get_origin

import tyro
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


class ConfigError(ValueError):
    """A setting that cannot be used: what came, what is needed, what to do."""


class Topic(BaseModel):
    """Settings that belong together; a mixin's docstring is ``Title: what it is about``."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )
    # Keys that people bring from elsewhere and that mean nothing here, each with what to do.
    advice: ClassVar[Mapping[str, str]] = {}
    # Other names under which a setting is taken, each with the setting's own.
    aliases: ClassVar[Mapping[str, str]] = {}
    # Which to keep where such a name comes beside the setting's own.
    preferred: ClassVar[Mapping[str, str]] = {}
    # Keys that may come with these values (in lower case), for they say what is done anyway.
    settled: ClassVar[Mapping[str, tuple[str, ...]]] = {}


C = TypeVar("C", bound=Topic)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word most like ``word``; None where none is near."""
    return next(iter(get_close_matches(word, sorted(known), n=1)), None)


def groups(cls: type[BaseModel]) -> dict[str, list[str]]:
    """Docstring of each topic -> its fields, in the order in which ``cls`` names the topics.

    A field belongs to the topic that brought it in; a config may give it another default.
    """
    bases = [base for base in cls.__mro__ if issubclass(base, BaseModel) and base is not BaseModel]
    found: dict[str, list[str]] = {}
    for index, base in enumerate(bases):
        inherited = {name for lower in bases[index + 1 :] for name in lower.model_fields}
        own = [name for name in base.model_fields if name in base.__annotations__]
        if own := [name for name in own if name not in inherited]:
            found[(base.__doc__ or base.__name__).strip().splitlines()[0]] = own
    return found


def check(cls: type[C], values: Mapping[str, object]) -> C:
    """The config with these values. Raises ConfigError, one line per unusable setting."""
    values = _own_names(cls, values)
    for key in values:
        if key not in cls.model_fields:
            raise ConfigError(_unknown(cls, key))
    read = {key: _read(key, cls.model_fields[key], value) for key, value in values.items()}
    try:
        return cls.model_validate(read)
    except ValidationError as error:
        raise ConfigError(_explain(cls, error)) from None


def read_yaml(path: str | Path) -> dict[str, object]:
    """The keys and values of a YAML file. Raises ConfigError for anything but flat settings."""
    try:
        content: object = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise ConfigError(
            f"cannot read the config file {path}: {error.strerror}{_beside(Path(path))}"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not content or not isinstance(content, dict):
        came = type(content).__name__ if content else "nothing"
        raise ConfigError(f"{path} must hold lines such as `learning_rate: 1e-5`, got {came}")
    return {str(key): value for key, value in cast(dict[object, object], content).items()}


def _beside(path: Path) -> str:
    """A hint at the file with the nearest name, or at the folder."""
    there = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = nearest(path.name, there)
    return f". Did you mean {path.with_name(near)}?" if near else ". Check the path"


def from_yaml(cls: type[C], path: str | Path, overrides: Mapping[str, object] | None = None) -> C:
    """The config in a YAML file; ``overrides`` win over the file."""
    return check(cls, _values(cls, path) | _own_names(cls, overrides or {}))


def to_yaml(config: BaseModel) -> str:
    """Every setting as YAML under the headings of the topics; ``from_yaml`` gives it back."""
    values = config.model_dump(mode="json")
    parts = [
        f"# {title}\n"
        + yaml.safe_dump({name: values[name] for name in names}, sort_keys=False, width=1000)
        for title, names in groups(type(config)).items()
    ]
    return "\n".join(parts)


def parse(cls: type[C], args: Sequence[str], *, prog: str = "truing") -> C:
    """The config from command-line arguments: ``--config file.yaml`` and flags that override it.

    ``--help`` and a missing argument end the process as tyro does (status 0 and 2). Raises
    ConfigError for an unknown flag or a value that cannot be used.
    """
    words, path, named = _tidy(cls, args)
    values = {} if path is None else _values(cls, path)
    shown = {
        name: _shown(info, values.get(name, info.default))
        for name, info in cls.model_fields.items()
    }
    # Made here, the form has no source whose comments could be help: looking for it takes long.
    markers = (tyro.conf.OmitArgPrefixes, tyro.conf.HelptextFromCommentsOff)
    form = tyro.cli(_form(cls, shown), args=words, prog=prog, config=markers)
    given: dict[str, object] = {}
    for group in cast(Mapping[str, object], vars(form)).values():
        # What was not given keeps the type that it has in YAML. A default that was given counts:
        # another setting may change what holds without it.
        given |= {
            n: v for n, v in vars(group).items() if n in shown and (v != shown[n] or n in named)
        }
    return check(cls, values | given)


class _Loader(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys without a word; this one refuses."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [str(key.value) for key, _ in node.value]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise yaml.YAMLError(f"the key {twice} stands there twice")
        return super().construct_mapping(node, deep)


def _values(cls: type[Topic], path: str | Path) -> dict[str, object]:
    """What a file sets. An unknown key is refused here, where the file's name is known."""
    values = _own_names(cls, read_yaml(path))
    if unknown := next((key for key in values if key not in cls.model_fields), None):
        raise ConfigError(f"{path}: {_unknown(cls, unknown)}")
    return values


def _own_names(cls: type[Topic], values: Mapping[str, object]) -> dict[str, object]:
    """The values under the settings' own names. Raises ConfigError for one given by two names."""
    found: dict[str, object] = {}
    for key, value in values.items():
        if str(value).lower() in cls.settled.get(key, ()):
            continue
        name = cls.aliases.get(key, key)
        if name in found:
            other = next(k for k in values if cls.aliases.get(k, k) == name)
            more = _which(cls, key, other)
            raise ConfigError(f"{key} and {other} are the same setting: give one of the two{more}")
        found[name] = value
    return found


def _which(cls: type[Topic], *names: str) -> str:
    """Which of two names to keep, if that is known."""
    return next((f". {cls.preferred[n]}" for n in names if n in cls.preferred), "")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _unknown(cls: type[Topic], key: str, label: str = "") -> str:
    """Why ``key`` is no setting of ``cls``; ``label`` is how the user wrote it, if as a flag."""
    if key in cls.advice:
        return f"{label or key} has no place here: {cls.advice[key]}"
    near = nearest(key, cls.model_fields)
    hint = f" Did you mean {_flag(near) if label else near}?" if near else ""
    return f"unknown setting {label or key}.{hint}"


def _members(info: FieldInfo) -> list[Any]:
    """``int | None`` -> [int, NoneType]."""
    plain = get_origin(info.annotation) in (None, list, Literal)
    return [info.annotation] if plain else list(get_args(info.annotation))


def _holds_list(info: FieldInfo) -> bool:
    return any(get_origin(kind) is list for kind in _members(info))


def _read(key: str, info: FieldInfo, value: object) -> object:
    """The value as pydantic should see it: words for None, and no true in place of 1."""
    kinds = _members(info)
    if isinstance(value, str) and value.lower() in ("none", "null") and NoneType in kinds:
        return None
    if isinstance(value, bool) and (int in kinds or float in kinds):
        raise ConfigError(f"{key}: got {str(value).lower()}; needs a number")
    literals = [w for kind in kinds if get_origin(kind) is Literal for w in get_args(kind)]
    # A flag of several words comes as a list even if it holds one, such as all-linear.
    return next((word for word in literals if value == [word]), value)


def _explain(cls: type[Topic], error: ValidationError) -> str:
    """Pydantic's findings, one line per field."""
    needs: dict[str, list[str]] = {}
    for found in error.errors():
        field_name = str(found["loc"][0]) if found["loc"] else ""
        needed = found["msg"].removeprefix("Value error, ").replace("Input should", "it should")
        if found["type"] == "missing":
            about = cls.model_fields[field_name].description
            line = f"{field_name} is missing; give {_flag(field_name)} or put it in YAML. {about}"
        elif not field_name:
            line = needed
        elif field_name in needs:
            line = f"or {needed.removeprefix('it should ')}"
        else:
            todo = ", so put it in quotes" if found["type"] == "string_type" else ""
            if found["input"] is None:
                todo = "; write one, or take the line out"
            line = f"{field_name}: got {found['input']!r}, but {needed}{todo}"
        needs.setdefault(field_name, []).append(line)
    return "\n".join(" ".join(lines) for lines in needs.values())


def _tidy(cls: type[Topic], args: Sequence[str]) -> tuple[list[str], str | None, set[str]]:
    """The arguments as tyro takes them, the path after ``--config``, and the settings named.

    Both spellings (``--lora_r``, ``--lora-r``) and ``--packing true`` are accepted.
    """
    words: list[str] = []
    seen: dict[str, str] = {}
    written: dict[str, str] = {}
    queue = list(args)
    while queue:
        word = queue.pop(0)
        if not word.startswith("--") or word == "--help":
            words.append(word)
            continue
        label, equals, value = word.partition("=")
        given = name = label[2:].replace("-", "_")
        if not equals and queue and not queue[0].startswith("--"):
            value = queue[0]
        if value.lower() in cls.settled.get(name, ()):
            queue = queue if equals else queue[1:]
            continue
        off = name.startswith("no_") and name not in cls.model_fields
        name = name[3:] if off else cls.aliases.get(name, name)
        info = cls.model_fields.get(name)
        if name != "config" and (info is None or (off and info.annotation is not bool)):
            raise ConfigError(_unknown(cls, given, label))
        if name in seen:
            more = _which(cls, given, written[name])
            raise ConfigError(f"{_flag(name)} is given twice; give it once{more}")
        seen[name], written[name] = value, given
        if info is None or info.annotation is not bool:
            words.append(_flag(name) + equals + (value if equals else ""))
            continue
        if value.lower() in _TRUE + _FALSE:
            queue = queue if equals else queue[1:]
            off ^= value.lower() in _FALSE
        elif equals:
            raise ConfigError(f"{label}: got {value!r}; needs true or false")
        words.append(_flag(f"no_{name}" if off else name))
    return words, seen.get("config") or None, set(seen)


def _positional(info: FieldInfo) -> bool:
    return info.json_schema_extra == {"positional": True}


def _shown(info: FieldInfo, value: object) -> Any:
    """A value as tyro shows it and gives it back: text, texts or a boolean. Missing: empty."""
    if value is PydanticUndefined:
        return tyro.MISSING if _positional(info) else [] if _holds_list(info) else ""
    if info.annotation is bool:
        return str(value).lower() in _TRUE
    if _holds_list(info):
        items = cast(list[object], value if isinstance(value, list) else [value])
        return [str(item) for item in items]
    return "none" if value is None else str(value)


def _metavar(info: FieldInfo) -> str:
    """What may follow the flag: ``INT``, ``FLOAT|none``, ``linear|cosine``, ``TEXT ...``."""
    names = {int: "INT", float: "FLOAT", str: "TEXT", NoneType: "none"}
    words = [
        "|".join(map(str, get_args(kind)))
        if get_origin(kind) is Literal
        else names.get(kind, "TEXT ...")
        for kind in _members(info)
    ]
    return "|".join(words)


def _form(cls: type[Topic], shown: Mapping[str, Any]) -> type[Any]:
    """A dataclass of dataclasses, one per topic, from which tyro draws flat flags in groups.

    Every value is text here: `check` reads it, as it reads YAML, so there is one set of rules.
    """
    about = "YAML file with any of these settings; flags win over it."
    path = Annotated[str, tyro.conf.arg(help=about, metavar="FILE")]
    settings_file = make_dataclass("file", [("config", path, field(default="none"))])
    rows: list[Any] = [("file", Annotated[settings_file, tyro.conf.arg(name="Config file")])]
    for title, names in groups(cls).items():
        fields: list[Any] = []
        for name in names:
            info = cls.model_fields[name]
            kind: Any = bool if info.annotation is bool else list[str] if _holds_list(info) else str
            metavar = None if kind is bool else _metavar(info)
            missing = info.is_required() and shown[name] in ("", [], tyro.MISSING)
            hint = "(required)" if missing else None
            if _positional(info):
                kind, metavar = tyro.conf.Positional[kind], name.upper()
            about = tyro.conf.arg(help=info.description, metavar=metavar, help_behavior_hint=hint)
            fields.append(
                (name, Annotated[kind, about], field(default_factory=lambda n=name: shown[n]))
            )
        head, _, body = title.partition(": ")
        group = make_dataclass(f"group{len(rows)}", fields, namespace={"__doc__": body})
        rows.append((group.__name__, Annotated[group, tyro.conf.arg(name=head)]))
    return make_dataclass("form", rows, namespace={"__doc__": cls.__doc__})
