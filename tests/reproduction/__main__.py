"""Takes what `lmlab reproduce` recorded below a folder into `recorded/`, and writes the README's table from it:
`python -m tests.reproduction [FOLDER]`."""

import json
import sys
from pathlib import Path

from tests.benchmarks.table import replaced

from lmlab.reproduction import RECORD, read_record, recipes
from lmlab.reproduction.table import markdown

ROOT = Path(__file__).parents[2]
RECORDED = Path(__file__).parent / "recorded"
MARKS = ("<!-- reproduced: written by `python -m tests.reproduction` -->", "<!-- end of reproduced -->")


def record(folder: Path) -> list[str]:
    """Take each record, without the place where its run lay; returns the names."""
    taken = []
    for path in sorted(folder.rglob(RECORD)):
        told = {key: value for key, value in read_record(path).items() if key != "run_dir"}
        (RECORDED / f"{path.parent.name}.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        taken.append(path.parent.name)
    return taken


def render() -> str:
    return markdown([read_record(path) for path in sorted(RECORDED.glob("*.json"))], recipes())


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "outputs/reproduced"
    print(f"recorded: {', '.join(record(folder)) or 'nothing new'}")
    readme = ROOT / "README.md"
    readme.write_text(replaced(readme.read_text(encoding="utf-8"), render(), MARKS), encoding="utf-8")


if __name__ == "__main__":
    main()
