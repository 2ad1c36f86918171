"""Every compact operator does what operators must do, and what its own publication says."""

import pytest
from netcarve.model.operators.conformance import OperatorConformance
from netcarve.model.operators.site import known_operators, operator

for _name in known_operators():
    _class = type(f"Test_{_name.replace('-', '_')}", (OperatorConformance,), {"operator": _name})
    globals()[_class.__name__] = _class


def test_an_unknown_operator_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown operator 'svdd'; known are basis, "):
        operator("svdd")
