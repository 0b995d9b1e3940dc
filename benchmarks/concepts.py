"""TCAV in robustx and in Captum: the same scores, in how much of the time and of the memory?

    python benchmarks/concepts.py [--rounds 5] [--examples 40] [--random 10]

A convolutional network with random weights, random images of 32 pixels a side, one concept told apart from each of some
random ones at two layers, from nothing: examples are looked at, vectors learned, slopes taken. Both have the same
classifier, :class:`FastCAV` or each its default. Each row tells how far the slopes are apart (as a share of the
largest), the processor's time as a share of Captum's in the same round (median and quartiles), and the most memory that
tensors took at once beside the model and the data.
"""

import argparse
import os
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import captum.concept as theirs
import torch
from contest import apart, peak, shares, spread
from torch import Tensor, nn
from torch.utils.data import DataLoader

from robustx import attribution as ours


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--examples", type=int, default=40, help="of each concept, and inputs")
    parser.add_argument("--random", type=int, default=10, help="random concepts")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")  # Captum tells that its classifier keeps all data in memory, each time
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, 1, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(2048, 10)),
    ).eval()
    pictures = torch.rand(asked.random + 1, asked.examples, 3, 32, 32)
    pictures[0, :, :, 12:16] = 1
    inputs, layers = torch.rand(asked.examples, 3, 32, 32), ["3", "5"]

    def scores(library: Any, classifier: Callable[[], Any], on_disk: bool = True) -> list[Tensor]:
        of = [library.Concept(i, f"{i}", DataLoader(x, 16)) for i, x in enumerate(pictures)]
        with tempfile.TemporaryDirectory() as folder:
            tcav = library.TCAV(model, layers, classifier=classifier(), save_path=folder if on_disk else None)
            found = tcav.interpret(inputs, [[of[0], r] for r in of[1:]], 1)
        return [found[f"0-{i}"][layer]["magnitude"] for i in range(1, len(of)) for layer in layers]

    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {os.cpu_count()} cores")
    print(f"{asked.random} sets of two concepts, {asked.examples} examples each, at two layers")
    print(f"{'':32}{'difference':>11}{'time / Captum':>24}{'peak MiB':>22}")
    for name, our_classifier, their_classifier in (
        ("FastCAV", ours.FastCAV, ours.FastCAV),
        ("the default", ours.DefaultClassifier, theirs._utils.classifier.DefaultClassifier),
    ):
        for where, on_disk in (("in memory", False), ("on disk", True)):

            def run(own: Any = our_classifier, on_disk: bool = on_disk) -> list[Tensor]:
                return scores(ours, own, on_disk)

            def other(own: Any = their_classifier) -> list[Tensor]:
                return scores(theirs, own)

            far = f"{apart(run(), other()):.1e}" if our_classifier is their_classifier else "draws"
            memory = f"{peak(run):.3g} against {peak(other):.3g}"
            print(
                f"{name + ', ' + where:32}{far:>11}{spread(shares(run, other, asked.rounds)):>24}{memory:>22}",
                flush=True,
            )


if __name__ == "__main__":
    main()
