"""The selection rules that have a name: ``register_selector`` adds one."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from .options import Config
    from .selectors import Context

Score = Callable[..., Tensor | tuple[Tensor, Tensor]]
"""``(Context, *constants) -> [B, S]``, where the constants are those of the `Rule`; or a pair, see `Context`."""

AnyScore = Callable[..., Any]


@dataclass(frozen=True)
class Rule:
    """A scoring function, and the tensors that it is called with beside the context.

    ``needs_attention`` says that it looks at the context's queries, keys or mask, ``merges`` that it returns a pair;
    None where only a call can tell. ``segments`` gives the segments ``[B, S]`` that it scores by, for reports; None
    where it knows none.
    """

    score: Score
    constants: tuple[Tensor, ...] = ()
    needs_attention: bool = True
    merges: bool | None = False
    segments: Callable[[Context], Tensor] | None = None


_rules: dict[str, Callable[[Config], Rule]] = {}


def register_selector(
    name: str, *, needs_attention: bool = True, merges: bool | None = None, options: Sequence[str] = ()
) -> Callable[[AnyScore], AnyScore]:
    """Give a scoring function a name, by which the option ``selector`` and the command line know it.

        @sharp_compile.register_selector("brightest", needs_attention=False)
        def brightest(ctx):
            return ctx.hidden.float().norm(dim=-1)

    Args:
        name: the value of the option.
        needs_attention: whether it looks at queries, keys or the mask. One that does not may be asked at any layer,
            also at one without attention.
        merges: whether it returns a pair of scores and representatives (``Context``). None finds out by a call on
            tensors without data, which also finds what it must not do: right for all but the rules of this package.
        options: names of other options, such as ``"seed"``, that it is called with by keyword.

    Returns:
        A decorator that returns the function as it is.

    Raises:
        ValueError: for a name that is taken.
    """
    add = register_rule(name)

    def register(score: AnyScore) -> AnyScore:
        def rule(config: Config) -> Rule:
            given = {option: getattr(config, option) for option in options}
            bound = functools.partial(score, **given) if given else score
            return Rule(bound, needs_attention=needs_attention, merges=merges)

        add(rule)
        return score

    return register


def register_rule(name: str) -> Callable[[Callable[[Config], Rule]], Callable[[Config], Rule]]:
    """Give a name to a function that makes a whole ``Rule`` of the options.

    Raises:
        ValueError: for a name that is taken.
    """
    if name in _known_rules():
        raise ValueError(f"a selector is named {name!r} already; choose another name")

    def register(rule: Callable[[Config], Rule]) -> Callable[[Config], Rule]:
        _rules[name] = rule
        return rule

    return register


def selector_names() -> tuple[str, ...]:
    """Return the names of all rules that have one, ``sharp`` first."""
    return tuple(sorted(_known_rules(), key=lambda name: name != "sharp"))


def find_rule(config: Config) -> Rule:
    """Return the rule that the option ``selector`` asks for, with its options bound."""
    if callable(config.selector):
        return Rule(config.selector, merges=None)
    return _known_rules()[config.selector](config)


def _known_rules() -> Mapping[str, Callable[[Config], Rule]]:
    """Return all rules, those of the package among them: each registers itself when its file is loaded."""
    importlib.import_module(f"{__package__}.selectors")
    return _rules
