from __future__ import annotations

import pytest

from spwnet.errors import OutputError
from spwnet.units import METRES, plain_unit, standard_unit, unit_symbol


@pytest.mark.parametrize(
    ("written", "symbol"),
    [
        (None, None),
        ("", None),
        ("Pixel", None),
        ("um", "µm"),
        ("\u03bcm", "µm"),
        ("\u00b5m", "µm"),
        ("\\u00b5m", "µm"),
        ("Micrometers", "µm"),
        (" microns", "µm"),
        ("nanometre", "nm"),
        ("mm", "mm"),
        ("\u00c5", "Å"),
        ("\u212b", "Å"),
        ("Angstroms", "Å"),
        ("ångströms", "Å"),
        ("A", "Å"),
    ],
)
def test_symbol(written, symbol):
    assert unit_symbol(written) == symbol


def test_near_misses_are_helped():
    with pytest.raises(OutputError, match=r"Did you mean 'micrometer'\?"):
        unit_symbol("mikrometer")


@pytest.mark.parametrize("name", METRES)
def test_every_way_to_write_a_unit_leads_to_its_name(name):
    symbol = unit_symbol(name)
    for written in (name, symbol, plain_unit(symbol), f"{name}s" if name != "inch" else "inches", name.upper()):
        assert standard_unit(written) == name
        assert unit_symbol(written) == symbol


def test_other_words_are_no_unit():
    assert standard_unit(None) is None
    assert standard_unit("pixel") is None
    assert standard_unit("furlong") is None
    for large in ("Mm", " Pm"):
        assert standard_unit(large) is None
        with pytest.raises(OutputError, match="expected a unit of length"):
            unit_symbol(large)
    assert plain_unit(None) == "pixel"
