"""How an option is declared: one field of a section, from which its checks, its messages and its documentation come."""

import os
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple, Self, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator
from pydantic.fields import FieldInfo

# What a change of an option's value does to a run that has begun:
# stream: other batches come, so it cannot resume within an epoch. arrays: its state has other arrays, so it cannot
# resume at all. split: other images are validated on. start: none, it says where a new run begins. machine: none, it
# belongs to the machine, and is never taken from a checkpoint.
Effect = Literal["stream", "arrays", "split", "start", "machine"]
_NOTHING: Any = object()
_STRICT = ConfigDict(strict=True, allow_inf_nan=False)


def option(
    default: Any,
    meaning: str,
    *,
    valid: str = "",
    unit: str = "",
    affects: Effect | tuple[Effect, ...] = (),
    only_on_or_off: bool = False,
    prepares: bool = False,
    exact: Any = _NOTHING,
) -> Any:
    """Declares an option: the value of a class attribute of a `Section`, whose annotation is its type and range.

    Args:
      meaning: one line.
      valid: what it may hold, as the end of "must be ..."; needless where the annotation says it, as of a number
        with a range, a bool or a Literal.
      unit: of a number, such as "pixels".
      affects: what a change does to a run that has begun, see `Effect`.
      only_on_or_off: it has that effect only where the value becomes empty or 0, or stops being so.
      prepares: it decides what a trained network is shown of an image, so a weight file says it.
      exact: the value that `recipe.exact_reference` stands for, where NVIDIA's code departs from its documentation.
    """
    effects = (affects,) if isinstance(affects, str) else affects
    extra: dict[str, Any] = {"valid": valid, "unit": unit, "affects": effects, "only_on_or_off": only_on_or_off}
    extra |= {"prepares": prepares, "exact": exact}
    return Field(default=default, description=meaning, json_schema_extra=extra)


class Section(BaseModel):
    """Options that belong together: a frozen value that can be compared, hashed and passed to a compiled function."""

    model_config = _STRICT | ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _is_sound(cls, value: Any) -> Any:
        if not is_sound(value):
            raise ValueError("no computer holds it")
        return value

    def replace(self, **values: Any) -> Self:
        """Returns a copy with other values of these fields, checked like the first.

        Raises:
          ValidationError: a value is wrong, or there is no such field.
        """
        return self.model_validate({name: getattr(self, name) for name in type(self).model_fields} | values)


class Option(NamedTuple):
    """One option as documentation, checks and comparisons see it.

    key: "section.name", or the name alone. kind: int, float, bool, str or tuple. valid: what it may hold, after
    "must be". shape: its type and conditions, for pydantic.
    """

    key: str
    kind: type
    default: Any
    valid: str
    meaning: str
    unit: str
    affects: tuple[Effect, ...]
    only_on_or_off: bool
    prepares: bool
    exact: Any
    shape: Any

    @property
    def is_exact(self) -> bool:
        """Whether NVIDIA's code has a value of its own here."""
        return self.exact is not _NOTHING

    def holds(self, value: Any) -> bool:
        """Returns whether a value may stand here."""
        try:
            TypeAdapter(self.shape, config=_STRICT).validate_python(value)
        except ValidationError:
            return False
        return is_sound(value)

    def differs(self, before: Any, now: Any) -> bool:
        """Returns whether a change from one value to another has the effects that the option names."""
        return bool(before) != bool(now) if self.only_on_or_off else bool(before != now)


def read_option(key: str, field: FieldInfo) -> Option:
    """Returns the option that a field declares."""
    annotation: Any = field.annotation
    origin = get_origin(annotation) or annotation
    extra: dict[str, Any] = dict(field.json_schema_extra or {})  # type: ignore[arg-type]
    kind = str if origin is Literal else origin
    return Option(
        key=key,
        kind=kind,
        default=field.default,
        valid=extra["valid"] or _describe(annotation, kind, field.metadata),
        meaning=field.description or "",
        unit=extra["unit"],
        affects=extra["affects"],
        only_on_or_off=extra["only_on_or_off"],
        prepares=extra["prepares"],
        exact=extra["exact"],
        shape=Annotated[(annotation, Field(), *field.metadata)],
    )


def _describe(annotation: Any, kind: type, metadata: list[Any]) -> str:
    """What a bool, a Literal or a number may hold, by its annotation."""
    if kind is bool:
        return "True or False"
    if kind is str:
        return one_of(*get_args(annotation))
    ge, gt, le, lt = (
        next((getattr(part, name) for part in metadata if hasattr(part, name)), None)
        for name in ("ge", "gt", "le", "lt")
    )
    if kind not in (int, float) or (ge, gt) == (None, None):
        raise ValueError("an option that is no bool, Literal or number with a range says itself what is valid")
    number = "an integer" if kind is int else "a number"
    if kind is float and ge is not None and le is not None:
        return f"a number from {ge:g} to {le:g}"
    if gt is not None and lt is not None:
        return f"{number} between {gt:g} and {lt:g}"
    low = f">= {ge}" if ge is not None else f"> {gt}"
    high = f" and at most {le}" if le is not None else f" and < {lt}" if lt is not None else ""
    return f"{number} {low}{high}"


def one_of(*names: str) -> str:
    """Returns "one of 'a', 'b'"."""
    return "one of " + ", ".join(map(repr, names))


def that(test: Callable[[Any], bool]) -> AfterValidator:
    """Returns the condition that a value passes a test."""

    def check(value: Any) -> Any:
        if not test(value):
            raise ValueError("not valid")
        return value

    return AfterValidator(check)


def is_sound(value: Any, depth: int = 3) -> bool:
    """Returns whether nothing in a value is more than computers hold: integers of 64 bits, texts that systems take."""
    if isinstance(value, str):
        try:
            return b"\0" not in os.fsencode(value)
        except UnicodeEncodeError:
            return False
    if isinstance(value, tuple | list):
        return depth > 0 and all(is_sound(item, depth - 1) for item in value)
    return not isinstance(value, int) or -(2**63) <= value < 2**63


MOST = 2**31 - 1  # the state counts in 32 bits

Count = Annotated[int, Field(ge=1, le=MOST)]
CountOrZero = Annotated[int, Field(ge=0, le=MOST)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
