"""What a person sees while a sweep runs: a line that lives on a terminal, elsewhere lines; nothing if it is quiet."""

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
from bnlab.harness.lab.watching import NetworkCount
from bnlab.harness.progress import CLEAR, Progress, Reporter, remove_progress, write_progress
from tests.experiments.commands import ROOT, Call
from tests.helpers import plan_network, sweep_small

CURRENT = r"[01] of 2 networks.* · \w{10}/seed_\d step [\d,]+/[\d,]+ loss \d\.\d{3} [\d,.e+]+/s"
SAID = r"2 jobs on|the last batch|done in|  \w+\.parquet|next: bnlab report"


class Terminal(io.StringIO):
    """A terminal of 70 columns, which keeps what it is sent."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at a training all the time, so that a short one is seen at some of its steps."""
    monkeypatch.setattr("bnlab.harness.lab.watching._PAUSE", 0.01)
    monkeypatch.setattr("bnlab.harness.lab.watching._SPARING", 1)
    monkeypatch.setattr("bnlab.harness.progress._SECONDS", 0.0)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """To be written to by a command in this process."""
    monkeypatch.setenv("COLUMNS", "70")
    monkeypatch.setenv("TERM", "xterm")
    return Terminal()


def assert_one_line_lives(sent: str, columns: int) -> list[str]:
    """Each line begins where the living one is taken away; returns what was shown there, which fits."""
    shown = []
    for piece in sent.split(CLEAR)[1:]:
        if piece.endswith("\n"):
            assert re.match(SAID, piece), piece
            assert piece.count("\n") == 1
        else:
            assert len(piece) < columns
            shown.append(piece)
    assert shown[-1] == ""
    return shown


def test_a_line_lives_on_a_terminal(terminal: Terminal, tmp_path: Path) -> None:
    with contextlib.redirect_stdout(terminal):
        sweep_small(tmp_path, "-m", "seed=0,1", "steps=60", "measurements=gaps")

    shown = assert_one_line_lives(terminal.getvalue(), columns=70)
    assert any(re.match(CURRENT, line) for line in shown)
    assert any("measuring gaps" in line for line in shown)
    assert shown[0] != shown[-2]


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
    assert "all trained already" in capsys.readouterr().out, "a plan is what was asked for"


def test_a_quiet_sweep_names_failures(call: Call, tmp_path: Path) -> None:
    words = ("estimator=ema", "optimizer.lr=1e8", "steps=6", "batch_size=256", "hydra/launcher=basic", "quiet=true")

    done = call("sweep", *words, f"results={tmp_path}")

    assert re.fullmatch(r"\S+ diverged: it has no rows from then on\n", done.out)
    assert ": diverged, " in done.err


def test_elsewhere_something_is_said_after_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for longest in ("_SILENCE", "_LONGEST_SILENCE"):
        monkeypatch.setattr(f"bnlab.harness.lab.watching.{longest}", 0.02)

    sweep_small(tmp_path, "-m", "seed=0,1", "steps=60", "measurements=gaps")

    said = capsys.readouterr().out
    assert CLEAR not in said
    assert re.search(rf"^{CURRENT}$", said, re.MULTILINE)
    assert len(re.findall(r"seed_\d  step 60 of 60  loss \d\.\d{3}  trained in", said)) == 2


def test_a_resumed_network_takes_the_time_of_the_updates_that_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed sweep had trained three quarters of a network, which are no measure of how quick this one is."""
    network = plan_network("steps=100", f"results={tmp_path}")
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    count = NetworkCount([network.config])
    network.folder.mkdir(parents=True)
    reporter = Reporter(network.folder, step=75, steps=100)

    now = 60.0
    reporter.report(80, loss=0.5)
    assert "0 of 1 network, about 4 min of training left" in count.describe(), "20 updates at 5 a minute"

    now = 180.0
    reporter.report(90, loss=0.5)
    assert "about 2 min of training left" in count.describe()


class ThreeNetworks:
    """Three networks of a sweep that nobody runs: their processes write what a test says, at its times."""

    def __init__(self, results: Path) -> None:
        networks = [plan_network("steps=100", f"seed={seed}", f"results={results}") for seed in range(3)]
        self.folders = [network.folder for network in networks]
        for folder in self.folders:
            folder.mkdir(parents=True)
        self.waiting = [network.config for network in networks]
        self.now = 0.0

    def report(self, number: int, words: str, share: float) -> None:
        write_progress(self.folders[number], Progress(words, share))

    def end_first(self) -> None:
        self.waiting = self.waiting[1:]


@pytest.fixture
def three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ThreeNetworks:
    made = ThreeNetworks(tmp_path)
    monkeypatch.setattr("time.monotonic", lambda: made.now)
    monkeypatch.setattr("bnlab.harness.done.list_waiting", lambda configs: made.waiting)
    return made


def test_the_time_of_measuring_is_not_known_before_a_network_has_ended(three: ThreeNetworks) -> None:
    """One after the other; the first is trained in a minute and measured in nine."""
    count = NetworkCount(three.waiting)

    three.now = 30.0
    three.report(0, "step 50/100", share=0.5)
    assert "0 of 3 networks, about 2 min of training left" in count.describe()

    three.now = 60.0
    three.report(0, "measuring gaps", share=1.0)
    assert "left" not in count.describe()

    # Until its second job begins there is no progress.
    three.now = 300.0
    remove_progress(three.folders[0])
    assert "starting" not in count.describe()

    three.now = 630.0
    three.end_first()
    three.report(1, "step 1/100", share=0.01)
    assert "1 of 3 networks, about 20 min left" in count.describe()
    three.now = 930.0
    assert "1 of 3 networks, about 15 min left" in count.describe()


def test_networks_that_are_made_side_by_side_end_side_by_side(three: ThreeNetworks) -> None:
    """Two of three take ten minutes each; when one has ended, the other ends soon, and the third takes ten more."""
    count = NetworkCount(three.waiting)
    three.report(0, "step 1/100", share=0.01)
    three.report(1, "step 1/100", share=0.01)
    count.describe()

    three.now = 600.0
    three.end_first()
    three.report(1, "measuring gaps", share=1.0)
    assert "1 of 3 networks, about 10 min left" in count.describe()

    # Before the tables are written the line is still there.
    three.now = 1200.0
    three.waiting = []
    assert count.describe() == "3 of 3 networks"


@pytest.mark.slow
def test_processes_share_a_terminal(tmp_path: Path) -> None:
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
    shown = assert_one_line_lives(sent.decode(), columns=90)
    assert any(re.match(CURRENT, line) for line in shown)
