"""Groups of a report page: levels or methods with their colours, which are selected together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Group", "level_groups"]

# Colours of low to high levels, which stay apart from the page in light and dark.
_LIGHT = ("#6b2fa0", "#3b5bb5", "#16798a", "#2b8a4b", "#7d7a12")
_DARK = ("#c79bf2", "#92b4fa", "#58ccd8", "#6fdc94", "#e3dc62")
_PLAIN = ("#6b7280", "#a9b0bb")


@dataclass(frozen=True)
class Group:
    """What is selected together on the whole page: a level, or a method.

    Args:
        name: Its name.
        light: Its colour on white.
        dark: Its colour on black.
        details: Sentences that are shown when it is selected.
    """

    name: str
    light: str
    dark: str
    details: Sequence[str] = ()


def level_groups(
    names: Sequence[str], shares: Sequence[float | None], details: Sequence[Sequence[str]] = ()
) -> list[Group]:
    """Give levels their colours.

    Args:
        names: Their names.
        shares: Where each lies between the lowest level, 0, and the highest, 1; None is plain
            training, which is grey.
        details: Sentences about each.

    Returns:
        A group for each.
    """
    groups = []
    for index, (name, share) in enumerate(zip(names, shares, strict=True)):
        light, dark = _PLAIN
        if share is not None:
            light, dark = _mix(_LIGHT, share), _mix(_DARK, share)
        groups.append(Group(name, light, dark, details[index] if details else ()))
    return groups


def _mix(colours: Sequence[str], share: float) -> str:
    """Give the colour at a share, from 0 to 1, of the way through a list of colours."""
    position = min(max(share, 0.0), 1.0) * (len(colours) - 1)
    index = min(int(position), len(colours) - 2)
    parts = []
    for channel in (1, 3, 5):
        a, b = (int(colours[i][channel : channel + 2], 16) for i in (index, index + 1))
        parts.append(f"{round(a + (b - a) * (position - index)):02x}")
    return f"#{''.join(parts)}"
