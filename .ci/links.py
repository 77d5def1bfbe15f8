"""Check that what the Markdown files of the repository link to in it is there."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def main() -> int:
    """Return 1 and name the broken links, if there are any."""
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True)
    broken = []
    for name in listed.stdout.splitlines():
        page = ROOT / name
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        broken += [
            f"{name}: {target}"
            for target in LINK.findall(text)
            if "://" not in target and not (page.parent / target).exists()
        ]
    print("\n".join(broken) or "all links lead somewhere")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
