"""Look the locked versions up among known vulnerabilities; fail for one that is found, and say what was not looked up.

A machine without the service cannot tell whether there are any. That does not fail, so that work offline goes on, but
it is said in words that cannot be taken for success.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
GROUPS = (("lock.txt", "embedded.txt"), ("torch.txt",))  # those with hashes, and those without


def audit(names: Sequence[str]) -> list[dict[str, Any]]:
    """What pip-audit says about each package of some files, or nothing where it cannot reach the service."""
    files = [word for name in names for word in ("--requirement", str(FOLDER / name))]
    command = [sys.executable, "-m", "pip_audit", *files, "--no-deps", "--disable-pip", "--format", "json"]
    done = subprocess.run(
        [*command, "--progress-spinner", "off", "--timeout", "20"], capture_output=True, text=True, check=False
    )
    try:
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        found = [{"name": name, "skip_reason": last} for name in names]
    return found


def main() -> int:
    """Exit status: 1 for a known vulnerability, else 0."""
    packages = [package for names in GROUPS for package in audit(names)]
    skipped = [package for package in packages if "skip_reason" in package]
    if skipped:
        names = ", ".join(package["name"] for package in skipped[:5]) + (", ..." if len(skipped) > 5 else "")
        reason = skipped[0]["skip_reason"][:200]
        print(f"NOT AUDITED: {len(skipped)} of {len(packages)} ({names}): {reason}", file=sys.stderr)
    bad = [(package, problem) for package in packages for problem in package.get("vulns", [])]
    for package, problem in bad:
        fixed = ", ".join(problem.get("fix_versions", [])) or "no version yet"
        print(f"{package['name']} {package['version']}: {problem['id']}, fixed in {fixed}", file=sys.stderr)
    if not skipped and not bad:
        print(f"audited: {len(packages)} locked packages, no known vulnerability")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
