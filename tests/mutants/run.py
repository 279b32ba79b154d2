"""``python tests/mutants/run.py [NUMBER …]``: run the catalogue and print which mutants were killed.

With ``--table`` the table of docs/privacy-bugs.md is printed instead, and nothing is run.
"""

from __future__ import annotations

import sys
import time

from bugs import table
from catalogue import MUTANTS
from harness import TESTS_FAILED, exit_code, warm_up

VERDICTS = {TESTS_FAILED: "killed", 0: "SURVIVED"}


def main(numbers: list[int]) -> int:
    """Number of mutants that survived; tests that fail without a mutant count as well."""
    chosen = [mutant for mutant in MUTANTS if not numbers or mutant.number in numbers]
    warm_up()
    started, survived = time.monotonic(), 0
    tests = sorted({test for mutant in chosen for test in mutant.tests})
    if exit_code(None, tests) != 0:
        print("the tests fail without any mutant; mend them first")
        return 1
    for mutant in chosen:
        begun, code = time.monotonic(), exit_code(mutant, mutant.tests)
        survived += code != TESTS_FAILED
        verdict, seconds = VERDICTS.get(code, f"ERROR {code}"), time.monotonic() - begun
        print(f"{mutant.number:>2}  {verdict:<9} {seconds:4.1f} s  {mutant.bug}", flush=True)
    print(f"{len(chosen) - survived} of {len(chosen)} mutants killed in {time.monotonic() - started:.0f} s")
    return survived


if __name__ == "__main__":
    if "--table" in sys.argv:
        print(table(MUTANTS), end="")
        sys.exit(0)
    sys.exit(main([int(argument) for argument in sys.argv[1:]]))
