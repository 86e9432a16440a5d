"""Each row of the table is shown: by a fault of the gallery, which `tests.test_gallery` diagnoses, or by a test."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.gallery import FAULTS
from bnlab.doctor import CAUSES
from bnlab.doctor.codes import read_explanations

TESTS = Path(__file__).parent

SHOWN = {
    # code and kind of a row, and the test that shows it; of several with a code that the gallery has, the later ones
    ("BN112", "averages"): "test_rows.py: test_averages_of_a_single_training_batch_are_told",
    ("BN104", "averages"): "test_before.py: test_before_tells_what_has_changed",
    ("BN505", "images"): "test_general_rows.py: test_images_that_are_not_finite_are_no_fault_of_the_network",
    ("BN202", "batches"): "test_repair.py: test_nothing_is_written_where_something_else_is_at_fault_unless_forced",
    ("BN203", "batches"): "test_rows.py: test_what_each_batch_alone_brings_back_is_their_size_where_they_are_alike",
    ("BN403", "mode"): "test_general_rows.py: test_the_one_layer_whose_mode_costs_is_named",
    ("BN502", "batches"): "test_general_rows.py: test_padding_that_counts_is_told",
    ("BN501", "batches"): "test_general_rows.py: test_an_answer_that_depends_on_its_company_is_told",
    ("BN504", "labels"): "test_general_rows.py: test_labels_that_are_numbered_otherwise_are_told_with_their_numbers",
    ("BN209", "images"): "test_general_rows.py: test_inputs_of_another_range_than_in_training_are_told",
    ("BN503", "network"): "test_general_rows.py: test_the_module_that_first_gives_nan_is_named",
}


def test_each_row_is_shown_by_the_gallery_or_by_a_test() -> None:
    gallery = {fault.code for fault in FAULTS.values()}
    seen: Counter[str] = Counter()
    for cause in CAUSES:
        is_first = not seen[cause.code]
        seen[cause.code] += 1
        is_in_gallery = cause.code in gallery and is_first
        assert is_in_gallery or (cause.code, cause.kind) in SHOWN, f"nothing shows {cause.code}, {cause.title}"


@pytest.mark.parametrize("row", SHOWN)
def test_what_shows_a_row_is_there(row: tuple[str, str]) -> None:
    assert row in {(cause.code, cause.kind) for cause in CAUSES}
    file, _, name = SHOWN[row].partition(": ")
    text = (TESTS / file).read_text(encoding="utf-8")
    assert row[0] in text
    assert name in {node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}


def test_each_code_is_explained_once() -> None:
    explanations = read_explanations()
    assert explanations.keys() == {cause.code for cause in CAUSES}
    for cause in CAUSES:
        assert cause.meaning in explanations[cause.code]
        assert cause.remedy in explanations[cause.code]


def test_a_row_leaves_something_that_can_be_found() -> None:
    """One without undo, averages, trace or sign can be named by what nothing else explains alone."""
    for cause in CAUSES:
        finds = [cause.undo, cause.left, cause.trace, cause.sign]
        names = {find.__name__ for find in finds} - {"find_nothing"}
        assert names or cause.decides == "last", cause.code
