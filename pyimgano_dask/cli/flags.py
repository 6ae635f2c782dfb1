"""The command line, made from the catalogue of knobs: flags in, explicit values out."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from pyimgano_dask.cli.width import output_columns
from pyimgano_dask.errors import ConfigError
from pyimgano_dask.settings.catalog import Knob
from pyimgano_dask.settings.commands import Command, knobs_of

GROUP_TITLES: Mapping[str, str] = {
    "model": "detector",
    "training": "normal images",
    "inputs": "images to inspect",
    "stored": "stored maps, exactly one",
    "adaptation": "anomaly maps",
    "preprocessing": "illumination and contrast",
    "defects": "defects",
    "output": "output",
    "dataflow": "dataflow",
}


_NEGATIVE = re.compile(r"-\.?\d")

# Names of which less is alike have nothing to do with each other, such as clahe and help.
_ALIKE = 0.7


class Parser(argparse.ArgumentParser):
    """Says what is wrong in a line, with the flag that may have been meant."""

    def __init__(
        self,
        prog: str,
        ways: Sequence[str],
        description: str,
        epilog: str,
        foreign: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        """`ways` are the forms that a line of the command can take, after its name.

        `foreign` is called when a flag is unknown: it gives what to say of the flags of other commands.
        """
        super().__init__(
            prog=prog,
            usage=f"\n{len('usage: ') * ' '}".join(f"{prog} {way}" for way in ways),
            description=description,
            epilog=epilog,
            formatter_class=HelpFormatter,
            allow_abbrev=False,
        )
        self._foreign = foreign

    @property
    def flags(self) -> tuple[str, ...]:
        """Every spelling of every flag."""
        return tuple(self._option_string_actions)

    def error(self, message: str) -> NoReturn:
        """Print the message to standard error and exit with 2."""
        unknown = [word.partition("=")[0] for word in message.split() if word.startswith("--")]
        if message.startswith("unrecognized arguments") and unknown:
            said = self._foreign().get(unknown[0]) or _meant(unknown[0], self.flags)
            message = f"unknown flag {unknown[0]}{said}"
        self.exit(2, f"{self.prog}: error: {message} (--help shows every flag)\n")


def _meant(unknown: str, flags: Iterable[str]) -> str:
    """The flag that is spelled much alike, else the only one that has all of the unknown name's words."""
    names = [flag.removeprefix("--") for flag in flags if flag.startswith("--")]
    name = unknown.removeprefix("--")
    longer = [known for known in names if f"-{name}-" in f"-{known}-"]
    near = get_close_matches(name, names, n=1, cutoff=_ALIKE) or longer
    return f"; did you mean --{near[0]}?" if len(near) == 1 else ""


class HelpFormatter(argparse.HelpFormatter):
    """Room for long flags, as wide as the terminal, and no line that ends within a flag."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=output_columns(without_terminal=80))

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False, break_long_words=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def add_knobs(parser: argparse.ArgumentParser, command: Command, taken: Iterable[str] = ()) -> None:
    """Add the flag of every knob of a command to `parser`, grouped by block, but those in `taken`.

    Values stay text: the catalogue parses them, so that all faults are reported in the same words.
    """
    groups: dict[str, argparse._ArgumentGroup] = {}
    for knob in knobs_of(command):
        if knob.flag is None or knob.flag in taken:
            continue
        title = GROUP_TITLES[knob.path[0]]
        group = groups.setdefault(title, parser.add_argument_group(title))
        group.add_argument(knob.flag, dest=knob.dest, default=argparse.SUPPRESS, help=_help(knob), **_shape(knob))


def attach_negative_values(argv: Sequence[str], command: Command) -> list[str]:
    """Write a flag and the negative value after it as one word, which argparse would take for another flag.

    >>> from pyimgano_dask.settings.commands import INFER
    >>> attach_negative_values(["--pixel-threshold", "-1e-3"], INFER)
    ['--pixel-threshold=-1e-3']
    """
    takes_one = {knob.flag for knob in knobs_of(command) if not (knob.is_switch or knob.is_repeatable or knob.width)}
    words: list[str] = []
    for word in argv:
        if words and words[-1] in takes_one and _NEGATIVE.match(word):
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


def explicit_values(arguments: Mapping[str, Any], command: Command) -> dict[Knob, Any]:
    """The knobs given on the command line; raises ConfigError naming every value that cannot be read."""
    values: dict[Knob, Any] = {}
    faults = []
    for knob in knobs_of(command):
        if arguments.get(knob.dest) is None:
            continue
        raw = arguments[knob.dest]
        try:
            values[knob] = raw if knob.is_switch or knob.is_repeatable else knob.parse(raw)
        except ConfigError as error:
            faults.append(str(error))
    if faults:
        raise ConfigError("\n".join(faults))
    return values


def _shape(knob: Knob) -> dict[str, Any]:
    if knob.is_switch:
        return {"action": argparse.BooleanOptionalAction}
    if knob.is_repeatable:
        return {"action": "extend", "nargs": "+", "metavar": knob.metavar}
    if knob.width is not None:
        return {"nargs": knob.width, "metavar": tuple((knob.metavar or "").split())}
    placeholder = knob.metavar or ("{" + ",".join(knob.choices) + "}" if knob.choices else "N")
    if knob.bare is not None:
        return {"nargs": "?", "const": knob.bare, "metavar": placeholder}
    return {"metavar": placeholder}


def _help(knob: Knob) -> str:
    text = knob.help.replace("%", "%%")
    if knob.default in (None, (), {}) or knob.is_switch:
        return text
    return f"{text} (default: {knob.default})"
