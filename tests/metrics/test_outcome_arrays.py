"""Confusion counts under weights: kinds of documents, and documents that stand elsewhere."""

import numpy as np
import pytest

from medmllm_plugins.metrics.outcome_arrays import Distinct, Tables


@pytest.fixture
def case():
    generator = np.random.default_rng(0)
    truth, answer, other = (
        generator.integers(4, size=200),
        generator.integers(5, size=200),
        generator.integers(4, size=200),
    )
    return truth, answer, other, generator.integers(0, 5, size=(200, 7)).astype(np.int32)


def counted(truth, answer, weights):
    counts = np.zeros((weights.shape[1], 4, 5))
    for document in range(len(truth)):
        counts[:, truth[document], answer[document]] += weights[document]
    return counts


def test_counts_are_sums_of_weights(case):
    truth, answer, _, weights = case
    np.testing.assert_array_equal(Tables(truth, answer, 4)(weights), counted(truth, answer, weights))


def test_kinds_of_documents_give_the_tables_of_documents(case):
    truth, answer, other, weights = case
    kinds = Distinct(truth, answer, other)
    alike = kinds(weights)
    assert len(alike) == len(set(zip(truth, answer, other, strict=True)))
    for column in (answer, other):
        tables = Tables(kinds.of(truth), kinds.of(column), 4)(alike)
        np.testing.assert_array_equal(tables, counted(truth, column, weights))


def test_rows_say_where_the_weights_stand(case):
    truth, answer, _, weights = case
    rows = np.random.default_rng(1).permutation(200)[:60]
    tables = Tables(truth[:60], answer[:60], 4, rows=rows)(weights)
    np.testing.assert_array_equal(tables, counted(truth[:60], answer[:60], weights[rows]))
