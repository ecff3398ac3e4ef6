"""Measures on this machine what the strategies of a profile predict from: times per layer or point.

    ./run measure imagenette
    ./run measure imagenette --only janus --dry

Every strategy of the profile that has a file in `profiles/measuring` is measured, one after
another. What comes out is put into its parameters in profile.json at once, so that a run cut short
keeps what it has; `--dry` only prints. Measure on an idle machine: the device's runtime with one
thread, as it runs there, the server's with all of torch's.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in profiles.train

from common import profile as profiles
from common import registry
from common.errors import ConfigError, OffboardError
from common.profile import Manifest
from profiles.amend import amend

MEASURING = "profiles.measuring"


def measurable(manifest: Manifest, only: Sequence[str] = ()) -> list[str]:
    """The strategies to measure: those of the profile that have a file, or `only` these.

    Raises ConfigError: one of `only` has none or is not of the profile, or nothing is left.
    """
    known = registry.names(MEASURING)
    for name in only:
        manifest.params(name)
        if name not in known:
            raise ConfigError(f"nothing of {name!r} is measured: choose from {', '.join(known)}")
    found = [name for name in known if name in (only or manifest.strategies)]
    if not found:
        raise ConfigError(
            f"profile {manifest.name!r} offers none of what is measured: {', '.join(known)}"
        )
    return found


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="run measure", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    made.add_argument("profile", help="its name or directory")
    made.add_argument("--only", nargs="+", default=[], metavar="STRATEGY", help="measure these")
    made.add_argument("--dry", action="store_true", help="print only, leave the profile alone")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and amend; 0, or 2 with one line that says what was wrong."""
    args = parser().parse_args(argv)
    try:
        profile = profiles.load(args.profile)
        for name in measurable(profile.manifest, args.only):
            module = registry.load(MEASURING, name)
            measured = module.measure(profile)
            print(f"## {name}\n\n{module.tables(measured)}\n", flush=True)
            if not args.dry:
                amend(profile.directory, strategies={name: measured})
    except (OffboardError, OSError) as error:
        print(f"measure: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
