from __future__ import annotations

import sys

from benchmarks import bimodal, cheetah, endurance, fuzz, mutation, published, regions, speed, torture, video, volumes

SPEED = {
    "regions": regions.main,
    "stages": speed.stages,
    "growth": speed.growth,
    "floor": speed.floor,
    "published": published.main,
    "step": published.step,
    "cheetah": cheetah.main,
    "video": video.main,
    "bimodal": bimodal.main,
    "volumes": volumes.main,
}
PROOF = {
    "torture": torture.main,
    "fuzz": fuzz.main,
    "endurance": endurance.main,
    "mutation": mutation.main,
}
"""Of what does not show in seconds; for hours, and by name alone."""
BENCHMARKS = SPEED | PROOF


def main() -> int:
    names = sys.argv[1:] or list(SPEED)
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
