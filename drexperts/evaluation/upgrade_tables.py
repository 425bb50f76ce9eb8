"""A comparison of two sets of scores as tables of text, which screen and page share."""

from drexperts.evaluation.flips import Flips
from drexperts.evaluation.sides import Side
from drexperts.evaluation.upgrade_result import Distribution, ResultComparison
from drexperts.runtime.manifest import ScoreScale
from drexperts.runtime.quoting import printable
from drexperts.ui.markdown import Table


def sides_table(found: ResultComparison) -> Table:
    """What was compared."""
    sides = [_about(found.a), _about(found.b)]
    names = ("scores of", "fingerprint", "scale", "crops per side", "images", "without a score")
    rows = list(zip(names, *sides, strict=True))
    if found.a.videos or found.b.videos:
        rows.append(("videos, left out", str(found.a.videos), str(found.b.videos)))
    return Table(("", "A", "B"), rows)


def agreement_table(found: ResultComparison) -> Table:
    """How many images there are on which side, and how far their scores agree."""
    limit = f"{found.threshold:g}"
    share = found.moved / found.images
    rows = [
        ("images with a score in both", f"{found.images}"),
        ("images only in A, only in B", f"{found.only_a}, {found.only_b}"),
        ("errors only in A, only in B, in both", _failed(found)),
        ("rank correlation (SRCC)", correlation(found.srcc)),
        ("linear correlation (PLCC)", correlation(found.plcc)),
        ("pairs in the opposite order", _flips(found.flips)),
        (f"of pairs more than {limit} apart in A", _flips(found.clear_flips)),
        (f"images that moved by more than {limit}", f"{found.moved} ({share:.2%})"),
        ("largest change", shown(found.largest, found.a.scale)),
    ]
    return Table((), rows)


def distribution_table(found: ResultComparison) -> Table:
    """The distributions of both sides, and of the changes."""
    scale = found.a.scale
    columns = [
        [shown(value, scale) for value in found.scores_a],
        [shown(value, scale) for value in found.scores_b],
        [change(value, scale) for value in found.changes],
    ]
    names = ("mean", "smallest", "5 % are below", "median", "95 % are below", "largest")
    assert len(names) == len(Distribution._fields)
    return Table(("", "A", "B", "B - A"), list(zip(names, *columns, strict=True)))


def moved_table(found: ResultComparison) -> Table:
    """The images that moved most."""
    scale = found.a.scale
    rows = [
        (
            printable(each.source),
            shown(each.a, scale),
            shown(each.b, scale),
            change(each.change, scale),
        )
        for each in found.most_moved
    ]
    return Table(("image", "A", "B", "B - A"), rows)


def failed_table(found: ResultComparison) -> Table:
    """Images that have a score in A and an error in B."""
    rows = [(printable(each.source), printable(each.error)) for each in found.newly_failed]
    return Table(("image", "error in B"), rows)


def correlation(value: float) -> str:
    """A correlation; "-" where it is not defined."""
    return "-" if value != value else f"{value:.5f}"


def shown(value: float, scale: ScoreScale) -> str:
    """A score, or the size of a change."""
    return f"{value:.{scale.decimals}f}"


def change(value: float, scale: ScoreScale) -> str:
    """A change with its sign."""
    return f"{value:+.{scale.decimals}f}"


def _about(side: Side) -> tuple[str, ...]:
    scale, counts = str(side.scale), (str(side.images), str(side.failed))
    return printable(side.name), printable(side.fingerprint), scale, side.grid, *counts


def _failed(found: ResultComparison) -> str:
    return f"{found.failed_a}, {found.failed_b}, {found.failed_both}"


def _flips(flips: Flips) -> str:
    share = f" ({flips.flips / flips.pairs:.3%})" if flips.pairs else ""
    return f"{flips.flips} of {flips.pairs}{share}"
