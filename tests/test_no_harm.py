"""A process that pruned a model runs all others as a process does that never heard of the backend.

`tests.no_harm` is what is run: the same models and calls, once after a pruned model and once without.
"""

import json

import pytest

from tests.no_harm import CASES
from tests.process import output_of

CODE = "import sys; from tests.no_harm import main; main(sys.argv[1:])"


def numbers(*arguments):
    return json.loads(output_of(CODE, *arguments).partition("RESULT ")[2])


@pytest.fixture(scope="module")
def stock():
    return numbers()


@pytest.fixture(scope="module")
def beside_a_pruned_model():
    return numbers("sharp")


@pytest.mark.parametrize("name", CASES)
def test_stock_models_give_stock_numbers(name, stock, beside_a_pruned_model):
    # What fails in stock code would compare equal and prove nothing.
    assert not isinstance(stock[name], str), stock[name]
    assert beside_a_pruned_model[name] == stock[name]
