"""The recording that the doctor's page shows: it holds what the doctor's demo prints, and stays small."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from docs.recording import NETWORK_AT_REST, RECORDING, call_demo, draw, list_parts

SVG = "{http://www.w3.org/2000/svg}"
PRINTED = (
    "Five ways.\n\n0. Whole\n   healthy & well\n\n1. Broken <so>\n   off by 55.3 points\n\n   BN002\n\nNext\n  go on\n"
)


def list_lines(svg: str) -> list[list[str]]:
    """List the words of each part of a recording, line by line."""
    parts = ElementTree.fromstring(svg).findall(f"{SVG}g")
    return [["".join(text.itertext()) for text in part.iter(f"{SVG}text")] for part in parts]


def mask_numbers(lines: list[list[str]]) -> str:
    """Join words without their numbers, whose last digit is the processor's, and as they are wrapped anywhere."""
    words = " ".join(" ".join(part) for part in lines).split()
    return re.sub(r"\d+(\.\d+)?", "0", " ".join(words))


def test_each_network_is_a_part_with_its_lines() -> None:
    svg = draw(list_parts(PRINTED))

    assert list_lines(svg) == [
        ["Five ways.", "0. Whole", "healthy & well"],
        ["Five ways.", "1. Broken <so>", "off by 55.3 points", "BN002"],
    ]


def test_one_part_at_a_time_is_shown_for_as_long_as_the_others() -> None:
    svg = draw(list_parts(PRINTED))

    assert re.findall(r"animation-delay: (-?\d+)s", svg) == ["-7", "-14"]  # the first fault, then the healthy network
    assert "animation: show 14s infinite" in svg
    assert "50.0% { opacity: 0; }" in svg


def test_the_committed_recording_is_small_and_has_a_part_that_rests() -> None:
    svg = RECORDING.read_text(encoding="utf-8")

    assert len(svg) < 300_000
    assert "<script" not in svg and "href" not in svg
    parts = ElementTree.fromstring(svg).findall(f"{SVG}g")
    assert [part.get("class") for part in parts].index("part rest") == NETWORK_AT_REST


@pytest.mark.slow  # the demo examines six networks
def test_the_committed_recording_is_what_the_demo_prints() -> None:
    introduction, *networks = list_parts(call_demo())
    expected = [[*introduction, *network] for network in networks]

    recorded = list_lines(RECORDING.read_text(encoding="utf-8"))
    assert mask_numbers(recorded) == mask_numbers(expected), "run: python -m docs.recording"
