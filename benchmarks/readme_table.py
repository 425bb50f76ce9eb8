"""Write the README's measured sections from the committed receipts, so that they cannot drift.

    python benchmarks/readme_table.py [--check]

With --check nothing is written: exit status 1 where the README differs, with what differs.
"""

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

# PYTHONSAFEPATH, which this repository asks for, leaves a script's own folder out.
from drexperts.benchmarks import receipt_tables
from drexperts.benchmarks.receipt_arithmetic import MALFORMED
from drexperts.benchmarks.receipt_tables import Part, Report, markdown
from drexperts.benchmarks.receipts import FOLDER, Finding, check, fresh, require_this_checkout
from drexperts.runtime.errors import UserError

README = Path(__file__).parent.parent / "README.md"
PRECISION = """
What `drx export --precision auto` tries, each held against float32, and what it takes
(`python benchmarks/bench_precision.py`, and the same with `--checkpoint FILE --weights demo`):
"""
DRIFT = """
How far scores move where another library decodes or resizes, against what the runtime itself makes
of the same files (`python benchmarks/drift.py BUNDLE --weights demo`):
"""
GPU = """
On a GPU, by `bash benchmarks/gpu_suite.sh OUT`:
"""
NO_GPU = """
No measurement on a GPU is committed yet: `bash benchmarks/gpu_suite.sh OUT` makes one.

"""


class Section(NamedTuple):
    """What stands between <!-- name --> and <!-- end of name -->.

    receipts: a pattern of their files' names
    parts: of one receipt
    intro: before them, where the text around the markers does not say what they are
    without: what is said where there is no receipt
    """

    receipts: str
    parts: Callable[[Report], Iterator[Part]]
    intro: str = ""
    without: str = ""


SECTIONS = {
    "engines": Section("engines-*.json", receipt_tables.engines),
    "measured": Section("full-size-*.json", receipt_tables.bench),
    "head": Section("kernels-cpu.json", receipt_tables.kernels),
    "training": Section("training-*.json", receipt_tables.training),
    "precision": Section("precision*.json", receipt_tables.precision, PRECISION),
    "drift": Section("drift*.json", receipt_tables.drift, DRIFT),
    "gpu": Section("*-gpu.json", receipt_tables.gpu, GPU, NO_GPU),
}


def written(readme: str, folder: Path = FOLDER) -> str:
    """The README with every section as its receipts say.

    Raises:
        UserError: a section's markers are not in the README, or a receipt cannot be read, lacks
            what its tables show, or has no place in its section.
    """
    for name in SECTIONS:
        marked = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- end of {name} -->)", re.DOTALL)
        content = section(name, folder)
        readme, found = marked.subn(lambda _, content=content: content, readme)
        if found != 1:
            raise UserError(f"the README needs one <!-- {name} --> with its <!-- end of {name} -->")
    return readme


def section(name: str, folder: Path) -> str:
    """What its receipts say, all of them."""
    pattern, parts, intro, without = SECTIONS[name]
    made = []
    for path in sorted(folder.glob(pattern)):
        finding = check(path)
        if not finding.report:
            raise UserError(f"{path.name}: {finding.faults[0]}")
        try:
            made.append(markdown([*caveats(finding), *parts(finding.report)]))
        except (UserError, *MALFORMED) as error:
            why = "; ".join([*finding.faults, f"{type(error).__name__}: {error}"])
            raise UserError(f"{path.name} cannot be shown: {why}") from error
    return "".join([intro, *made, "\n"]) if made else without


def caveats(finding: Finding) -> Iterator[str]:
    """What a reader must know before the numbers: an older source, gates that failed."""
    report = finding.report
    if not fresh(report):
        yield f"*Measured on an older source: {report['source']['commit'] or 'no commit known'}.*"
    for name, why in report.get("known_negative", {}).items():
        yield f"*Known negative result, {name}: {why}*"
    if finding.faults:
        failed = [name for name, passed in report["gates"].items() if not passed]
        gates = f" Failed: {', '.join(failed)}." if failed else ""
        yield f"**These numbers do not hold: see `python benchmarks/receipts.py`.{gates}**"


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="only say what differs")
    only_check = parser.parse_args(given).check
    before = README.read_text()
    try:
        require_this_checkout()
        after = written(before)
    except UserError as error:
        sys.exit(str(error))
    if not only_check:
        README.write_text(after)
        return 0
    here, made = before.splitlines(keepends=True), after.splitlines(keepends=True)
    sys.stdout.writelines(difflib.unified_diff(here, made, "README.md", "from the receipts"))
    if before != after:
        print("the README is not what its receipts say: run python benchmarks/readme_table.py")
    return int(before != after)


if __name__ == "__main__":
    sys.exit(main())
