"""Writes the prompt banks of the embedded model: `python -m organisms.banks`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from organisms.banks import BANKS_DIR, banks, render


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=BANKS_DIR, help="folder of the banks")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, prompts in banks().items():
        (args.out / f"{name}.jsonl").write_text(render(prompts), encoding="utf-8")
        print(f"{name}: {len(prompts)} prompts")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
