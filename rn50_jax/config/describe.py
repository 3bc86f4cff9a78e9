"""The schema and configs as text for people."""

import textwrap
from typing import Any

from rn50_jax.config.fields import MOST, Option
from rn50_jax.config.schema import Config, options, sections

_WIDTH = 110


def title_of(section: str) -> str:
    """Returns what a section is about, in a line; "" stands for the options outside of sections."""
    return ((type(sections()[section]).__doc__ or "") if section else "what stands outside of sections").rstrip(".")


def in_section(section: str) -> list[Option]:
    """Returns the options of a section; "" stands for those outside of all."""
    return [option for key, option in options().items() if key.rpartition(".")[0] == section]


def show(value: Any) -> str:
    """Returns a value as a recipe would have it."""
    if isinstance(value, tuple):
        return f"({', '.join(map(show, value))}{',' * (len(value) == 1)})"
    return f'"{value}"' if isinstance(value, str) else repr(value)


def allowed(option: Option) -> str:
    """Returns what an option may hold, with its unit."""
    text = option.valid.removesuffix(f" and at most {MOST}")
    return f"{text}, in {option.unit}" if option.unit else text


def help_text(name: str = "") -> str:
    """Returns the options of a section, of one key, or all of them: name, default, what they may hold, meaning."""
    if name in options():
        return _entry(options()[name])
    parts = [name] if name else ["", *sections()]
    return "\n".join(
        f"{part or 'general'}: {title_of(part)}\n\n" + "".join(map(_entry, in_section(part))) for part in parts
    )


def _entry(option: Option) -> str:
    text = f"{option.meaning} ({allowed(option)})"
    lines = textwrap.wrap(text, _WIDTH, initial_indent="      ", subsequent_indent="      ", break_on_hyphens=False)
    return "\n".join([f"  --config.{option.key}={show(option.default)}", *lines, ""])


def config_text(config: Config) -> str:
    """Returns every option of a config, with the default beside each value that differs from it."""
    values, lines = config.flat(), list[str]()
    for part in ("", *sections()):
        for option in in_section(part):
            line = f"{option.key} = {show(values[option.key])}"
            changed = values[option.key] != option.default
            lines.append(f"{line:<40}  # default: {show(option.default)}" if changed else line)
        lines.append("")
    return "\n".join(lines)


def differences(before: Config, now: Config) -> list[tuple[str, Any, Any]]:
    """Returns the options that two configs do not agree in: key, value before, value now."""
    was = before.flat()
    return [(key, was[key], value) for key, value in now.flat().items() if was[key] != value]
