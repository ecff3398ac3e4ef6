"""Settings: precedence, types, and errors that say what to mend."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from common.errors import ConfigError
from common.settings import load, setting


@dataclass(frozen=True, slots=True)
class Sample:
    """One field of each kind."""

    listen: str = setting("where", required=True)
    rate: float = setting("per second, 50 % of it", default=2.0)
    count: int = setting("how many", default=3)
    quiet: bool = setting("say little", default=False)
    mode: str = setting("which", default="a", choices=("a", "b"))
    file: str | None = setting("a file", default=None)
    token: str = setting("secret", default="", flag=False)


def fill(
    argv: list[str] | None = None, environ: dict[str, str] | None = None, toml: Path | None = None
) -> Sample:
    given = (argv or []) + (["--config", str(toml)] if toml else [])
    return load(Sample, given, prog="sample", table="sample", environ=environ or {})


def written(path: Path, text: str) -> Path:
    file = path / "s.toml"
    file.write_text(text)
    return file


def test_flags_win_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    toml = written(tmp_path, '[sample]\nlisten = "file"\ncount=5\nrate=7\nfile="x"\n[other]\na=1')
    environ = {"OFFBOARD_LISTEN": "env", "OFFBOARD_COUNT": "6", "OFFBOARD_MODE": ""}
    got = fill(["--listen", "flag"], environ, toml)
    assert got == Sample("flag", 7.0, 6, False, "a", "x", "")
    assert type(got.rate) is float


def test_the_file_can_be_named_by_the_environment(tmp_path: Path) -> None:
    toml = written(tmp_path, '[sample]\nlisten = "file"')
    assert fill(environ={"OFFBOARD_CONFIG": str(toml)}).listen == "file"


def test_booleans_have_a_flag_and_its_opposite() -> None:
    assert fill(["--listen", "x", "--quiet"]).quiet is True
    assert fill(["--listen", "x", "--no-quiet"], {"OFFBOARD_QUIET": "yes"}).quiet is False


def test_a_secret_has_no_flag() -> None:
    assert fill(["--listen", "x"], {"OFFBOARD_TOKEN": "s"}).token == "s"
    with pytest.raises(SystemExit):
        fill(["--listen", "x", "--token", "s"])


def test_help_is_printed_with_percent_signs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        fill(["--help"])
    assert "50 % of it" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "environ", "toml", "complaint"),
    [
        ([], {}, "", "listen is not set"),
        (["--listen", "x", "--count", "1.5"], {}, "", "no int"),
        (["--listen", "x", "--mode", "c"], {}, "", "not one of a, b"),
        (["--listen", "x"], {"OFFBOARD_QUIET": "maybe"}, "", "neither true nor false"),
        (["--listen", "x"], {}, "[sample]\ncuont = 1", "no setting 'cuont'"),
        (["--listen", "x"], {}, "count = 1", r"belongs under \[sample\]"),
        (["--listen", "x"], {}, "[sample]\ncount = true", "no int"),
        (["--listen", "x"], {}, "[[sample]]\ncount = 1", "not a table"),
        (["--listen", "x"], {}, "[sample", "no TOML"),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path, argv: list[str], environ: dict[str, str], toml: str, complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        fill(argv, environ, written(tmp_path, toml) if toml else None)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        fill(["--config", str(tmp_path / "none.toml")])
