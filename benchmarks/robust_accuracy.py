"""Is a published robust accuracy as low as the literature's protocol finds it, and can a reader check it?

    python benchmarks/robust_accuracy.py [--samples 500] [--eps 0.1] [--norm Linf] [--out FOLDER]

The whole command line, on the adversarially trained digits network: ``robustx evaluate`` with AutoAttack ``standard``
as its only attack, then ``robustx verify``. In the same process, on the same samples, the AutoAttack that torchattacks
makes of the paper's step counts (its own takes a tenth of them): APGD on the cross-entropy and APGD towards nine
rivals, FAB towards nine rivals, 100 steps each, and 5,000 queries of Square. 450 samples are all test digits, the
others training ones. Times are processor time of one thread, and say little on their own.
"""

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from robustx import zoo
from robustx.cli import main as robustx
from robustx.zoo import Data

sys.path.insert(0, str(Path(__file__).parent))  # where the command line finds digits() by name


def digits(count: int = 500) -> Data:
    """So many digits: all test ones first, then training ones."""
    test, train = (zoo.data("digits", split=split) for split in ("test", "train"))
    x, y, index = (torch.cat([getattr(d, name) for d in (test, train)])[:count] for name in ("x", "y", "index"))
    return Data("digits", x, y, index, test.classes, kind="image")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--eps", type=float, default=0.1)
    parser.add_argument("--norm", default="Linf", choices=("Linf", "L2"))
    parser.add_argument("--out", help="the run folder (default: a new one that is removed)")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = asked.out or f"{folder}/run"
        start = time.process_time()
        told = ["--attacks", "autoattack", "--norm", asked.norm, "--eps", str(asked.eps), "--explain", "4"]
        data = ["--model", "digits-robust", "--data", f"robust_accuracy:digits?count={asked.samples}"]
        assert robustx(["evaluate", *data, *told, "--out", out]) == 0
        ours = time.process_time() - start
        model = json.loads(Path(out, "summary.json").read_text())["models"][0]
        robust, verdict = model["robust"][0]["count"], model["soundness"]["verdict"]
        print(f"verify: exit code {robustx(['verify', out])}")
    start = time.process_time()
    peer, standing = theirs(asked.samples, asked.norm, asked.eps)
    peers = time.process_time() - start
    print(
        f"clean {model['clean']['count']}, robust: robustx {robust} ({verdict}), torchattacks {peer} of {asked.samples}"
    )
    print(
        f"processor time: robustx {ours:.0f} s with report and checks, torchattacks {peers:.0f} s; it left {standing}"
    )


def theirs(samples: int, norm: str, eps: float) -> tuple[int, str]:
    """How many samples torchattacks leaves standing, after each of the four attacks on what the others left."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        from torchattacks import APGD, APGDT, FAB, Square

    model, data = zoo.model("digits-robust"), digits(samples)
    right = model(data.x).argmax(1) == data.y
    x, y = data.x[right], data.y[right]
    told = []
    for attack in (
        APGD(model, norm, eps, steps=100, loss="ce"),
        APGDT(model, norm, eps, steps=100, n_classes=10),
        FAB(model, norm, eps, steps=100, multi_targeted=True, n_classes=10),
        Square(model, norm, eps, n_queries=5000),
    ):
        held = model(attack(x, y)).argmax(1) == y
        x, y = x[held], y[held]
        told.append(f"{len(y)} after {type(attack).__name__}")
    return len(y), ", ".join(told)


if __name__ == "__main__":
    main()
