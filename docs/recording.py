"""python -m docs.recording: record `bnlab doctor --demo` as docs/static/doctor.svg, which the doctor's page shows.

The command is run, and what it prints is drawn as a terminal that shows one network after the other. A browser that
does not move pictures, or whose reader asked for none that move, shows the first network that is at fault.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

RECORDING = Path(__file__).with_name("static") / "doctor.svg"
COMMAND = ("bnlab", "doctor", "--demo")
SECONDS = 7  # that a part is shown
NETWORK_AT_REST = 1  # from 0, the one that is shown where nothing moves: after the healthy one the first with a fault
_COLUMNS = 104  # letters in a line of the terminal; longer ones are wrapped
# In pixels.
_LETTER_WIDTH = 7.3
_LINE_HEIGHT = 17
_EDGE = 14

# Filled in by `str.format`, so that the braces of CSS are doubled. With steps(1, end) a part stays fully
# visible until its share of the time is over, instead of fading.
_STYLE = """\
text {{ font: 12px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }}
text {{ fill: #e6e6e6; white-space: pre; }}
.command {{ fill: #8fd18f; }}
.title {{ fill: #ffd479; }}
.part {{ opacity: 0; animation: show {whole}s infinite steps(1, end); }}
@keyframes show {{ 0% {{ opacity: 1; }} {share}% {{ opacity: 0; }} 100% {{ opacity: 0; }} }}
@media (prefers-reduced-motion: reduce) {{ .part {{ animation: none; }} .rest {{ opacity: 1; }} }}"""


def main() -> None:
    """Run the command, and write the recording."""
    RECORDING.write_text(draw(list_parts(call_demo())), encoding="utf-8")
    print(RECORDING)


def call_demo() -> str:
    """Run the command that is recorded, as `python -m bnlab`; what it prints."""
    words = [sys.executable, "-m", *COMMAND]
    return subprocess.run(words, capture_output=True, encoding="utf-8", check=True).stdout


def list_parts(printed: str) -> list[list[str]]:
    """Divide what the demo prints into its introduction and its numbered networks, of lines each.

    What the last part says of further commands is left out: the page around the recording does.

    >>> list_parts("A network.\\n\\n0. Whole\\n   healthy\\n\\n1. Broken\\n   off\\n\\nNext\\n  go on\\n")
    [['A network.'], ['0. Whole', '   healthy'], ['1. Broken', '   off']]
    """
    introduction_and_networks, _, _ = printed.partition("\nNext\n")
    parts: list[list[str]] = [[]]
    for line in introduction_and_networks.splitlines():
        # The first line of a network begins with its number, and all others of it with spaces.
        if line[:1].isdigit():
            parts.append([])
        parts[-1].append(line)
    return ["\n".join(part).strip("\n").splitlines() for part in parts]


def draw(parts: Sequence[Sequence[str]]) -> str:
    """Draw a terminal that shows the command, and below it each part in turn."""
    introduction, *networks = parts
    shown = [[*introduction, "", *(row for line in network for row in _wrap(line))] for network in networks]
    most_lines = max(map(len, shown))
    width = round(_COLUMNS * _LETTER_WIDTH + 2 * _EDGE)
    # Two more lines: the command, and an empty one below it.
    height = (most_lines + 2) * _LINE_HEIGHT + 2 * _EDGE
    share = 10000 // len(shown) / 100  # rounded down, so that a part is gone when the next one comes
    style = _STYLE.format(whole=SECONDS * len(shown), share=share)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<title>{' '.join(COMMAND)}</title>",
        f"<style>{style}</style>",
        f'<rect width="{width}" height="{height}" rx="8" fill="#1d2126"/>',
        _write(0, f"$ {' '.join(COMMAND)}", "command"),
    ]
    for number, part in enumerate(shown):
        rest = " rest" if number == NETWORK_AT_REST else ""
        # Negative, because what waits for a positive delay is not shown by the animation but as it rests.
        turn = (number - NETWORK_AT_REST) % len(shown)  # the part that rests comes first
        delay = SECONDS * (turn - len(shown))
        lines.append(f'<g class="part{rest}" style="animation-delay: {delay}s">')
        for row, line in enumerate(part, start=2):
            if line:
                lines.append(_write(row, line, "title" if line[0].isdigit() else ""))
        lines.append("</g>")
    return "\n".join([*lines, "</svg>", ""])


def _wrap(line: str) -> list[str]:
    """Wrap a line of the demo as the terminal is wide; a further line begins where what it says began."""
    indent = " " * (len(line) - len(line.lstrip(" ")))
    return textwrap.wrap(line, _COLUMNS, subsequent_indent=indent) or [""]


def _write(row: int, line: str, kind: str) -> str:
    """Write a line of the terminal; `textLength` keeps columns where another font is wider."""
    named = f' class="{kind}"' if kind else ""
    text = line.lstrip(" ")
    x = _EDGE + _LETTER_WIDTH * (len(line) - len(text))
    # SVG places text by its baseline: a font of 12 pixels reaches up from there.
    y = _EDGE + _LINE_HEIGHT * row + 12
    length = f'textLength="{_LETTER_WIDTH * len(text):.1f}" lengthAdjust="spacingAndGlyphs"'
    return f'<text x="{x:.1f}" y="{y}"{named} {length}>{escape(text)}</text>'


if __name__ == "__main__":
    main()
