"""What a person sees while a sweep runs: bars on a terminal, elsewhere a line for each job; nothing if it is quiet."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from bnlab.harness import load
from tests.experiments.commands import ROOT, Call, Write
from tests.helpers import sweep_small

FAILING = """
import pandas as pd

from bnlab.harness.measurements import Measurement
from bnlab.harness.schema import Table, common, real


class Failing(Measurement):
    name = "failing"
    table = Table("Ones.", common("run step"), {"one": real("one")})

    def measure(self, run, subjects, steps):
        if run.config.seed == 1:
            raise RuntimeError("no luck")
        return pd.DataFrame([{"step": step, "one": 1.0} for step in steps])
"""


class Terminal(io.StringIO):
    """A terminal of 110 columns, which keeps what it is sent."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """To be written to by a command in this process."""
    monkeypatch.setenv("COLUMNS", "110")
    return Terminal()


def list_frames(sent: str) -> list[str]:
    """What stood in a line of the terminal at some time."""
    return [frame.strip() for frame in re.split(r"[\r\n]", sent.replace("\x1b[A", ""))]


def test_a_terminal_has_a_bar_of_the_jobs_and_below_one_of_the_network(terminal: Terminal, tmp_path: Path) -> None:
    with contextlib.redirect_stdout(terminal):
        sweep_small(tmp_path, "-m", "seed=0,1", "measurements=gaps")

    frames = list_frames(terminal.getvalue())
    assert any(re.search(r"0%.* 0/2 \[", frame) for frame in frames)
    assert any(re.search(r"100%.* 2/2 \[.*, 2 trained, 2 measured, 0 failed\]", frame) for frame in frames)
    assert any(re.match(r"\w{10}/seed_1: .*/40 \[.*update/s", frame) for frame in frames)
    assert any(re.match(r"\w{10}/seed_0, gaps: ", frame) for frame in frames)
    assert not [frame for frame in frames if "trained in" in frame], "bars have said so"
    assert frames[-2].startswith("next: bnlab report")


def test_what_fails_stands_above_the_bar(
    write: Write, terminal: Terminal, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(FAILING, "failing")

    with contextlib.redirect_stdout(terminal):
        sweep_small(tmp_path, "-m", "seed=0,1", "measurements=failing.Failing", expect=1)

    assert "2 trained, 1 measured, 1 failed]" in terminal.getvalue()
    assert re.match(r"\w{10}/seed_1: failed, failing: .*RuntimeError: no luck\n  more in ", capsys.readouterr().err)


@pytest.mark.usefixtures("no_pictures")
def test_no_number_is_cut_at_the_edge_of_a_terminal(
    terminal: Terminal, results: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables and verdicts go on in further lines, with the same numbers as in a file."""
    columns = 60
    monkeypatch.setenv("COLUMNS", str(columns))
    for line in ("runs list", "runs rm name=adhoc", "report name=adhoc", "report experiment=quickstart name=adhoc"):
        in_file = call(line, f"results={results}").out
        terminal.seek(0)
        terminal.truncate()
        with contextlib.redirect_stdout(terminal):
            call(line, f"results={results}")
        shown = terminal.getvalue()

        assert sorted(re.findall(r"\d\S*", shown)) == sorted(re.findall(r"\d\S*", in_file)), line
        for each in shown.splitlines():
            if "/" not in each:  # a path stays whole, to be copied
                cut = [
                    found[0]
                    for found in re.finditer(r"\d\S*", each)
                    if found.start() // columns < (found.end() - 1) // columns
                ]
                assert not cut, each


def test_a_quiet_sweep_says_nothing(terminal: Terminal, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.redirect_stdout(terminal):
        sweep_small(tmp_path, "-m", "seed=0,1", "quiet=true")

    assert terminal.getvalue() == ""
    assert not any(capsys.readouterr())
    assert len(load("adhoc", tmp_path)["runs"]) == 2

    sweep_small(tmp_path, "-m", "seed=0,1", "dry_run=true", "quiet=true")
    assert "all trained" in capsys.readouterr().out, "a plan is what was asked for"


def test_a_quiet_sweep_names_failures(call: Call, tmp_path: Path) -> None:
    words = ("estimator=ema", "optimizer.lr=1e8", "steps=6", "batch_size=256", "hydra/launcher=basic", "quiet=true")

    done = call("sweep", *words, f"results={tmp_path}")

    assert re.fullmatch(r"\S+ diverged: it has no rows from then on\n", done.out)
    assert ": diverged, " in done.err


def test_elsewhere_each_job_has_a_line_at_its_end(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(FAILING, "failing")
    words = ("-m", "seed=0,1", "hydra/launcher=basic")
    sweep_small(tmp_path, *words, "measurements=failing.Failing", expect=1)

    first, second = [line for line in capsys.readouterr().out.splitlines() if line.startswith("job")]
    assert re.fullmatch(r"job 1  .*seed=0.*  \w{10}/seed_0  trained in \d s, loss \d\.\d{3}, measured", first)
    assert re.fullmatch(r"job 2  .*seed=1.*  \w{10}/seed_1  trained in \d s, loss \d\.\d{3}, failed", second)

    sweep_small(tmp_path, *words, "measurements=gaps")

    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("job")]
    assert [line.rpartition("  ")[2] for line in lines] == ["measured", "measured"]


@pytest.mark.slow
def test_processes_share_a_bar(tmp_path: Path) -> None:
    """None of them writes to the terminal itself."""
    command = [sys.executable, "-m", "bnlab", "sweep", "-m", "seed=0,1", "batch_size=8", "epochs=8"]
    own, given = pty.openpty()
    fcntl.ioctl(given, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 90, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    environment |= {"OMP_NUM_THREADS": "1", "TERM": "xterm"}
    words = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", f"results={tmp_path}")
    process = subprocess.Popen([*command, *words], cwd=ROOT, env=environment, stdout=given, stderr=given)
    os.close(given)

    sent = b""
    while True:
        try:
            sent += os.read(own, 4096)
        except OSError:  # all processes have ended
            break

    assert process.wait() == 0
    frames = list_frames(sent.decode())
    assert any(re.search(r"2/2 .*2 trained, 2 measured, 0 failed\]", frame) for frame in frames)
    said = r"2 jobs on|the last batch|\d+%\||done in|\w+\.parquet|next: bnlab report|$"
    assert all(re.match(said, frame) for frame in frames), frames
