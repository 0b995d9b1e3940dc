"""What can be asked: the commands, their arguments and their help. Imports nothing that is slow."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from .. import __version__

INTRO = """\
How little must change before a PyTorch model changes its mind, and why?

commands:
  evaluate        How robust is a model? Accuracy against budget, minimal distances, a report.
  resume          Goes on with a run that was interrupted.
  attack          Which inputs fool a model? Looks near the given samples and writes what it finds.
  counterfactual  What would have to be different for another answer? The fewest features.
  explain         What does a model's answer rest on? Shares it out over the parts of the input.
  report          Makes the report of a run again.
  compare         Which model of which run is more robust, and how sure is that?
  verify          Does a run come out as it is stored? Computes its numbers again.
  merge           Makes one run of several folders of the same run.
  export          Hands the tables of a run to other programs.
  ls              Which runs are there, and how far are they?
  doctor          Is this installation sound?

start here:
  robustx evaluate digits
  robustx attack digits --limit 32 --out adversarial
  robustx counterfactual breast-cancer --row 3
  robustx explain digits --row 3
"""

CODES = """\
exit codes: 0 done; 1 the answer is no; 2 bad arguments or input; 3 failed unexpectedly; 130 interrupted
"""

MORE = """\
robustx COMMAND --help explains a command, with examples. Results go to standard output, the rest to standard error.
"""

FORMS = ("html", "md", "json")

TABLES = ("result", "sample", "block", "samples")

FILES = ("csv", "jsonl", "parquet")

DISTANCES = ("l0+l1", "l0+l2", "l0+linf", "l1", "l2", "linf")

NAMES = """\
NAME, MODEL and DATA are one of
  digits, digits-robust, breast-cancer  embedded; each model brings its data
  package.module:name                   yours, installed or in the working directory: a torch.nn.Module; (x, y)
                                        tensors, a Dataset, a DataLoader; or what returns one
                                        (called as package.module:name?key=value&key=value)
  torchvision:resnet18@IMAGENET1K_V1    torchvision's models and data sets by their own names
  timm:resnet18  hf:owner/name  robustbench:Linf/cifar10/Wong2020Fast   models of these, where installed
  folder:PATH  FILE.npz  FILE.safetensors  FILE.csv            data of yours: a folder for each class; x and y
"""


MANNER = ("command", "out", "json", "quiet", "threads", "debug", "require", "shard", "workers")
"""Arguments that do not change what is computed (a specification counts by what it says)."""


class Help(argparse.RawDescriptionHelpFormatter):
    """Text as it stands here, with room for long options."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26)


class Parser(argparse.ArgumentParser):
    """An argument parser that says what is wrong in one sentence."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=Help, allow_abbrev=False, add_help=False, **options)

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; see {self.prog} --help", file=sys.stderr)
        sys.exit(2)


def build() -> Parser:
    """The parser of the whole command line."""
    parser = Parser(prog="robustx", description=INTRO, epilog=MORE + CODES, usage="robustx COMMAND [options]")
    parser.add_argument("-h", "--help", action="help", help="show this and exit")
    parser.add_argument(
        "--version", action="version", version=f"robustx {__version__}", help="show the version and exit"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, help=argparse.SUPPRESS)
    for add in (
        _evaluate,
        _resume,
        _attack,
        _counterfactual,
        _explain,
        _report,
        _compare,
        _verify,
        _merge,
        _export,
        _ls,
        _doctor,
    ):
        add(commands)
    return parser


def _evaluate(commands: Any) -> None:
    p = _command(
        commands,
        "evaluate",
        "How robust is a model? Accuracy against budget, minimal distances, explained samples, a report.",
        """\
examples:
  robustx evaluate digits                                both digits models, under a minute on two cores
  robustx evaluate breast-cancer --norm L2 --eps 0.2,0.5,1
  robustx evaluate digits-robust --require 0.5@0.1       for scripts: exit code 1 if it is less robust
  robustx evaluate --model mine:net --data mine:test --weights net.safetensors --eps 2/255,4/255,8/255
  robustx evaluate digits-robust --attacks autoattack --eps 0.1 --certify crown
  robustx evaluate spec.toml --shard 0/4 --out runs/mine    one of four processes on one folder

NAME stands for all embedded models that are made for these data; SPEC is a .toml or .json file that says everything,
and options win over it. A run is a folder: the report, the numbers, and every adversarial example. Interrupted or
killed, it keeps each block of samples that was finished, and the same command goes on from there. Exit code 1 says
that a model is less robust than --require, or that its evaluation is INVALID.
""",
        "[NAME|SPEC]",
    )
    _subject(p, several=True)
    q = p.add_argument_group("question")
    q.add_argument("--norm", metavar="NORM", help="Linf, L2, L1 or L0; how change is measured (default: Linf)")
    q.add_argument(
        "--eps",
        type=numbers,
        metavar="E[,E...]",
        help="budgets of the security curve, in input units (default: what suits the norm and inputs in [0, 1])",
    )
    q.add_argument("--steps", type=count, metavar="N", help="gradient steps of each attack (default: 10)")
    q.add_argument(
        "--attacks",
        type=words,
        metavar="A[,A...]",
        help="the attacks, in this order, such as autoattack or pgd,fmn (default: quick ones, see the docs)",
    )
    q.add_argument(
        "--certify", type=words, metavar="B[,B...]", help="lower bounds too: crown, ibp, smoothing (default: none)"
    )
    q.add_argument(
        "--corruptions",
        type=words,
        metavar="C[,C...]",
        help="common corruptions too, by name, or all (default: none)",
    )
    q.add_argument("--severities", type=wholes, metavar="S[,S...]", help="of these, from 1 to 5 (default: all)")
    q.add_argument("--no-soundness", action="store_true", help="do not check the evaluation itself")
    q.add_argument("--block-size", type=count, metavar="N", help="samples that are worked on together (default: 64)")
    q.add_argument("--explain", type=whole, metavar="N", help="samples that the report explains (default: 6)")
    q.add_argument("--seed", type=int, metavar="N", help="of all random draws (default: 0)")
    q.add_argument(
        "--require",
        type=requirement,
        metavar="A[@E]",
        help="least robust accuracy, 0 to 1, at budget E (default: the largest); below it, exit code 1",
    )
    q.add_argument("--out", metavar="DIR", help="the run folder (default: in runs/, one for each question)")
    _shard(q)
    _manner(p)


def _resume(commands: Any) -> None:
    p = _command(
        commands,
        "resume",
        "Go on with a run that was interrupted, killed, or shared out; ends in the same bytes as one that was not.",
        """\
examples:
  robustx resume runs/digits
  robustx resume runs/mine --shard 1/4

Everything is read from the run folder. Another version of torch, or models or data that have changed meanwhile, are
refused with what differs.
""",
        "RUN",
    )
    p.add_argument("run", metavar="RUN", help="the run folder that robustx evaluate wrote")
    p.add_argument("--device", metavar="DEVICE", default="cpu", help="cpu, cuda, cuda:1, mps (default: cpu)")
    _shard(p)
    _manner(p)


def _attack(commands: Any) -> None:
    p = _command(
        commands,
        "attack",
        "Which inputs fool a model? Looks for them near the given samples and writes them.",
        """\
examples:
  robustx attack digits --attack pgd --norm Linf --eps 0.1 --limit 32 --out adversarial
  robustx attack digits --attack fmn --norm L2 --limit 8            the nearest that is found
  robustx attack digits --target 3 --limit 8                        only the answer 3 counts
  robustx attack --model mine:net --data mine:test --eps 8/255 --set targets=9 --set restarts=5

--out receives adversarial.safetensors (x, adversarial, label, index), samples.csv (one line a sample, distances in
all norms), attack.json (settings and totals) and, for images, adversarial.png. Exit code 1 says that no sample
was fooled.

attacks within a budget:
  fgsm r-fgsm ffgsm bim pgd apgd-ce apgd-dlr apgd-t mi-fgsm ni-fgsm si-ni-fgsm di-fgsm ti-fgsm vmi-fgsm vni-fgsm
  square autoattack
attacks that look for the nearest point:
  deepfool superdeepfool fmn ddn alma trust-region pdpgd pdgd cw ead fab fab-t bisection portfolio; in L0 also
  sigma-zero vfga jsma sparsefool
""",
    )
    _subject(p)
    q = p.add_argument_group("question")
    q.add_argument("--attack", default="pgd", metavar="NAME", help="a name from below (default: pgd)")
    q.add_argument("--norm", help="Linf, L2, L1 or L0; how change is measured (default: Linf, if the attack knows it)")
    q.add_argument(
        "--eps",
        type=number,
        metavar="E",
        help="most change, in input units, such as 0.1 or 8/255 (default: Linf 0.1, L2 1, L1 4, L0 4 elements; for "
        "the nearest point as far as the bounds reach)",
    )
    q.add_argument("--target", metavar="CLASS", help="the class to be reached, by name or number (default: any other)")
    q.add_argument("--loss", choices=("ce", "margin", "dlr", "pma"), help="what is climbed (default: the attack's own)")
    q.add_argument("--steps", type=count, metavar="N", help="gradient steps (default: 40)")
    q.add_argument(
        "--restarts", type=count, metavar="N", help="attempts, the later ones from random points (default: 1)"
    )
    q.add_argument(
        "--set",
        dest="options",
        action="append",
        default=[],
        type=setting,
        metavar="NAME=VALUE",
        help="any further argument of the attack's class, such as targets=9 or rounds=16",
    )
    q.add_argument("--seed", type=int, default=0, help="of all random draws (default: 0)")
    q.add_argument("--batch-size", type=count, default=64, metavar="N", help="samples at a time (default: 64)")
    q.add_argument("--out", metavar="DIR", help="write what was found to this folder")
    _manner(p)


def _counterfactual(commands: Any) -> None:
    p = _command(
        commands,
        "counterfactual",
        "What would have to be different for another answer? The fewest features, and what each contributes.",
        """\
examples:
  robustx counterfactual breast-cancer --row 3                      in the table's own units
  robustx counterfactual breast-cancer --row 3 --keep 'worst area' --keep 'worst radius'
  robustx counterfactual breast-cancer --row 3 --count 3            and two more, each with another set of columns
  robustx counterfactual digits --row 3 --target 8 --out picture    superpixels of an image
  robustx counterfactual digits --row 3 --min-prob 0.9 --distance l2
  robustx counterfactual --model mine:net --data mine:test --row 0 --time-limit 10

A feature is a column of a table or a superpixel of an image. --out receives counterfactual.safetensors,
counterfactual.json, changes.csv and counterfactual.png. Exit code 1 says that nothing was found; what is told then is
whether that is proved, how near the search came and what stood at the end of what is allowed.

strategies (those of the second line are others' proposals, and may take values from the data at hand):
  auto guided exact proximal masked-pgd fmn ddn alma pdpgd sigma-zero fab-t
  nearest-unlike nice nice-proximity growing-spheres sedc dice wachter
""",
    )
    _subject(p)
    q = p.add_argument_group("question")
    _row(q)
    q.add_argument("--target", metavar="CLASS", help="the class to be reached, by name or number (default: any other)")
    q.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="FEATURE",
        help="a column or superpixel that must not change (repeatable)",
    )
    q.add_argument(
        "--replace",
        type=replacement,
        metavar="VALUE",
        help="features give way to this as a whole: blur (images), or a number (default: they move inside the bounds)",
    )
    q.add_argument(
        "--margin", type=positive, default=1e-4, metavar="M", help="by how many logits at least (default: 1e-4)"
    )
    q.add_argument(
        "--min-prob", type=probability, metavar="P", help="the probability that the class is to reach (default: any)"
    )
    q.add_argument("--max-changes", type=count, metavar="N", help="no more features than this may change")
    q.add_argument(
        "--count", type=count, default=1, metavar="N", help="how many, none with all changes of another (default: 1)"
    )
    q.add_argument(
        "--distance",
        choices=DISTANCES,
        help="what is as small as can be: with l0+ first the number of features, then the norm (default: l0+l1)",
    )
    q.add_argument("--strategy", metavar="NAME", help="how it is looked for, see below (default: auto)")
    q.add_argument("--time-limit", type=positive, metavar="S", help="seconds; what was found by then is told")
    q.add_argument("--segments", type=count, default=16, metavar="N", help="about how many superpixels (default: 16)")
    q.add_argument("--out", metavar="DIR", help="write the counterfactual and a picture to this folder")
    _manner(p)


def _explain(commands: Any) -> None:
    p = _command(
        commands,
        "explain",
        "What does a model's answer rest on? Shares one output out over the parts of the input.",
        """\
examples:
  robustx explain digits --row 3                                    integrated gradients, ranked pixels
  robustx explain digits --row 3 --method feature-ablation --segments 16 --out picture
  robustx explain breast-cancer --row 3 --baseline mean             ranked columns, in the table's units
  robustx explain --model mine:net --data mine:test --row 0 --target 2

What is explained is the model's raw output for one class. --out receives attribution.safetensors, attribution.csv
(one line a part) and attribution.png.
""",
    )
    _subject(p)
    q = p.add_argument_group("question")
    _row(q)
    q.add_argument(
        "--method",
        default="integrated-gradients",
        metavar="NAME",
        help="integrated-gradients, saliency or feature-ablation (default: integrated-gradients)",
    )
    q.add_argument("--target", metavar="CLASS", help="the class explained, by name or number (default: the answer)")
    q.add_argument(
        "--baseline",
        type=baseline,
        default=0.0,
        metavar="VALUE",
        help="what to compare with, in input units: a number, or mean for the mean of the data (default: 0)",
    )
    q.add_argument("--steps", type=count, metavar="N", help="points on the path of integrated gradients (default: 50)")
    q.add_argument(
        "--segments", type=count, metavar="N", help="superpixels that feature ablation takes away (default: each pixel)"
    )
    q.add_argument("--top", type=count, default=10, metavar="N", help="how many parts are listed (default: 10)")
    q.add_argument("--out", metavar="DIR", help="write numbers and a picture to this folder")
    _manner(p)


def _report(commands: Any) -> None:
    p = _command(
        commands,
        "report",
        "Make the report of a run again, from what the run folder holds.",
        """\
examples:
  robustx report runs/digits
  robustx report runs/digits --format md --out - | gh pr comment --body-file -

As html it is one page that needs no network; as md it is the same in short; as json, all the numbers. Nothing is
evaluated, so an unfinished run has one too.
""",
        "RUN",
    )
    p.add_argument("run", metavar="RUN", help="the run folder that robustx evaluate wrote")
    p.add_argument("--format", choices=FORMS, default="html", help=f"{', '.join(FORMS)} (default: html)")
    p.add_argument(
        "--out", metavar="FILE", help="where to (default: report.html, .md or .json in RUN); - is standard output"
    )
    _manner(p, computes=False)


def _compare(commands: Any) -> None:
    p = _command(
        commands,
        "compare",
        "Which model of which run is more robust, and how sure is that? On the samples that all runs share.",
        """\
examples:
  robustx compare runs/digits                     the models of one run with one another
  robustx compare runs/before runs/after --json

Accuracy at each budget is compared by the exact McNemar test, distances by Wilcoxon's signed-rank test; p-values are
corrected for the number of pairs. Notes say what the runs do not share, such as samples, budgets or attacks.
""",
        "RUN [RUN...]",
    )
    p.add_argument("runs", nargs="+", metavar="RUN", help="run folders that robustx evaluate wrote")
    _manner(p, computes=False)


def _verify(commands: Any) -> None:
    p = _command(
        commands,
        "verify",
        "Does a run come out as it is stored? Computes its numbers again, from the stored adversarial examples.",
        """\
examples:
  robustx verify runs/digits
  robustx verify runs/digits --again              also that attacks failed where they say so; takes as long as the run
  robustx verify runs/digits --json | jq .differences

Files against their digests, samples and models against the run's, each example against the bounds, its budget, its
distance and the model's answer now, lower bounds and corruptions made again, the summary against the rows. Exit code 1
says that something differs.
""",
        "RUN",
    )
    p.add_argument("run", metavar="RUN", help="the run folder that robustx evaluate wrote")
    p.add_argument("--device", metavar="DEVICE", default="cpu", help="cpu, cuda, cuda:1, mps (default: cpu)")
    p.add_argument("--again", action="store_true", help="make attacks, soundness and explanations again too")
    _manner(p)


def _merge(commands: Any) -> None:
    p = _command(
        commands,
        "merge",
        "Make one run of several folders of the same run, such as shards from machines that share no disk.",
        """\
examples:
  robustx merge runs/part-0 runs/part-1 --out runs/whole

Nothing is computed: once all blocks are there, robustx resume completes the whole, which needs the models. Another run
is refused with what differs; a block that is in two folders must be the same in both. Interrupted, the same command
goes on.
""",
        "RUN RUN... --out DIR",
    )
    p.add_argument("runs", nargs="+", metavar="RUN", help="run folders that robustx evaluate wrote")
    p.add_argument("--out", metavar="DIR", required=True, help="the folder of the whole run; new, or of the same run")
    _manner(p, computes=False)


def _export(commands: Any) -> None:
    p = _command(
        commands,
        "export",
        "Hand the tables of a run to other programs.",
        """\
examples:
  robustx export runs/digits --to parquet
  robustx export runs/digits --to csv --table samples --out samples.csv
  robustx export runs/digits --to jsonl --out - | head -n 3

Tables: result (a row for each model, attack, sample and budget), sample, block (a row for each step, with its file and
seconds), samples (what became of each sample). Missing is an empty field in csv and null in jsonl and parquet; an
infinite number is inf in csv, and null in jsonl, where JSON has none.
""",
        "RUN --to FORMAT",
    )
    p.add_argument("run", metavar="RUN", help="the run folder that robustx evaluate wrote")
    p.add_argument("--to", choices=FILES, required=True, help=f"{', '.join(FILES)}")
    p.add_argument("--table", choices=TABLES, default="result", help=f"{', '.join(TABLES)} (default: result)")
    p.add_argument("--out", metavar="FILE", help="where to (default: TABLE.FORMAT in RUN); - is standard output")
    _manner(p, computes=False)


def _ls(commands: Any) -> None:
    p = _command(
        commands,
        "ls",
        "Which runs are there, how far are they, and what came out?",
        """\
examples:
  robustx ls
  robustx ls results --json

Robust accuracy is that of each model at the run's middle budget; of an unfinished run, on the samples that are done.
""",
        "[DIR]",
    )
    p.add_argument("dir", nargs="?", default="runs", metavar="DIR", help="where to look, at any depth (default: runs)")
    _manner(p, computes=False)


def _doctor(commands: Any) -> None:
    p = _command(
        commands,
        "doctor",
        "Is this installation sound? Versions, devices, threads, and what to do about what is not.",
        """\
examples:
  robustx doctor
  robustx doctor --json

Exit code 1 says that something must be mended.
""",
        "",
    )
    _manner(p, computes=False)


def _command(commands: Any, name: str, purpose: str, examples: str, takes: str = "[NAME]") -> Parser:
    parser: Parser = commands.add_parser(
        name, prog=f"robustx {name}", usage=f"robustx {name} {takes} [options]".replace("  ", " ")
    )
    parser.description, parser.epilog = purpose, f"{examples}\n{CODES}"
    return parser


def _subject(p: Parser, several: bool = False) -> None:
    group = p.add_argument_group("model and data", NAMES)
    group.add_argument("name", nargs="?", metavar="NAME", help="a model that brings its data, such as digits")
    group.add_argument(
        "--model", action="append", default=[], metavar="MODEL", help="the model" + (" (repeatable)" if several else "")
    )
    group.add_argument("--data", metavar="DATA", help="the labelled samples (default: those that NAME brings)")
    group.add_argument(
        "--weights",
        metavar="FILE",
        help="the model's weights: a .safetensors file, or a .pt file with a plain state_dict",
    )
    group.add_argument("--split", metavar="SPLIT", help="which part of the data, train or test (default: test)")
    group.add_argument("--root", metavar="DIR", help="the folder of a torchvision data set")
    group.add_argument(
        "--bounds",
        nargs=2,
        type=number,
        metavar=("LOW", "HIGH"),
        help="least and greatest value of an input (default: 0 1)",
    )
    group.add_argument("--limit", type=count, metavar="N", help="at most N samples (default: all)")
    group.add_argument("--device", metavar="DEVICE", default="cpu", help="cpu, cuda, cuda:1, mps (default: cpu)")


def _row(p: Any) -> None:
    p.add_argument("--row", type=whole, default=0, metavar="N", help="which sample of the data, from 0 (default: 0)")


def _manner(p: Parser, computes: bool = True) -> None:
    group = p.add_argument_group("in general")
    group.add_argument("--json", action="store_true", help="the result as JSON on standard output")
    if computes:
        group.add_argument("--quiet", action="store_true", help="no progress bars (without a terminal there are none)")
        group.add_argument(
            "--threads", type=count, metavar="N", help="CPU threads (default: 1 for small models, else torch's choice)"
        )
    group.add_argument("--debug", action="store_true", help="show where an error came from")
    group.add_argument("-h", "--help", action="help", help="show this and exit")


def _shard(p: Any) -> None:
    either = p.add_mutually_exclusive_group()
    either.add_argument("--workers", type=count, metavar="N", help="share the run out to N processes of this machine")
    either.add_argument(
        "--shard",
        type=share,
        metavar="I/N",
        help="do the I-th of N shares of the run, from 0; several processes may work on one folder (default: all; "
        "under torchrun, what it says)",
    )


def number(text: str) -> float:
    """A number, or a fraction such as 8/255."""
    above, over, below = text.partition("/")
    try:
        return float(above) / float(below) if over else float(above)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"expected a number such as 0.1 or 8/255, got {text!r}") from None


def numbers(text: str) -> list[float]:
    """Numbers, separated by commas."""
    return [number(part) for part in text.split(",")]


def whole(text: str) -> int:
    """A whole number from 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, got {text!r}")
    return int(text)


def count(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return int(text)


def words(text: str) -> tuple[str, ...]:
    """Names, separated by commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def wholes(text: str) -> tuple[int, ...]:
    """Whole numbers, separated by commas."""
    return tuple(whole(part.strip()) for part in text.split(","))


def share(text: str) -> tuple[int, int]:
    """``i/n``, with i from 0 below n."""
    i, _, n = text.partition("/")
    if not (i.isdecimal() and n.isdecimal() and int(i) < int(n)):
        raise argparse.ArgumentTypeError(f"expected I/N with I from 0 below N, such as 0/4, got {text!r}")
    return int(i), int(n)


def requirement(text: str) -> tuple[float, float | None]:
    """An accuracy from 0 to 1, and the budget at which it is required."""
    least, at, eps = text.partition("@")
    value = number(least)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected an accuracy from 0 to 1 such as 0.5 or 0.5@0.1, got {text!r}")
    return value, number(eps) if at else None


def positive(text: str) -> float:
    """A number above 0."""
    value = number(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def probability(text: str) -> float:
    """A number between 0 and 1."""
    value = number(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a probability between 0 and 1, got {text!r}")
    return value


def baseline(text: str) -> float | str:
    """A number, or the word ``mean``."""
    return text if text == "mean" else number(text)


def replacement(text: str) -> float | str:
    """A number, or the word ``blur``."""
    return text if text == "blur" else number(text)


def setting(text: str) -> tuple[str, Any]:
    """``name=value`` with a Python literal, or else a string, as value."""
    import ast

    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE such as rounds=16, got {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of a command line."""
    return build().parse_args(argv)
