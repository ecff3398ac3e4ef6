"""The server's settings: flags, environment OFFBOARD_*, [server] of a TOML file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.errors import ConfigError
from common.settings import setting
from common.units import parse_bytes


@dataclass(frozen=True, slots=True)
class Settings:
    """See `offboard-server --help`; docs/server.md says more."""

    profile: str = setting("profile to serve: a name or a directory", required=True)
    listen: str = setting("where devices connect; port 0: any", default="127.0.0.1:7070")
    device: str = setting("where models run: cpu, cuda or cuda:N", default="cpu")
    strategies: str = setting("only these, comma-separated, or none (default: all)", default="")
    cloud: str = setting(
        "be an edge: pass on to this server what is not served here",
        default="",
        metavar="HOST:PORT",
    )
    cloud_token: str = setting("shared secret of the cloud", default="", flag=False)
    cloud_token_file: str = setting(
        "file that holds the shared secret of the cloud", default="", metavar="FILE"
    )
    token: str = setting("shared secret of the devices", default="", flag=False)
    token_file: str = setting("file that holds the shared secret", default="", metavar="FILE")
    insecure: bool = setting("listen to the network without a secret", default=False)
    metrics: str = setting(
        "serve /metrics and /healthz there; off by default", default="", metavar="HOST:PORT"
    )
    max_wait_ms: float = setting("hold a batch back for company, at most", default=0.0)
    max_batch: int = setting("works in one batch, at most; 0: 8 on a CPU, 32 on a GPU", default=0)
    max_queue: int = setting("queries waiting or running, at most", default=512)
    max_sessions: int = setting("devices at a time, at most", default=256)
    credits: int = setting("queries one device may have outstanding", default=32)
    memory_mb: float = setting("MB remembered for one device between rounds", default=8.0)
    memory_s: float = setting("seconds a frame is remembered between rounds", default=30.0)
    threads: int = setting("CPU threads of one forward; 0: torch decides", default=0)
    prepare_threads: int = setting(
        "threads that decode; -1: 0 on a CPU, 4 beside a GPU", default=-1
    )
    budget: str = setting(
        "bytes per second that all devices share, such as 2MB/s: second rounds give way",
        default="",
        metavar="RATE",
    )
    grace_s: float = setting("seconds to finish what is outstanding at the end", default=10.0)
    log_level: str = setting(
        "what is logged", default="info", choices=("debug", "info", "warning", "error")
    )

    def check(self) -> None:
        """Raises ConfigError for a number out of range."""
        for name, least in (
            ("max_wait_ms", 0),
            ("max_batch", 0),
            ("max_queue", 1),
            ("max_sessions", 1),
            ("credits", 1),
            ("memory_mb", 0),
            ("memory_s", 0),
            ("threads", 0),
            ("prepare_threads", -1),
            ("grace_s", 0),
        ):
            value = getattr(self, name)
            if not value >= least:
                raise ConfigError(f"{name} is {value:g}: give at least {least}")
        self.rate  # noqa: B018 - raises
        if self.names == () and not self.cloud:
            raise ConfigError("--strategies none serves nothing: give --cloud HOST:PORT, too")
        if self.cloud and self.cloud == self.listen:
            raise ConfigError(f"--cloud {self.cloud} is this server itself: give the cloud's")

    @property
    def names(self) -> tuple[str, ...] | None:
        """The strategies to hold; None: all of the profile."""
        if self.strategies.strip() == "none":
            return ()
        return tuple(each.strip() for each in self.strategies.split(",") if each.strip()) or None

    @property
    def on_cpu(self) -> bool:
        """Whether models run on the CPU."""
        return self.device == "cpu"

    @property
    def batch(self) -> int:
        """Works in one batch. On a CPU larger batches only make their first works wait longer."""
        return self.max_batch or (8 if self.on_cpu else 32)

    @property
    def decoders(self) -> int:
        """Threads that decode. On a CPU they would compete with the forward for its cores."""
        return self.prepare_threads if self.prepare_threads >= 0 else 0 if self.on_cpu else 4

    @property
    def rate(self) -> float | None:
        """Bytes per second of `budget`; None: no limit. Raises ConfigError."""
        if not self.budget:
            return None
        try:
            return parse_bytes(self.budget.strip().removesuffix("/s"))
        except ConfigError:
            raise ConfigError(f"--budget {self.budget!r}: give a rate such as 2MB/s") from None

    def secret(self) -> str:
        """The shared secret, "" if there is none. Raises ConfigError if the file has none."""
        return _secret("--token-file", self.token_file) if self.token_file else self.token

    def cloud_secret(self) -> str:
        """As `secret`, the cloud's."""
        file = self.cloud_token_file
        return _secret("--cloud-token-file", file) if file else self.cloud_token


def _secret(flag: str, file: str) -> str:
    try:
        text = Path(file).read_text().strip()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{flag} {file}: {error}") from None
    if not text:
        raise ConfigError(f"{flag} {file} is empty")
    return text
