"""Settings: a frozen dataclass filled from TOML, environment and flags; flags win.

    @dataclass(frozen=True, slots=True)
    class Settings:
        server: str = setting("HOST:PORT of the server", required=True)
        deadline: float = setting("milliseconds a frame may take", default=0.0)
        json: bool = setting("print one JSON object per line", default=False)
        token: str = setting("shared secret", default="", flag=False)  # never on a command line

    settings = load(Settings, sys.argv[1:], prog="offboard-device", table="device")

A field `max_batch` is the flag `--max-batch`, the environment's OFFBOARD_MAX_BATCH and the key
`max_batch` under [table] of the TOML file that `--config FILE` or OFFBOARD_CONFIG names (one file
may hold both programs' tables). Fields are str, int, float, bool, or one of these `| None`. An
empty environment variable counts as unset.
"""

from __future__ import annotations

import argparse
import os
import tomllib
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from common.errors import ConfigError

PREFIX = "OFFBOARD_"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Meta:
    help: str
    choices: tuple[str, ...] | None
    metavar: str | None
    flag: bool
    required: bool


def setting(
    help: str,
    *,
    default: Any = MISSING,
    required: bool = False,
    choices: Sequence[str] | None = None,
    metavar: str | None = None,
    flag: bool = True,
) -> Any:
    """A field of a settings dataclass. `help`: one line, with the unit.

    `flag=False` keeps a secret off the command line, where every user of the machine sees it.
    `required`: `load` raises ConfigError where no source gives a value.
    """
    if required:
        default = None
    meta = _Meta(help, tuple(choices) if choices else None, metavar, flag, required)
    return field(default=default, metadata={"setting": meta})


def load(
    cls: type[T],
    argv: Sequence[str],
    *,
    prog: str,
    table: str,
    description: str = "",
    environ: Mapping[str, str] = os.environ,
) -> T:
    """Fill `cls` from its defaults, the TOML file, the environment and `argv`, in rising order.

    Raises ConfigError: unknown key, wrong type, value out of choices, required value missing.
    Unknown flags and `--help` end the program the way argparse does.
    """
    hints = get_type_hints(cls)
    metas = {f.name: f.metadata["setting"] for f in fields(cls)}  # type: ignore[arg-type]
    flags = vars(_parser(hints, metas, prog, description).parse_args(argv))
    config = flags.pop("config", None) or environ.get(PREFIX + "CONFIG")
    values: dict[str, Any] = {}
    if config:
        values.update(_from_toml(Path(config), table, hints))
    for name in metas:
        if text := environ.get(PREFIX + name.upper()):
            values[name] = _parse(text, hints[name], PREFIX + name.upper())
    for name, text in flags.items():
        flag = "--" + name.replace("_", "-")
        values[name] = text if isinstance(text, bool) else _parse(text, hints[name], flag)
    for name, meta in metas.items():
        if meta.required and values.get(name) is None:
            raise ConfigError(f"{name} is not set: give --{name.replace('_', '-')}")
        if meta.choices and name in values and values[name] not in meta.choices:
            raise ConfigError(f"{name}: {values[name]!r} is not one of {', '.join(meta.choices)}")
    return cls(**values)


def _parser(
    hints: Mapping[str, Any], metas: Mapping[str, _Meta], prog: str, description: str
) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        epilog=f"Each flag is also a key of --config and an environment variable {PREFIX}*.",
    )
    parser.add_argument("--config", metavar="FILE", help="TOML file with the same settings")
    for name, meta in metas.items():
        if not meta.flag:
            continue
        flag = "--" + name.replace("_", "-")
        text = meta.help.replace("%", "%%")
        if _base(hints[name]) is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
        else:
            metavar = meta.metavar or ("|".join(meta.choices) if meta.choices else name.upper())
            parser.add_argument(flag, metavar=metavar, help=text)
    return parser


def _base(hint: Any) -> type:
    """The type behind `X | None`."""
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(arg for arg in get_args(hint) if arg is not type(None))
    assert hint in (str, int, float, bool), hint
    return hint  # type: ignore[no-any-return]


def _parse(text: str, hint: Any, where: str) -> Any:
    """`text` of a flag or variable as the field's type."""
    base = _base(hint)
    if base is bool:
        truth = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
        if text.lower() not in truth:
            raise ConfigError(f"{where}: {text!r} is neither true nor false")
        return truth[text.lower()]
    try:
        return base(text)
    except ValueError:
        raise ConfigError(f"{where}: {text!r} is no {base.__name__}") from None


def _from_toml(path: Path, table: str, hints: Mapping[str, Any]) -> dict[str, Any]:
    try:
        document = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"--config {path} is no TOML: {error}") from None
    if stray := [key for key, value in document.items() if not isinstance(value, dict | list)]:
        raise ConfigError(f"--config {path}: {stray[0]!r} belongs under [{table}]")
    own = document.get(table, {})
    if not isinstance(own, dict):
        raise ConfigError(f"--config {path}: [{table}] is an array of tables, not a table")
    return {key: _typed(value, key, table, hints, path) for key, value in own.items()}


def _typed(value: Any, key: str, table: str, hints: Mapping[str, Any], path: Path) -> Any:
    if key not in hints:
        raise ConfigError(f"--config {path}: [{table}] has no setting {key!r}")
    base = _base(hints[key])
    if base is float and type(value) is int:
        return float(value)
    if type(value) is not base:
        raise ConfigError(f"--config {path}: {key} = {value!r} is no {base.__name__}")
    return value
