"""The characters, fonts and size of glyphs."""

import string

SIZE = 32
"""Pixels of a side."""

CLASSES = {
    10: string.digits,
    36: string.digits + string.ascii_uppercase,
    62: string.digits + string.ascii_uppercase + string.ascii_lowercase,
}

_DEJAVU = tuple(
    f"DejaVu{family}{style}"
    for family, slanted in (("Sans", "Oblique"), ("SansMono", "Oblique"), ("Serif", "Italic"))
    for style in ("", "-Bold", f"-{slanted}", f"-Bold{slanted}")
)
# Of Computer Modern, cmmi10 (old-style figures), cmex10 and cmsy10 (symbols) do not show all the characters.
_STIX_CM = (
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
    *("cmr10", "cmb10", "cmti10", "cmss10", "cmtt10"),
)
FONTS = {"dejavu": _DEJAVU, "stix_cm": _STIX_CM, "all": _DEJAVU + _STIX_CM}
