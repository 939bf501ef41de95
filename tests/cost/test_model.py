"""Costs agree with the sizes of the structure, for one count vector and for many."""

import gc
import weakref

import numpy as np
import pytest

from channelwise.cost import cost_model, macs, params
from channelwise.errors import InvalidArgumentError
from channelwise.structure import MacTerm, Size, Structure
from tests.handmade import chain

COUNTS = {"net.0.conv": 5, "net.1.conv": 7, "net.2.conv": 2}


def test_macs_are_the_sum_over_terms_of_the_product_of_kept_sizes():
    assert macs(chain([8, 16, 4]), COUNTS) == 900 * (5 * 3 + 7 * 5 + 2 * 7) + 10 * 2


def test_params_count_slim_shapes_without_buffers():
    assert params(chain([8, 16, 4]), COUNTS) == 9 * (5 * 3 + 7 * 5 + 2 * 7) + (5 + 7 + 2) + 10 * 2


def test_slots_per_channel_multiply_the_width():
    structure = chain([8, 16, 4], multiplicity=2)
    assert params(structure, COUNTS) == 9 * (10 * 3 + 14 * 10 + 4 * 14) + 2 * (5 + 7 + 2) + 10 * 4


def test_a_batch_of_counts_costs_what_its_rows_cost():
    model = cost_model(chain([8, 16, 4]))
    batch = np.random.default_rng(0).integers(1, 5, (6, 3))
    assert model.macs(batch).tolist() == [model.macs(row) for row in batch]


def test_terms_without_prunable_sizes_and_with_several_groups_per_size_are_counted():
    size = Size(3, (("net.0.conv", 1), ("net.1.conv", 0.5)))
    terms = (MacTerm("a", "mm", 2, (Size(5), Size(7))), MacTerm("b", "mm", 1, (size,)), MacTerm("c", "mm", 11, ()))
    base = chain([8, 16])
    structure = Structure(base.tensors, base.tensor_sizes, base.groups, (), terms)
    assert macs(structure, {"net.0.conv": 4, "net.1.conv": 6}) == 2 * 5 * 7 + (3 + 4 + 3) + 11


def test_large_models_are_counted_without_rounding():
    structure = chain([4096, 4096, 4095])
    expected = 900 * (4096 * 3 + 4096 * 4096 + 4096 * 4095) + 10 * 4095
    assert macs(structure, structure.full()) == expected


@pytest.mark.parametrize(
    ("counts", "text"), [({"net.0.conv": 5}, "net.1.conv"), (COUNTS | {"net.9.conv": 1}, "net.9.conv")]
)
def test_counts_that_do_not_fit_the_groups_are_refused_by_name(counts, text):
    with pytest.raises(InvalidArgumentError, match=text):
        macs(chain([8, 16, 4]), counts)


def test_an_unknown_cost_is_refused():
    with pytest.raises(InvalidArgumentError, match="'flops'"):
        cost_model(chain([8])).cost("flops")


def test_a_structure_is_compiled_once_and_forgotten_with_it():
    structure = chain([8])
    compiled = cost_model(structure)
    assert cost_model(structure) is compiled
    forgotten = weakref.ref(compiled)
    del structure, compiled
    gc.collect()
    assert forgotten() is None
