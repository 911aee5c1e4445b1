from __future__ import annotations

import sys

from benchmarks import cheetah, published, regions

BENCHMARKS = {
    "regions": regions.main,
    "published": published.main,
    "cheetah": cheetah.main,
}


def main() -> int:
    names = sys.argv[1:] or list(BENCHMARKS)
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        print(f"unknown benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
        return 2
    for name in names:
        print(f"## {name}\n")
        BENCHMARKS[name]()
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
