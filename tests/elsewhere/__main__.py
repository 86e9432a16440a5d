"""Run tests as others would: python -m tests.elsewhere VARIANT, or `all`, or `next` for one that commits take in turn.

What is run are the tests of the doctor, of exact statistics, of recording, of layers and of the harness.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[2]
TESTS = ("tests/doctor", "tests/exact", "tests/recording", "tests/nn", "tests/harness")
_ORDINARY_USER = 65534  # nobody


class NotHere(Exception):
    """A variant that this machine does not have."""


@dataclass(frozen=True)
class Place:
    """Where tests are run.

    Attributes:
        root: the checkout.
        prefix: words before the command.
        environment: variables that are set besides.
    """

    root: Path = ROOT
    prefix: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Variant:
    """Another machine, or what stands for it.

    Attributes:
        words: what is other there.
        environment: variables that are set.
        options: of pytest.
        enter: makes the place, which is removed afterwards.
    """

    words: str
    environment: Mapping[str, str] = field(default_factory=dict)
    options: Sequence[str] = ("-n", "2")
    enter: Callable[[], AbstractContextManager[Place]] = lambda: nullcontext(Place())


@contextmanager
def copy_checkout() -> Iterator[Place]:
    """Copy the checkout into a folder whose name has a space, an umlaut and a plus sign."""
    with TemporaryDirectory() as folder:
        copied = Path(folder, "ein ölfass + x")
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
        for name in filter(None, listed.stdout.decode("utf-8").split("\0")):
            if (ROOT / name).is_file():  # not what was removed and is not committed yet
                target = copied / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, target)
        yield Place(copied)


@contextmanager
def become_ordinary() -> Iterator[Place]:
    """Be an ordinary user with a home folder and a checkout that he may not write."""
    if os.geteuid() != 0:
        yield Place()  # who calls is one already
        return
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise NotHere("there is no setpriv to become an ordinary user with")
    user = str(_ORDINARY_USER)
    prefix = [setpriv, f"--reuid={user}", f"--regid={user}", "--clear-groups", "--"]

    with copy_checkout() as place, TemporaryDirectory() as temporary:
        for path in (place.root.parent, *place.root.parent.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        Path(temporary).chmod(0o777)
        environment = {"HOME": str(place.root), "TMPDIR": temporary, "PYTHONDONTWRITEBYTECODE": "1"}
        # The first program may be found with the rights of the one before; those that it starts itself are the test.
        start_another = "import subprocess, sys, torch; subprocess.run([sys.executable, '-c', ''], check=True)"
        tried = subprocess.run(
            [*prefix, sys.executable, "-c", start_another], env={**os.environ, **environment}, capture_output=True
        )
        if tried.returncode:
            raise NotHere(f"an ordinary user cannot run {os.path.realpath(sys.executable)}")
        yield Place(place.root, prefix, environment)


VARIANTS = {
    "sse": Variant(
        "a processor without AVX",
        {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
    ),
    "avx2": Variant(
        "a processor with AVX2",
        {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    ),
    "folder": Variant(
        "another folder, locale, time zone and hash seed",
        {"PYTHONHASHSEED": "17", "TZ": "Pacific/Kiritimati", "LANG": "C", "LC_ALL": "C"},
        enter=copy_checkout,
    ),
    "user": Variant("an ordinary user who may not write the checkout", enter=become_ordinary),
    "threads": Variant("four threads, one process", {"OMP_NUM_THREADS": "4"}, ("-n", "1")),
    "nudge": Variant("weights that are other by a millionth", options=("-n", "2", "--nudge", "1")),
}


def run(variant: Variant, words: Sequence[str]) -> bool:
    """Run the tests, and return whether they pass; NotHere where this machine does not have the variant."""
    with variant.enter() as place:
        environment = {**os.environ, **variant.environment, **place.environment, "PYTHONPATH": str(place.root)}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *variant.options, *(words or TESTS)]
        done = subprocess.run([*place.prefix, *command], cwd=place.root, env=environment)
    return done.returncode == 0


def choose_next() -> str:
    """Choose a variant by the number of commits, so that each has its turn."""
    counted = subprocess.run(
        ["git", "rev-list", "--count", "HEAD"], cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=True
    )
    return list(VARIANTS)[int(counted.stdout) % len(VARIANTS)]


def main(words: Sequence[str]) -> int:
    """Run a variant, all, or the next one; further words are tests in the place of the usual ones."""
    name = words[0] if words else ""
    if name not in ("all", "next", *VARIANTS):
        print(
            f"test-elsewhere: no variant {name!r}; give one of {', '.join(VARIANTS)}, or all, or next", file=sys.stderr
        )
        return 2
    names = list(VARIANTS) if name == "all" else [choose_next() if name == "next" else name]
    outcomes = {}
    for chosen in names:
        variant = VARIANTS[chosen]
        print(f"Elsewhere, {chosen}: {variant.words}", flush=True)
        try:
            outcomes[chosen] = "passed" if run(variant, words[1:]) else "failed"
        except NotHere as reason:
            outcomes[chosen] = f"not run, as {reason}"
    for chosen, outcome in outcomes.items():
        print(f"Elsewhere, {chosen}: {outcome}")
    return 1 if "failed" in outcomes.values() else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
