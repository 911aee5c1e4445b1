"""Units of length: their names, symbols and sizes, and how else people write them."""

from __future__ import annotations

from spwnet.errors import OutputError, did_you_mean

# By the name that OME gives it: its symbol, as OME-XML wants it, metres, and what else is written, in lower case.
_UNITS = {
    "meter": ("m", 1.0, "metre meters metres"),
    "centimeter": ("cm", 1e-2, "centimetre centimeters centimetres"),
    "millimeter": ("mm", 1e-3, "millimetre millimeters millimetres"),
    # ImageJ may write µ as its code.
    "micrometer": ("µm", 1e-6, "um μm \\u00b5m micron microns micrometre micrometers micrometres"),
    "nanometer": ("nm", 1e-9, "nanometre nanometers nanometres"),
    "angstrom": ("Å", 1e-10, "å a ang angstroms ångström ångströms"),
    "picometer": ("pm", 1e-12, "picometre picometers picometres"),
    "inch": ("in", 0.0254, "inches"),
}

METRES = {name: metres for name, (_, metres, _) in _UNITS.items()}
"""Units of length as OME spells them, in metres."""

_SYMBOLS = {name: symbol for name, (symbol, _, _) in _UNITS.items()}
_SPELLINGS = {word: name for name, (symbol, _, others) in _UNITS.items() for word in (name, symbol, *others.split())}
# Megametre and petametre: the case of their prefixes tells them from millimetre and picometre.
_LARGE = ("Mm", "Pm")
_NO_UNIT = ("", "pixel", "pixels", "px", "voxel", "voxels")


def standard_unit(text: str | None) -> str | None:
    """Spell a unit of length as OME does: "um" and "micrometre" are "micrometer"; None for any other word."""
    word = (text or "").strip()
    return None if word in _LARGE else _SPELLINGS.get(word.lower())


def unit_symbol(unit: str | None) -> str | None:
    """Return the symbol of a unit of length: "um" and "micrometre" are "µm".

    Parameters
    ----------
    unit : str or None
        Symbol or name; none, "pixel" and "voxel" mean that nothing is known.

    Returns
    -------
    {"m", "cm", "mm", "µm", "nm", "Å", "pm", "in"} or None

    Raises
    ------
    OutputError
        If it is another unit.
    """
    if unit is None or unit.strip().lower() in _NO_UNIT:
        return None
    name = standard_unit(unit)
    if name is None:
        raise OutputError(
            f"expected a unit of length, one of {', '.join(_SYMBOLS.values())}, but got '{unit}'; convert the spacing "
            "to one" + did_you_mean(unit.strip(), _SPELLINGS)
        )
    return _SYMBOLS[name]


def plain_unit(symbol: str | None) -> str:
    """Return a symbol of a unit in ASCII, for files and fonts that hold nothing else; "pixel" if there is none."""
    return {"µm": "um", "Å": "angstrom", None: "pixel"}.get(symbol) or str(symbol)
