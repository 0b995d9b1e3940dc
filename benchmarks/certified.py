"""How much of the way to the nearest adversarial example can be proved to be safe?

    python benchmarks/certified.py [--samples 20]

For the embedded models, and for two ReLU networks on digits whose least distances are known (mixed-integer programmes,
in L1 and Linf): the median radius that intervals and CROWN certify, the exact distance where it is known, and the
distance at which the attack FMN finds another class, of samples that the model gets right; rows forward and backward
for each, and processor seconds. Certified <= exact and certified <= attacked is checked for each sample. Last,
randomised smoothing (of the model under noise, which is another one) with 10 000 draws.
"""

import argparse
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.append(str(Path(__file__).parents[1] / "tests"))

import torch
from exact_relu import stored
from torch import Tensor, nn

from robustx import zoo
from robustx.attacks import make
from robustx.evaluation import Certified, certify

torch.set_num_threads(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20)
    n = parser.parse_args().samples
    print(f"torch {torch.__version__}, one thread; medians over samples that the model gets right")
    print(f"{'model':18}{'norm':6}{'method':12}{'median':>9}{'forward':>10}{'backward':>10}{'seconds':>9}")
    for name in ("plain", "robust"):
        kept = stored(name)
        x, y = torch.from_numpy(kept.x[:n]), torch.from_numpy(kept.y[:n])
        for norm in ("Linf", "L1"):
            compare(f"ReLU {name}", kept.model, x, y, norm, torch.from_numpy(kept.bound[norm][:n]))
    for name in ("breast-cancer", "digits", "digits-robust"):
        model, data = zoo.load(name, limit=n)
        right = model(data.x).argmax(1) == data.y
        for norm in ("Linf", "L2"):
            compare(name, model, data.x[right], data.y[right], norm, None)


def compare(name: str, model: nn.Module, x: Tensor, y: Tensor, norm: str, true: Tensor | None) -> None:
    told = {}
    for method in ("ibp", "crown"):
        start = time.process_time()
        told[method] = certify(model, x, y, method, norm=norm, bounds=(0, 1))
        line(name, norm, method, told[method], time.process_time() - start)
    if true is not None:
        print(f"{name:18}{norm:6}{'exact':12}{float(true.median()):9.4f}")
    start = time.process_time()
    attacked = make("fmn", model, norm=norm, bounds=(0, 1), steps=100).run(x, y)
    found = Certified(attacked.distance.double(), y, attacked.forwards, attacked.backwards)
    line(name, norm, "attacked", found, time.process_time() - start)
    above = found.radius if true is None else torch.minimum(true, found.radius)
    for lower in told.values():
        assert (lower.radius <= above + 1e-9).all(), "a bound is no bound"
    if norm == "L2":
        start = time.process_time()
        smoothed = certify(model, x, method="smoothing", sigma=0.25, n=10_000)
        smoothed.radius[smoothed.prediction != y] = 0
        line(name, norm, "smoothing", smoothed, time.process_time() - start)


def line(name: str, norm: str, method: str, told: Certified, seconds: float) -> None:
    up, down = (float(t.double().mean()) for t in (told.forwards, told.backwards))
    median, each = float(told.radius.median()), seconds / len(told.radius)
    print(f"{name:18}{norm:6}{method:12}{median:9.4f}{up:10.0f}{down:10.0f}{each:9.3f}", flush=True)


if __name__ == "__main__":
    main()
